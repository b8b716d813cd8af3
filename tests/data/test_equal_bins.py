"""Packed bins made equal in work: the same items, none too many, and nearly equal sums where bins hold a few items."""

import numpy as np
import pytest

from omnihuman_jax.data.bins import pack_prefix
from omnihuman_jax.data.equal_bins import even_out

BINS = 128
# Latent frames of windows of 1, 25, 49 and 77 frames.
SIZES = np.asarray([1, 7, 13, 20])


def packed(windows_a_bin: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(demand, capacity, bin of each item, work) of bins that hold about so many windows."""
    rng = np.random.default_rng(0)
    size = rng.choice(SIZES, 4 * BINS * windows_a_bin, p=[0.15, 0.3, 0.3, 0.25])
    capacity = np.asarray([max(20, 11 * windows_a_bin), 32, 400])
    demand = np.stack([size, np.ones_like(size), rng.integers(1, 30, len(size))], axis=1)
    count, assigned = pack_prefix(demand, capacity, BINS)
    return demand[:count], capacity, assigned, np.square(size[:count])


def spread(work: np.ndarray, assigned: np.ndarray) -> float:
    """(largest - smallest) / mean of the bins' sums."""
    sums = np.bincount(assigned, work, BINS)
    return float((sums.max() - sums.min()) / sums.mean())


@pytest.mark.parametrize(("windows", "most"), [(8, 0.06), (12, 0.1)])
def test_bins_of_a_few_windows_get_nearly_equal_work(windows, most):
    demand, capacity, assigned, work = packed(windows)
    evened = even_out(demand, capacity, assigned, BINS, work)
    assert spread(work, evened) < most and spread(work, evened) < 0.5 * spread(work, assigned)


@pytest.mark.parametrize("windows", [1, 3, 8])
def test_no_item_is_lost_and_no_bin_holds_more_than_it_can(windows):
    demand, capacity, assigned, work = packed(windows)
    evened = even_out(demand, capacity, assigned, BINS, work)
    assert evened.shape == assigned.shape and evened.min() >= 0 and evened.max() < BINS
    for column, limit in zip(demand.T, capacity, strict=True):
        assert np.bincount(evened, column, BINS).max() <= limit
    assert np.bincount(evened, work, BINS).std() <= np.bincount(assigned, work, BINS).std()


def test_a_size_that_binds_nowhere_else_is_respected():
    """Two bins that an exchange makes more equal, if the light one has the room for it in a size that is plenty."""
    small = [[1, 1, 0]] * 4
    demand = np.asarray([[20, 1, 9], [13, 1, 1], [7, 1, 1], [20, 1, 0], *small])
    assigned, work = np.asarray([0, 1, 1, 0, 1, 1, 1, 1]), np.asarray([400, 169, 49, 400, 1, 1, 1, 1])
    evened = even_out(demand, np.asarray([44, 8, 10]), assigned, 2, work)
    assert evened[0] == 1 and evened[3] == 0  # the first of two that are alike goes
    np.testing.assert_array_equal(even_out(demand, np.asarray([44, 8, 9]), assigned, 2, work), assigned)


@pytest.mark.parametrize("items", [0, 1])
def test_next_to_nothing_stays(items):
    demand, assigned = np.ones((items, 3), np.int64), np.zeros(items, np.int64)
    np.testing.assert_array_equal(even_out(demand, np.full(3, 4), assigned, 3, np.ones(items, np.int64)), assigned)
