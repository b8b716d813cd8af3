"""SyncNet in Flax: features of five frames of a face and of 0.2 s of sound; what is made of them is in `sync_offsets`.

Weights: the public `syncnet_v2.model` (docs/evaluation.md), never shipped here.
"""

import functools
from pathlib import Path
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from omnihuman_jax.evaluation import sync_offsets
from omnihuman_jax.evaluation.convolutions import Unit, convolve, dense, max_pool, open_weights, take_unit
from omnihuman_jax.evaluation.sync_offsets import Sync
from omnihuman_jax.typing import Array

SyncNet: TypeAlias = dict[str, Unit]

_AUDIO: dict[int, tuple[int, ...]] = {
    0: (64, 1, 3, 3),
    4: (192, 64, 3, 3),
    8: (384, 192, 3, 3),
    11: (256, 384, 3, 3),
    14: (256, 256, 3, 3),
    18: (512, 256, 5, 4),
}
_LIPS: dict[int, tuple[int, ...]] = {
    0: (96, 3, 5, 7, 7),
    4: (256, 96, 1, 5, 5),
    8: (256, 256, 1, 3, 3),
    11: (256, 256, 1, 3, 3),
    14: (256, 256, 1, 3, 3),
    18: (512, 256, 1, 6, 6),
}
"""Convolutions by their place in the public file's sequences; a BatchNorm follows in the next place."""


def load_syncnet(path: Path) -> SyncNet:
    """The network of a .safetensors file with the public names; ValueError lists all that is missing, wrong or
    unknown.
    """
    weights, params = open_weights(path), {}
    for part, units in (("netcnnaud", _AUDIO), ("netcnnlip", _LIPS)):
        for place, shape in units.items():
            name = f"{part}.{place}"
            params[name] = take_unit(weights, name, shape, norm=f"{part}.{place + 1}", bias=True)
    for part in ("netfcaud", "netfclip"):
        params[f"{part}.0"] = take_unit(weights, f"{part}.0", (512, 512), norm=f"{part}.1", bias=True)
        params[f"{part}.3"] = take_unit(weights, f"{part}.3", (1024, 512), bias=True)
    weights.check(str(path), promised_by="SyncNet")
    return params


def sound_features(params: SyncNet, cepstra_BCT: Array) -> jax.Array:
    """[B, 1024] of pieces of cepstra [B, 13, 20]."""
    x = jnp.asarray(cepstra_BCT, jnp.float32)[..., None]
    one = ((1, 1), (1, 1))
    x = convolve(params["netcnnaud.0"], x, padding=one)
    x = convolve(params["netcnnaud.4"], x, padding=one)
    x = max_pool(x, (3, 3), (1, 2))
    for place in (8, 11, 14):
        x = convolve(params[f"netcnnaud.{place}"], x, padding=one)
    x = max_pool(x, (3, 3), (2, 2))
    x = convolve(params["netcnnaud.18"], x)
    return _dense(params, "netfcaud", x)


def face_features(params: SyncNet, faces_BTHW3: Array) -> jax.Array:
    """[B, 1024] of five frames of a face, [B, 5, 224, 224, 3] in 0 .. 255, **blue first**."""
    x = convolve(params["netcnnlip.0"], faces_BTHW3, (1, 2, 2))
    x = max_pool(x, (1, 3, 3), (1, 2, 2))
    inside = ((0, 0), (1, 1), (1, 1))
    x = convolve(params["netcnnlip.4"], x, (1, 2, 2), inside)
    x = max_pool(x, (1, 3, 3), (1, 2, 2), inside)
    for place in (8, 11, 14):
        x = convolve(params[f"netcnnlip.{place}"], x, padding=inside)
    x = max_pool(x, (1, 3, 3), (1, 2, 2))
    x = convolve(params["netcnnlip.18"], x)
    return _dense(params, "netfclip", x)


def _dense(params: SyncNet, part: str, x: jax.Array) -> jax.Array:
    flat = x.reshape(len(x), -1)
    if flat.shape[1] != 512:
        raise ValueError(f"{part}: {x.shape[1:]} is left of the input, where one place is; the sizes are fixed")
    return dense(params[f"{part}.3"], dense(params[f"{part}.0"], flat, relu=True))


def measure_sync(params: SyncNet, faces_THW3: np.ndarray, wave_N: np.ndarray, batch: int = 8) -> Sync:
    """`sync_offsets.measure` by this network."""
    face, sound = _compiled()

    def features(faces_BTHW3: np.ndarray, cepstra_BCT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(face(params, faces_BTHW3)), np.asarray(sound(params, cepstra_BCT))

    return sync_offsets.measure(features, faces_THW3, wave_N, batch)


@functools.cache
def _compiled() -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    return jax.jit(face_features), jax.jit(sound_features)
