"""The law of the gestures, apart from everything that draws.

The law of a gesture: each of its signals is sqrt(p) * prosody + sqrt(1 - p) * noise, both of variance about 1, with
p = `PROSODY_SHARE`: prosody, the smoothed loudness of the speech, explains the share p of it and the rest cannot be
known from the sound. So with the same speech two performances differ by a variance of 2 (1 - p) a signal.
"""

import numpy as np

from data_pipelines.puppet_theatre.randomness import generator, smooth_noise

PROSODY_SHARE = 0.4
SIGNALS = ("nod", "left_upper", "left_fore", "right_upper", "right_fore")
# Of loudness in 0..1 while someone speaks, after smoothing.
_LOUDNESS_MEAN, _LOUDNESS_STD = 0.55, 0.25
_BEAT_FRAMES = 17


def prosody(loudness_T: np.ndarray) -> np.ndarray:
    """Float64 [T], about mean 0 and variance 1 during speech: what a gesture can follow."""
    window = np.hanning(_BEAT_FRAMES + 2)
    half = len(window) // 2
    smooth = np.convolve(np.pad(loudness_T, half, "edge"), window / window.sum(), "valid")[: len(loudness_T)]
    return (smooth - _LOUDNESS_MEAN) / _LOUDNESS_STD


def gesture_signals(seed: int, clip: int, loudness_T: np.ndarray) -> np.ndarray:
    """Float64 [T, 5]: `SIGNALS`, by the law above."""
    random = generator(seed, "gesture", clip)
    follows = prosody(loudness_T)
    noise = [smooth_noise(random, len(loudness_T), 0.8) for _ in SIGNALS]
    return np.stack([np.sqrt(PROSODY_SHARE) * follows + np.sqrt(1 - PROSODY_SHARE) * n for n in noise], 1)
