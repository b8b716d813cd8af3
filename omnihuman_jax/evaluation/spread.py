"""How much samples of the same window differ from one seed to the next."""

import numpy as np


def spread_of(samples_NTK: np.ndarray) -> np.ndarray:
    """(summed variance over N seeds, how many values), float64 [2], of K signals in T frames: the unbiased variance.

    ValueError: fewer than two seeds.
    """
    samples_NTK = np.asarray(samples_NTK, np.float64)
    if samples_NTK.ndim != 3 or len(samples_NTK) < 2:
        raise ValueError(f"a spread needs samples [N, T, K] of 2 seeds or more, not {samples_NTK.shape}")
    variance_TK = samples_NTK.var(axis=0, ddof=1)
    return np.array([variance_TK.sum(), variance_TK.size], np.float64)


def deviation(sums_2: np.ndarray) -> float:
    """The standard deviation out of summed `spread_of`; nan where there was nothing."""
    return float(np.sqrt(sums_2[0] / sums_2[1])) if sums_2[1] > 0 else float("nan")
