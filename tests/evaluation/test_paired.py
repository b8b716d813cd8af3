"""The rule that says what an experiment has shown, on made-up numbers."""

import math

import numpy as np
import pytest

from omnihuman_jax.evaluation import mouth
from omnihuman_jax.evaluation.paired import (
    NOT_SHOWN,
    OPPOSITE,
    REPRODUCED,
    Effect,
    chance_of_agreement,
    paired_effect,
    verdict,
)


def effect(*by_seed: float, low: float, high: float) -> Effect:
    return Effect(float(np.mean(by_seed)), low, high, by_seed, 48, 8)


@pytest.mark.parametrize(
    ("found", "expected", "why"),
    [
        (effect(0.10, 0.20, 0.15, low=0.04, high=0.25), REPRODUCED, "every seed agrees"),
        (effect(-0.10, -0.20, -0.15, low=-0.25, high=-0.04), OPPOSITE, "every seed agrees"),
        (effect(0.30, 0.20, -0.01, low=0.04, high=0.25), NOT_SHOWN, "do not agree in sign"),
        (effect(0.30, 0.20, 0.0, low=0.04, high=0.25), NOT_SHOWN, "do not agree in sign"),
        (effect(0.10, 0.20, 0.15, low=-0.01, high=0.25), NOT_SHOWN, "holds zero"),
        (effect(0.10, 0.20, 0.15, low=0.0, high=0.25), NOT_SHOWN, "holds zero"),
        (effect(0.03, 0.05, 0.04, low=0.01, high=0.06), NOT_SHOWN, "smaller than 0.05"),
        (effect(-0.03, -0.05, -0.04, low=-0.06, high=-0.01), NOT_SHOWN, "smaller than 0.05"),
        (effect(0.10, 0.20, low=0.04, high=0.25), NOT_SHOWN, "2 of the 3 seeds"),
        (effect(0.10, 0.20, math.nan, low=0.04, high=0.25), NOT_SHOWN, "could not be measured"),
        (effect(0.10, 0.20, 0.15, low=math.nan, high=math.nan), NOT_SHOWN, "could not be measured"),
    ],
)
def test_verdict(found: Effect, expected: str, why: str) -> None:
    said, reason = verdict(found, 0.05)
    assert said == expected and why in reason


def test_what_counts_is_above_zero() -> None:
    with pytest.raises(ValueError, match="smallest effect that counts must be above 0, not 0"):
        verdict(effect(0.1, 0.2, 0.3, low=0.1, high=0.3), 0.0)
    assert chance_of_agreement(3) == 1 / 8


def mean_of(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1])


def rows(values: np.ndarray) -> np.ndarray:
    return np.stack([values, np.ones_like(values)], axis=-1)


def test_what_both_arms_have_in_common_is_no_noise() -> None:
    random = np.random.default_rng(0)
    people = [f"person {i // 4}" for i in range(32)]
    common = 10 * random.normal(size=32)
    less = rows(np.stack([common + shift for shift in (0.0, 1.0, 2.0)]))
    more = less + np.array([0.5, 0.0])
    found = paired_effect(more, less, people, mean_of)
    assert found.by_seed == pytest.approx((0.5, 0.5, 0.5)) and found.windows == 32 and found.people == 8
    assert found.low == pytest.approx(0.5) and found.high == pytest.approx(0.5)  # though windows differ by ten
    again = paired_effect(less, more, people, mean_of)
    assert again.value == pytest.approx(-0.5)


def test_people_are_as_few_as_they_are_however_many_the_seeds() -> None:
    """A difference that depends on the person is no surer for being measured in many seeds."""
    of_person = np.repeat([-1.0, -0.5, 0.0, 0.5, 1.0, 2.0], 8)
    people = [str(i // 8) for i in range(48)]
    less = rows(np.zeros((5, 48)))
    found = paired_effect(less + rows(of_person) * [1, 0], less, people, mean_of)
    assert found.value == pytest.approx(1 / 3) and found.low < -0.1 and found.high > 0.8


def test_seeds_are_drawn_too() -> None:
    less = rows(np.zeros((3, 20)))
    more = less + np.array([0.0, 0.1, 0.8])[:, None, None] * np.array([1.0, 0.0])
    found = paired_effect(more, less, ["a"] * 10 + ["b"] * 10, mean_of)
    assert found.value == pytest.approx(0.3) and found.low < 0.05 and found.high > 0.7


def test_a_correlation_is_of_the_sums() -> None:
    random = np.random.default_rng(1)
    truth = [random.normal(size=25) for _ in range(12)]
    read = [own + random.normal(size=25) for own in truth]
    more = np.array([[mouth.moments(own, own) for own in truth]])
    less = np.array([[mouth.moments(a, b) for a, b in zip(read, truth, strict=True)]])
    found = paired_effect(more, less, [str(i // 3) for i in range(12)], mouth.correlation_of)
    assert found.value == pytest.approx(1 - mouth.correlation(read, truth)) and found.low > 0
    assert mouth.range_of(more[0].sum(0)) == 1 and mouth.range_of(less[0].sum(0)) > 1.2
    assert math.isnan(mouth.range_of(np.zeros(3)))


@pytest.mark.parametrize(("more", "less"), [((2, 4, 2), (3, 4, 2)), ((2, 4, 2), (2, 5, 2)), ((0, 4, 2), (0, 4, 2))])
def test_arms_of_other_windows_or_seeds_are_not_compared(more: tuple[int, ...], less: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two arms of the same seeds and windows"):
        paired_effect(np.ones(more), np.ones(less), ["a"] * 4, mean_of)
