"""Packing many windows into many sequences, from their sizes alone: best fit, the largest first."""

import bisect

import numpy as np


def pack(demand: np.ndarray, capacity: np.ndarray, bins: int) -> np.ndarray | None:
    """The bin of each item, int64 [n], such that no bin holds more than `capacity` in any dim; None if they do not all fit.

    demand [n, d] and capacity [d] are integers; dim 0 is the one that best fit goes by. Deterministic.
    """
    count, dims = demand.shape
    if not count:
        return np.zeros(0, np.int64)
    if (demand > capacity).any() or (demand.sum(axis=0) > capacity * bins).any():
        return None
    size = (demand / np.maximum(capacity, 1)).max(axis=1)
    order = np.lexsort((np.arange(count), -demand[:, 0], -size)).tolist()
    items, least = demand.tolist(), demand.min(axis=0).tolist()
    left = [capacity.tolist() for _ in range(bins)]
    # Bins by what is left of dim 0; a bin leaves the list when not even the smallest demand fits any more.
    opened = [(int(capacity[0]), b) for b in range(bins)]
    result = np.empty(count, np.int64)
    others = range(1, dims)
    for item in order:
        need = items[item]
        position = bisect.bisect_left(opened, (need[0], -1))
        while position < len(opened):
            room = left[opened[position][1]]
            if all(room[d] >= need[d] for d in others):
                break
            position += 1
        else:
            return None
        _, chosen = opened.pop(position)
        result[item] = chosen
        room = left[chosen] = [a - b for a, b in zip(left[chosen], need)]
        if all(a >= b for a, b in zip(room, least)):
            bisect.insort(opened, (room[0], chosen))
    return result


def pack_prefix(demand: np.ndarray, capacity: np.ndarray, bins: int, guess: int, tolerance: int = 1) -> tuple[int, np.ndarray]:
    """(n, bins of the first n items): a count n that packs, such that n + tolerance was found not to, or n is all of them.

    `guess` is tried first. Items are dropped from the end, in the order they were drawn, so that skipping favours no size.
    """
    over = (np.cumsum(demand, axis=0) > capacity * bins).any(axis=1)
    bound = int(over.argmax()) if over.any() else len(demand)  # more cannot fit, whatever the packing
    good, bad, stride = 0, bound + 1, max(1, tolerance)
    best = np.zeros(0, np.int64)
    trial = min(max(guess, 1), bound)
    while bad - good > tolerance or bad > bound > good:
        assigned = pack(demand[:trial], capacity, bins)
        if assigned is None:
            bad = trial
        else:
            good, best = trial, assigned
        # Until there is a bound on both sides, steps that double; then halves.
        if bad > bound:
            trial, stride = min(bound, good + stride), stride * 2
        elif not good:
            trial, stride = (bad - stride if bad > stride else bad // 2), stride * 2
        else:
            trial = (good + bad) // 2
        if not trial:
            break
    return good, best
