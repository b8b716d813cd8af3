"""Which blocks of a pack's attention hold a query and a key of one window: the ones that a kernel has to compute.

Ids are runs (a window's tokens lie together, windows in the order of their slots, video before text), so the range from
a block's lowest to its highest id is, but for the block where video turns into text, exactly what it holds. Where it is
more, a block too many is computed; ids still mask inside of blocks.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_ABOVE_ALL = 2**30
NO_QUERY_FILL, NO_KEY_FILL = -3, -4
"""Ids of the tokens that fill up a last block; none of a caller's own."""


def block_pairs(q_ids_M: jax.Array, kv_ids_S: jax.Array, block_q: int, block_kv: int) -> jax.Array:
    """bool [M / block_q, S / block_kv]: the pairs of blocks whose ranges of ids meet. Negative ids belong to nothing.

    Args:
        q_ids_M, kv_ids_S: int32; numpy or jax, also traced. Lengths are multiples of their blocks.
    """
    q_low, q_high = _range(q_ids_M, block_q)
    kv_low, kv_high = _range(kv_ids_S, block_kv)
    return (q_low[:, None] <= kv_high[None, :]) & (kv_low[None, :] <= q_high[:, None])


def _range(ids: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    ids = ids.reshape(-1, block)
    return jnp.where(ids >= 0, ids, _ABOVE_ALL).min(axis=1), jnp.where(ids >= 0, ids, -1).max(axis=1)


def fit_block(length: int, block: int, unit: int) -> int:
    """The block, of at most `block` and in multiples of `unit`, that cuts `length` into as many parts with the least to
    fill up.
    """
    parts = -(-length // block)
    return min(block, round_up(-(-length // parts), unit))


def round_up(length: int, multiple: int) -> int:
    """The nearest multiple that is not below `length`."""
    return -(-length // multiple) * multiple


def fill(x: jax.Array, axis: int, length: int, value: float) -> jax.Array:
    """`x` with `value` behind it, up to `length` along `axis`."""
    missing = length - x.shape[axis]
    widths = [(0, missing if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value) if missing else x


def each(function: Callable[..., Any], arrays: tuple[jax.Array, ...]) -> Any:
    """`function` on every row of the batch, one after the other: what one row skips another computes."""
    if arrays[0].shape[0] == 1:
        return jax.tree.map(lambda x: x[None], function(*(x[0] for x in arrays)))
    return jax.lax.map(lambda row: function(*row), arrays)
