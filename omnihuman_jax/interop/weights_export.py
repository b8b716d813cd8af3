"""The weights of a model as a folder: for our PyTorch module, or for diffusers' own class with ours beside it."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from omnihuman_jax.interop import hunyuan_video, safetensors_io
from omnihuman_jax.interop.export_folder import Serving, copy_modules
from omnihuman_jax.interop.export_readme import readme
from omnihuman_jax.interop.key_table import KeyTable, ReadSlice
from omnihuman_jax.models import mmdit
from omnihuman_jax.plain_values import to_json
from omnihuman_jax.runtime import folders
from omnihuman_jax.runtime.locations import Location

DTYPES = {"fp32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16)}
ARCHITECTURE = "OmniHumanForVideo"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What an export wrote: the folder, tensors, parameters and bytes of weights, and the step that they are of.

    weights: `ema` or `raw`, what was there: an import has no average yet, whatever was asked for.
    """

    folder: Location
    tensors: int
    parameters: int
    nbytes: int
    step: int
    weights: str


def export_params(
    model: mmdit.MMDiTConfig,
    table: KeyTable,
    read: ReadSlice,
    out: Location,
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
    written = _counter(sources, progress)
    config = module_config(model, about) | ({"serving": serving.to_json()} if serving else {})
    config["export_id"] = export_id or digest(config)
    mark = {"export": config["export_id"]}
    with folders.whole_folder(out, overwrite=is_export(out)) as folder:
        safetensors_io.write_folder(folder, sources, max_shard_bytes=max_shard_bytes, metadata=mark, progress=written)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        copy_modules(folder)
        if serving:
            serving.write(folder, mark)
        (folder / "README.md").write_text(readme(model, about, out.name, serving))
    return _exported(out, sources, about)


def export_diffusers(
    model: mmdit.MMDiTConfig,
    table: KeyTable,
    read: ReadSlice,
    out: Location,
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
    written = _counter(every, progress)
    additions = module_config(model, about)
    additions["model"] = {name: additions["model"][name] for name in hunyuan_video.ADDED_GROUPS}
    additions["export_id"] = export_id or digest(additions)
    mark = {"export": additions["export_id"]}
    with folders.whole_folder(out, overwrite=is_export(out)) as folder:
        for stem, part in sources.items():
            if part:
                safetensors_io.write_folder(
                    folder, part, stem=stem, max_shard_bytes=max_shard_bytes, metadata=mark, progress=written
                )
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (folder / f"{hunyuan_video.ADDITIONS_STEM}.json").write_text(json.dumps(additions, indent=2) + "\n")
    return _exported(out, every, about)


def _counter(
    sources: Sequence[safetensors_io.TensorSource], progress: Callable[[int, int], None]
) -> Callable[[int], None]:
    """f(bytes of a tensor that was written): tells `progress` how many there are by now, and in all."""
    total, done = sum(source.nbytes for source in sources), 0

    def written(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    return written


def _exported(out: Location, sources: Sequence[safetensors_io.TensorSource], about: dict[str, Any]) -> Exported:
    return Exported(
        folder=out,
        tensors=len(sources),
        parameters=sum(int(np.prod(source.shape)) for source in sources),
        nbytes=sum(source.nbytes for source in sources),
        step=about["step"],
        weights=about["weights"],
    )


def digest(value: Any) -> str:
    """Of what JSON can hold: 32 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def is_export(folder: Location) -> bool:
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
    return {"architecture": ARCHITECTURE, "model": to_json(model), "export": about}
