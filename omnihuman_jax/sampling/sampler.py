"""Windows filled in by a trained run: one compiled program for all windows of a shape."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from omnihuman_jax import conditions, segments, sharding
from omnihuman_jax import config as experiment
from omnihuman_jax.data import packing
from omnihuman_jax.diffusion import flow_matching, guidance, solver
from omnihuman_jax.models import mmdit
from omnihuman_jax.sampling.trained_run import TrainedRun
from omnihuman_jax.serving.guidance_omnihuman import Branch, GuidanceConfig, branch_scales, guidance_branches
from omnihuman_jax.typing import PATCH, Batch, PackedShape, Params


def shape_for(run: TrainedRun, windows: Sequence[packing.PackInput]) -> PackedShape:
    """The packed shape of one window a sequence that holds every one of `windows`, and their unconditional branch."""
    base = experiment.packed_shape(run.config, run.spec)
    tokens = []
    for window in windows:
        latents, height, width, _ = window.latents_FHWC.shape
        references = int(conditions.Condition.REFERENCE in window.active)
        tokens.append((latents + references) * (height // PATCH) * (width // PATCH))
    # What a blocked attention kernel asks for; a CPU has none, and padding is work.
    block = (8 if run.mesh.devices.flat[0].platform == "cpu" else 128) * run.mesh.shape["context"]
    return dataclasses.replace(
        base,
        latent_tokens=_round_up(max(tokens), block),
        text_tokens=_round_up(max(run.spec.empty_text_tokens, *(len(window.text_SE) for window in windows)), 8),
        windows=1,
        latent_frames=max(len(window.latents_FHWC) for window in windows),
        frames=max(window.frames + 2 * window.margin for window in windows),
        # Windows that go on from one that was sampled hold what no data set does.
        floats="float32",
    )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class Sampler:
    """Fills windows in: one program for every call, because shape and number of windows are fixed.

    `shape` holds one window a sequence (`shape_for`); calls may have fewer than `batch` windows (the last is repeated).
    `branches`: of `needs_guidance`.
    """

    def __init__(
        self,
        run: TrainedRun,
        config: solver.SamplingConfig,
        shape: PackedShape,
        batch: int,
        branches: tuple[Branch, ...] = (),
    ):
        config.validate()
        self.run, self.config, self.shape, self.batch, self.branches = run, config, shape, batch, branches
        # Steps run in a few equal chunks of one compiled scan, so that a progress bar moves and the program stays one.
        self.chunk = next(n for n in range(max(1, config.num_steps // 5), 0, -1) if config.num_steps % n == 0)
        self.num_chunks = config.num_steps // self.chunk
        self.model_calls = 0
        rows = batch * (1 + len(branches))
        shardings = sharding.batch_shardings(run.mesh, shape, rows)
        replicated: Any = NamedSharding(run.mesh, PartitionSpec())
        tokens: Any = sharding.named_sharding(
            run.mesh, ("batch", "tokens", None), (batch, shape.latent_tokens, shape.patch_channels)
        )
        places = jax.tree.map(lambda leaf: leaf.sharding, run.params)
        state = solver.SolverState(tokens)
        if config.solver != "euler":
            state = solver.SolverState(tokens, tokens, replicated)
        self._shardings = shardings
        self._start = jax.jit(
            self._noise_and_timesteps, in_shardings=(shardings, replicated), out_shardings=(state, replicated)
        )
        self._advance: Any = jax.jit(
            self._steps,
            in_shardings=(places, shardings, state, replicated, replicated),
            out_shardings=state,
            donate_argnums=2,
        )

    def __call__(
        self,
        windows: Sequence[packing.PackInput],
        seed: int,
        on_progress: Callable[[float], None] = lambda share: None,
        params: Params | None = None,
    ) -> list[np.ndarray]:
        """Latents [F, H, W, C] float32 of each window.

        Noise is keyed on (seed, window.slot, token), so a window's sample does not depend on the others of the call.
        `on_progress` hears the share of the work done since it was last called. `params`: instead of the run's, placed
        like them.
        """
        if not 0 < len(windows) <= self.batch:
            raise ValueError(f"this sampler takes 1 to {self.batch} windows a call, not {len(windows)}")
        filled = [*windows, *[windows[-1]] * (self.batch - len(windows))]
        batch = packing.pack_batch([[window] for window in filled], self.shape)
        empty = (self.run.spec.empty_text_SE, self.run.spec.empty_pooled_E)
        rows = guidance.stack_branches(
            [batch, *(guidance.branch_batch(batch, branch, *empty) for branch in self.branches)]
        )
        scales = branch_scales(self.config.guidance, self.branches, self.config.num_steps)
        with jax.set_mesh(self.run.mesh):
            placed = jax.device_put(rows, self._shardings)
            state, timesteps = self._start(placed, jax.random.key(seed))
            for start in range(0, self.config.num_steps, self.chunk):
                stop = start + self.chunk
                times = timesteps[start : stop + 1]
                state = self._advance(params or self.run.params, placed, state, times, scales[start:stop])
                state.tokens_BLC.block_until_ready()
                on_progress(1 / self.num_chunks)
        self.model_calls += self.config.num_steps
        out = np.asarray(_everywhere(state.tokens_BLC), np.float32)
        return [packing.window_latents(batch, out, row, 0) for row in range(len(windows))]

    def all_of(
        self,
        windows: Sequence[packing.PackInput],
        seed: int,
        on_progress: Callable[[float], None] = lambda share: None,
        params: Params | None = None,
    ) -> list[np.ndarray]:
        """Latents of any number of windows, `batch` a call."""
        calls = math.ceil(len(windows) / self.batch)
        latents: list[np.ndarray] = []
        for call in range(calls):
            part = windows[call * self.batch : (call + 1) * self.batch]
            latents += self(part, seed, lambda share: on_progress(share / calls), params)
        return latents

    def compilations(self) -> int:
        """How many programs the steps have been compiled into: 1, whatever has been sampled."""
        return self._advance._cache_size()

    def _conditional(self, batch: Batch) -> Batch:
        return jax.tree.map(lambda array: array[: self.batch], batch)

    def _noise_and_timesteps(self, batch: Batch, key: jax.Array) -> tuple[solver.SolverState, jax.Array]:
        rows = self._conditional(batch)
        slot_BL = segments.of_window(rows.slot_BG, rows.segment_ids_BL)
        noise_BLC = solver.token_noise(key, slot_BL, rows.token_BL, self.shape.patch_channels)
        tokens_BG = flow_matching.video_tokens_of_slot(rows.segment_ids_BL, rows.is_reference_BL, self.shape.windows)
        state = solver.start(noise_BLC, rows.latents_BLC, self._given(rows), self.shape.windows, self.config.solver)
        return state, flow_matching.timesteps(self.config.num_steps, tokens_BG, self.run.config.flow)

    def _given(self, rows: Batch) -> jax.Array:
        return jnp.asarray(conditions.clean_mask(rows) | (rows.segment_ids_BL == 0))

    def _steps(
        self,
        params: Params,
        batch: Batch,
        state: solver.SolverState,
        timesteps_KBG: jax.Array,
        scales_KD: jax.Array,
    ) -> solver.SolverState:
        rows = self._conditional(batch)
        return solver.advance(
            functools.partial(self._velocity, params, batch),
            state,
            rows.latents_BLC,
            self._given(rows),
            rows.segment_ids_BL,
            timesteps_KBG,
            scales_KD if self.branches else None,
        )

    def _velocity(self, params: Params, batch: Batch, tokens_NLC: jax.Array, t_NG: jax.Array) -> jax.Array:
        config = self.run.config
        return mmdit.apply(
            config.model, params, tokens_NLC, t_NG, batch, execution=config.execution, dtype=self.run.dtype
        )


def finite(latents: list[np.ndarray]) -> list[np.ndarray]:
    """The same; ValueError where a value is no number: a black video would look like a result."""
    if bad := sum(not np.isfinite(one).all() for one in latents):
        raise ValueError(
            f"{bad} of {len(latents)} samples are not finite; lower the guidance (--guidance-scale 1), take another"
            " checkpoint (--step) or its other weights (--weights raw)"
        )
    return latents


def sampler_for(
    run: TrainedRun, config: solver.SamplingConfig, windows: Sequence[packing.PackInput], batch: int
) -> Sampler:
    """The sampler of these windows, at least `batch` of them a call: as many as the mesh's data groups share evenly."""
    ways = run.mesh.shape["data"] * run.mesh.shape["fsdp"]
    rows = _round_up(min(batch, len(windows)), ways)
    return Sampler(run, config, shape_for(run, windows), rows, needs_guidance(config.guidance, windows))


def _everywhere(tokens: jax.Array) -> jax.Array | np.ndarray:
    """`tokens` as every process can read them."""
    return tokens if tokens.is_fully_addressable else multihost_utils.process_allgather(tokens, tiled=True)


class Samplers:
    """One compiled sampler for all windows of one shape that need the same branches of guidance, one window a call."""

    def __init__(self, run: TrainedRun, config: solver.SamplingConfig) -> None:
        self.run, self.config = run, config
        self._made: dict[tuple[PackedShape, tuple[Branch, ...]], Sampler] = {}

    def for_window(self, window: packing.PackInput) -> Sampler:
        branches, shape = needs_guidance(self.config.guidance, [window]), shape_for(self.run, [window])
        if (shape, branches) not in self._made:
            self._made[shape, branches] = Sampler(self.run, self.config, shape, 1, branches)
        return self._made[shape, branches]

    def compilations(self) -> int:
        """Programs compiled for all of them together."""
        return sum(sampler.compilations() for sampler in self._made.values())


def needs_guidance(config: GuidanceConfig, windows: Sequence[packing.PackInput]) -> tuple[Branch, ...]:
    """The branches that guidance of these windows needs: none where it is off, or where no window has text or audio."""
    return guidance_branches(
        config,
        text=any(conditions.Condition.TEXT in window.active for window in windows),
        audio=any(conditions.Condition.AUDIO in window.active for window in windows),
    )
