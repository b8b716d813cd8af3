"""The Frechet distance between two sets of features, each taken as a Gaussian: exact, in float64, no matrix root taken.

|m1 - m2|^2 + tr(C1 + C2) - 2 tr (C1 C2)^(1/2), as in FID and FVD. With C = A^T A of each set, the last trace is the
sum of the singular values of A1 A2^T, whatever the ranks are. The means and covariances of few samples are estimates:
the distance is biased upwards, and strongly so below 2,048 samples, the width of Inception's features.
"""

from collections.abc import Sequence

import numpy as np

from omnihuman_jax.evaluation.bootstrap import Estimate

UNBIASED_FROM = 2048
"""Samples below which a Frechet distance of Inception's features is to be called biased."""


def frechet_distance(mean1_D: np.ndarray, cov1_DD: np.ndarray, mean2_D: np.ndarray, cov2_DD: np.ndarray) -> float:
    """Of two Gaussians, float64. Covariances may be rank-deficient; ValueError if shapes differ or one is none."""
    mean1_D, mean2_D = np.asarray(mean1_D, np.float64), np.asarray(mean2_D, np.float64)
    roots = [_root(np.asarray(cov, np.float64)) for cov in (cov1_DD, cov2_DD)]
    if not (mean1_D.shape == mean2_D.shape == roots[0].shape[1:] == roots[1].shape[1:]):
        raise ValueError(
            f"means {mean1_D.shape}, {mean2_D.shape} and covariances {np.shape(cov1_DD)}, {np.shape(cov2_DD)} are not"
            " of one width"
        )
    traces = float(np.trace(np.asarray(cov1_DD, np.float64)) + np.trace(np.asarray(cov2_DD, np.float64)))
    return _distance(mean1_D - mean2_D, traces, roots[0] @ roots[1].T)


def frechet_of_features(features1_ND: np.ndarray, features2_ND: np.ndarray) -> float:
    """Of two sets of feature vectors, with the unbiased covariance of each.

    Raises:
        ValueError: fewer than two vectors in a set, other widths, or a number that is not finite.
    """
    sets = [_checked(features) for features in (features1_ND, features2_ND)]
    if sets[0].shape[1] != sets[1].shape[1]:
        raise ValueError(f"features of {sets[0].shape[1]} and of {sets[1].shape[1]} numbers: not of one network")
    means = [features.mean(0) for features in sets]
    centred = [(f - m) / np.sqrt(len(f) - 1) for f, m in zip(sets, means)]
    traces = sum(float(np.square(a).sum()) for a in centred)
    # More rows than columns: their triangular factor has the same product with itself, and is small.
    small: list[np.ndarray] = [np.asarray(np.linalg.qr(a, mode="r")) if len(a) > a.shape[1] else a for a in centred]
    return _distance(means[0] - means[1], traces, small[0] @ small[1].T)


def frechet_interval(
    features1: Sequence[np.ndarray],
    features2: Sequence[np.ndarray],
    people: Sequence[str],
    *,
    draws: int = 200,
    seed: int = 0,
) -> Estimate:
    """The distance with a bootstrap over people and then over each one's windows, the same in both sets.

    A resample has fewer different vectors than the set, so its distance is larger: the interval (the middle 95 % of the
    resamples, moved so that their mean is the value) tells the spread, not the bias.

    Args:
        features1, features2: of each window, [n, D]; pairs of one window have one index.
        people: whose window it is.
    """
    if not len(features1) == len(features2) == len(people) or not len(people):
        raise ValueError(f"{len(features1)} and {len(features2)} windows of {len(people)} people: one for each")
    value = frechet_of_features(np.concatenate(features1), np.concatenate(features2))
    names = sorted(set(people))
    own = [np.flatnonzero([person == name for person in people]) for name in names]
    random, values = np.random.default_rng(seed), []
    for _ in range(draws):
        drawn = [own[i] for i in random.integers(len(own), size=len(own))]
        rows = np.concatenate([windows[random.integers(len(windows), size=len(windows))] for windows in drawn])
        first, second = (np.concatenate([features[i] for i in rows]) for features in (features1, features2))
        values.append(frechet_of_features(first, second))
    low, high = np.percentile(values, [2.5, 97.5]) - np.mean(values) + value
    return Estimate(value, max(0.0, float(low)), float(high), len(people), len(names))


def _distance(difference_D: np.ndarray, traces: float, product: np.ndarray) -> float:
    """Never below 0, where rounding alone would put it."""
    shared = float(np.linalg.svd(product, compute_uv=False).sum())
    return max(0.0, float(difference_D @ difference_D) + traces - 2 * shared)


def _root(cov_DD: np.ndarray) -> np.ndarray:
    """A with A^T A = C, from C's eigenvalues; ValueError for what is no covariance."""
    if cov_DD.ndim != 2 or cov_DD.shape[0] != cov_DD.shape[1] or not np.isfinite(cov_DD).all():
        raise ValueError(f"a covariance is a square of finite numbers, not {cov_DD.shape}")
    scale = float(np.abs(cov_DD).max(initial=0.0))
    if np.abs(cov_DD - cov_DD.T).max(initial=0.0) > 1e-8 * scale:
        raise ValueError("a covariance is symmetric; this one is not")
    values, vectors = np.linalg.eigh((cov_DD + cov_DD.T) / 2)
    if values.min(initial=0.0) < -1e-6 * scale * len(values):
        raise ValueError(f"a covariance has no negative eigenvalue; this one has {values.min():g}")
    return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T


def _checked(features_ND: np.ndarray) -> np.ndarray:
    features = np.asarray(features_ND, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"a Frechet distance needs two feature vectors or more in each set, not {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError("a feature is not a finite number")
    return features
