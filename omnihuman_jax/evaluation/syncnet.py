"""SyncNet: how far a face and a voice are apart, over offsets between them.

25 frames a second and 16 kHz: five frames of a face (224 x 224, blue first, 0 .. 255) against 0.2 s of cepstra
(`mfcc`), every frame. Sync-D is the lowest mean distance over offsets of +-15 frames, Sync-C the median of those means
minus the lowest. Weights: the public `syncnet_v2.model` (docs/evaluation.md), never shipped here.
"""

import dataclasses
import functools
from pathlib import Path
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from omnihuman_jax.evaluation.convolutions import Unit, convolve, dense, max_pool, open_weights, take_unit
from omnihuman_jax.evaluation.mfcc import COUNT, mfcc
from omnihuman_jax.typing import FPS, SAMPLE_RATE_HZ, Array

SIZE = 224
FRAMES = 5
CEPSTRA = 20
OFFSETS = 15
_PER_FRAME = 4  # cepstra of a frame
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


@dataclasses.dataclass(frozen=True, slots=True)
class Sync:
    """confidence: Sync-C. distance: Sync-D. offset: frames that the sound is early, at the lowest distance."""

    confidence: float
    distance: float
    offset: int


def mean_distances(face_ND: np.ndarray, sound_ND: np.ndarray, offsets: int = OFFSETS) -> np.ndarray:
    """Mean Euclidean distance over all frames at each offset, [2 offsets + 1] float64; beyond the ends stand zeros.

    A millionth is added to each difference, as the reference implementation's distance does.
    """
    face, sound = np.asarray(face_ND, np.float64), np.asarray(sound_ND, np.float64)
    if face.shape != sound.shape or face.ndim != 2 or not len(face):
        raise ValueError(f"features {face.shape} of faces and {sound.shape} of sound: one row for each frame, of both")
    padded = np.pad(sound, ((offsets, offsets), (0, 0)))
    windows = [padded[k : k + len(face)] for k in range(2 * offsets + 1)]
    return np.array([np.linalg.norm(face - window + 1e-6, axis=1).mean() for window in windows])


def sync_of(face_ND: np.ndarray, sound_ND: np.ndarray, offsets: int = OFFSETS) -> Sync:
    """The three numbers of a video out of its features."""
    means = mean_distances(face_ND, sound_ND, offsets)
    best = int(means.argmin())
    # The lower one of two middle values, as the reference takes it; the number of offsets is odd, so there is one.
    return Sync(float(np.median(means) - means[best]), float(means[best]), offsets - best)


def measure_sync(params: SyncNet, faces_THW3: np.ndarray, wave_N: np.ndarray, batch: int = 8) -> Sync:
    """Of a face cut out of every frame ([T, 224, 224, 3] RGB uint8, 25 a second) and its sound at 16 kHz.

    ValueError where the shorter of the two has fewer than 6 frames.
    """
    count = min(len(faces_THW3), len(wave_N) * FPS // SAMPLE_RATE_HZ) - FRAMES
    if count < 1:
        raise ValueError(f"SyncNet needs {FRAMES + 1} frames with sound or more, not {count + FRAMES}")
    cepstra_CT = mfcc(wave_N).T
    cepstra_CT = np.pad(cepstra_CT, ((0, 0), (0, max(0, _PER_FRAME * count + CEPSTRA - cepstra_CT.shape[1]))), "edge")
    blue_first = np.asarray(faces_THW3)[..., ::-1]
    faces, sounds = [], []
    for start in range(0, count, batch):
        places = [min(place, count - 1) for place in range(start, start + batch)]
        faces.append(_face(params, np.stack([blue_first[p : p + FRAMES] for p in places]).astype(np.float32)))
        sounds.append(_sound(params, np.stack([_piece(cepstra_CT, p) for p in places]).astype(np.float32)))
    return sync_of(np.concatenate(faces)[:count], np.concatenate(sounds)[:count])


def _piece(cepstra_CT: np.ndarray, frame: int) -> np.ndarray:
    piece = cepstra_CT[:, _PER_FRAME * frame :][:, :CEPSTRA]
    assert piece.shape == (COUNT, CEPSTRA)
    return piece


@functools.cache
def _compiled() -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    return jax.jit(face_features), jax.jit(sound_features)


def _face(params: SyncNet, faces_BTHW3: np.ndarray) -> np.ndarray:
    return np.asarray(_compiled()[0](params, faces_BTHW3))


def _sound(params: SyncNet, cepstra_BCT: np.ndarray) -> np.ndarray:
    return np.asarray(_compiled()[1](params, cepstra_BCT))
