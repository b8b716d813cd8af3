"""Euler integration of the learned velocity from noise to latents, one `lax.scan`, so that it compiles once."""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from omnihuman_jax.diffusion import flow_matching
from omnihuman_jax.diffusion.guidance import guided
from omnihuman_jax.serving.guidance_omnihuman import GuidanceConfig
from omnihuman_jax.typing import MOTION_FRAMES, Array, latent_frames_of

# (tokens [N, L, C], t [N, G] in [0, 1]) -> velocity [N, L, C]; N is B, or 2B under guidance.
DenoiseFn: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(kw_only=True, slots=True)
class SamplingConfig:
    """How a checkpoint is sampled: 50 steps [S2]; frames of a segment (0: the dataset's longest window) [D]."""

    num_steps: int = 50
    segment_frames: int = 0
    guidance: GuidanceConfig = dataclasses.field(default_factory=GuidanceConfig)

    def validate(self) -> None:
        """ValueError with the numbers on a value that cannot be sampled with."""
        if self.num_steps < 1:
            raise ValueError(f"sampling.num_steps must be >= 1, not {self.num_steps}")
        if self.segment_frames:
            latent_frames_of(self.segment_frames)
            if self.segment_frames <= MOTION_FRAMES:
                raise ValueError(
                    f"sampling.segment_frames must be 0 or above the {MOTION_FRAMES} motion frames, not"
                    f" {self.segment_frames}"
                )
        self.guidance.validate()


def token_noise(key: jax.Array, slot_BL: Array, token_BL: Array, channels: int) -> jax.Array:
    """Standard normal noise [B, L, C] float32, keyed on (slot, token in its window) and on nothing else.

    What a window is packed or batched with therefore changes nothing of its sample.
    """

    def draw(slot: jax.Array, token: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, slot), token), (channels,), jnp.float32)

    token_BL = jnp.maximum(jnp.asarray(token_BL), 0)
    return jax.vmap(jax.vmap(draw))(jnp.asarray(slot_BL), token_BL)


def sample(
    denoise_fn: DenoiseFn,
    noise_BLC: Array,
    clean_BLC: Array,
    clean_BL: Array,
    segment_ids_BL: Array,
    timesteps_KBG: Array,
    scales_K: Array | None = None,
) -> jax.Array:
    """Latent tokens [B, L, C] float32 from noise: Euler steps along the velocity.

    Args:
        denoise_fn: the velocity. With `scales_K` it is called with 2B rows, the conditional B first and then the same
            tokens for the unconditional B (`guidance.stack_branches`); without, with B rows: half the cost.
        noise_BLC: standard normal.
        clean_BLC: the given latents; read only where `clean_BL`.
        clean_BL: tokens that are given (reference, motion frames, padding): they enter every step and leave the sampler
            bit for bit as they came, and their t is the model's business.
        segment_ids_BL: which window slot (id - 1) a token's timestep comes from; 0 padding.
        timesteps_KBG: t of each slot from 1 to 0, one row more than there are steps (`flow_matching.timesteps`).
        scales_K: guidance scale of each step (`guidance_omnihuman.guidance_scales`); None turns guidance off.
    """
    clean_BLC = jnp.asarray(clean_BLC, jnp.float32)
    given = jnp.asarray(clean_BL)[..., None]
    batch = clean_BLC.shape[0]
    steps = timesteps_KBG.shape[0] - 1
    scales = jnp.ones(steps, jnp.float32) if scales_K is None else jnp.asarray(scales_K, jnp.float32)

    def euler(tokens_BLC: jax.Array, step: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        t_BG, next_t_BG, scale = step
        if scales_K is None:
            velocity = denoise_fn(tokens_BLC, t_BG)
        else:
            both = denoise_fn(jnp.concatenate([tokens_BLC, tokens_BLC]), jnp.concatenate([t_BG, t_BG]))
            velocity = guided(both[:batch], both[batch:], scale)
        change_BL = flow_matching.token_t(next_t_BG - t_BG, segment_ids_BL)
        moved = tokens_BLC + change_BL[..., None] * velocity.astype(jnp.float32)
        return jnp.where(given, clean_BLC, moved), None

    start = jnp.where(given, clean_BLC, jnp.asarray(noise_BLC, jnp.float32))
    t = jnp.asarray(timesteps_KBG, jnp.float32)
    tokens_BLC, _ = jax.lax.scan(euler, start, (t[:-1], t[1:], scales))
    return tokens_BLC
