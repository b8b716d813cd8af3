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
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from omnihuman_jax import config as experiment
from omnihuman_jax import sharding
from omnihuman_jax.checkpoint.checkpoints import open_checkpoints
from omnihuman_jax.checkpoint.record import RunRecord
from omnihuman_jax.interop import hunyuan_video, key_table, safetensors_io
from omnihuman_jax.interop.hunyuan_video import ADDED_GROUPS, ADDITIONS_STEM
from omnihuman_jax.interop.sharded_params import ShardedParams
from omnihuman_jax.models import mmdit
from omnihuman_jax.models.audio_adapter import AudioAdapterConfig
from omnihuman_jax.models.pose_guider import PoseGuiderConfig
from omnihuman_jax.runtime import platform_flags, processes
from omnihuman_jax.runtime.files import file_sha256, write_text
from omnihuman_jax.runtime.progress import progress_bar
from omnihuman_jax.serving.folders_omnihuman import check_export
from omnihuman_jax.typing import Params

_FLOATS = ("float32", "bfloat16", "float16")
_INIT_BYTES = 1 << 24

Progress = Callable[[str, int, int], None]
"""(what is being done, bytes done, bytes in all)."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A model on disk: its sizes, its tensors by their names, which condition groups it holds, and the files to be
    hashed.
    """

    kind: str
    folder: Path
    model: mmdit.MMDiTConfig
    tensors: Mapping[str, safetensors_io.TensorInfo]
    groups: tuple[str, ...]
    files: tuple[Path, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What an import wrote: the checkpoint's run folder, tensors and parameters read, parameters added, and the bytes
    that they all took on the devices of this process, copies included."""

    folder: Path
    tensors: int
    parameters: int
    added: int
    nbytes: int


def open_hunyuan_video(folder: Path) -> Source:
    """A folder in diffusers' layout: `config.json` of HunyuanVideoTransformer3DModel and its safetensors."""
    folder = hunyuan_video.transformer_folder(folder)
    tensors = safetensors_io.open_folder(folder, hunyuan_video.STEM)
    return Source(
        kind="hunyuan-video",
        folder=folder,
        model=hunyuan_video.model_config(folder),
        tensors=tensors,
        groups=("base",),
        files=_files(folder, tensors),
    )


def open_omnihuman(folder: Path) -> Source:
    """A folder of `omnihuman export`, in either format: base part and additions."""
    stated = hunyuan_video.read_json(folder / "config.json")
    if "_class_name" in stated:
        model = hunyuan_video.model_config(folder)
        parts = _stated_model(folder / f"{ADDITIONS_STEM}.json")
        stated = hunyuan_video.read_json(folder / f"{ADDITIONS_STEM}.json")
        model.audio, model.pose = parts.audio, parts.pose
        tensors = safetensors_io.open_folder(folder, hunyuan_video.STEM)
        if model.audio or model.pose:
            tensors |= safetensors_io.open_folder(folder, ADDITIONS_STEM)
    elif "model" in stated:
        model = _stated_model(folder / "config.json")
        tensors = safetensors_io.open_folder(folder, "model")
    else:
        raise ValueError(
            f"{folder}/config.json was not written by `omnihuman export`; `omnihuman import --help` lists the sources"
        )
    model.validate()
    for path in sorted({tensor.path for tensor in tensors.values()}):
        check_export(path, stated.get("export_id"))
    return Source(
        kind="omnihuman",
        folder=folder,
        model=model,
        tensors=tensors,
        groups=("base", *ADDED_GROUPS),
        files=_files(folder, tensors),
    )


def _stated_model(path: Path) -> mmdit.MMDiTConfig:
    """The part "model" of what an export wrote; ValueError for what it cannot have written."""
    try:
        model = experiment.from_json(hunyuan_video.read_json(path)["model"], mmdit.MMDiTConfig)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: its part 'model' cannot be read ({error}); fetch the file again") from error
    usual = mmdit.MMDiTConfig()
    for field in dataclasses.fields(model):
        default, value = getattr(usual, field.name), getattr(model, field.name)
        if isinstance(default, int | float | tuple) and (what := hunyuan_video.misfit(value, default)):
            raise ValueError(f"{path}: model.{field.name} is {value!r}, not {what}; fetch the file again")
    return model


SOURCES: dict[str, Callable[[Path], Source]] = {"hunyuan-video": open_hunyuan_video, "omnihuman": open_omnihuman}


def import_weights(
    source: Source,
    to: Path,
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
    hashed = sum(file.stat().st_size for file in source.files)
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
    make_additions(config, leaves, mesh, added)
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


def save(params: Params, config: experiment.ExperimentConfig, origin: Mapping[str, Any], to: Path) -> None:
    """The run folder of step 0: config.json, origin.json and the checkpoint, which holds both as well."""
    # They lie here, wherever the run that starts from them will keep its own.
    config = dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, directory=""))
    if jax.process_index() == 0:
        to.mkdir(parents=True, exist_ok=True)
        experiment.write_config(config, to)
        write_text(to / "origin.json", json.dumps(origin, indent=2) + "\n")
    processes.wait_for_peers("omnihuman_import_folder")
    record = RunRecord(config=experiment.to_json(config), fingerprint="", step=0, origin=origin)
    with open_checkpoints(to / "checkpoints", config.checkpoint) as checkpoints:
        checkpoints.writer.save_weights(params, record)


def import_mesh(model: mmdit.MMDiTConfig) -> Mesh:
    """All devices; as many as its sizes let share the model's matrices, each part on several devices if that is not
    all.
    """
    count = jax.device_count()
    for ways in (ways for ways in range(count, 0, -1) if count % ways == 0):
        mesh = sharding.create_mesh(sharding.MeshConfig(data=count // ways, fsdp=ways))
        try:
            abstract_leaves(model, mesh)
        except ValueError:
            if ways == 1:
                raise
            continue
        break
    return mesh


def abstract_leaves(model: mmdit.MMDiTConfig, mesh: Mesh) -> dict[key_table.Path, jax.ShapeDtypeStruct]:
    """Shape, dtype and sharding of every parameter, by path."""
    shapes, axes = mmdit.abstract_params(model)
    split = lambda shape, axis: jax.ShapeDtypeStruct(  # noqa: E731
        shape.shape, shape.dtype, sharding=sharding.named_sharding(mesh, axis, shape.shape)
    )
    return key_table.flatten(jax.tree.map(split, shapes, axes))


def make_additions(
    config: experiment.ExperimentConfig, leaves: ShardedParams, mesh: Mesh, groups: Sequence[str]
) -> None:
    """Initialises the parameters of `groups` as a new model has them: those of stacked blocks layer by layer, like all
    else.
    """
    model = config.model
    one = dataclasses.replace(model, num_dual_layers=1, num_single_layers=min(1, model.num_single_layers))
    places = {
        path: leaf.sharding
        for path, leaf in abstract_leaves(one, mesh).items()
        if mmdit.condition_group(path) in groups
    }
    stacks = {"dual_blocks": model.num_dual_layers, "single_blocks": model.num_single_layers}
    key = jax.random.key(config.seed)
    for number, (stack, layers) in enumerate([("", 1), *stacks.items()]):
        own = {path: place for path, place in places.items() if (path[0] if path[0] in stacks else "") == stack}
        for group in _batches(own, key_table.key_table(one).shapes):
            # Compiled ahead and dropped: what jit keeps would stay on the host.
            run = _initialiser(one, group).lower(key).compile()
            for layer in range(layers):
                arrays = run(jax.random.fold_in(jax.random.fold_in(key, number), layer))
                leaves.write_arrays(layer if stack else None, arrays)
                del arrays


def _initialiser(model: mmdit.MMDiTConfig, places: Mapping[key_table.Path, Any]) -> Any:
    """f(key): the freshly initialised parameters at `places`; what is not returned is never computed."""

    def init(key: jax.Array) -> dict[key_table.Path, jax.Array]:
        flat = key_table.flatten(mmdit.init_params(model, key))
        return {path: flat[path] for path in places}

    return jax.jit(init, out_shardings=dict(places))


def _batches(
    places: Mapping[key_table.Path, Any], shapes: Mapping[key_table.Path, tuple[int, ...]]
) -> Iterator[dict[key_table.Path, Any]]:
    """`places`, in parts of at most `_INIT_BYTES` (or one leaf): random numbers take several times what they fill."""
    batch: dict[key_table.Path, Any] = {}
    size = 0
    for path, place in places.items():
        nbytes = 4 * math.prod(shapes[path])
        if batch and size + nbytes > _INIT_BYTES:
            yield batch
            batch, size = {}, 0
        batch[path] = place
        size += nbytes
    if batch:
        yield batch


def hash_files(
    files: Sequence[Path], progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, str]:
    """File name -> sha256. Processes share the work."""
    index, count = jax.process_index(), jax.process_count()
    mine = files[index::count]
    total, done = sum(file.stat().st_size for file in mine), 0
    digests = np.zeros((len(files), 32), np.uint8)

    def on_read(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    for i, path in list(enumerate(files))[index::count]:
        digests[i] = np.frombuffer(bytes.fromhex(file_sha256(path, on_read)), np.uint8)
    if count > 1:
        digests = multihost_utils.process_allgather(digests).sum(axis=0, dtype=np.uint8)
    return {path.name: row.tobytes().hex() for path, row in zip(files, digests)}


def check_hashes(found: Mapping[str, str], expected: Mapping[str, str], folder: Path) -> None:
    """ValueError that lists every file of `folder` that is another one than expected, is not listed, or is not
    there.
    """
    lines = [f"{name} is listed but not there" for name in sorted(expected.keys() - found.keys())]
    lines += [f"{name} is not listed" for name in sorted(found.keys() - expected.keys())]
    lines += [
        f"{name} has sha256 {found[name]}, expected {expected[name]}"
        for name in sorted(found.keys() & expected.keys())
        if found[name] != expected[name].lower()
    ]
    if lines:
        raise ValueError(f"{folder}: {'; '.join(lines)}; fetch these files again, or see whether the list is for them")


def read_hashes(path: Path) -> dict[str, str]:
    """A list as `sha256sum` prints it: digest, two spaces (or space and star), file name."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; `sha256sum *.safetensors *.json > FILE` writes such a list")
    hashes = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        digest, _, name = line.strip().partition(" ")
        if not line.strip():
            continue
        if len(digest) != 64 or not name.strip():
            raise ValueError(f"{path}, line {number}: {line!r} is not `SHA256  FILE`, as sha256sum prints it")
        hashes[Path(name.strip().lstrip("*")).name] = digest
    return hashes


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


def _files(folder: Path, tensors: Mapping[str, safetensors_io.TensorInfo]) -> tuple[Path, ...]:
    """Everything that the model was read from: weights, indices, configs."""
    weights = {info.path for info in tensors.values()}
    described = [
        path
        for path in folder.glob("*.json")
        if path.name.endswith(".index.json") or path.stem in ("config", ADDITIONS_STEM)
    ]
    return tuple(sorted({*weights, *described}))


def local_folder(text: str) -> Path:
    """A path on the command line; a bucket's URL, which Path would take for a folder `gs:`, is refused."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text}: give a local or mounted folder, and copy from or to the bucket yourself"
        )
    return Path(text)


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
        type=local_folder,
        dest="source",
        metavar="DIR",
        help="config.json and its .safetensors",
    )
    parser.add_argument("--to", required=True, type=local_folder, metavar="CKPT", help="run folder to write")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="config of the run that will start from these weights; it gives the sizes of the added parts",
    )
    parser.add_argument(
        "--sha256", type=Path, metavar="FILE", help="file with the expected sha256 of each file, as sha256sum prints it"
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
