"""Fingerprints of arrays that do not depend on where they lie: what was saved on one mesh is verified on any other.

Orbax notices a file that is too short, not one whose bits have changed. A weighted sum modulo 2^32 of an array's bits
is the same however it is split (addition wraps, so its order does not matter), and odd weights make it see any single
flipped bit, and values that changed places. One pass over memory, where the data are, at a save and at a restore only.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from omnihuman_jax import sharding

# Odd, large and unlike one another: one a dimension, so that no index of the whole array is needed (2^32 elements, or a
# gather).
_FACTORS = (2654435761, 2246822519, 3266489917, 668265263, 374761393, 2654435769, 1540483477, 3432918353)
_RUN_ELEMENTS = 1 << 17
_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def weighted_sum(x: jax.Array) -> jax.Array:
    """uint32 scalar of an array of any shape up to 8 dims, of bool or of a dtype of 1, 2 or 4 bytes; for use inside
    jit.
    """
    return _sum_of(x, (0,) * x.ndim)


def _sum_of_block(x: jax.Array, start: Sequence[jax.Array | int]) -> jax.Array:
    """The share of a block that begins at `start` of its array; the shares of all blocks add up to `weighted_sum`.

    A large one is gone through in runs of rows: XLA on CPU multiplies before it adds, and would take several times its
    memory.
    """
    if x.size <= _RUN_ELEMENTS:
        return _sum_of(x, start)
    cut = next(d for d in range(x.ndim) if math.prod(x.shape[d + 1 :]) <= _RUN_ELEMENTS)
    outer, rows, inner = x.shape[:cut], x.shape[cut], x.shape[cut + 1 :]
    run = min(rows, _RUN_ELEMENTS // math.prod(inner))
    runs, rest = divmod(rows, run)
    stacked = x.reshape(math.prod(outer), rows, *inner)

    def part(index: jax.Array, row: jax.Array | int, size: int) -> jax.Array:
        block = lax.dynamic_slice(stacked, (index, row, *(0 for _ in inner)), (1, size, *inner))
        above = [first + at for first, at in zip(start, jnp.unravel_index(index, outer))] if outer else []
        return _sum_of(block.reshape(*(1 for _ in outer), size, *inner), (*above, start[cut] + row, *start[cut + 1 :]))

    total = lax.fori_loop(
        0, math.prod(outer) * runs, lambda i, total: total + part(i // runs, i % runs * run, run), jnp.uint32(0)
    )
    if rest:
        total = lax.fori_loop(0, math.prod(outer), lambda i, total: total + part(i, runs * run, rest), total)
    return total


def _sum_of(x: jax.Array, start: Sequence[jax.Array | int]) -> jax.Array:
    bits = x if x.dtype == jnp.bool_ else lax.bitcast_convert_type(x, _BITS[x.dtype.itemsize])
    weights = jnp.uint32(1)
    for dim, first in enumerate(start):
        at = lax.broadcasted_iota(jnp.uint32, x.shape, dim) + jnp.asarray(first).astype(jnp.uint32)
        weights = weights + at * jnp.uint32(_FACTORS[dim])
    return jnp.sum(bits.astype(jnp.uint32) * (weights | jnp.uint32(1)), dtype=jnp.uint32)


@functools.cache
def _program(places: tuple[Sharding, ...]) -> Any:
    """f(arrays that lie as `places` say) -> uint32 [arrays, devices]: what each device's parts add to the sums; nothing
    is sent.
    """

    def shares(x: jax.Array, place: Sharding) -> jax.Array:
        if place.memory_kind == sharding.HOST_MEMORY:
            place = place.with_memory_kind("device")
            x = jax.device_put(x, place)
        if not isinstance(place, NamedSharding):
            return (_sum_of_block(x, (0,) * x.ndim) if len(place.device_set) == 1 else weighted_sum(x))[None]
        spec = [
            axes if isinstance(axes, tuple) else (axes,) if axes else () for axes in (*place.spec, *[None] * x.ndim)
        ][: x.ndim]
        copies = tuple(axis for axis in place.mesh.axis_names if not any(axis in axes for axes in spec))

        def local(block: jax.Array) -> jax.Array:
            total = _sum_of_block(
                block, [lax.axis_index(axes) * size if axes else 0 for axes, size in zip(spec, block.shape)]
            )
            if copies:  # one of them counts
                total = jnp.where(lax.axis_index(copies) == 0, total, jnp.uint32(0))
            return total[None]

        everyone = PartitionSpec(place.mesh.axis_names)
        return jax.shard_map(local, mesh=place.mesh, in_specs=place.spec, out_specs=everyone, check_vma=False)(x)

    return jax.jit(lambda leaves: jnp.stack([shares(leaf, place) for leaf, place in zip(leaves, places, strict=True)]))


@functools.cache
def _totals(out: NamedSharding | None) -> Any:
    return jax.jit(lambda shares: jnp.concatenate(shares).sum(axis=1, dtype=jnp.uint32), out_shardings=out)


def sums(flat: Mapping[str, jax.Array]) -> dict[str, int]:
    """The fingerprint of every array, by its name; waits for them."""
    groups: dict[Any, list[str]] = {}
    for name, leaf in flat.items():
        place = leaf.sharding
        key = (
            NamedSharding(place.mesh, PartitionSpec())
            if isinstance(place, NamedSharding)
            else frozenset(place.device_set)
        )
        groups.setdefault(key, []).append(name)
    found: dict[str, int] = {}
    for key, names in groups.items():
        # Small ones share a program. Large ones have one a shape, which is compiled once for all that look alike.
        is_small = {
            name: math.prod(flat[name].sharding.shard_shape(flat[name].shape)) <= _RUN_ELEMENTS for name in names
        }
        parts = [[name] for name in names if not is_small[name]]
        if small := [name for name in names if is_small[name]]:
            parts.append(small)
        shares = [
            _program(tuple(flat[name].sharding for name in part))([flat[name] for name in part]) for part in parts
        ]
        totals = _totals(key if isinstance(key, NamedSharding) else None)(shares)
        found |= dict(zip([name for part in parts for name in part], jax.device_get(totals).tolist(), strict=True))
    return {name: found[name] for name in flat}
