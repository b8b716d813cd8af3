"""A trained run opened for sampling: weights, dataset spec, codec, and a sampler that compiles once.

What `generate` and `evaluate` share: both give it windows to fill in and get latents back.
"""

import argparse
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from omnihuman_jax import conditions, segments, sharding
from omnihuman_jax import config as experiment
from omnihuman_jax.checkpoint.folder import checkpoint_directory
from omnihuman_jax.checkpoint.reader import load_weights
from omnihuman_jax.checkpoint.record import RunRecord
from omnihuman_jax.codecs import codec as codecs
from omnihuman_jax.data import packing, records
from omnihuman_jax.data.identity import changed_features, features_of
from omnihuman_jax.diffusion import flow_matching, guidance, solver
from omnihuman_jax.models import mmdit
from omnihuman_jax.runtime import bucket_folder
from omnihuman_jax.runtime.locations import Location, location
from omnihuman_jax.serving.folders_omnihuman import changed_files
from omnihuman_jax.serving.guidance_omnihuman import (
    Branch,
    GuidanceConfig,
    add_guidance_arguments,
    branch_scales,
    guidance_branches,
)
from omnihuman_jax.typing import PATCH, Batch, PackedShape, Params


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainedRun:
    """Everything that a checkpoint needs to be sampled.

    params lie on `mesh`; encode, decode: the codec's; dtype: of the blocks; spec: of the data trained on.
    """

    directory: Path
    config: experiment.ExperimentConfig
    spec: records.DatasetSpec
    dataset: Location
    mesh: Mesh
    params: Params
    weights: str
    step: int
    encode: Callable[[Any], jax.Array]
    decode: Callable[[Any], jax.Array]
    dtype: Any


def default_mesh() -> sharding.MeshConfig:
    """All accelerators split the tokens and weights of one sample; a CPU, simulated devices or not, works as one."""
    return sharding.MeshConfig(data=1, context=1 if jax.default_backend() == "cpu" else -1)


def open_run(
    directory: str | os.PathLike[str],
    *,
    weights: str = "ema",
    step: int | None = None,
    dataset: str | os.PathLike[str] | None = None,
    codec: str | None = None,
    mesh: sharding.MeshConfig | None = None,
) -> TrainedRun:
    """Opens the run in `directory` for sampling.

    Args:
        directory: run directory of `omnihuman train`, or a bucket's.
        weights: `ema` or `raw`.
        step: checkpoint; the newest by default.
        dataset: folder of `omnihuman encode`; the one that the run was trained on by default.
        codec: where the codec's folder lies now; by default where it was when the data were encoded.
        mesh: how devices share a sample (`default_mesh`).

    Raises:
        FileNotFoundError, ValueError: no run, no checkpoint, no dataset, or they do not fit each other; one line each.
    """
    home, directory = location(directory), bucket_folder.copy_of(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such run; give the run directory of `omnihuman train`")
    mesh_config = mesh or default_mesh()
    devices = jax.devices()
    ways = [mesh_config.data, mesh_config.fsdp, mesh_config.context, mesh_config.tensor]
    if -1 not in ways:
        devices = devices[: math.prod(ways)]
    created = sharding.create_mesh(mesh_config, devices)

    def abstract(record: RunRecord) -> Params:
        shapes, axes = mmdit.abstract_params(experiment.from_json(record.config).model)
        return jax.tree.map(
            lambda shape, axis: jax.ShapeDtypeStruct(
                shape.shape, shape.dtype, sharding=sharding.named_sharding(created, axis, shape.shape)
            ),
            shapes,
            axes,
        )

    params, record = load_weights(checkpoint_directory(home), abstract, weights=weights, step=step)
    config = experiment.from_json(record.config)
    if dataset is None and record.step == 0 and not (directory / "dataset.json").is_file():
        raise FileNotFoundError(
            f"{directory}: imported weights that no data have trained yet; say with --dataset which folder of"
            " `omnihuman encode` has the encoders to sample them with"
        )
    # A run keeps the spec of its data: sampling needs the data themselves for a default size and length only.
    spec = records.DatasetSpec.load(directory if dataset is None else dataset)
    experiment.packed_shape(config, spec)
    check_features(f"{directory if dataset is None else dataset}", record.data, spec)
    opened = open_codec(spec, codec or spec.codec)
    return TrainedRun(
        directory=directory,
        config=config,
        spec=spec,
        dataset=location(config.data.dataset if dataset is None else dataset),
        mesh=created,
        params=params,
        weights=weights,
        step=record.step,
        encode=opened.encode,
        decode=opened.decode,
        dtype=experiment.compute_dtype(config),
    )


def check_features(where: str, trained: Mapping[str, Any], spec: records.DatasetSpec) -> None:
    """ValueError if a dataset's features mean something else than those that a run was trained on (`data.identity`)."""
    meaning = ("codec", "text_encoder", "speech_encoder", "speech_layers", "keypoint_names", "empty_prompt")
    if changed := changed_features({n: v for n, v in trained.items() if n in meaning}, features_of(spec)):
        raise ValueError(
            f"{where}: the run was trained on other features: {'; '.join(changed)}; give a dataset that the same"
            " encoders made"
        )


def open_codec(spec: records.DatasetSpec, name_or_dir: str) -> codecs.VideoCodec:
    """The codec that made the run's latents: same weights (ValueError otherwise), same options."""
    codec = codecs.load_codec(name_or_dir, spec.codec_options)
    trained = {
        name.removeprefix("codec/"): sha for name, sha in spec.encoder_sha256.items() if name.startswith("codec/")
    }
    if changed := changed_files(trained, codec.sha256):
        raise ValueError(
            f"{codec.name} is not the codec that the run's data were encoded with: {', '.join(changed)} changed "
            "(--codec names another folder)"
        )
    return codec


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


def one_device() -> Mesh:
    """The first device of this process, for codecs and encoders: `jax.set_mesh` of it, whatever the mesh around is."""
    return Mesh(np.asarray(jax.local_devices()[:1]), ("one",), axis_types=(AxisType.Auto,))


def decode_pictures(run: TrainedRun, latents_FHWC: np.ndarray) -> np.ndarray:
    """Frames [T, H, W, 3] float32, clipped to [-1, 1], of one window's latents."""
    return np.clip(np.asarray(run.decode(np.asarray(latents_FHWC, np.float32))), -1.0, 1.0)


def encode_pictures(run: TrainedRun, video_THW3: np.ndarray) -> np.ndarray:
    """Latents [F, H / 8, W / 8, C] float32 of 1 + 4n frames in [-1, 1]."""
    return np.asarray(run.encode(np.asarray(video_THW3, np.float32)))


def add_run_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Options that `generate` and `evaluate` share: which weights, and how they are sampled."""
    parser.add_argument("--run", required=required, type=location, help="run directory of `omnihuman train`")
    parser.add_argument(
        "--weights", choices=("ema", "raw"), default="ema", help="averaged weights (default) or the last ones"
    )
    parser.add_argument("--step", type=int, help="checkpoint; default: the newest")
    parser.add_argument(
        "--dataset", type=location, help="folder of `omnihuman encode`; default: the one that the run was trained on"
    )
    parser.add_argument(
        "--codec", metavar="DIR", help="the codec's folder, if it was moved since the data were encoded"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="sampling steps; default: the run's config")
    add_guidance_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the noise")


def sampling_config(base: solver.SamplingConfig, options: argparse.Namespace) -> solver.SamplingConfig:
    """`base` with what the command line overrides. `--guidance-scale 1` alone turns guidance off."""
    names = ("guidance_scale", "guidance_final_scale", "guidance_curve", "guidance_text_scale")
    config = dataclasses.replace(
        base, guidance=base.guidance.with_overrides(*(getattr(options, name) for name in names))
    )
    config.solver = options.solver or config.solver
    if options.steps is not None:
        config.num_steps = options.steps
    if getattr(options, "segment_frames", None) is not None:
        config.segment_frames = options.segment_frames
    config.validate()
    return config
