"""Classifier-free guidance on text and audio together, with a scale that anneals over the sampling steps [S].

The unconditional branch has the empty prompt and no audio and keeps everything else: reference, motion frames and pose
are not guided [S, S2]. Both branches run as one batch of twice the rows, so that the sampler has one model call a step.
The config, and the scale of each step: `serving/guidance_omnihuman.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from omnihuman_jax.conditions import Condition
from omnihuman_jax.serving.guidance_omnihuman import empty_prompts
from omnihuman_jax.typing import Array, PackedBatch


def guided(conditional_BLC: Array, unconditional_BLC: Array, scale: Array | float) -> jax.Array:
    """unconditional + scale (conditional - unconditional): scale 1 is the conditional velocity, 0 the unconditional."""
    return jnp.asarray(unconditional_BLC) + scale * (jnp.asarray(conditional_BLC) - jnp.asarray(unconditional_BLC))


def unconditional_batch(
    batch: PackedBatch[np.ndarray], empty_text_SE: np.ndarray, empty_pooled_E: np.ndarray
) -> PackedBatch[np.ndarray]:
    """`batch` with text and audio absent as the contract means it; everything else is kept, on the host.

    Args:
        empty_text_SE: token embeddings of the empty prompt from the run's own text encoder, [S0, E].
        empty_pooled_E: its pooled embedding, [E] or [0] for an encoder without one.

    Raises:
        ValueError: the empty prompt of every window does not fit the batch's text rows.
    """
    active = batch.active_BG4.copy()
    active[..., [Condition.TEXT, Condition.AUDIO]] = False
    rows = batch.text_BSE.shape[1]
    text, ids, pooled = empty_prompts(batch.segment_ids_BL, active.shape[1], rows, empty_text_SE, empty_pooled_E)
    return dataclasses.replace(batch, active_BG4=active, text_BSE=text, text_segment_ids_BS=ids, pooled_BGE=pooled)


def stack_branches(
    conditional: PackedBatch[np.ndarray], unconditional: PackedBatch[np.ndarray]
) -> PackedBatch[np.ndarray]:
    """One batch of 2B rows: the B conditional ones, then the same B unconditional."""
    return jax.tree.map(lambda *branches: np.concatenate(branches), conditional, unconditional)
