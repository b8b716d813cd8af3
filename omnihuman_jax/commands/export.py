"""`omnihuman export`: a checkpoint becomes a folder that PyTorch loads, without JAX and without this package.

The folder: model.safetensors (or shards with an index), config.json, README.md, modeling_omnihuman.py (the model; needs
torch and safetensors alone) and, beside it, the modules of a pipeline from files to an mp4
(`interop.export_folder.MODULES`). It appears whole or not at all, and its tensors stream through the host one by one.

Format `diffusers`: the base part as diffusers' own `HunyuanVideoTransformer3DModel` loads it, and beside it the
additions, omnihuman_additions.safetensors and .json, under the names of our PyTorch module.
`omnihuman import omnihuman` reads both formats.
"""

import argparse
import math
from collections.abc import Callable, Sequence

from etils import epath

from omnihuman_jax import config as experiment
from omnihuman_jax.checkpoint.folder import checkpoint_directory
from omnihuman_jax.checkpoint.reader import CheckpointReader
from omnihuman_jax.checkpoint.record import WEIGHTS, RunRecord
from omnihuman_jax.interop import hunyuan_video, safetensors_io
from omnihuman_jax.interop.checkpoint_leaves import CheckpointLeaves
from omnihuman_jax.interop.export_folder import Serving
from omnihuman_jax.interop.key_table import key_table
from omnihuman_jax.interop.weights_export import DTYPES, Exported, digest, export_diffusers, export_params
from omnihuman_jax.runtime import platform_flags
from omnihuman_jax.runtime.locations import Location, location
from omnihuman_jax.runtime.progress import progress_bar

FORMATS = ("torch", "diffusers")


def export_run(
    run: Location,
    out: Location,
    *,
    form: str = "torch",
    weights: str = "ema",
    dtype: str = "fp32",
    step: int | None = None,
    max_shard_bytes: int = safetensors_io.DEFAULT_MAX_SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Exports a checkpoint of the run in `run` to `out`.

    Args:
        run: run folder of `omnihuman train` or `omnihuman import`, or the folder of one step in its checkpoints/.
        out: a folder that does not exist, is empty, or holds an earlier export, which is then replaced.
        form: `torch` or `diffusers`.
        weights: `ema` or `raw`; of an import, which has no average yet, the parameters either way.
        dtype: `fp32`, the master weights bit for bit, or `bf16`, rounded to nearest.
        step: of the checkpoint; the newest by default.
        max_shard_bytes: weights above this size are cut into several files.
        progress: called with (bytes written, bytes in all).

    Raises:
        FileNotFoundError: no such run or checkpoint.
        FileExistsError: `out` holds something else.
        ValueError: a checkpoint that is damaged or does not fit its own config.
    """
    _check_choices(weights, dtype, form)
    platform_flags.map_large_buffers()
    folder, record = _checkpoint(run, step)
    config = experiment.from_json(record.config)
    model = config.model
    table = key_table(model)
    part = record.part(weights)
    weights = next(name for name, of in WEIGHTS.items() if of == part)
    leaves = CheckpointLeaves(folder, part)
    table.check_ours(leaves.shapes, f"{folder}/{part}")
    about = {"weights": weights, "dtype": dtype, "step": record.step, "run": str(record.config["name"])}
    export_id = digest([about, record.to_json()])
    if form == "diffusers":
        return export_diffusers(
            model, table, leaves.read, out, dtype=dtype, about=about, export_id=export_id,
            max_shard_bytes=max_shard_bytes, progress=progress,
        )  # fmt: skip
    return export_params(
        model,
        table,
        leaves.read,
        out,
        dtype=dtype,
        about=about,
        export_id=export_id,
        serving=Serving.of_run(_run_folder(run), config.data.rows, config.sampling, config.flow),
        max_shard_bytes=max_shard_bytes,
        progress=progress,
    )


def _shard_bytes(gigabytes: float) -> int:
    if not (math.isfinite(gigabytes) and gigabytes > 0):
        raise ValueError(f"--max-shard-gb must be a finite number above 0, not {gigabytes}")
    return max(1, int(gigabytes * 1e9))


def _check_choices(weights: str, dtype: str, form: str) -> None:
    if form not in FORMATS:
        raise ValueError(f"format {form!r}: choose {' or '.join(FORMATS)}")
    if weights not in WEIGHTS:
        raise ValueError(f"weights {weights!r}: choose {' or '.join(sorted(WEIGHTS))}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: choose {' or '.join(DTYPES)}")


def _run_folder(path: Location) -> Location:
    """The run of `path`, which is its folder, or that of a step in its checkpoints/."""
    return path.parent.parent if path.parent.name == "checkpoints" and path.name.isdigit() else path


def _checkpoint(run: Location, step: int | None) -> tuple[epath.Path, RunRecord]:
    """The folder of a finished checkpoint, and its record; `run` is a run folder, or that of a step in its
    checkpoints/.
    """
    if _run_folder(run) != run:
        if step is not None and step != int(run.name):
            raise ValueError(f"{run} is step {int(run.name)}: leave --step {step} out, or give the run folder")
        run, step = _run_folder(run), int(run.name)
    folder = epath.Path(checkpoint_directory(run))
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{run} holds no checkpoints; give the run folder of `omnihuman train` or `omnihuman import`"
        )
    with CheckpointReader(folder) as checkpoints:
        steps = checkpoints.steps
        if not steps:
            raise FileNotFoundError(f"{folder} has no finished checkpoint; train first, or wait for the first save")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise FileNotFoundError(f"{folder} has no step {step}; it has {', '.join(map(str, steps))}")
        return folder / str(step), checkpoints.record(step)


def main(argv: Sequence[str]) -> int:
    """`omnihuman export`."""
    parser = argparse.ArgumentParser(
        prog="omnihuman export",
        description=(
            "Writes a checkpoint as safetensors: with a standalone PyTorch module, or for diffusers' own class."
        ),
        epilog=(
            "example: omnihuman export runs/mine/run --to runs/mine/export --format torch --weights ema --dtype fp32"
        ),
    )
    parser.add_argument(
        "checkpoint", type=location, metavar="CKPT", help="run folder, or the folder of one step in its checkpoints/"
    )
    parser.add_argument(
        "--to",
        required=True,
        type=location,
        metavar="DIR",
        help="folder to write, or gs:// or s3://; an earlier export in a folder is replaced, one in a bucket never",
    )
    parser.add_argument("--format", choices=FORMATS, default="torch", help="(%(default)s)")
    parser.add_argument("--weights", choices=sorted(WEIGHTS), default="ema", help="(%(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="(%(default)s)")
    parser.add_argument("--step", type=int, help="checkpoint; the newest by default")
    parser.add_argument(
        "--max-shard-gb",
        type=float,
        default=5.0,
        help="largest size of a weights file; larger weights become several files (%(default)s)",
    )
    options = parser.parse_args(argv)
    with progress_bar("bytes") as bar:
        task = bar.add_task("exporting", total=None)
        result = export_run(
            options.checkpoint,
            options.to,
            form=options.format,
            weights=options.weights,
            dtype=options.dtype,
            step=options.step,
            max_shard_bytes=_shard_bytes(options.max_shard_gb),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print(
        f"{result.folder}: step {result.step}, {result.weights} weights, {result.parameters / 1e6:.1f} M parameters in "
        f"{result.tensors} tensors, {result.nbytes / 1e6:.1f} MB of {options.dtype}; "
        + (
            "its README.md shows how to load it"
            if options.format == "torch"
            else f"{hunyuan_video.CLASS}.from_pretrained loads it"
        )
    )
    return 0
