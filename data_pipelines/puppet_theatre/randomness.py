"""Random numbers by name: what belongs to clip 17 is the same whatever was drawn before it, in any process."""

import zlib

import numpy as np

from omnihuman_jax.typing import FPS


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """The generator of (seed, names): `generator(seed, "gesture", 17)`."""
    keys = [name if isinstance(name, int) else zlib.crc32(name.encode()) for name in names]
    return np.random.default_rng([seed, *keys])


def smooth_noise(random: np.random.Generator, frames: int, hz: float) -> np.ndarray:
    """Float64 [frames] at 25 fps: a wandering curve of mean 0 and variance 1 (over many draws), `hz` turns a second.

    White noise under a Gaussian window, so that no two curves share a phase and the variance is the same at every
    frame.
    """
    sigma = FPS / (2 * np.pi * hz)
    half = int(np.ceil(4 * sigma))
    window = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    window /= np.sqrt(np.square(window).sum())
    return np.convolve(random.normal(size=frames + 2 * half), window, "valid")
