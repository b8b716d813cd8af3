"""A number with its interval: a bootstrap over people, and then over the windows of each."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """A value, the ends of its 95 % interval, and over how many windows of how many people."""

    value: float
    low: float
    high: float
    windows: int
    people: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}], n = {self.windows} of {self.people} people"


def estimate(
    rows_NK: np.ndarray,
    people: Sequence[str],
    of_sums: Callable[[np.ndarray], float],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """`of_sums` of the rows' sums, with its interval.

    Args:
        rows_NK: what each window contributes to the K sums.
        people: whose window it is.
        of_sums: the number out of the K sums, such as the ratio of two; nan where it has none.
        draws: resamples; seed: of them.

    Raises:
        ValueError: no windows, or not one person for each.
    """
    rows_NK = np.asarray(rows_NK, np.float64)
    if not len(rows_NK) == len(people) or not len(rows_NK):
        raise ValueError(f"{len(rows_NK)} windows of {len(people)} people: one for each, and at least one")
    names = sorted(set(people))
    own = [np.flatnonzero([person == name for person in people]) for name in names]
    random, values = np.random.default_rng(seed), []
    for _ in range(draws):
        drawn = [own[i] for i in random.integers(len(own), size=len(own))]
        rows = np.concatenate([windows[random.integers(len(windows), size=len(windows))] for windows in drawn])
        values.append(of_sums(rows_NK[rows].sum(0)))
    low, high = np.nanpercentile(values, [2.5, 97.5]) if np.isfinite(values).any() else (np.nan, np.nan)
    return Estimate(of_sums(rows_NK.sum(0)), float(low), float(high), len(rows_NK), len(names))
