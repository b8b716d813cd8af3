"""How close the mean of a score is to that of the truth: 1 - |made - true| / |true|, THEval's way to compare scores."""

from collections.abc import Sequence

import numpy as np

from omnihuman_jax.evaluation.bootstrap import Estimate, estimate


def closeness(made: float, true: float) -> float:
    """1: as the truth; 0: off by all of it, and below for more; nan where the truth is 0."""
    return 1 - abs(made - true) / abs(true) if true else float("nan")


def closeness_interval(made_N: np.ndarray, true_N: np.ndarray, people: Sequence[str], *, seed: int = 0) -> Estimate:
    """Of the means over windows, with its interval; both of one window go together."""
    rows = np.stack([np.asarray(made_N, np.float64), np.asarray(true_N, np.float64)], 1)
    return estimate(rows, people, lambda sums: closeness(float(sums[0]), float(sums[1])), seed=seed)


def mean_interval(values_N: np.ndarray, people: Sequence[str], *, seed: int = 0) -> Estimate:
    """The mean over windows, with its interval."""
    values = np.asarray(values_N, np.float64)
    rows = np.stack([values, np.ones(len(values))], 1)
    return estimate(rows, people, lambda sums: float(sums[0] / sums[1]), seed=seed)
