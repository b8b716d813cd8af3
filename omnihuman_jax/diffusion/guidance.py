"""Classifier-free guidance on text and audio together, with a scale that anneals over the sampling steps [S].

The unconditional branch has the empty prompt and no audio and keeps everything else: reference, motion frames and pose
are not guided [S, S2]. Both branches run as one batch of twice the rows, so that the sampler has one model call a step.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from omnihuman_jax.conditions import Condition
from omnihuman_jax.typing import Array, PackedBatch

CURVES = ("linear", "cosine", "constant")


@dataclasses.dataclass(kw_only=True, slots=True)
class GuidanceConfig:
    """Scale at the first step [S2: 6.5], at the last one [D], and the curve between them: linear, cosine or constant
    [D].

    The paper says that the scale falls (a high one wrinkles the skin, a low one loses lip-sync), not how. `constant`
    keeps `scale` throughout. A scale of 1 from start to end is guidance off: the unconditional branch is not computed.
    """

    scale: float = 6.5
    final_scale: float = 1.0
    curve: str = "linear"

    @property
    def enabled(self) -> bool:
        """Whether any step needs the unconditional branch."""
        return self.scale != 1.0 or (self.curve != "constant" and self.final_scale != 1.0)

    def validate(self) -> None:
        """ValueError on an unknown curve or on a scale that is negative or not finite."""
        if self.curve not in CURVES:
            raise ValueError(f"guidance curve {self.curve!r} is unknown; the curves are {', '.join(CURVES)}")
        for name in ("scale", "final_scale"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"guidance {name} must be finite and >= 0, not {value}")


def guidance_scales(config: GuidanceConfig, num_steps: int) -> np.ndarray:
    """Scale of each sampling step, [num_steps] float32: `scale` first, `final_scale` last; one step alone has
    `scale`.
    """
    config.validate()
    progress = np.arange(num_steps) / max(num_steps - 1, 1)
    if config.curve == "constant":
        weight = np.ones(num_steps)
    elif config.curve == "linear":
        weight = 1.0 - progress
    else:
        weight = 0.5 * (1.0 + np.cos(np.pi * progress))
    return (config.final_scale + (config.scale - config.final_scale) * weight).astype(np.float32)


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
    segment_ids_BL = batch.segment_ids_BL
    text, ids = np.zeros_like(batch.text_BSE), np.zeros_like(batch.text_segment_ids_BS)
    pooled = np.zeros_like(batch.pooled_BGE)
    length = len(empty_text_SE)
    for row in range(len(segment_ids_BL)):
        present = np.unique(segment_ids_BL[row])
        present = present[present > 0]
        if len(present) * length > text.shape[1]:
            raise ValueError(
                f"guidance needs {len(present)} windows x {length} tokens of the empty prompt, "
                f"the packed text stream has {text.shape[1]}: raise text_tokens"
            )
        for place, segment in enumerate(present):
            text[row, place * length : (place + 1) * length] = empty_text_SE
            ids[row, place * length : (place + 1) * length] = segment
            pooled[row, segment - 1] = empty_pooled_E
    return dataclasses.replace(batch, active_BG4=active, text_BSE=text, text_segment_ids_BS=ids, pooled_BGE=pooled)


def stack_branches(
    conditional: PackedBatch[np.ndarray], unconditional: PackedBatch[np.ndarray]
) -> PackedBatch[np.ndarray]:
    """One batch of 2B rows: the B conditional ones, then the same B unconditional."""
    return jax.tree.map(lambda *branches: np.concatenate(branches), conditional, unconditional)
