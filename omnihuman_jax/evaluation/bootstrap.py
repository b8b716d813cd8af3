"""A number with its interval: a bootstrap over people, and then over the windows of each."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

_AT_ONCE = 100  # resamples whose rows are in memory together


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
    resampled = resampled_sums(rows_NK, people, draws, np.random.default_rng(seed))
    values = [of_sums(sums) for sums in resampled]
    low, high = np.nanpercentile(values, [2.5, 97.5]) if np.isfinite(values).any() else (np.nan, np.nan)
    return Estimate(of_sums(rows_NK.sum(0)), float(low), float(high), len(rows_NK), len(set(people)))


def resampled_sums(rows_NK: np.ndarray, people: Sequence[str], draws: int, random: np.random.Generator) -> np.ndarray:
    """[draws, K]: the rows' sums in each resample of people, and of each one's windows. ValueError as of `estimate`."""
    if not len(rows_NK) == len(people) or not len(rows_NK):
        raise ValueError(f"{len(rows_NK)} windows of {len(people)} people: one for each, and at least one")
    names = sorted(set(people))
    own = [np.flatnonzero([person == name for person in people]) for name in names]
    return _resampled_sums(rows_NK, own, draws, random)


def _resampled_sums(
    rows_NK: np.ndarray, own: Sequence[np.ndarray], draws: int, random: np.random.Generator
) -> np.ndarray:
    """[draws, K]: sums of the rows of as many people as there are, each with as many windows as they have."""
    sizes, longest = np.array([len(windows) for windows in own]), max(map(len, own))
    padded = np.stack([np.resize(windows, longest) for windows in own])
    sums = []
    for _ in range(0, draws, _AT_ONCE):
        people = random.integers(len(own), size=(_AT_ONCE, len(own)))
        count = sizes[people][..., None]
        picks = (random.random((*people.shape, longest)) * count).astype(int)
        used = np.arange(longest) < count
        sums.append(np.einsum("dpwk,dpw->dk", rows_NK[padded[people[..., None], picks]], used))
    return np.concatenate(sums)[:draws]
