"""From phones to what the mouth does: how far it is open, and how wide.

A table of our own, from phonetics, that shares nothing with the one of the lip-sync filter
(`data_pipelines/curate/lipsync.py`): a filter that is scored against its own table would be right by construction.
"""

from collections.abc import Sequence

import numpy as np

from omnihuman_jax.typing import FPS, SAMPLE_RATE_HZ

# IPA symbol -> (opening 0..1, spread -1 round .. 1 wide). By the first symbol that is known.
_SHAPES: dict[str, tuple[float, float]] = {
    "ɑ": (1.0, 0.0), "a": (0.95, 0.2), "æ": (0.9, 0.5), "ɒ": (0.85, -0.3), "ɔ": (0.75, -0.6), "ʌ": (0.7, 0.0),
    "ɐ": (0.65, 0.0), "ɛ": (0.6, 0.5), "e": (0.55, 0.6), "o": (0.55, -0.8), "ə": (0.45, 0.0), "ɜ": (0.45, -0.1),
    "ɝ": (0.42, -0.2), "ɚ": (0.4, -0.2), "ɪ": (0.35, 0.5), "ᵻ": (0.33, 0.4), "i": (0.3, 1.0), "ʊ": (0.3, -0.7),
    "u": (0.22, -1.0), "y": (0.25, -0.9), "ø": (0.45, -0.8), "œ": (0.6, -0.6), "m": (0.0, 0.0), "b": (0.0, 0.0),
    "p": (0.0, 0.0), "f": (0.06, 0.1), "v": (0.06, 0.1), "w": (0.12, -1.0), "ɹ": (0.22, -0.5), "r": (0.25, -0.1),
    "ɾ": (0.25, 0.0), "l": (0.3, 0.1), "θ": (0.18, 0.2), "ð": (0.18, 0.2), "s": (0.12, 0.6), "z": (0.12, 0.6),
    "ʃ": (0.15, -0.6), "ʒ": (0.15, -0.6), "t": (0.15, 0.2), "d": (0.15, 0.2), "n": (0.18, 0.1), "ɲ": (0.18, 0.3),
    "k": (0.25, 0.0), "ɡ": (0.25, 0.0), "g": (0.25, 0.0), "ŋ": (0.25, 0.0), "x": (0.25, 0.0), "h": (0.35, 0.0),
    "j": (0.2, 0.8),
}  # fmt: skip
_UNKNOWN = (0.2, 0.0)
_GRID_HZ = 100
# A mouth takes about an eighth of a second from one shape to the next.
_SMOOTHING_S = 0.13
_LOUDNESS_WINDOW_S = 0.08
_SILENCE_DB, _RANGE_DB = -30.0, 28.0
Spans = Sequence[tuple[str, float, float]]


def mouth_of_phones(spans: Spans, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """(opening, spread), float64 [frames] at 25 fps, while `spans` (phone, start, end in seconds) are spoken."""
    grid = np.zeros((2, (frames * _GRID_HZ) // FPS + _GRID_HZ))
    for phone, start, end in spans:
        first = int(start * _GRID_HZ)
        shape = next((_SHAPES[symbol] for symbol in phone if symbol in _SHAPES), _UNKNOWN)
        grid[:, first : max(first + 1, int(end * _GRID_HZ))] = np.array(shape)[:, None]
    at, times = np.arange(frames) / FPS, np.arange(grid.shape[1]) / _GRID_HZ
    opening, spread = (np.interp(at, times, _smooth(row)) for row in grid)
    return opening, spread


def _smooth(row: np.ndarray) -> np.ndarray:
    window = np.hanning(round(_SMOOTHING_S * _GRID_HZ) + 2)
    padded = np.pad(row, len(window) // 2, "edge")
    return np.convolve(padded, window / window.sum(), "valid")[: row.size]


def loudness(wave: np.ndarray, frames: int) -> np.ndarray:
    """Float64 [frames] in 0..1: 1 at the loud moments of this wave (16 kHz), 0 from 30 dB below them on."""
    half = int(_LOUDNESS_WINDOW_S * SAMPLE_RATE_HZ / 2)
    power = np.cumsum(np.concatenate([[0.0], np.square(wave, dtype=np.float64)]))
    centre = (np.arange(frames) * SAMPLE_RATE_HZ) // FPS
    low, high = (np.clip(centre + side, 0, len(wave)) for side in (-half, half))
    db = 10 * np.log10((power[high] - power[low]) / np.maximum(1, high - low) + 1e-9)
    return np.clip((db - np.percentile(db, 95) - _SILENCE_DB) / _RANGE_DB, 0, 1)
