"""What a pack's attention costs where blocks between windows are left out: counted from the windows' sizes, as kernels
count.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from omnihuman_jax.attention.block_pairs import block_pairs, fit_block, round_up
from omnihuman_jax.attention.kernel import window_ids


def joined_ids(
    video_lengths: Sequence[int], text_lengths: Sequence[int], latent_tokens: int, text_tokens: int
) -> np.ndarray:
    """int32 [L + S]: the window (from 1; 0 is padding) of each token of a joint sequence, video before text.

    Args:
        video_lengths, text_lengths: tokens of each window in the two streams (a window's reference belongs to its
            video).
        latent_tokens, text_tokens: L and S.
    """
    parts = []
    for lengths, size in ((video_lengths, latent_tokens), (text_lengths, text_tokens)):
        if sum(lengths) > size:
            raise ValueError(f"windows of {sum(lengths)} tokens do not fit {size}")
        ids = np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths)
        parts.append(np.pad(ids, (0, size - len(ids))))
    return np.concatenate(parts)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BlockCount:
    """Pairs of a query and a key, over some sequences: all of them, those in blocks that are computed, those of one
    window.
    """

    all: int
    computed: int
    needed: int

    @property
    def share(self) -> float:
        """Of the attention's FLOPs without skipping."""
        return self.computed / self.all

    @property
    def ideal(self) -> float:
        """The share that blocks of one token would come to."""
        return self.needed / self.all


def count_blocks(ids_BM: np.ndarray, block_q: int, block_kv: int, unit: int = 128) -> BlockCount:
    """What a kernel with these blocks computes of sequences with these `joined_ids`.

    Args:
        ids_BM: int32 [B, M].
        block_q, block_kv: the kernel's; sequences are filled up to whole blocks, and that is computed, or left out,
            too.
        unit: what the kernel rounds a block up to where the sequence is shorter than it.
    """
    length = ids_BM.shape[1]
    block_q, block_kv = (fit_block(length, block, unit) for block in (block_q, block_kv))

    @jax.jit
    @jax.vmap
    def computed(ids):
        q, kv = window_ids(ids)
        pairs = block_pairs(_whole(q, block_q), _whole(kv, block_kv), block_q, block_kv)
        return pairs.sum()

    blocks = int(np.asarray(computed(ids_BM), np.int64).sum())
    sizes = np.stack([np.bincount(row, minlength=int(ids_BM.max()) + 1)[1:] for row in ids_BM])
    return BlockCount(
        all=ids_BM.shape[0] * length * length,
        computed=blocks * block_q * block_kv,
        needed=int(np.square(sizes.astype(np.int64)).sum()),
    )


def _whole(ids: jax.Array, block: int) -> jax.Array:
    return jax.numpy.pad(ids, (0, round_up(ids.size, block) - ids.size), constant_values=-9)
