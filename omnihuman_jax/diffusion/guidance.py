"""Classifier-free guidance on text and audio, together [S] or apart [D], with a scale that anneals over the steps [S].

The unconditional branch has the empty prompt and no audio and keeps everything else: reference, motion frames and pose
are not guided [S, S2]. All branches run as one batch of two or three times the rows, so that the sampler has one model
call a step. The config, which branches there are, and the scale of each step: `serving/guidance_omnihuman.py`.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from omnihuman_jax.conditions import Condition
from omnihuman_jax.serving.guidance_omnihuman import Branch, empty_prompts
from omnihuman_jax.typing import Array, PackedBatch


def guided(velocities: Sequence[Array], scales: Array) -> jax.Array:
    """v_n + sum_i scales[i] (v_i - v_(i+1)) of the conditional velocity v_0 and those of the n branches.

    With one branch: a scale of 1 is the conditional velocity, 0 the unconditional. scales: [n].
    """
    result = jnp.asarray(velocities[-1])
    for i in range(len(velocities) - 1):
        result = result + scales[i] * (jnp.asarray(velocities[i]) - jnp.asarray(velocities[i + 1]))
    return result


def branch_batch(
    batch: PackedBatch[np.ndarray], branch: Branch, empty_text_SE: np.ndarray, empty_pooled_E: np.ndarray
) -> PackedBatch[np.ndarray]:
    """`batch` without what the branch drops, absent as the contract means it; all else is kept, on the host.

    Args:
        empty_text_SE: token embeddings of the empty prompt from the run's own text encoder, [S0, E].
        empty_pooled_E: its pooled embedding, [E] or [0] for an encoder without one.

    Raises:
        ValueError: the empty prompt of every window does not fit the batch's text rows.
    """
    active = batch.active_BG4.copy()
    active[..., Condition.AUDIO] &= not branch.drops_audio
    active[..., Condition.TEXT] &= not branch.drops_text
    changed = dataclasses.replace(batch, active_BG4=active)
    if not branch.drops_text:
        return changed
    rows = batch.text_BSE.shape[1]
    text, ids, pooled = empty_prompts(batch.segment_ids_BL, active.shape[1], rows, empty_text_SE, empty_pooled_E)
    return dataclasses.replace(changed, text_BSE=text, text_segment_ids_BS=ids, pooled_BGE=pooled)


def stack_branches(branches: Sequence[PackedBatch[np.ndarray]]) -> PackedBatch[np.ndarray]:
    """One batch of all rows: those of the conditional batch, then the same of each branch."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *branches)
