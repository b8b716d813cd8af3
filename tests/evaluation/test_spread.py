"""Differences over seeds, and joints' errors, on numbers whose answer is known."""

import numpy as np
import pytest

from omnihuman_jax.evaluation.joint_error import errors_of, mean_error
from omnihuman_jax.evaluation.spread import deviation, spread_of


def test_a_spread_is_the_unbiased_deviation_over_seeds() -> None:
    """What all seeds share is none of it, however much it moves."""
    random = np.random.default_rng(0)
    shared = 9 * random.normal(size=(1, 50, 3))
    rows = [spread_of(shared + 0.5 * random.normal(size=(2, 50, 3))) for _ in range(40)]
    assert deviation(np.sum(rows, axis=0)) == pytest.approx(0.5, abs=0.02)
    assert deviation(spread_of(np.repeat(shared, 3, axis=0))) < 1e-12 and np.isnan(deviation(np.zeros(2)))
    with pytest.raises(ValueError, match="2 seeds or more"):
        spread_of(shared)


def test_an_error_is_a_distance_of_points() -> None:
    true = np.zeros((5, 4))
    read = true + [3.0, 4.0, 0.0, 0.0]
    assert mean_error(errors_of(read, true)) == 2.5 and np.isnan(mean_error(np.zeros(2)))
    with pytest.raises(ValueError, match="of one shape"):
        errors_of(read[:, :3], true[:, :3])
