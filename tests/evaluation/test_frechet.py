"""The Frechet distance against SciPy's matrix root, closed forms, and sets of few vectors."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from omnihuman_jax.evaluation import frechet


def features(seed: int, count: int, width: int, rank: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, rank or width)) @ rng.standard_normal((rank or width, width))
    return mixed + rng.standard_normal(width)


def by_scipy(a: np.ndarray, b: np.ndarray) -> float:
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    root = np.real(sqrtm(covariances[0] @ covariances[1]))
    difference = a.mean(0) - b.mean(0)
    return float(difference @ difference + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root))


def test_it_is_scipys(measured):
    for width in (3, 17, 64):
        a, b = features(0, 200, width), features(1, 150, width)
        expected = by_scipy(a, b)
        for found in (
            frechet.frechet_of_features(a, b),
            frechet.frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False)),
        ):
            measured("Frechet distance against SciPy's matrix root", abs(found - expected) / expected, 1e-7)


def test_closed_forms():
    """Diagonal covariances: sum of (m1 - m2)^2 + (s1 - s2)^2; equal covariances: the means' alone."""
    rng = np.random.default_rng(2)
    means, sigmas = rng.standard_normal((2, 9)), rng.uniform(0.1, 3, (2, 9))
    expected = np.square(means[0] - means[1]).sum() + np.square(sigmas[0] - sigmas[1]).sum()
    found = frechet.frechet_distance(means[0], np.diag(sigmas[0] ** 2), means[1], np.diag(sigmas[1] ** 2))
    assert found == pytest.approx(expected, rel=1e-12)
    shared = np.cov(features(3, 50, 9), rowvar=False)
    found = frechet.frechet_distance(means[0], shared, means[1], shared)
    assert found == pytest.approx(np.square(means[0] - means[1]).sum(), rel=1e-9)
    assert frechet.frechet_distance([0.0], [[9.0]], [2.0], [[1.0]]) == pytest.approx(4 + 4)


def test_turning_and_moving_both_sets_changes_nothing():
    a, b = features(4, 40, 12), features(5, 40, 12)
    turn, _ = np.linalg.qr(np.random.default_rng(6).standard_normal((12, 12)))
    moved = frechet.frechet_of_features(a @ turn + 3, b @ turn + 3)
    assert moved == pytest.approx(frechet.frechet_of_features(a, b), rel=1e-9)
    assert frechet.frechet_of_features(a, b) == pytest.approx(frechet.frechet_of_features(b, a), rel=1e-12)


@pytest.mark.parametrize(("counts", "rank"), [((5, 9), None), ((200, 5), None), ((200, 150), 4), ((2, 2), None)])
def test_fewer_vectors_than_numbers_in_each(counts, rank):
    """The covariances have no full rank; both ways of computing agree, and a set is at no distance from itself."""
    a, b = features(7, counts[0], 20, rank), features(8, counts[1], 20, rank)
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    expected = frechet.frechet_distance(a.mean(0), covariances[0], b.mean(0), covariances[1])
    assert frechet.frechet_of_features(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet.frechet_of_features(a, a[::-1]) == pytest.approx(0, abs=1e-9 * expected)


def test_two_lines_at_a_right_angle_share_nothing():
    a, b = np.zeros((3, 2)), np.zeros((3, 2))
    a[:, 0], b[:, 1] = [-2, 0, 2], [-1, 0, 1]
    assert frechet.frechet_of_features(a, b) == pytest.approx(4 + 1)


def test_few_samples_are_biased_upwards():
    """Two sets of one distribution: at 20 samples of 16 numbers the distance is far above that at 2,000."""
    few, many = (frechet.frechet_of_features(*np.random.default_rng(9).standard_normal((2, n, 16))) for n in (20, 2000))
    assert few > 20 * many > 0


def test_the_interval_is_over_people_and_holds_the_value():
    rng = np.random.default_rng(10)
    real = [rng.standard_normal((8, 6)) for _ in range(12)]
    made = [window + 1.0 + 0.3 * rng.standard_normal((8, 6)) for window in real]
    found = frechet.frechet_interval(real, made, [f"p{i % 4}" for i in range(12)], draws=60)
    assert found.low < found.value < found.high and (found.windows, found.people) == (12, 4)
    assert found.value == frechet.frechet_of_features(np.concatenate(real), np.concatenate(made))
    again = frechet.frechet_interval(real, made, [f"p{i % 4}" for i in range(12)], draws=60)
    assert again == found


def test_what_is_no_set_of_features_is_one_line():
    good = features(11, 5, 3)
    for a, b, says in (
        (good[:1], good, "two feature vectors or more"),
        (good, features(11, 5, 4), "of 3 and of 4 numbers"),
        (good, np.where(good > 0, np.nan, good), "not a finite number"),
    ):
        with pytest.raises(ValueError, match=says):
            frechet.frechet_of_features(a, b)
    for cov, says in (
        (np.eye(3)[:2], "a square"),
        (np.array([[1.0, 2], [0, 1]]), "is symmetric"),
        (np.diag([1.0, -1.0]), "negative eigenvalue"),
        (np.eye(3), "not of one width"),
    ):
        with pytest.raises(ValueError, match=says):
            frechet.frechet_distance(np.zeros(2), cov, np.zeros(2), np.eye(2))
