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


def load_of(demand: np.ndarray, assigned: np.ndarray, bins: int) -> np.ndarray:
    return np.stack([np.bincount(assigned, demand[:, d], bins) for d in range(demand.shape[1])], axis=1)


@pytest.mark.parametrize("bins", [1, 7, 64, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_no_bin_overflows_and_the_binding_dim_is_full(seed, bins):
    demand, capacity = items(20 * bins, seed)
    count, assigned = pack_prefix(demand, capacity, bins)
    assert len(assigned) == count and (assigned >= 0).all() and (assigned < bins).all()
    load = load_of(demand[:count], assigned, bins)
    assert (load <= capacity).all()
    assert (load.sum(axis=0) / (bins * capacity)).max() > {1: 0.85, 7: 0.94}.get(bins, 0.97)


def test_what_does_not_fit_stays_outside_and_the_rest_is_placed():
    demand, capacity = items(2000)
    assigned = pack(demand, capacity, 64)
    inside = assigned >= 0
    assert 0 < inside.sum() < 2000
    load = load_of(demand[inside], assigned[inside], 64)
    assert (load <= capacity).all() and (load.sum(axis=0) / (64 * capacity)).max() > 0.98


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
    assert sorted(np.bincount(assigned)) == [len(sizes) // 4] * 4


def test_all_of_few_items_and_none_that_is_too_big():
    demand, capacity = items(5)
    count, assigned = pack_prefix(demand, capacity, 8)
    assert count == 5 and (assigned >= 0).all()
    demand[2, 1] = 201
    assert (pack(demand, capacity, 8) >= 0).tolist() == [True, True, False, True, True]
    assert pack_prefix(demand, capacity, 8)[0] == 2
    assert pack_prefix(demand[:0], capacity, 8)[0] == len(pack(demand[:0], capacity, 8)) == 0


def test_deterministic():
    demand, capacity = items(500)
    count, assigned = pack_prefix(demand, capacity, 16)
    again, same = pack_prefix(demand, capacity, 16)
    assert count == again
    np.testing.assert_array_equal(assigned, same)
