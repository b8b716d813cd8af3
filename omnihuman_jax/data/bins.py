"""Packing many windows into many sequences, from their sizes alone."""

import bisect
import heapq
import operator

import numpy as np


def pack(demand: np.ndarray, capacity: np.ndarray, bins: int) -> np.ndarray | None:
    """The bin of each item, int64 [n], such that no bin holds more than `capacity` in any dim; None if they do not all
    fit.

    demand [n, d] and capacity [d] are integers. Deterministic. Bins are compared by what is left of the dim that is
    asked for most. The largest items go first, to the emptiest bin that takes them; if that fails, to the fullest. The
    first way spreads small items and so keeps the other dims in balance; the second is better where a bin holds two or
    three items.
    """
    if not len(demand):
        return np.zeros(0, np.int64)
    if (demand > capacity).any() or (demand.sum(axis=0) > capacity * bins).any():
        return None
    scarce = int((demand.sum(axis=0) / np.maximum(capacity, 1)).argmax())
    dims = [scarce, *(d for d in range(len(capacity)) if d != scarce)]
    demand, capacity = demand[:, dims], capacity[dims]
    size = (demand / np.maximum(capacity, 1)).max(axis=1)
    order = np.lexsort((np.arange(len(demand)), -demand[:, 0], -size)).tolist()
    items, least, room = demand.tolist(), demand.min(axis=0).tolist(), capacity.tolist()
    result = _emptiest_first(items, order, least, room, bins)
    if result is None:
        result = _fullest_first(items, order, least, room, bins)
    return None if result is None else np.asarray(result, np.int64)


def _emptiest_first(
    items: list[list[int]], order: list[int], least: list[int], capacity: list[int], bins: int
) -> list[int] | None:
    left = [capacity] * bins
    heap = [(-capacity[0], b) for b in range(bins)]
    result = [-1] * len(items)
    for item in order:
        need, passed = items[item], []
        while heap and -heap[0][0] >= need[0]:
            entry = heapq.heappop(heap)
            room = list(map(operator.sub, left[entry[1]], need))
            if min(room) < 0:
                passed.append(entry)  # too little left of another dim
                continue
            result[item], left[entry[1]] = entry[1], room
            # A bin is closed when not even the smallest demand fits any more.
            if all(map(operator.ge, room, least)):
                heapq.heappush(heap, (-room[0], entry[1]))
            break
        else:
            return None
        for entry in passed:
            heapq.heappush(heap, entry)
    return result


def _fullest_first(
    items: list[list[int]], order: list[int], least: list[int], capacity: list[int], bins: int
) -> list[int] | None:
    left = [capacity] * bins
    opened = [(capacity[0], b) for b in range(bins)]  # ascending
    result = [-1] * len(items)
    for item in order:
        need = items[item]
        for position in range(bisect.bisect_left(opened, (need[0], -1)), len(opened)):
            room = list(map(operator.sub, left[opened[position][1]], need))
            if min(room) >= 0:
                break
        else:
            return None
        _, chosen = opened.pop(position)
        result[item], left[chosen] = chosen, room
        if all(map(operator.ge, room, least)):
            bisect.insort(opened, (room[0], chosen))
    return result


def pack_prefix(
    demand: np.ndarray, capacity: np.ndarray, bins: int, guess: int, tolerance: int = 1
) -> tuple[int, np.ndarray]:
    """(n, bins of the first n items): a count n that packs, such that n + tolerance was found not to, or n is all of
    them.

    `guess` is tried first. Items are dropped from the end, in the order they were drawn, so that skipping favours no
    size.
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
