"""Do the lips open with the sound? Ours: THEval's mean gap, with speech found by loudness alone."""

import numpy as np


def lip_loudness_gap(opening_T: np.ndarray, loudness_T: np.ndarray, silent_T: np.ndarray) -> float:
    """Mean distance between opening and loudness, each spread over 0 .. 1, in the frames with speech.

    0 is a mouth that opens as the sound swells; two things that have nothing in common are about a third apart. nan
    where less than a tenth of the frames has speech and a face.
    """
    opening_T, loudness_T = np.asarray(opening_T, np.float64), np.asarray(loudness_T, np.float64)
    used = np.isfinite(opening_T) & ~np.asarray(silent_T, bool)
    if used.sum() < max(2, 0.1 * len(used)):
        return float("nan")
    return float(np.abs(_spread(opening_T[used]) - _spread(loudness_T[used])).mean())


def _spread(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min() + 1e-8)
