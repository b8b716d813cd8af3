"""The mouth's readout and its correlation, on pictures and curves whose answer is known."""

import math

import numpy as np
import pytest

from omnihuman_jax.evaluation.mouth import (
    correlation,
    correlation_interval,
    crop,
    fit_readout,
    lag_curve,
    peak_lag,
)


def talking(seed: int, frames: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """(pictures in [-1, 1] with a dark mouth that opens, under noise and light that changes; its opening)."""
    random = np.random.default_rng(seed)
    opening = np.clip(np.convolve(random.normal(size=frames + 4), np.ones(5) / 2, "valid"), 0, 1)
    pictures = np.full((frames, 16, 16, 3), 0.4) + 0.05 * random.normal(size=(frames, 16, 16, 3))
    for t, value in enumerate(opening):
        pictures[t, 8 : 8 + round(6 * value), 4:12] = -0.8
    return pictures + 0.1 * random.normal(size=(frames, 1, 1, 1)), opening


def test_the_readout_reads_frames_that_it_was_not_fitted_on() -> None:
    pictures, opening = talking(0, 200)
    readout = fit_readout(pictures[:100], opening[:100])
    assert np.corrcoef(readout(pictures[100:]), opening[100:])[0, 1] > 0.95
    assert abs(np.corrcoef(readout(pictures[100:]), opening[:100])[0, 1]) < 0.3
    with pytest.raises(ValueError, match="two frames or more"):
        fit_readout(pictures[:3], opening[:2])


def test_the_dual_form_is_the_ridge_regression() -> None:
    random = np.random.default_rng(1)
    crops, opening = random.normal(size=(12, 2, 3, 3)), random.uniform(size=12)
    flat = crops.reshape(12, -1)
    centred = flat - flat.mean(0)
    weights = np.linalg.solve(centred.T @ centred + 2.0 * np.eye(18), centred.T @ (opening - opening.mean()))
    assert np.allclose(fit_readout(crops, opening, ridge=2.0).weights_P, weights)


def test_correlation_is_within_windows() -> None:
    """Two windows that differ in their means alone have nothing in common."""
    wave = np.sin(np.arange(25))
    assert correlation([wave, wave + 5], [2 * wave, 3 * wave - 4]) == pytest.approx(1, abs=0.05)
    flat = np.zeros(25)
    assert np.isnan(correlation([flat, flat + 1], [wave, wave]))
    independent = [np.cos(np.arange(25)) + 9, np.cos(np.arange(25)) - 9]
    assert abs(correlation(independent, [wave + 9, wave - 9])) < 0.1
    with pytest.raises(ValueError, match="one length"):
        correlation([wave], [wave[:-1]])


def test_the_interval_covers_the_truth_and_counts_people() -> None:
    """95 % of intervals from people who share one true correlation of 0.6 hold it (at least 80 % of 60 here)."""
    random, hits = np.random.default_rng(2), 0
    for trial in range(60):
        truth = [random.normal(size=25) for _ in range(24)]
        read = [0.6 * t + 0.8 * random.normal(size=25) for t in truth]
        estimate = correlation_interval(read, truth, [f"p{i // 3}" for i in range(24)], draws=200, seed=trial)
        hits += estimate.low <= 0.6 <= estimate.high
        assert (estimate.windows, estimate.people) == (24, 8)
    assert hits >= 48
    with pytest.raises(ValueError, match="at least one"):
        correlation_interval([], [], [])


def test_people_who_differ_widen_the_interval() -> None:
    random = np.random.default_rng(3)
    truth = [random.normal(size=25) for _ in range(24)]
    gain = np.repeat([1.0, 0.0], 12)
    read = [g * t + 0.5 * random.normal(size=25) for g, t in zip(gain, truth)]
    few = correlation_interval(read, truth, [f"p{i // 6}" for i in range(24)])
    many = correlation_interval(read, truth, [f"p{i}" for i in range(24)])
    assert few.high - few.low > 1.3 * (many.high - many.low)


@pytest.mark.parametrize("late", [-3, 0, 4])
def test_the_lag_is_found(late: int) -> None:
    random = np.random.default_rng(4)
    long = [np.convolve(random.normal(size=60), np.ones(3), "same") for _ in range(10)]
    truth, read = [row[10:35] for row in long], [row[10 - late : 35 - late] for row in long]
    curve = lag_curve(read, truth)
    assert peak_lag(curve) == late and curve[late] == pytest.approx(1)
    assert peak_lag({-1: math.nan, 0: math.nan}) is None and peak_lag({-1: -0.2, 0: math.nan}) == -1


def test_crop_is_cut_to_the_picture() -> None:
    pictures = np.arange(2 * 6 * 8 * 3).reshape(2, 6, 8, 3)
    assert np.array_equal(crop(pictures, np.array([1.2, -3, 4.1, 2.0])), pictures[:, 0:2, 1:5])
    with pytest.raises(ValueError, match="outside of 8 x 6"):
        crop(pictures, np.array([9, 0, 12, 3]))
