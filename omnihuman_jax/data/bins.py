"""Packing many windows into many sequences, from their sizes alone: in rounds of whole arrays, not item by item."""

import numpy as np

_GOOD = 0.005  # of all the room: a way that leaves out less is not compared with the other
_ROUNDS_A_BIN = 16  # a round gives an item to this part of the bins: fewer is nearer to one item after the other


def pack(demand: np.ndarray, capacity: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each item, int64 [n], or -1: no bin holds more than `capacity` in any dim.

    demand [n, d] and capacity [d] are integers. Deterministic. Bins are compared by what is left of the dim that is
    asked for most, and the largest items go first. Once to the emptiest bins, which spreads small items and so keeps
    the other dims in balance; once to the fullest that take them, which is better where a bin holds two or three items.
    The way that leaves out less is taken; the second is not tried where the first leaves out next to nothing.
    """
    if not len(demand):
        return np.zeros(0, np.int64)
    share = demand / np.maximum(capacity, 1)
    scarce = int(share.sum(axis=0).argmax())
    order = np.lexsort((-demand[:, scarce], -share.max(axis=1)))  # stable: of equal ones, the first drawn
    best, least = np.zeros(0, np.int64), np.inf
    for emptiest in (True, False):
        way = _Bins(demand, capacity, bins)
        way.fill(order, emptiest=emptiest)
        left_out = float(share[way.assigned < 0].sum(axis=0).max())
        if left_out < least:
            best, least = way.assigned, left_out
        if least <= _GOOD * bins:
            break
    return best


def pack_prefix(demand: np.ndarray, capacity: np.ndarray, bins: int) -> tuple[int, np.ndarray]:
    """(n, bins of the first n items): as many as were found to fit.

    Items are dropped from the end, in the order they were drawn, so that skipping favours no size.
    """
    over = (np.cumsum(demand, axis=0) > capacity * bins).any(axis=1)
    bound = int(over.argmax()) if over.any() else len(demand)  # more cannot fit, whatever the packing
    made = _Bins(demand[:bound], capacity, bins, pack(demand[:bound], capacity, bins))
    count = bound
    while len(waiting := np.flatnonzero(made.assigned[:count] < 0)):
        # As many go as make room for half of what waits: what waits near the end goes itself.
        lost = np.cumsum(demand[:count, made.scarce][::-1])
        drop = 1 + int(np.searchsorted(lost, demand[waiting, made.scarce].sum() // 2))
        before, count = count, max(0, count - drop)
        made.remove(np.arange(count, before))
        waiting = waiting[waiting < count]
        made.place_one_by_one(waiting[np.argsort(-demand[waiting, made.scarce], kind="stable")])
    return count, made.assigned[:count]


class _Bins:
    """Bins being filled: `assigned` [n], and what is `left`, [d, bins]."""

    def __init__(self, demand: np.ndarray, capacity: np.ndarray, bins: int, assigned: np.ndarray | None = None):
        self.demand, self.bins = demand, bins
        self.scarce = int((demand.sum(axis=0) / np.maximum(capacity, 1)).argmax()) if len(demand) else 0
        self.left = np.tile(np.asarray(capacity, np.int64)[:, None], (1, bins))
        self.assigned = np.full(len(demand), -1, np.int64) if assigned is None else assigned.copy()
        if assigned is not None:
            inside = np.flatnonzero(assigned >= 0)
            for dim, left in enumerate(self.left):
                left -= np.bincount(assigned[inside], demand[inside, dim], bins).astype(np.int64)

    def fill(self, order: np.ndarray, *, emptiest: bool) -> None:
        """Places what it can of the items in this order, in rounds."""
        step, waiting = max(1, self.bins // _ROUNDS_A_BIN), []
        for first in range(0, len(order), step):
            items = order[first : first + step]
            self._round(items, emptiest=emptiest)
            waiting.append(items[self.assigned[items] < 0])
        rest = np.concatenate(waiting)
        while len(rest):
            self._round(rest[:step], emptiest=False)
            placed = self.assigned[rest] >= 0
            if not placed[:step].any():
                break
            rest = rest[~placed]
        self.place_one_by_one(rest)

    def _round(self, items: np.ndarray, *, emptiest: bool) -> None:
        """Gives each item a bin of its own, where it fits: the largest item the emptiest, or to each the fullest that
        takes it.
        """
        scarce = self.left[self.scarce]
        if emptiest:
            chosen = np.argsort(-scarce, kind="stable")[: len(items)]
        else:
            items = items[::-1]  # the smallest first: it takes the fullest
            order = np.argsort(scarce, kind="stable")
            first_that_fits = np.searchsorted(scarce[order], self.demand[items, self.scarce])
            count = np.arange(len(items))
            place = np.maximum.accumulate(first_that_fits - count) + count  # each its own, in order
            items, place = items[place < self.bins], place[place < self.bins]
            chosen = order[place]
        items = items[: len(chosen)]
        fits = (self.demand[items] <= self.left[:, chosen].T).all(axis=1)
        self.assigned[items[fits]] = chosen[fits]
        self.left[:, chosen[fits]] -= self.demand[items[fits]].T

    def place_one_by_one(self, items: np.ndarray) -> None:
        """Gives each item, in order, the fullest bin that takes it; those that none takes stay outside."""
        scarce = self.left[self.scarce]
        for item in items:
            need = self.demand[item]
            fits = np.flatnonzero(scarce >= need[self.scarce])  # few, as bins are nearly full by now
            fits = fits[(need <= self.left[:, fits].T).all(axis=1)]
            if len(fits):
                chosen = fits[scarce[fits].argmin()]
                self.assigned[item] = chosen
                self.left[:, chosen] -= need

    def remove(self, items: np.ndarray) -> None:
        """Takes items out of their bins."""
        inside = items[self.assigned[items] >= 0]
        for dim, left in enumerate(self.left):
            np.add.at(left, self.assigned[inside], self.demand[inside, dim])
        self.assigned[items] = -1
