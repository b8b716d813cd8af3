"""The mesh of an import, and the parameters that the imported model does not bring: made on it, layer by layer."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from omnihuman_jax import sharding
from omnihuman_jax.interop import key_table
from omnihuman_jax.interop.sharded_params import ShardedParams
from omnihuman_jax.models import mmdit

_INIT_BYTES = 1 << 24


def import_mesh(model: mmdit.MMDiTConfig) -> Mesh:
    """All devices; as many as its sizes let share the model's matrices, each part on several devices if that is not
    all.
    """
    count = jax.device_count()
    for ways in (ways for ways in range(count, 0, -1) if count % ways == 0):
        mesh = sharding.create_mesh(sharding.MeshConfig(data=count // ways, fsdp=ways))
        try:
            abstract_leaves(model, mesh)
        except ValueError:
            if ways == 1:
                raise
            continue
        break
    return mesh


def abstract_leaves(model: mmdit.MMDiTConfig, mesh: Mesh) -> dict[key_table.Path, jax.ShapeDtypeStruct]:
    """Shape, dtype and sharding of every parameter, by path."""
    shapes, axes = mmdit.abstract_params(model)
    split = lambda shape, axis: jax.ShapeDtypeStruct(  # noqa: E731
        shape.shape, shape.dtype, sharding=sharding.named_sharding(mesh, axis, shape.shape)
    )
    return key_table.flatten(jax.tree.map(split, shapes, axes))


def make_additions(
    model: mmdit.MMDiTConfig, seed: int, leaves: ShardedParams, mesh: Mesh, groups: Sequence[str]
) -> None:
    """Initialises the parameters of `groups` as a new model has them: those of stacked blocks layer by layer, like all
    else.
    """
    one = dataclasses.replace(model, num_dual_layers=1, num_single_layers=min(1, model.num_single_layers))
    places = {
        path: leaf.sharding
        for path, leaf in abstract_leaves(one, mesh).items()
        if mmdit.condition_group(path) in groups
    }
    stacks = {"dual_blocks": model.num_dual_layers, "single_blocks": model.num_single_layers}
    key = jax.random.key(seed)
    for number, (stack, layers) in enumerate([("", 1), *stacks.items()]):
        own = {path: place for path, place in places.items() if (path[0] if path[0] in stacks else "") == stack}
        for group in _batches(own, key_table.key_table(one).shapes):
            # Compiled ahead and dropped: what jit keeps would stay on the host.
            run = _initialiser(one, group).lower(key).compile()
            for layer in range(layers):
                arrays = run(jax.random.fold_in(jax.random.fold_in(key, number), layer))
                leaves.write_arrays(layer if stack else None, arrays)
                del arrays


def _initialiser(model: mmdit.MMDiTConfig, places: Mapping[key_table.Path, Any]) -> Any:
    """f(key): the freshly initialised parameters at `places`; what is not returned is never computed."""

    def init(key: jax.Array) -> dict[key_table.Path, jax.Array]:
        flat = key_table.flatten(mmdit.init_params(model, key))
        return {path: flat[path] for path in places}

    return jax.jit(init, out_shardings=dict(places))


def _batches(
    places: Mapping[key_table.Path, Any], shapes: Mapping[key_table.Path, tuple[int, ...]]
) -> Iterator[dict[key_table.Path, Any]]:
    """`places`, in parts of at most `_INIT_BYTES` (or one leaf): random numbers take several times what they fill."""
    batch: dict[key_table.Path, Any] = {}
    size = 0
    for path, place in places.items():
        nbytes = 4 * math.prod(shapes[path])
        if batch and size + nbytes > _INIT_BYTES:
            yield batch
            batch, size = {}, 0
        batch[path] = place
        size += nbytes
    if batch:
        yield batch
