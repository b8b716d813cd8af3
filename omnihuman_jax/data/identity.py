"""What the features of a data set are: what a run that goes on has to find unchanged."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from omnihuman_jax.data.records import DatasetSpec

_ROLES = ("codec", "text_encoder", "speech_encoder")
_AS_THEY_ARE = (
    "latent_channels", "text_width", "pooled_width", "speech_width", "margin", "fps", "sample_rate_hz",
    "max_text_tokens", "records_sha256",
)  # fmt: skip


_MEANING = ("codec", "text_encoder", "speech_encoder", "speech_layers", "keypoint_names", "empty_prompt")


def features_of(spec: DatasetSpec) -> dict[str, Any]:
    """JSON values by name, the same for two data sets only if a model cannot tell them apart.

    A network counts by its files' hashes, wherever its folder lies; by its name where there are none.
    """
    empty = (spec.empty_text_SE, spec.empty_pooled_E)
    return {
        **{role: _network(spec, role) for role in _ROLES},
        **{name: getattr(spec, name) for name in _AS_THEY_ARE},
        "codec_options": json.loads(json.dumps(dict(spec.codec_options), sort_keys=True)),
        "speech_layers": list(spec.speech_layers),
        "keypoint_names": _digest("\0".join(spec.keypoint_names).encode()),
        "empty_prompt": _digest(b"".join(np.asarray(array, np.float32).tobytes() for array in empty)),
    }


def changed_features(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`name: before -> now` of what differs between two of `features_of`; what `before` does not say is no
    difference.
    """
    stated = [name for name in before if name in now and (name != "records_sha256" or before[name])]
    return [f"{name}: {_short(before[name])} -> {_short(now[name])}" for name in stated if before[name] != now[name]]


def changed_meaning(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`changed_features` of what numbers mean to a model: other windows of the same encoders are no difference."""
    return changed_features({name: value for name, value in before.items() if name in _MEANING}, now)


def _network(spec: DatasetSpec, role: str) -> str:
    hashes = {name: digest for name, digest in sorted(spec.encoder_sha256.items()) if name.startswith(f"{role}/")}
    return _digest(json.dumps(hashes).encode()) if hashes else getattr(spec, role)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _short(value: Any) -> str:
    is_digest = isinstance(value, str) and len(value) == 64
    return f"{value[:12]}..." if is_digest else str(value) if value != "" else "none"
