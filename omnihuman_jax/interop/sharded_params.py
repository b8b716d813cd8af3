"""Parameters that are filled slice by slice, each leaf already in its sharding: a model larger than the host streams
in.

A stacked leaf of a large model is several GB. It is made once, empty, on the devices that keep it, and each layer is
written into it in place (a donated update) in blocks of a few MB; every process reads only the slices that its own
devices hold. What lies on the host beside the arrays is one block a device.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from omnihuman_jax.interop.key_table import Part, Path, nest
from omnihuman_jax.typing import Params

BLOCK_BYTES = 1 << 22
"""On the host at a time, over all of its devices."""


class ShardedParams:
    """The leaves of `abstract` (by path: ShapeDtypeStructs with NamedShardings), being filled."""

    def __init__(self, abstract: Mapping[Path, jax.ShapeDtypeStruct], block_bytes: int = BLOCK_BYTES):
        self._abstract, self._block_bytes = dict(abstract), block_bytes
        self._leaves: dict[Path, jax.Array] = {}
        self._filled: dict[Path, int] = dict.fromkeys(self._abstract, 0)

    def write(self, part: Part, values: np.ndarray) -> None:
        """One layer of a leaf (or all of an unstacked one), from values of any float dtype, which are widened as they
        go in.

        `values` is only touched where this process' devices need it, in runs along `part.reordering.rows_dim`.
        """
        leaf = self._abstract[part.path]
        stacked = part.layer is not None
        local = _sharding(leaf).shard_shape(leaf.shape)[int(stacked) :]
        dim, devices = part.reordering.rows_dim, len(_sharding(leaf).addressable_devices)
        rows = local[dim] if local else 1
        row_bytes = math.prod(local) // max(1, rows) * leaf.dtype.itemsize * devices
        step = _largest_divisor(rows, max(1, self._block_bytes // max(1, row_bytes)))
        for begin in range(0, rows, step):
            shape = (*local[:dim], step, *local[dim + 1 :]) if local else ()
            self._write_block(part, values, local, shape, begin)
        self._filled[part.path] += 1

    def write_arrays(self, layer: int | None, arrays: Mapping[Path, jax.Array]) -> None:
        """One layer of several leaves (or all of unstacked ones), from arrays that are sharded as the leaves are."""
        for path, array in arrays.items():
            if layer is None:
                self._leaves[path] = array
            else:
                start = np.zeros(array.ndim, np.int32)
                start[0] = layer
                self._update(path, array, start)
            self._filled[path] += 1

    def params(self) -> Params:
        """The parameters, complete; AssertionError if a slice of a leaf was never written, or twice."""
        for path, leaf in self._abstract.items():
            slices = leaf.shape[0] if "blocks" in "/".join(path) else 1
            assert self._filled[path] == slices, (
                f"{'/'.join(path)}: {self._filled[path]} of {slices} slices were written"
            )
        return nest(self._leaves)

    def _write_block(
        self, part: Part, values: np.ndarray, local: tuple[int, ...], shape: tuple[int, ...], begin: int
    ) -> None:
        """Rows `begin` and on of every shard of the layer: as one array whose shards are blocks of `shape`."""
        leaf, dim = self._abstract[part.path], part.reordering.rows_dim
        sharding, layers = _sharding(leaf), () if part.layer is None else (1,)
        whole = leaf.shape[len(layers) :]
        ways = [size // own for size, own in zip(whole, local, strict=True)]

        def read(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            source = []
            for d, (at, size) in enumerate(zip(index[len(layers) :], shape, strict=True)):
                first = (at.start or 0) // size * local[d] + (begin if d == dim else 0)
                source.append(slice(first, first + size))
            return np.ascontiguousarray(values[tuple(source)], leaf.dtype).reshape(*layers, *shape)

        blocks = (*layers, *(size * way for size, way in zip(shape, ways, strict=True)))
        block = jax.make_array_from_callback(blocks, sharding, read)
        if block.shape == leaf.shape:
            self._leaves[part.path] = block
            return
        start = np.zeros(len(leaf.shape), np.int32)
        if part.layer is not None:
            start[0] = part.layer
        if shape:
            start[len(layers) + dim] = begin
        self._update(part.path, block, start)

    def _update(self, path: Path, block: jax.Array, start: np.ndarray) -> None:
        leaf = self._abstract[path]
        if path not in self._leaves:
            self._leaves[path] = _zeros(leaf.shape, leaf.dtype, _sharding(leaf))
        update = _updater(leaf.shape, block.shape, leaf.dtype, _sharding(leaf))
        # Waited for: a host that reads faster than its devices write would pile blocks up.
        self._leaves[path] = jax.block_until_ready(update(self._leaves.pop(path), block, start))


def _zeros(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> jax.Array:
    # Compiled ahead and dropped, like what follows: a program that jit keeps takes MBs of the host, and every shape is
    # one.
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding).lower().compile()()


@functools.lru_cache(maxsize=4)
def _updater(leaf: tuple[int, ...], block: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> Any:
    """f(leaf, block, start): every device puts its shard of `block` into its shard of `leaf` at `start`, in place."""

    def update(leaf: jax.Array, block: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(leaf, block, tuple(start))

    mapped = jax.shard_map(
        update,
        mesh=sharding.mesh,
        in_specs=(sharding.spec, sharding.spec, PartitionSpec()),
        out_specs=sharding.spec,
        check_vma=False,
    )
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    shapes = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape in (leaf, block)]
    start = jax.ShapeDtypeStruct((len(leaf),), jnp.int32, sharding=everywhere)
    compiled = jax.jit(mapped, donate_argnums=0).lower(*shapes, start).compile()
    return lambda leaf, block, start: compiled(leaf, block, jax.device_put(start, everywhere))


def _sharding(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    assert isinstance(leaf.sharding, NamedSharding), leaf
    return leaf.sharding


def _largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`."""
    return max(d for d in range(1, min(number, limit) + 1) if number % d == 0)
