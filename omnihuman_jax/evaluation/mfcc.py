"""Mel-frequency cepstra as SyncNet was trained on: 13 a hundredth of a second, of 16 kHz sound.

25 ms windows without a taper, 26 triangular filters on a transform of 512, an orthonormal cosine transform, a lifter of
22, and the logarithm of the frame's energy in the first place. Filters stand on whole bins of the transform.
"""

import functools

import numpy as np

from omnihuman_jax.typing import SAMPLE_RATE_HZ

COUNT = 13
HOP_S = 0.01
_WINDOW, _HOP, _TRANSFORM, _FILTERS, _LIFTER, _EMPHASIS = 400, 160, 512, 26, 22, 0.97


def mfcc(wave_N: np.ndarray) -> np.ndarray:
    """[T, 13] float64 of mono sound at 16 kHz in [-1, 1], taken as 16-bit samples: the first number tells loudness.

    ValueError on sound that is empty, has more than one channel or is not finite.
    """
    wave = np.asarray(wave_N, np.float64)
    if wave.ndim != 1 or not len(wave) or not np.isfinite(wave).all():
        raise ValueError(f"sound of shape {wave.shape}: give finite mono samples [N], one at least")
    samples = np.rint(np.clip(wave * 32768.0, -32768, 32767))
    emphasised = np.concatenate([samples[:1], samples[1:] - _EMPHASIS * samples[:-1]])
    power_TB = np.square(np.abs(np.fft.rfft(_frames(emphasised), _TRANSFORM))) / _TRANSFORM
    energy_T = _above_zero(power_TB.sum(1))
    bands_TF = np.log(_above_zero(power_TB @ filters().T))
    cepstra_TC = bands_TF @ cosines() * (1 + _LIFTER / 2 * np.sin(np.pi * np.arange(COUNT) / _LIFTER))
    cepstra_TC[:, 0] = np.log(energy_T)
    return cepstra_TC


def _above_zero(values: np.ndarray) -> np.ndarray:
    return np.where(values == 0, np.finfo(float).eps, values)


def _frames(samples_N: np.ndarray) -> np.ndarray:
    """[T, 400]: the last frame is filled up with silence."""
    count = 1 + max(0, -(-(len(samples_N) - _WINDOW) // _HOP))
    padded = np.pad(samples_N, (0, max(0, (count - 1) * _HOP + _WINDOW - len(samples_N))))
    return np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[: count * _HOP : _HOP]


@functools.cache
def filters() -> np.ndarray:
    """[26, 257]: triangles, evenly spaced in mel from 0 to 8 kHz, with corners on whole bins."""
    top = 2595 * np.log10(1 + SAMPLE_RATE_HZ / 2 / 700.0)
    hertz = 700 * (10 ** (np.linspace(0, top, _FILTERS + 2) / 2595.0) - 1)
    corners = np.floor((_TRANSFORM + 1) * hertz / SAMPLE_RATE_HZ)
    bins = np.arange(_TRANSFORM // 2 + 1)
    bank = np.zeros((_FILTERS, len(bins)))
    for row, (low, middle, high) in enumerate(zip(corners, corners[1:], corners[2:])):
        rising, falling = (bins >= low) & (bins < middle), (bins >= middle) & (bins < high)
        bank[row, rising] = (bins[rising] - low) / (middle - low)
        bank[row, falling] = (high - bins[falling]) / (high - middle)
    return bank


@functools.cache
def cosines() -> np.ndarray:
    """[26, 13]: the first columns of the orthonormal cosine transform of type two."""
    place, order = np.arange(_FILTERS)[:, None], np.arange(COUNT)[None]
    matrix = np.sqrt(2 / _FILTERS) * np.cos(np.pi * (2 * place + 1) * order / (2 * _FILTERS))
    matrix[:, 0] /= np.sqrt(2)
    return matrix
