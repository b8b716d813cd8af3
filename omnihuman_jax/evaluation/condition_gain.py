"""What a condition is worth to the model: the denoising loss without it, with its own, and with another window's.

The same noise and the same timestep in all three, and nothing is sampled: it needs no truth but the data, so it works
on any footage. A condition that the model does not use gains nothing; one that it uses wrongly does harm.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from omnihuman_jax import conditions, segments
from omnihuman_jax.diffusion import flow_matching, solver
from omnihuman_jax.evaluation.bootstrap import Estimate, estimate
from omnihuman_jax.typing import Array, Batch

KINDS = ("absent", "own", "other")
# Where on the way from clean (0) to noise (1) the loss is looked at.
TIMES = (0.3, 0.6, 0.9)
Velocity = Callable[[Array, Array, Batch], Array]


def window_losses(velocity: Velocity, batch: Batch, t: float | jax.Array, key: jax.Array) -> jax.Array:
    """Mean squared velocity error of every window at time `t`, [B, G] float32; 0 in empty slots.

    Args:
        velocity: (noisy tokens_BLC, t_BG, batch) -> velocity_BLC, such as the model's.
        batch: packed windows; what is given clean carries no loss, as in training.
        t: in (0, 1), of all windows.
        key: of the noise, which depends on it, on each window's slot and on the token, and on nothing else.
    """
    slot_BL = segments.of_window(batch.slot_BG, batch.segment_ids_BL)
    noise_BLC = solver.token_noise(key, slot_BL, batch.token_BL, batch.latents_BLC.shape[-1])
    noisy_BL = ~conditions.clean_mask(batch) & (jnp.asarray(batch.segment_ids_BL) > 0)
    t_BG = jnp.full(batch.slot_BG.shape, t, jnp.float32)
    t_BL = jnp.where(noisy_BL, flow_matching.token_t(t_BG, batch.segment_ids_BL), 0.0)
    predicted_BLC = velocity(flow_matching.add_noise(batch.latents_BLC, noise_BLC, t_BL), t_BG, batch)
    target_BLC = flow_matching.velocity_target(batch.latents_BLC, noise_BLC)
    error_BL = jnp.mean(jnp.square(jnp.asarray(predicted_BLC, jnp.float32) - target_BLC), axis=-1)
    error_BL = jnp.where(noisy_BL, error_BL, 0.0)
    return flow_matching.window_means(error_BL, noisy_BL, batch.segment_ids_BL, batch.slot_BG.shape[1])[0]


@dataclasses.dataclass(frozen=True, slots=True)
class Gain:
    """Shares of the loss without the condition: what its own takes off, and what another window's puts on."""

    own: Estimate
    harm_of_other: Estimate


def gain(losses: Mapping[str, np.ndarray], people: Sequence[str], *, draws: int = 2000, seed: int = 0) -> Gain:
    """From losses [N] of the same windows by `KINDS`, and whose windows they are; `draws`, `seed`: of the intervals."""
    rows_N3 = np.stack([np.asarray(losses[kind], np.float64) for kind in KINDS], 1)
    return Gain(
        own=estimate(rows_N3, people, lambda sums: float(1 - sums[1] / sums[0]), draws=draws, seed=seed),
        harm_of_other=estimate(rows_N3, people, lambda sums: float(sums[2] / sums[0] - 1), draws=draws, seed=seed),
    )
