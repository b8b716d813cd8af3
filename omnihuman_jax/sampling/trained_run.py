"""A trained run opened for sampling: weights, dataset spec, codec, and a sampler that compiles once.

What `generate` and `evaluate` share: both give it windows to fill in and get latents back.
"""

import argparse
import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from omnihuman_jax import config as experiment
from omnihuman_jax import sharding
from omnihuman_jax.checkpoint.folder import checkpoint_directory
from omnihuman_jax.checkpoint.reader import load_weights
from omnihuman_jax.checkpoint.record import RunRecord
from omnihuman_jax.codecs import codec as codecs
from omnihuman_jax.data import records
from omnihuman_jax.data.identity import changed_meaning, features_of
from omnihuman_jax.data.weighted_datasets import WeightedDataset
from omnihuman_jax.diffusion import solver
from omnihuman_jax.models import mmdit
from omnihuman_jax.runtime import bucket_folder
from omnihuman_jax.runtime.locations import Location, location
from omnihuman_jax.serving.folders_omnihuman import changed_files
from omnihuman_jax.serving.guidance_omnihuman import (
    add_guidance_arguments,
)
from omnihuman_jax.typing import Params


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainedRun:
    """Everything that a checkpoint needs to be sampled.

    params lie on `mesh`; encode, decode: the codec's; dtype: of the blocks; spec: of the data trained on; dataset: the
    first of those that the run drew from, or what it was opened with instead.
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

    @property
    def drawn_from(self) -> tuple[WeightedDataset, ...]:
        """The data sets that it was trained on, or the one that it was opened with instead."""
        rows = self.config.data.rows
        is_own = bool(rows) and self.dataset == location(rows[0].path)
        return rows if is_own else (WeightedDataset(path=os.fspath(self.dataset)),)


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
        dataset=location(config.data.first if dataset is None else dataset),
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
    if changed := changed_meaning(trained, features_of(spec)):
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
