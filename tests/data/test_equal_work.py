"""Equal work: an order of a step's sequences, from their work alone, that every number of data groups gains from."""

import numpy as np
import pytest

from omnihuman_jax.data.equal_work import balanced_order, work_of


def spread(work_SB: np.ndarray, groups: int) -> float:
    """(largest - smallest) / mean of the groups' sums, the mean of all steps."""
    sums = work_SB.reshape(len(work_SB), groups, -1).sum(axis=2)
    return float(((sums.max(axis=1) - sums.min(axis=1)) / sums.mean(axis=1)).mean())


def skewed(steps: int, batch: int) -> np.ndarray:
    """Work of packs: a few sequences of one long window, four times as dear as the rest."""
    rng = np.random.default_rng(0)
    return rng.choice([250, 400, 1000], (steps, batch), p=[0.5, 0.4, 0.1]) + rng.integers(0, 50, (steps, batch))


@pytest.mark.parametrize("batch", [1, 2, 3, 6, 7, 8, 48, 256])
def test_it_is_an_order_of_each_steps_sequences(batch):
    order = balanced_order(skewed(5, batch))
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(batch), (5, 1)))


@pytest.mark.parametrize(
    ("batch", "groups", "most"),
    [(256, 2, 0.01), (256, 16, 0.05), (256, 32, 0.1), (96, 12, 0.1), (96, 6, 0.05), (48, 6, 0.1)],
)
def test_groups_of_every_number_are_nearly_equal(batch, groups, most):
    """Eight sequences a group and more, one in ten of them as dear as three others."""
    work = skewed(50, batch)
    ordered = np.take_along_axis(work, balanced_order(work), axis=1)
    assert spread(ordered, groups) < most and spread(ordered, groups) < 0.2 * spread(work, groups)


def test_a_step_is_ordered_by_its_own_work_alone():
    work = skewed(6, 16)
    whole = balanced_order(work)
    for step in range(6):
        np.testing.assert_array_equal(balanced_order(work[step : step + 1])[0], whole[step])
    assert balanced_order(np.ones((1, 4), np.int64)).shape == (1, 4)


def test_work_is_the_pairs_of_a_windows_tokens():
    demand = np.asarray([[100, 10, 1, 3, 0], [7, 3, 1, 1, 40]])
    assert work_of(demand).tolist() == [110**2, 100]
