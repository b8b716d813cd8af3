"""The keyed permutation: one to one, uniform over keys, the same for ever."""

import numpy as np
import pytest

from omnihuman_jax.data.permutation import mixed, permuted


def whole(size: int, key: int) -> np.ndarray:
    return permuted(np.arange(size), size, np.full(size, key, np.uint64))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 9, 100, 1023, 1024, 1025, 40_000])
def test_every_place_goes_to_its_own(size):
    for key in (0, 1, 2**64 - 1):
        np.testing.assert_array_equal(np.sort(whole(size, key)), np.arange(size))


def test_keys_of_one_call_do_not_meet():
    place, key = np.tile(np.arange(7), 3), np.repeat(np.asarray([5, 6, 7], np.uint64), 7)
    np.testing.assert_array_equal(permuted(place, 7, key), np.concatenate([whole(7, k) for k in (5, 6, 7)]))


@pytest.mark.parametrize("size", [2, 3, 5, 6, 37, 70])
def test_places_and_pairs_are_uniform_over_keys(size):
    """Chi-squared of where place 0 goes, and of where place 1 goes from there."""
    keys = mixed(np.arange(50_000, dtype=np.uint64))
    first, second = (permuted(np.full(len(keys), place), size, keys) for place in (0, 1))
    for found, kinds in ((first, size), ((second - first) % size - 1, size - 1)):
        expected = len(keys) / kinds
        chi = ((np.bincount(found, minlength=kinds) - expected) ** 2 / expected).sum()
        assert chi < kinds - 1 + 5 * np.sqrt(2 * kinds)


def test_neighbours_are_torn_apart():
    order = whole(10_000, 3)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.05


def test_it_is_the_same_for_ever():
    """Another permutation would silently change every run's data."""
    assert whole(10, 42).tolist() == PINNED
    assert permuted(np.asarray([0, 1]), 15_000_000, np.full(2, 7, np.uint64)).tolist() == PINNED_LARGE


PINNED = [8, 2, 6, 7, 0, 4, 3, 1, 9, 5]
PINNED_LARGE = [2252344, 11606343]
