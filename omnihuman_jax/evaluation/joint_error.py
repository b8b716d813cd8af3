"""How far joints are from where they should be, and whether they move as they should."""

import numpy as np


def errors_of(read_TK: np.ndarray, truth_TK: np.ndarray) -> np.ndarray:
    """(summed distance, how many points), float64 [2], of a window; columns are x, y of one joint after another.

    ValueError: shapes differ, or a joint has one coordinate alone.
    """
    read_TK, truth_TK = np.asarray(read_TK, np.float64), np.asarray(truth_TK, np.float64)
    if read_TK.shape != truth_TK.shape or read_TK.ndim != 2 or read_TK.shape[1] % 2:
        raise ValueError(f"joints that were read {read_TK.shape} and true ones {truth_TK.shape}: [T, 2 J] of one shape")
    far_TJ = np.linalg.norm((read_TK - truth_TK).reshape(len(read_TK), -1, 2), axis=-1)
    return np.array([far_TJ.sum(), far_TJ.size], np.float64)


def mean_error(sums_2: np.ndarray) -> float:
    """Out of summed `errors_of`; nan where there was no joint."""
    return float(sums_2[0] / sums_2[1]) if sums_2[1] > 0 else float("nan")
