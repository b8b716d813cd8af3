"""`omnihuman import`: open weights, or an exported model, become a checkpoint that `omnihuman train` starts from.

    omnihuman import hunyuan-video --from HunyuanVideo/transformer --to runs/hunyuan_video --config
    configs/omnihuman_13b.py
    omnihuman train --config configs/omnihuman_13b.py --config.initial_weights=runs/hunyuan_video --run runs/mine

Tensors go one by one from their files straight into sharded arrays; every process reads what its own devices hold. With
the additions (audio, pose) freshly initialised, their last layers zero, the imported model computes what the original
does.
Several processes: the environment variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or
    `--distributed`.
"""

import argparse
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from omnihuman_jax import config as experiment
from omnihuman_jax.checkpoint.checkpoints import open_checkpoints
from omnihuman_jax.checkpoint.record import RunRecord
from omnihuman_jax.interop import hunyuan_video, key_table, safetensors_io
from omnihuman_jax.interop.additions import abstract_leaves, import_mesh, make_additions
from omnihuman_jax.interop.file_hashes import check_hashes, hash_files, read_hashes
from omnihuman_jax.interop.hunyuan_video import ADDED_GROUPS
from omnihuman_jax.interop.model_sources import SOURCES, Source
from omnihuman_jax.interop.sharded_params import ShardedParams
from omnihuman_jax.models.audio_adapter import AudioAdapterConfig
from omnihuman_jax.models.pose_guider import PoseGuiderConfig
from omnihuman_jax.runtime import platform_flags, processes
from omnihuman_jax.runtime.files import num_bytes
from omnihuman_jax.runtime.locations import Location, check_checkpoints, local, location
from omnihuman_jax.runtime.progress import progress_bar
from omnihuman_jax.typing import Params

_FLOATS = ("float32", "bfloat16", "float16")

Progress = Callable[[str, int, int], None]
"""(what is being done, bytes done, bytes in all)."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What an import wrote: the checkpoint's run folder, tensors and parameters read, parameters added, and the bytes
    that they all took on the devices of this process, copies included."""

    folder: Location
    tensors: int
    parameters: int
    added: int
    nbytes: int


def import_weights(
    source: Source,
    to: Location,
    *,
    config: experiment.ExperimentConfig | None = None,
    expected: Mapping[str, str] | None = None,
    progress: Progress = lambda text, done, total: None,
) -> Imported:
    """Writes the checkpoint of step 0 of the run folder `to`.

    Args:
        source: of `open_hunyuan_video` or `open_omnihuman`.
        to: a folder without checkpoints.
        config: of the run that will start from it: its base sizes must be the source's, its additions are made. None:
            the source's own sizes, and the additions' defaults at its width.
        expected: sha256 by file name, to be checked before anything is read: of every file that is read, and of others.
        progress: is told what is being done.

    Raises:
        ValueError: a source that does not fit (every missing, unknown and misshapen tensor in one message), or other
            files than expected.
        FileExistsError: `to` holds a checkpoint.
    """
    check_checkpoints(to, "--to")
    config = _config(source, config)
    table = key_table.key_table(config.model)
    present = table.only(source.groups)
    present.check_torch({name: info.shape for name, info in source.tensors.items()}, str(source.folder))
    if odd := sorted(
        f"{name} is {info.dtype}" for name, info in source.tensors.items() if info.dtype.name not in _FLOATS
    ):
        raise ValueError(
            f"{source.folder}: only {', '.join(_FLOATS)} can be imported: {'; '.join(odd[:8])} ({len(odd)} in all)"
        )
    if (to / "checkpoints").is_dir() and any((to / "checkpoints").iterdir()):
        raise FileExistsError(f"{to} holds checkpoints already; choose another --to, or remove it")
    sizes = {name: math.prod(info.shape) * info.dtype.itemsize for name, info in source.tensors.items()}
    total = sum(sizes.values())
    # A list may name more than is read: what is there of it is checked too.
    listed = {source.folder / name for name in expected or {}} - set(source.files)
    others = tuple(sorted(path for path in listed if path.is_file()))
    every = hash_files((*source.files, *others), lambda done, of: progress("checking files", done, of + total))
    if expected is not None:
        check_hashes(every, expected, source.folder)
    hashes = {path.name: every[path.name] for path in source.files}
    hashed = sum(num_bytes(file) for file in source.files)
    platform_flags.map_large_buffers()
    mesh = import_mesh(config.model)
    leaves = ShardedParams(abstract_leaves(config.model, mesh))
    done = hashed

    def read(name: str) -> np.ndarray:
        nonlocal done
        progress("reading tensors", done, hashed + total)
        done += sizes[name]
        return safetensors_io.read_tensor(source.tensors[name])

    for part, values in present.parts_from_torch(read):
        leaves.write(part, values)
        del values
    added = tuple(group for group in ADDED_GROUPS if group not in source.groups)
    make_additions(config.model, config.seed, leaves, mesh, added)
    platform_flags.give_back_memory()  # what the save takes would come on top
    progress("writing the checkpoint", hashed + total, hashed + total)
    origin = {"kind": source.kind, "folder": source.folder.name, "files": hashes}
    params = leaves.params()
    nbytes = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
    save(params, config, origin, to)
    count = lambda part: sum(math.prod(entry.shape) for entry in part.entries)  # noqa: E731
    return Imported(
        folder=to,
        tensors=len(source.tensors),
        parameters=count(present),
        added=count(table) - count(present),
        nbytes=nbytes,
    )


def save(params: Params, config: experiment.ExperimentConfig, origin: Mapping[str, Any], to: Location) -> None:
    """The run folder of step 0: config.json, origin.json and the checkpoint, which holds both as well."""
    # They lie here, wherever the run that starts from them will keep its own.
    config = dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, directory=""))
    record = RunRecord(config=experiment.to_json(config), fingerprint="", step=0, origin=origin)
    if jax.process_index() == 0:
        to.mkdir(parents=True, exist_ok=True)
        experiment.write_config(config, to)
        record.save_origin(to)
    processes.wait_for_peers("omnihuman_import_folder")
    with open_checkpoints(to / "checkpoints", config.checkpoint) as checkpoints:
        checkpoints.writer.save_weights(params, record)


def _config(source: Source, config: experiment.ExperimentConfig | None) -> experiment.ExperimentConfig:
    """The config to store: the given one, if it fits the source, or one with the source's sizes."""
    if config is None:
        model = source.model
        if set(source.groups).isdisjoint(ADDED_GROUPS):
            audio = AudioAdapterConfig(width=model.width, num_heads=model.num_heads, head_dim=model.head_dim)
            model = dataclasses.replace(model, audio=audio, pose=PoseGuiderConfig())
        model.validate()
        return experiment.ExperimentConfig(name=source.folder.name, model=model)
    lines = hunyuan_video.differences(config.model, source.model)
    for name in ADDED_GROUPS:
        ours, theirs = getattr(config.model, name), getattr(source.model, name)
        if name in source.groups and ours != theirs:
            lines.append(f"model.{name} is {ours} instead of {theirs}")
    if lines:
        raise ValueError(
            f"the config does not fit {source.folder}: {'; '.join(lines)}; set these fields with --config.FIELD=VALUE"
        )
    return config


def main(argv: Sequence[str]) -> int:
    """`omnihuman import`."""
    parser = argparse.ArgumentParser(
        prog="omnihuman import",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "kind", choices=SOURCES, help="hunyuan-video: diffusers' layout; omnihuman: a folder of `omnihuman export`"
    )
    parser.add_argument(
        "--from",
        required=True,
        type=location,
        dest="source",
        metavar="DIR",
        help="config.json and its .safetensors; a folder, gs:// or s3://",
    )
    parser.add_argument("--to", required=True, type=location, metavar="CKPT", help="run folder to write, or gs://")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="config of the run that will start from these weights; it gives the sizes of the added parts",
    )
    parser.add_argument(
        "--sha256",
        type=local,
        metavar="FILE",
        help="the expected sha256 of each file, as sha256sum prints it",
    )
    parser.add_argument(
        "--distributed", action="store_true", help="several processes that JAX finds itself (TPU pods, SLURM)"
    )
    options, overrides = parser.parse_known_args(list(argv))
    if overrides and not options.config:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    processes.join(None, None, None, automatic=options.distributed)
    source = SOURCES[options.kind](options.source)
    with progress_bar("bytes", enabled=jax.process_index() == 0) as bar:
        task = bar.add_task("opening", total=None)
        result = import_weights(
            source,
            options.to,
            config=experiment.load_config(options.config, overrides) if options.config else None,
            expected=read_hashes(options.sha256) if options.sha256 else None,
            progress=lambda text, done, total: bar.update(task, description=text, completed=done, total=total),
        )
    print(
        f"{result.folder}: {result.parameters / 1e6:,.1f} M parameters in {result.tensors} tensors read,"
        f" {result.added / 1e6:,.1f} M of the additions initialised; start from it with"
        f" --config.initial_weights={result.folder}"
    )
    return 0
