"""Integration of the learned velocity from noise to latents, one `lax.scan`, so that it compiles once."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from omnihuman_jax.diffusion import flow_matching
from omnihuman_jax.diffusion.guidance import guided
from omnihuman_jax.serving.guidance_omnihuman import SOLVERS, GuidanceConfig
from omnihuman_jax.typing import MOTION_FRAMES, Array, latent_frames_of

# (tokens [N, L, C], t [N, G] in [0, 1]) -> velocity [N, L, C]; N is B, or 2B or 3B under guidance.
DenoiseFn: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(kw_only=True, slots=True)
class SamplingConfig:
    """How a checkpoint is sampled: 50 steps [S2]; frames of a segment (0: the dataset's longest window) [D]; solver:
    one of `SOLVERS` [D].
    """

    num_steps: int = 50
    segment_frames: int = 0
    guidance: GuidanceConfig = dataclasses.field(default_factory=GuidanceConfig)
    solver: str = "euler"

    def validate(self) -> None:
        """ValueError with the numbers on a value that cannot be sampled with."""
        if self.num_steps < 1:
            raise ValueError(f"sampling.num_steps must be >= 1, not {self.num_steps}")
        if self.solver not in SOLVERS:
            raise ValueError(f"sampling.solver {self.solver!r} is unknown; the solvers are {', '.join(SOLVERS)}")
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


class SolverState(NamedTuple):
    """Where a sample is, and what the next step remembers of the one before: nothing under Euler.

    tokens_BLC: float32. velocity_BLC, change_BG: velocity and length in t of the step before; the length is 0 where
    there was none.
    """

    tokens_BLC: jax.Array
    velocity_BLC: jax.Array | None = None
    change_BG: jax.Array | None = None


def start(noise_BLC: Array, clean_BLC: Array, clean_BL: Array, windows: int, solver: str = "euler") -> SolverState:
    """Noise, with the given tokens in their places. windows: G, the slots that have a t of their own."""
    given = jnp.asarray(clean_BL)[..., None]
    tokens_BLC = jnp.where(given, jnp.asarray(clean_BLC, jnp.float32), jnp.asarray(noise_BLC, jnp.float32))
    if solver == "euler":
        return SolverState(tokens_BLC)
    return SolverState(tokens_BLC, jnp.zeros_like(tokens_BLC), jnp.zeros((len(tokens_BLC), windows), jnp.float32))


def advance(
    denoise_fn: DenoiseFn,
    state: SolverState,
    clean_BLC: Array,
    clean_BL: Array,
    segment_ids_BL: Array,
    timesteps_KBG: Array,
    scales_KD: Array | None = None,
) -> SolverState:
    """`state` after some of the steps of `sample`; which solver it is, its state says."""
    clean_BLC = jnp.asarray(clean_BLC, jnp.float32)
    given = jnp.asarray(clean_BL)[..., None]
    branches = 0 if scales_KD is None else jnp.asarray(scales_KD).shape[1]
    steps = timesteps_KBG.shape[0] - 1
    scales = jnp.zeros((steps, 0)) if scales_KD is None else jnp.asarray(scales_KD, jnp.float32)

    def velocity(tokens_BLC: jax.Array, t_BG: jax.Array, scale_D: jax.Array) -> jax.Array:
        if not branches:
            return denoise_fn(tokens_BLC, t_BG).astype(jnp.float32)
        rows = 1 + branches
        together = denoise_fn(jnp.concatenate([tokens_BLC] * rows), jnp.concatenate([t_BG] * rows))
        return guided(jnp.split(together, rows), scale_D).astype(jnp.float32)

    def step(state: SolverState, row: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[SolverState, None]:
        t_BG, next_t_BG, scale_D = row
        change_BG = next_t_BG - t_BG
        new_BLC = velocity(state.tokens_BLC, t_BG, scale_D)
        slope_BLC = new_BLC
        if state.velocity_BLC is not None and state.change_BG is not None:
            slope_BLC = new_BLC + _share_of_change(change_BG, state.change_BG, segment_ids_BL) * (
                new_BLC - state.velocity_BLC
            )
        moved = state.tokens_BLC + flow_matching.token_t(change_BG, segment_ids_BL)[..., None] * slope_BLC
        tokens_BLC = jnp.where(given, clean_BLC, moved)
        if state.velocity_BLC is None:
            return SolverState(tokens_BLC), None
        return SolverState(tokens_BLC, new_BLC, change_BG), None

    t = jnp.asarray(timesteps_KBG, jnp.float32)
    return jax.lax.scan(step, state, (t[:-1], t[1:], scales))[0]


def _share_of_change(change_BG: jax.Array, before_BG: jax.Array, segment_ids_BL: Array) -> jax.Array:
    """What Adams-Bashforth adds of the last change of velocity, [B, L, 1]: half the ratio of the two steps' lengths.

    The first step has none before it and is Euler's.
    """
    ratio_BG = jnp.where(before_BG == 0, 0.0, change_BG / jnp.where(before_BG == 0, 1.0, before_BG))
    return 0.5 * flow_matching.token_t(ratio_BG, segment_ids_BL)[..., None]


def sample(
    denoise_fn: DenoiseFn,
    noise_BLC: Array,
    clean_BLC: Array,
    clean_BL: Array,
    segment_ids_BL: Array,
    timesteps_KBG: Array,
    scales_KD: Array | None = None,
    solver: str = "euler",
) -> jax.Array:
    """Latent tokens [B, L, C] float32 from noise: steps along the velocity, a model call each.

    Args:
        denoise_fn: the velocity. With `scales_KD` it is called with (1 + D) B rows, the conditional B first and then
            the same tokens for the B of each branch (`guidance.stack_branches`); without, with B rows.
        noise_BLC: standard normal.
        clean_BLC: the given latents; read only where `clean_BL`.
        clean_BL: tokens that are given (reference, motion frames, padding): they enter every step and leave the sampler
            bit for bit as they came, and their t is the model's business.
        segment_ids_BL: which window slot (id - 1) a token's timestep comes from; 0 padding.
        timesteps_KBG: t of each slot from 1 to 0, one row more than there are steps (`flow_matching.timesteps`).
        scales_KD: guidance scale of each step and branch (`guidance_omnihuman.branch_scales`); None: no guidance.
        solver: one of `SOLVERS`.
    """
    state = start(noise_BLC, clean_BLC, clean_BL, timesteps_KBG.shape[2], solver)
    return advance(denoise_fn, state, clean_BLC, clean_BL, segment_ids_BL, timesteps_KBG, scales_KD).tokens_BLC
