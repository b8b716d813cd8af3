"""Flow matching: z_t = (1 - t) z_0 + t eps with target velocity eps - z_0 [SIB].

Pure functions on arrays; t is in [0, 1], 0 clean and 1 noise. Everything is computed in float32: in bfloat16 two
neighbouring timesteps of a 50-step schedule can round to one value.
"""

import jax
import jax.numpy as jnp

from omnihuman_jax import segments
from omnihuman_jax.serving.guidance_omnihuman import FlowMatchingConfig
from omnihuman_jax.typing import Array


def timestep_shift(tokens: Array, config: FlowMatchingConfig) -> jax.Array:
    """Shift factor (>= shift_min) of windows with `tokens` video tokens each; any shape, float32."""
    ratio = jnp.asarray(tokens, jnp.float32) / config.shift_tokens
    return jnp.clip(jnp.sqrt(ratio), config.shift_min, config.shift_max)


def shift_t(t: Array, tokens: Array, config: FlowMatchingConfig) -> jax.Array:
    """`t` in [0, 1] moved towards noise for windows of `tokens` video tokens; 0 and 1 stay; broadcasts."""
    t = jnp.asarray(t, jnp.float32)
    shift = timestep_shift(tokens, config)
    return shift * t / (1.0 + (shift - 1.0) * t)


def sample_t(key: jax.Array, tokens: Array, config: FlowMatchingConfig) -> jax.Array:
    """A training timestep a window: logit-normal, shifted; same shape as `tokens`, float32 in (0, 1).

    For one key a window: `jax.vmap(lambda key, n: sample_t(key, n, config))(keys_G, tokens_G)`.
    """
    tokens = jnp.asarray(tokens)
    normal = jax.random.normal(key, tokens.shape, jnp.float32)
    return shift_t(jax.nn.sigmoid(config.logit_mean + config.logit_std * normal), tokens, config)


def add_noise(clean_BLC: Array, noise_BLC: Array, t_BL: Array) -> jax.Array:
    """z_t = (1 - t) z_0 + t eps, float32; `t_BL` has one dim less than the others and 0 there gives z_0 exactly."""
    t = jnp.asarray(t_BL, jnp.float32)[..., None]
    return (1.0 - t) * jnp.asarray(clean_BLC, jnp.float32) + t * jnp.asarray(noise_BLC, jnp.float32)


def velocity_target(clean_BLC: Array, noise_BLC: Array) -> jax.Array:
    """What the model predicts: eps - z_0, float32."""
    return jnp.asarray(noise_BLC, jnp.float32) - jnp.asarray(clean_BLC, jnp.float32)


def predict_clean(noisy_BLC: Array, velocity_BLC: Array, t_BL: Array) -> jax.Array:
    """z_0 that a velocity implies: z_t - t v, float32."""
    t = jnp.asarray(t_BL, jnp.float32)[..., None]
    return jnp.asarray(noisy_BLC, jnp.float32) - t * jnp.asarray(velocity_BLC, jnp.float32)


def token_t(t_BG: Array, segment_ids_BL: Array) -> jax.Array:
    """Each token's own t [B, L] float32: that of the window in slot `segment_id - 1`; 0 on padding."""
    return jnp.asarray(segments.of_window(jnp.asarray(t_BG, jnp.float32), segment_ids_BL))


def window_means(error_BL: Array, noisy_BL: Array, segment_ids_BL: Array, windows: int) -> tuple[jax.Array, jax.Array]:
    """(mean of `error_BL` over each window's noisy tokens, 0 without any; their number): [B, G] float32 and int32.

    `error_BL` is 0 on all other tokens.
    """
    members_BLG = segments.members(segment_ids_BL, windows)
    count_BG = jnp.sum(members_BLG & noisy_BL[:, :, None], axis=1, dtype=jnp.int32)
    sum_BG = jnp.sum(jnp.where(members_BLG, error_BL[:, :, None], 0.0), axis=1)
    return sum_BG / jnp.maximum(count_BG, 1), count_BG


def video_tokens_of_slot(segment_ids_BL: Array, is_reference_BL: Array, windows: int) -> jax.Array:
    """Number of video tokens (reference tokens do not count) of each slot, [B, G] int32: what the shift depends on."""
    video_BL = jnp.where(jnp.asarray(is_reference_BL), 0, jnp.asarray(segment_ids_BL))
    return jnp.sum(segments.members(video_BL, windows), axis=1, dtype=jnp.int32)


def timesteps(num_steps: int, tokens: Array, config: FlowMatchingConfig) -> jax.Array:
    """The sampler's t, from 1 to 0, shifted: [num_steps + 1, *tokens.shape] float32, strictly falling in each
    column.
    """
    if num_steps < 1:
        raise ValueError(f"sampling needs at least 1 step, not {num_steps}")
    tokens = jnp.asarray(tokens)
    even = jnp.linspace(1.0, 0.0, num_steps + 1, dtype=jnp.float32).reshape(-1, *(1,) * tokens.ndim)
    return shift_t(even, jnp.maximum(tokens, 1), config)
