"""Fingerprints of arrays that do not depend on where they lie: what was saved on one mesh is recognised on any other.

Orbax notices a file that is too short, not one whose bits have changed. A weighted sum modulo 2^32 of an array's bits is the same
however it is split (addition wraps, so its order does not matter), and odd weights make it see any single flipped bit, and values
that changed places. One pass over memory, where the data are, at a save and at a restore only.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from omnihuman_jax import sharding

# Odd, large and unlike one another: one a dimension, so that no index of the whole array is needed (2^32 elements, or a gather).
_FACTORS = (2654435761, 2246822519, 3266489917, 668265263, 374761393, 2654435769, 1540483477, 3432918353)
_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def weighted_sum(x: jax.Array, *, by_rows: bool = False) -> jax.Array:
    """uint32 scalar of an array of any shape up to 8 dims, of bool or of a dtype of 1, 2 or 4 bytes.

    `by_rows` goes along the first dim in a loop, with the same result: XLA on CPU multiplies the whole array before it adds, and
    for a stack of blocks that would be another several GB.
    """
    if by_rows:
        row = lambda i: _sum_of(lax.dynamic_index_in_dim(x, i, 0, keepdims=False), i.astype(jnp.uint32))  # noqa: E731
        return lax.fori_loop(0, x.shape[0], lambda i, total: total + row(i), jnp.uint32(0))
    return _sum_of(x, None)


def _sum_of(x: jax.Array, row: jax.Array | None) -> jax.Array:
    """The sum of an array, or of a row of one."""
    bits = x if x.dtype == jnp.bool_ else lax.bitcast_convert_type(x, _BITS[x.dtype.itemsize])
    first, weights = 0, jnp.uint32(1)
    if row is not None:
        first, weights = 1, weights + row * jnp.uint32(_FACTORS[0])
    for dim in range(x.ndim):
        weights = weights + lax.broadcasted_iota(jnp.uint32, x.shape, dim) * jnp.uint32(_FACTORS[first + dim])
    return jnp.sum(bits.astype(jnp.uint32) * (weights | jnp.uint32(1)), dtype=jnp.uint32)


def _is_stack(leaf: jax.Array) -> bool:
    """Whether every device holds all of the first dim, and it is one of layers rather than of a matrix."""
    spec = list(leaf.sharding.spec) if isinstance(leaf.sharding, NamedSharding) else []
    return leaf.ndim >= 3 and leaf.shape[0] <= 128 and (not spec or spec[0] is None)


@functools.cache
def _program(out: NamedSharding | None, waiting: tuple[NamedSharding | None, ...], stacks: tuple[bool, ...]) -> Any:
    """`waiting`: for each array that lies in host memory, where it belongs on the devices. `stacks`: summed by rows."""

    def vector(leaves: list[jax.Array]) -> jax.Array:
        here = [leaf if place is None else jax.device_put(leaf, place) for leaf, place in zip(leaves, waiting, strict=True)]
        return jnp.stack([weighted_sum(leaf, by_rows=stack) for leaf, stack in zip(here, stacks, strict=True)])

    return jax.jit(vector, out_shardings=out)


def sums(flat: Mapping[str, jax.Array]) -> dict[str, int]:
    """The fingerprint of every array, by its name; waits for them."""
    groups: dict[Any, list[str]] = {}
    for name, leaf in flat.items():
        place = leaf.sharding
        key = NamedSharding(place.mesh, PartitionSpec()) if isinstance(place, NamedSharding) else frozenset(place.device_set)
        groups.setdefault(key, []).append(name)
    found: dict[str, int] = {}
    for key, names in groups.items():
        places = [flat[name].sharding for name in names]
        waiting = tuple(p.with_memory_kind("device") if p.memory_kind == sharding.HOST_MEMORY else None for p in places)
        stacks = tuple(_is_stack(flat[name]) for name in names)
        program = _program(key if isinstance(key, NamedSharding) else None, waiting, stacks)
        found |= dict(zip(names, jax.device_get(program([flat[name] for name in names])).tolist(), strict=True))
    return {name: found[name] for name in flat}
