"""A model on disk that an import reads: its sizes, its tensors by name, and the files that it is made of."""

import dataclasses
from collections.abc import Callable, Mapping

from omnihuman_jax.interop import hunyuan_video, safetensors_io
from omnihuman_jax.interop.hunyuan_video import ADDED_GROUPS, ADDITIONS_STEM
from omnihuman_jax.models import mmdit
from omnihuman_jax.plain_values import structure
from omnihuman_jax.runtime.locations import Location
from omnihuman_jax.serving.folders_omnihuman import check_export


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A model on disk: its sizes, its tensors by their names, which condition groups it holds, and the files to be
    hashed.
    """

    kind: str
    folder: Location
    model: mmdit.MMDiTConfig
    tensors: Mapping[str, safetensors_io.TensorInfo]
    groups: tuple[str, ...]
    files: tuple[Location, ...]


def open_hunyuan_video(folder: Location) -> Source:
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


def open_omnihuman(folder: Location) -> Source:
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


def _stated_model(path: Location) -> mmdit.MMDiTConfig:
    """The part "model" of what an export wrote; ValueError for what it cannot have written."""
    try:
        model = structure(mmdit.MMDiTConfig, hunyuan_video.read_json(path)["model"], "model")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: its part 'model' cannot be read ({error}); fetch the file again") from error
    usual = mmdit.MMDiTConfig()
    for field in dataclasses.fields(model):
        default, value = getattr(usual, field.name), getattr(model, field.name)
        if isinstance(default, int | float | tuple) and (what := hunyuan_video.misfit(value, default)):
            raise ValueError(f"{path}: model.{field.name} is {value!r}, not {what}; fetch the file again")
    return model


def _files(folder: Location, tensors: Mapping[str, safetensors_io.TensorInfo]) -> tuple[Location, ...]:
    """Everything that the model was read from: weights, indices, configs."""
    weights = {info.path for info in tensors.values()}
    described = [
        path
        for path in folder.glob("*.json")
        if path.name.endswith(".index.json") or path.stem in ("config", ADDITIONS_STEM)
    ]
    return tuple(sorted({*weights, *described}))


SOURCES: dict[str, Callable[[Location], Source]] = {"hunyuan-video": open_hunyuan_video, "omnihuman": open_omnihuman}
