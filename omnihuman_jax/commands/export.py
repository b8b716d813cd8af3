"""`omnihuman export`: a checkpoint becomes a folder that PyTorch loads, without JAX and without this package.

The folder: model.safetensors (or shards with an index), config.json, README.md, modeling_omnihuman.py (the model; needs
torch and safetensors alone) and, beside it, the modules of a pipeline from files to an mp4
(`interop.export_folder.MODULES`). It appears whole or not at all, and its tensors stream through the host one by one.

Format `diffusers`: the base part as diffusers' own `HunyuanVideoTransformer3DModel` loads it, and beside it the
additions, omnihuman_additions.safetensors and .json, under the names of our PyTorch module.
`omnihuman import omnihuman` reads both formats.
"""

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from omnihuman_jax import config as experiment
from omnihuman_jax.checkpoint.folder import checkpoint_directory
from omnihuman_jax.checkpoint.reader import CheckpointReader
from omnihuman_jax.checkpoint.record import WEIGHTS, RunRecord
from omnihuman_jax.interop import hunyuan_video, safetensors_io
from omnihuman_jax.interop.checkpoint_leaves import CheckpointLeaves
from omnihuman_jax.interop.export_folder import Serving, copy_modules
from omnihuman_jax.interop.key_table import KeyTable, ReadSlice, key_table
from omnihuman_jax.models import mmdit
from omnihuman_jax.runtime import files, platform_flags
from omnihuman_jax.runtime.progress import progress_bar

FORMATS = ("torch", "diffusers")
DTYPES = {"fp32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16)}
ARCHITECTURE = "OmniHumanForVideo"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What an export wrote: the folder, tensors, parameters and bytes of weights, and the step that they are of.

    weights: `ema` or `raw`, what was there: an import has no average yet, whatever was asked for.
    """

    folder: Path
    tensors: int
    parameters: int
    nbytes: int
    step: int
    weights: str


def export_run(
    run: Path,
    out: Path,
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
    export_id = _digest([about, record.to_json()])
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
        serving=Serving.of_run(_run_folder(run), config.data.dataset, config.sampling, config.flow),
        max_shard_bytes=max_shard_bytes,
        progress=progress,
    )


def export_params(
    model: mmdit.MMDiTConfig,
    table: KeyTable,
    read: ReadSlice,
    out: Path,
    *,
    dtype: str,
    about: dict[str, Any],
    export_id: str = "",
    serving: Serving | None = None,
    max_shard_bytes: int = safetensors_io.DEFAULT_MAX_SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Writes the folder from whatever `read` reads layers of parameters from; `about` and `serving` go into
    config.json, `export_id` into every file, so that no file of another export passes for one of this.
    """
    sources = table.to_torch(read, DTYPES[dtype])
    total, done = sum(source.nbytes for source in sources), 0

    def written(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    config = module_config(model, about) | ({"serving": serving.to_json()} if serving else {})
    config["export_id"] = export_id or _digest(config)
    mark = {"export": config["export_id"]}
    with files.whole_folder(out, overwrite=is_export(out)) as folder:
        safetensors_io.write_folder(folder, sources, max_shard_bytes=max_shard_bytes, metadata=mark, progress=written)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        copy_modules(folder)
        if serving:
            serving.write(folder, mark)
        (folder / "README.md").write_text(readme(model, about, out.name, serving))
    parameters = sum(int(np.prod(source.shape)) for source in sources)
    return Exported(
        folder=out,
        tensors=len(sources),
        parameters=parameters,
        nbytes=total,
        step=about["step"],
        weights=about["weights"],
    )


def export_diffusers(
    model: mmdit.MMDiTConfig,
    table: KeyTable,
    read: ReadSlice,
    out: Path,
    *,
    dtype: str,
    about: dict[str, Any],
    export_id: str = "",
    max_shard_bytes: int = safetensors_io.DEFAULT_MAX_SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Writes a folder that diffusers' class loads by `from_pretrained`, with what it does not know in files beside its
    own.
    """
    config = hunyuan_video.diffusers_config(model)
    sources = {
        hunyuan_video.STEM: table.only(("base",)).to_torch(read, DTYPES[dtype]),
        hunyuan_video.ADDITIONS_STEM: table.only(hunyuan_video.ADDED_GROUPS).to_torch(read, DTYPES[dtype]),
    }
    every = [source for part in sources.values() for source in part]
    total, done = sum(source.nbytes for source in every), 0

    def written(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    additions = module_config(model, about)
    additions["model"] = {name: additions["model"][name] for name in hunyuan_video.ADDED_GROUPS}
    additions["export_id"] = export_id or _digest(additions)
    mark = {"export": additions["export_id"]}
    with files.whole_folder(out, overwrite=is_export(out)) as folder:
        for stem, part in sources.items():
            if part:
                safetensors_io.write_folder(
                    folder, part, stem=stem, max_shard_bytes=max_shard_bytes, metadata=mark, progress=written
                )
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (folder / f"{hunyuan_video.ADDITIONS_STEM}.json").write_text(json.dumps(additions, indent=2) + "\n")
    parameters = sum(int(np.prod(source.shape)) for source in every)
    return Exported(
        folder=out,
        tensors=len(every),
        parameters=parameters,
        nbytes=total,
        step=about["step"],
        weights=about["weights"],
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def is_export(folder: Path) -> bool:
    """Whether `folder` was written by an export."""
    for name in ("config.json", f"{hunyuan_video.ADDITIONS_STEM}.json"):
        try:
            if json.loads((folder / name).read_text())["architecture"] == ARCHITECTURE:
                return True
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return False


def module_config(model: mmdit.MMDiTConfig, about: dict[str, Any]) -> dict[str, Any]:
    """config.json: `model` is what the PyTorch module is built from, `export` says where its weights come from."""
    return {"architecture": ARCHITECTURE, "model": experiment.to_json(model), "export": about}


def readme(model: mmdit.MMDiTConfig, about: dict[str, Any], name: str, serving: Serving | None) -> str:
    """The folder's README: the three lines that load it, and what the model takes."""
    rows = [
        ("`segment_ids_BL`, `text_segment_ids_BS`", "int", "window of a token + 1, 0 for padding"),
        ("`positions_BL3`", "int", "indices (t, h, w) of a latent token; t is 0 on reference tokens"),
        ("`is_reference_BL`", "bool", "tokens of the reference image"),
        ("`motion_BG`", "bool", "windows whose first 2 latents are given clean"),
        ("`active_BG4`", "bool", "active conditions of a window: text, reference, audio, pose"),
        ("`text_BSE`", "float", f"token-level text embeddings, E = {model.text_width}"),
    ]
    if model.pooled_width:
        rows.append(("`pooled_BGE`", "float", f"pooled text embedding of a window, E = {model.pooled_width}"))
    if model.audio or model.pose:
        rows.append(("`frame_BL`", "int", "latent-frame slot of a video token, -1 on other tokens"))
    if model.audio:
        rows.append(("`audio_BTE`", "float", f"speech features at 25 fps, E = {model.audio.features}"))
        rows.append(
            ("`audio_index_BFA`", "int", f"rows of them for each latent frame, A = {model.audio.tokens}, -1 for none")
        )
    if model.pose:
        rows.append(
            ("`keypoints_BTJ3`", "float", f"x, y (in tokens of 16 pixels), confidence; J = {model.pose.keypoints}")
        )
        rows.append(
            ("`pose_index_BFP`", "int", f"rows of them for each latent frame, P = {model.pose.frames}, -1 for none")
        )
    table = "\n".join(f"| {row} | {dtype} | {meaning} |" for row, dtype, meaning in rows)
    return f"""# {name}

OmniHuman, step {about["step"]} of run `{about["run"]}`, {about["weights"]} weights in {about["dtype"]}, by
`omnihuman export`. Needs `torch` and `safetensors`; no JAX. In this folder (or with it on `PYTHONPATH`):

```python
from modeling_omnihuman import OmniHumanForVideo
model = OmniHumanForVideo.from_pretrained(".")
velocity = model(tokens, t, batch)
```

`tokens` [B, L, {model.patch_channels}] are latents in patches of 2 x 2, `t` [B, G] the diffusion time of each window in
[0, 1], `velocity` the direction from data to noise: z_t = (1 - t) z_0 + t noise, so a step from t to s < t is
`tokens + (s - t) * velocity`, on the tokens that are not given clean. `batch` is a dict of tensors; a sequence packs up
to G windows (clips) of any size:

| array | dtype | meaning |
|---|---|---|
{table}

The docstring of `OmniHumanForVideo.forward` has the details. `torch.compile(model)` works; attention is PyTorch's
`scaled_dot_product_attention`. `sampling_omnihuman.py` takes noise to latents.
{pipeline_section(model) if serving else NO_PIPELINE}"""


NO_PIPELINE = """
`pipeline_omnihuman.py` (from files to a video) does not run from this export: the run had no dataset.json, so nothing
says which codec and encoders belong to the model. Export a run that was trained on a dataset.
"""


def pipeline_section(model: mmdit.MMDiTConfig) -> str:
    """The README's part about the pipeline, with the inputs that this model has."""
    driven = " --audio voice.wav" * bool(model.audio) + " --pose pose.npz" * bool(model.pose and not model.audio)
    return f"""
## From files to a video

```
pip install torch safetensors numpy av soundfile transformers tokenizers diffusers
python pipeline_omnihuman.py --image face.png{driven} --text "A woman speaks." --out talking.mp4
```

The same seed gives what `omnihuman generate` gives. The networks beside the model are read from the folders that
config.json names (`serving`); on another machine, name them: `--speech-encoder DIR --text-encoder DIR --codec DIR`
(their weights are compared with those that the model was trained with). `--help` lists the options; in Python it is
`OmniHumanPipeline.from_pretrained(DIR)`.
"""


def _check_choices(weights: str, dtype: str, form: str) -> None:
    if form not in FORMATS:
        raise ValueError(f"format {form!r}: choose {' or '.join(FORMATS)}")
    if weights not in WEIGHTS:
        raise ValueError(f"weights {weights!r}: choose {' or '.join(sorted(WEIGHTS))}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: choose {' or '.join(DTYPES)}")


def _run_folder(path: Path) -> Path:
    """The run of `path`, which is its folder, or that of a step in its checkpoints/."""
    return path.parent.parent if path.parent.name == "checkpoints" and path.name.isdigit() else path


def _checkpoint(run: Path, step: int | None) -> tuple[epath.Path, RunRecord]:
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
        "checkpoint", type=Path, metavar="CKPT", help="run folder, or the folder of one step in its checkpoints/"
    )
    parser.add_argument(
        "--to", required=True, type=Path, metavar="DIR", help="folder to write; an earlier export there is replaced"
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
            max_shard_bytes=int(options.max_shard_gb * 1e9),
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
