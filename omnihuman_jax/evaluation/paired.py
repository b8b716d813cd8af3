"""Two arms of an experiment on the same seeds, windows and noise: how much they differ, and what may be said of it.

The rule was fixed before anything was trained (docs/ablations.md): `verdict` is all of it.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from omnihuman_jax.evaluation.bootstrap import resampled_sums

REPRODUCED, OPPOSITE, NOT_SHOWN = "reproduced", "opposite", "not shown"
MIN_SEEDS = 3
"""With fewer seeds nothing is said but `NOT_SHOWN`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Effect:
    """The difference of two arms: its mean over seeds, the ends of its 95 % interval, each seed's own, and over how
    many windows of how many people.
    """

    value: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    windows: int
    people: int


def paired_effect(
    more_SNK: np.ndarray,
    less_SNK: np.ndarray,
    people: Sequence[str],
    of_sums: Callable[[np.ndarray], float],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Effect:
    """`of_sums` of one arm less that of the other, in each seed, on the same windows.

    The bootstrap draws seeds, people, and the windows of each. People and windows are drawn once for all seeds and for
    both arms: the same ones are measured in each, so that what they have in common is no evidence.

    Args:
        more_SNK, less_SNK: what each window contributes to the K sums, by seed.
        people: whose window each of the N is.
        of_sums: the number out of the K sums.
        draws: resamples; seed: of them.

    Raises:
        ValueError: the arms are not of the same seeds and windows, or there are none.
    """
    more_SNK, less_SNK = np.asarray(more_SNK, np.float64), np.asarray(less_SNK, np.float64)
    if more_SNK.shape != less_SNK.shape or more_SNK.ndim != 3 or not len(more_SNK):
        raise ValueError(f"two arms of the same seeds and windows, not {more_SNK.shape} and {less_SNK.shape}")
    seeds, windows, k = more_SNK.shape
    both = np.concatenate([more_SNK, less_SNK]).transpose(1, 0, 2).reshape(windows, -1)

    def by_seed(sums: np.ndarray) -> np.ndarray:
        values = np.array([of_sums(own) for own in sums.reshape(2 * seeds, k)])
        return values[:seeds] - values[seeds:]

    random = np.random.default_rng(seed)
    drawn_DS = np.array([by_seed(sums) for sums in resampled_sums(both, people, draws, random)])
    picks = random.integers(seeds, size=drawn_DS.shape)
    means = np.take_along_axis(drawn_DS, picks, axis=1).mean(axis=1)
    low, high = np.nanpercentile(means, [2.5, 97.5]) if np.isfinite(means).any() else (math.nan, math.nan)
    own = by_seed(both.sum(0))
    return Effect(float(own.mean()), float(low), float(high), tuple(own.tolist()), windows, len(set(people)))


def verdict(effect: Effect, smallest: float, *, min_seeds: int = MIN_SEEDS) -> tuple[str, str]:
    """(`REPRODUCED`, `OPPOSITE` or `NOT_SHOWN`; why), of an effect that was expected to be at least `smallest` > 0.

    Reproduced: every seed's difference is above zero, the interval excludes zero, and the mean is at least `smallest`.
    Opposite: the same, below zero. All else is not shown, numbers that are not finite among them.
    """
    if not smallest > 0:
        raise ValueError(f"the smallest effect that counts must be above 0, not {smallest:g}")
    if len(effect.by_seed) < min_seeds:
        return NOT_SHOWN, f"{len(effect.by_seed)} of the {min_seeds} seeds that the rule asks for"
    if not all(map(math.isfinite, (effect.value, effect.low, effect.high, *effect.by_seed))):
        return NOT_SHOWN, "something could not be measured"
    if len({np.sign(value) for value in effect.by_seed}) > 1:
        return NOT_SHOWN, "the seeds do not agree in sign"
    if effect.low <= 0 <= effect.high:
        return NOT_SHOWN, "the interval holds zero"
    if abs(effect.value) < smallest:
        return NOT_SHOWN, f"smaller than {smallest:g}, the smallest effect that counts"
    return (REPRODUCED if effect.value > 0 else OPPOSITE), "every seed agrees, and the interval excludes zero"


def chance_of_agreement(seeds: int) -> float:
    """How often that many seeds all come out as expected where there is nothing: 1 / 2^seeds."""
    return 0.5**seeds
