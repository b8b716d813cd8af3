"""How loud each frame's sound is, and in which frames nobody speaks."""

import numpy as np

from omnihuman_jax.typing import FPS, SAMPLE_RATE_HZ

_WINDOW_S = 0.05
SILENCE_DB = -35.0
"""Below the loud frames of the video (their 95th percentile): silence [D]."""
MIN_SILENCE_S = 0.3


def loudness(wave_N: np.ndarray, frames: int) -> np.ndarray:
    """Root mean square [T] of 50 ms around the middle of each frame, of mono sound at 16 kHz from frame 0 on."""
    squares = np.concatenate([[0.0], np.cumsum(np.square(np.asarray(wave_N, np.float64)))])
    middle = (np.arange(frames) + 0.5) * SAMPLE_RATE_HZ / FPS
    half = _WINDOW_S * SAMPLE_RATE_HZ / 2
    low, high = (np.clip(np.rint(middle + side), 0, len(squares) - 1).astype(int) for side in (-half, half))
    return np.sqrt((squares[high] - squares[low]) / np.maximum(high - low, 1))


def silent_frames(wave_N: np.ndarray, frames: int) -> np.ndarray:
    """Bool [T]: frames in a stretch of 0.3 s or more that is 35 dB below the loud ones; all of a soundless video."""
    level = loudness(wave_N, frames)
    quiet = level <= np.percentile(level, 95) * 10 ** (SILENCE_DB / 20) if level.any() else np.ones(frames, bool)
    borders = np.flatnonzero(np.diff(np.concatenate([[0], quiet.astype(int), [0]])))
    silent = np.zeros(frames, bool)
    for start, stop in zip(borders[::2], borders[1::2]):
        silent[start:stop] = stop - start >= MIN_SILENCE_S * FPS
    return silent
