"""Which blocks of a pack's attention hold a query and a key of one window: the ones that a kernel has to compute.

Ids are runs (a window's tokens lie together, windows in the order of their slots, video before text), so the range from a
block's lowest to its highest id is, but for the block where video turns into text, exactly what it holds. Where it is more,
a block too many is computed; ids still mask inside of blocks.
"""

import jax
import jax.numpy as jnp

_ABOVE_ALL = 2**30


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
    """`block`, or less where `length` is shorter: the length rounded up to a multiple of `unit`."""
    return min(block, round_up(length, unit))


def round_up(length: int, multiple: int) -> int:
    """The nearest multiple that is not below `length`."""
    return -(-length // multiple) * multiple
