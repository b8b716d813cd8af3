"""Packing: no bin overflows in any dim, most of the room is used, prefixes are found."""

import numpy as np
import pytest

from omnihuman_jax.data.bins import pack, pack_prefix


def items(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    demand = np.stack(
        [rng.integers(10, 300, n), rng.integers(1, 20, n), np.ones(n, int), rng.integers(0, 60, n)], axis=1
    )
    return demand, np.asarray([1000, 200, 12, 400])


@pytest.mark.parametrize("seed", range(4))
def test_no_bin_overflows_and_the_binding_dim_is_full(seed):
    demand, capacity = items(2000, seed)
    count, assigned = pack_prefix(demand, capacity, 64, guess=300)
    load = np.stack([np.bincount(assigned, demand[:count, d], 64) for d in range(4)], axis=1)
    assert (load <= capacity).all()
    assert (load.sum(axis=0) / (64 * capacity)).max() > 0.97
    assert pack(demand[: count + 1], capacity, 64) is None


@pytest.mark.parametrize("guess", [0, 1, 5, 40, 400, 10_000])
@pytest.mark.parametrize("tolerance", [1, 7])
def test_the_prefix_does_not_depend_on_a_bad_guess_by_more_than_the_tolerance(guess, tolerance):
    demand, capacity = items(500)
    best, _ = pack_prefix(demand, capacity, 8, guess=50)
    count, assigned = pack_prefix(demand, capacity, 8, guess=guess, tolerance=tolerance)
    assert len(assigned) == count and pack(demand[:count], capacity, 8) is not None
    assert abs(count - best) <= tolerance + 1  # packing is not quite monotone


@pytest.mark.parametrize(
    ("sizes", "way"),
    [
        # Two of 5 and four small ones a bin, and at most six items: the small ones must be spread.
        ([[50, 1]] * 8 + [[1, 1]] * 16, "spread"),
        # 6 + 4 and 7 + 3 leave nothing; spread, the 3s and 4s would sit beside the wrong ones.
        ([[60, 1]] * 2 + [[70, 1]] * 2 + [[40, 1]] * 2 + [[30, 1]] * 2, "fill"),
    ],
)
def test_perfect_packings_are_found(sizes, way):
    demand = np.asarray(sizes)
    assigned = pack(demand, np.asarray([104 if way == "spread" else 100, 6]), 4)
    assert assigned is not None and sorted(np.bincount(assigned)) == [len(sizes) // 4] * 4


def test_all_of_few_items_and_none_that_is_too_big():
    demand, capacity = items(5)
    count, assigned = pack_prefix(demand, capacity, 8, guess=5)
    assert count == 5 and (assigned >= 0).all()
    demand[2, 1] = 201
    assert pack(demand, capacity, 8) is None
    assert pack_prefix(demand, capacity, 8, guess=5)[0] == 2


def test_deterministic():
    demand, capacity = items(500)
    count, assigned = pack_prefix(demand, capacity, 16, guess=90)
    again, same = pack_prefix(demand, capacity, 16, guess=90)
    assert count == again
    np.testing.assert_array_equal(assigned, same)
