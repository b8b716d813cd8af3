"""Hashes by which the same film is known again after it was encoded once more: smaller, harder, by another codec.

Three words of 64 bits a clip, each the signs of random projections of what is seen or heard (SimHash [Charikar 2002]):
the share of bits in which two differ is the angle between what they were made of, over pi.

picture_hash  the mean picture, 8 x 8 cells of luma
motion_hash   what changes in these cells over 16 equal stretches of time: a take from the same camera, or the next
              words of the same speaker, has another
sound_hash    the loudness of 8 bands over 16 stretches; 0 for silence and without a track

A clip in which nothing moves has none: still pictures are left to other checks.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterator

import numpy as np

from omnihuman_jax.typing import SAMPLE_RATE_HZ

# Changes of what is computed; part of the key under which results are kept.
VERSION = 1

BITS = 64
OF_PICTURES, OF_SOUND = ("picture_hash", "motion_hash"), ("sound_hash",)
_SIDE, _STRETCHES = 8, 16
# Of larger pictures so many lines are enough, or up to twice as many.
_LINES = 120
# Grey levels, root mean square over cells and time: what codecs add to a still picture is less.
_MIN_MOTION = 0.3
_WINDOW = 400  # samples: 25 ms
_BANDS_HZ = (100, 250, 450, 750, 1200, 1900, 3000, 4600, 7000)
# Below the loudest: what is weaker is as good as silent.
_RANGE_DB = 50.0


class PictureHasher:
    """Sees the frames of a clip that passes through."""

    def __init__(self) -> None:
        self._cells: list[np.ndarray] = []

    def watch(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the RGB uint8 frames unchanged."""
        import cv2  # comes with MediaPipe in the curation extra

        for frame in frames:
            every = max(1, min(frame.shape[:2]) // _LINES)
            few = np.ascontiguousarray(frame[::every, ::every])
            small = cv2.resize(few, (8 * _SIDE, 8 * _SIDE), interpolation=cv2.INTER_AREA)
            luma = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
            self._cells.append(luma.reshape(_SIDE, 8, _SIDE, 8).mean((1, 3)).ravel())
            yield frame

    def hashes(self) -> dict[str, int]:
        """`picture_hash` and `motion_hash`; neither of a clip in which nothing moves, or that is too short."""
        if len(self._cells) < _STRETCHES:
            return {}
        cells_SC = _stretches(np.stack(self._cells))
        mean_C = cells_SC.mean(0)
        moved_SC = cells_SC - mean_C
        if np.sqrt(np.mean(np.square(moved_SC))) < _MIN_MOTION:
            return {}
        return {
            "picture_hash": signs(mean_C - mean_C.mean(), "picture"),
            "motion_hash": signs(moved_SC.ravel(), "motion"),
        }


def sound_hash(wave: np.ndarray | None) -> int:
    """Of mono float32 at 16 kHz; 0 for silence, without a track, and where it is too short."""
    if wave is None or wave.size < _WINDOW * _STRETCHES or not np.any(wave):
        return 0
    windows = wave[: wave.size // _WINDOW * _WINDOW].reshape(-1, _WINDOW).astype(np.float64) * np.hanning(_WINDOW)
    power_WF = np.square(np.abs(np.fft.rfft(windows)))
    edges = np.searchsorted(np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE_HZ), _BANDS_HZ)
    power_WB = np.stack([power_WF[:, a:b].sum(1) for a, b in itertools.pairwise(edges)], 1)
    level_SB = 10 * np.log10(_stretches(power_WB) + 1e-12)
    level_SB = np.maximum(level_SB, level_SB.max() - _RANGE_DB)
    return signs((level_SB - level_SB.mean(0)).ravel(), "sound")


def signs(values: np.ndarray, name: str) -> int:
    """The signs of 64 projections of the values, as a word."""
    positive = _directions(name, values.size) @ values.astype(np.float64) > 0
    return int.from_bytes(np.packbits(positive).tobytes(), "big")


@functools.cache
def _directions(name: str, size: int) -> np.ndarray:
    """int8 [64, size] of -1 and 1, from the name alone: the same in every version of every library."""
    count = BITS * size
    stream = b"".join(hashlib.sha256(f"{name} {block}".encode()).digest() for block in range(-(-count // 256)))
    return np.where(np.unpackbits(np.frombuffer(stream, np.uint8))[:count], 1, -1).astype(np.int8).reshape(BITS, size)


def _stretches(values_TN: np.ndarray) -> np.ndarray:
    """float64 [16, N]: means over equal stretches of time, a value at an edge shared out."""
    ends = np.linspace(0, len(values_TN), _STRETCHES + 1)
    sums = np.concatenate([np.zeros((1, values_TN.shape[1])), np.cumsum(values_TN, axis=0, dtype=np.float64)])
    whole = np.minimum(ends.astype(int), len(values_TN) - 1)
    at_ends = sums[whole] + (ends - whole)[:, None] * values_TN[whole]
    return np.diff(at_ends, axis=0) / np.diff(ends)[:, None]
