"""HunyuanVideo's `config.json` (diffusers' `HunyuanVideoTransformer3DModel`) and our `MMDiTConfig`, both ways.

The two describe the same model: every field of theirs has one of ours, or one value that ours computes.
"""

import json
from collections.abc import Mapping
from typing import Any

from omnihuman_jax.models.mmdit_config import MMDiTConfig
from omnihuman_jax.runtime.locations import Location
from omnihuman_jax.typing import PATCH

CLASS = "HunyuanVideoTransformer3DModel"
STEM = "diffusion_pytorch_model"
ADDITIONS_STEM = "omnihuman_additions"
ADDED_GROUPS = ("audio", "pose")
"""Condition groups (`mmdit.condition_group`) that diffusers' class does not know; their files lie beside its own."""
DIFFUSERS_VERSION = "0.42.1"

# Theirs -> (ours, their default). `attention_head_dim` is ours times `num_attention_heads`: handled by itself.
_FIELDS: dict[str, tuple[str, Any]] = {
    "in_channels": ("latent_channels", 16),
    "num_attention_heads": ("num_heads", 24),
    "num_layers": ("num_dual_layers", 20),
    "num_single_layers": ("num_single_layers", 40),
    "num_refiner_layers": ("num_refiner_layers", 2),
    "mlp_ratio": ("mlp_ratio", 4.0),
    "guidance_embeds": ("guidance_embed", True),
    "text_embed_dim": ("text_width", 4096),
    "pooled_projection_dim": ("pooled_width", 768),
    "rope_theta": ("rope_theta", 256.0),
    "rope_axes_dim": ("rope_axes", (16, 56, 56)),
}
_HEAD_DIM = 128
# What ours computes and has no setting for.
_FIXED: dict[str, Any] = {"patch_size": PATCH, "patch_size_t": 1, "qk_norm": "rms_norm", "image_condition_type": None}

BASE_FIELDS = ("width", *(ours for ours, _ in _FIELDS.values()))
"""Fields of MMDiTConfig that the base part of a model depends on."""


def transformer_folder(folder: Location) -> Location:
    """The folder of the transformer: `folder` itself, or its `transformer/` if it is that of a whole pipeline."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder; give one in diffusers' layout (config.json beside .safetensors files)"
        )
    for candidate in (folder, folder / "transformer"):
        if read_json(candidate / "config.json", missing={}).get("_class_name") is not None:
            return candidate
    raise FileNotFoundError(
        f"{folder} holds no config.json of a {CLASS}, nor does its transformer/; give the folder that diffusers saved"
    )


def model_config(folder: Location) -> MMDiTConfig:
    """The sizes that `folder`/config.json states, without OmniHuman's additions; ValueError lists whatever does not
    fit.
    """
    path = folder / "config.json"
    values = {name: value for name, value in read_json(path).items() if name != "_name_or_path"}
    found = values.pop("_class_name", None)
    if found != CLASS:
        raise ValueError(f"{path} describes a {found}; only {CLASS} can be imported as hunyuan-video")
    values = {name: value for name, value in values.items() if not name.startswith("_")}
    known = {*_FIELDS, *_FIXED, "attention_head_dim", "out_channels"}
    wrong = [f"{name} is not a field of {CLASS}" for name in sorted(values.keys() - known)]
    wrong += [
        f"{name} is {values[name]!r}, only {value!r} is supported"
        for name, value in _FIXED.items()
        if values.get(name, value) != value
    ]
    ours = {name: values.get(theirs, default) for theirs, (name, default) in _FIELDS.items()}
    if (values.get("out_channels") or ours["latent_channels"]) != ours["latent_channels"]:
        wrong.append(
            f"out_channels is {values['out_channels']} but in_channels is {ours['latent_channels']}; they must be equal"
        )
    kinds = {theirs: default for theirs, (_, default) in _FIELDS.items()} | {
        "attention_head_dim": _HEAD_DIM,
        "out_channels": 16,
    }
    wrong += [
        f"{name} is {values[name]!r}, not {what}: fetch the file again"
        for name, default in kinds.items()
        if name in values
        and (what := misfit(values[name], default))
        and not (name == "out_channels" and values[name] is None)
    ]
    if wrong:
        raise ValueError(f"{path}: {'; '.join(wrong)}")
    ours["rope_axes"] = tuple(ours["rope_axes"])
    config = MMDiTConfig(**ours)
    config.width = config.num_heads * values.get("attention_head_dim", _HEAD_DIM)
    try:
        config.validate()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config


def misfit(value: Any, default: Any) -> str:
    """What `value` should have been to be of the kind of `default`; "" if it is."""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, tuple):
        fits = (
            isinstance(value, list | tuple) and len(value) == len(default) and all(type(item) is int for item in value)
        )
        return "" if fits else f"{len(default)} whole numbers"
    if isinstance(default, int):
        return "" if type(value) is int else "a whole number"
    return "" if type(value) in (int, float) else "a number"


def diffusers_config(config: MMDiTConfig) -> dict[str, Any]:
    """`config.json` of the base part of a model; ValueError where diffusers' class cannot express it."""
    if not config.pooled_width:
        raise ValueError(
            f"model.pooled_width is 0: {CLASS} always takes a pooled text embedding; export with --format torch instead"
        )
    values: dict[str, Any] = {"_class_name": CLASS, "_diffusers_version": DIFFUSERS_VERSION}
    values |= {theirs: getattr(config, ours) for theirs, (ours, _) in _FIELDS.items()}
    values |= {"attention_head_dim": config.head_dim, "out_channels": config.latent_channels}
    values["rope_axes_dim"] = list(config.rope_axes)
    return values | _FIXED


def differences(wanted: MMDiTConfig, found: MMDiTConfig) -> list[str]:
    """`model.FIELD is X instead of Y` for every field of the base part that differs."""
    pairs = {name: (getattr(wanted, name), getattr(found, name)) for name in BASE_FIELDS}
    same = lambda a, b: tuple(a) == tuple(b) if isinstance(a, tuple | list) else a == b  # noqa: E731
    return [
        f"model.{name} is {ours} instead of {theirs}"
        for name, (ours, theirs) in pairs.items()
        if not same(ours, theirs)
    ]


def read_json(path: Location, missing: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object in `path`; `missing` if there is no such file, FileNotFoundError if that is None."""
    if not path.is_file():
        if missing is None:
            raise FileNotFoundError(f"{path} does not exist; fetch the whole folder")
        return dict(missing)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object; fetch it again")
    return values
