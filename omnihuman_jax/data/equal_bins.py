"""Packed bins made equal in work: bins of unequal work exchange items, and none gets more than it holds.

Packing fills bins by size alone, so that one may hold two long windows and its neighbour five short ones: the same
tokens, half the work of attention. In rounds, every heavy bin and a light one exchange up to two of their items each
way, those that leave the two most alike.
"""

import itertools

import numpy as np

_ITEMS = 6  # of a bin, that may be exchanged
_FEWEST = 4  # items a bin, on average, from which on exchanges are found that fit
_CYCLES, _WORTH = 8, 0.85  # of four rounds, at most; they go on while one leaves no more than this of the deviation
_BLOCK = 1024  # pairs of bins that are compared at once: what bounds the memory


def _choices(most: int) -> np.ndarray:
    """int64 [choices, _ITEMS], 0 or 1: every way to take up to `most` items."""
    ways = (chosen for k in range(most + 1) for chosen in itertools.combinations(range(_ITEMS), k))
    return np.asarray([[item in chosen for item in range(_ITEMS)] for chosen in ways], np.int64)


# Of bins whose work is further apart than this share of the mean. The second is for the few that the first leaves.
_OFTEN, _SELDOM = (0.02, _choices(2)), (0.05, _choices(3))


def even_out(demand: np.ndarray, capacity: np.ndarray, assigned: np.ndarray, bins: int, work: np.ndarray) -> np.ndarray:
    """The bin of each item, int64 [n], after the exchanges; `assigned` int64 [n] is the bin before them.

    demand int64 [n, d], capacity int64 [d]: as `bins.pack`; work int64 [n]: of each item. A function of its arguments
    alone. Where bins hold fewer than `_FEWEST` items on average, hardly any exchange fits, and all stays as it is.
    """
    if len(demand) < _FEWEST * bins:
        return assigned
    table = _Table(demand, capacity, assigned, bins, work)
    for _ in range(_CYCLES):
        before = table.work.std()
        for turn in range(4):
            table.round(turn / 4, *_OFTEN)
        if not table.work.std() < _WORTH * before:
            break
    for turn in range(8):
        table.round(turn / 8, *_SELDOM)
    return table.assigned


class _Table:
    """Bins, what is `left` of each, [bins, d], and the work that each has."""

    def __init__(
        self, demand: np.ndarray, capacity: np.ndarray, assigned: np.ndarray, bins: int, work: np.ndarray
    ) -> None:
        self.demand, self.item_work, self.assigned = demand, work, assigned.copy()
        self.scarce = int((demand.sum(axis=0) / np.maximum(capacity, 1)).argmax()) if len(demand) else 0
        used = [np.bincount(assigned, column, bins) for column in demand.T]
        self.left = capacity - np.stack(used, axis=1).astype(np.int64)
        self.work = np.bincount(assigned, work, bins).astype(np.int64)

    def round(self, turn: float, nearly: float, choices: np.ndarray) -> None:
        """The heaviest bins exchange with the lightest, or, to meet others, with those a share `turn` further round.

        nearly: share of the mean; pairs that are no further apart are left alone. choices: as `_choices`.
        """
        half = len(self.work) // 2
        order = np.argsort(self.work, kind="stable")
        heavy, light = order[::-1][:half], np.roll(order[:half], int(half * turn))
        apart = self.work[heavy] - self.work[light] > nearly * self.work.mean()
        heavy, light = heavy[apart], light[apart]
        items = self._candidates()
        for first in range(0, len(heavy), _BLOCK):
            self._exchange(heavy[first : first + _BLOCK], light[first : first + _BLOCK], items, choices)

    def _candidates(self) -> np.ndarray:
        """int64 [bins, _ITEMS]: items of each bin, evenly from its largest to its smallest; -1 where it has fewer."""
        order = np.lexsort((-self.demand[:, self.scarce], self.assigned))
        edges = np.searchsorted(self.assigned[order], np.arange(len(self.work) + 1))
        count = np.diff(edges)[:, None]
        place = np.arange(_ITEMS)
        rank = np.where(count > _ITEMS, place * (count - 1) // (_ITEMS - 1), place)
        rank = np.where(rank < count, edges[:-1, None] + rank, -1)
        return np.where(rank >= 0, order[rank], -1) if len(order) else rank

    def _exchange(self, heavy: np.ndarray, light: np.ndarray, items: np.ndarray, choices: np.ndarray) -> None:
        """Pairs of bins [p] exchange what leaves them most alike in work."""
        ours, theirs = items[heavy], items[light]
        size = self.demand[:, self.scarce]
        grows = _sums(size, theirs, choices)[:, None, :] - _sums(size, ours, choices)[:, :, None]
        gains = _sums(self.item_work, theirs, choices)[:, None, :] - _sums(self.item_work, ours, choices)[:, :, None]
        apart = self.work[heavy] - self.work[light]
        left = np.abs(apart[:, None, None] + 2 * gains)
        left[grows > self.left[heavy, self.scarce][:, None, None]] = np.iinfo(np.int64).max
        left[-grows > self.left[light, self.scarce][:, None, None]] = np.iinfo(np.int64).max
        left = left.reshape(len(heavy), -1)
        best = left.argmin(axis=1)
        rows = np.flatnonzero(left[np.arange(len(heavy)), best] < apart)
        give, take = (
            np.where(choices[choice] > 0, own[rows], -1)
            for choice, own in zip(np.divmod(best[rows], len(choices)), (ours, theirs))
        )
        # The other dims are seldom in the way: they are looked at for the best exchange alone.
        grows_PD = self._demand(take) - self._demand(give)
        fits = (grows_PD <= self.left[heavy[rows]]).all(axis=1) & (-grows_PD <= self.left[light[rows]]).all(axis=1)
        self._move(give[fits], heavy[rows[fits]], light[rows[fits]])
        self._move(take[fits], light[rows[fits]], heavy[rows[fits]])

    def _demand(self, items: np.ndarray) -> np.ndarray:
        """int64 [p, d]: of the items [p, _ITEMS] of each row."""
        return np.where(items[..., None] >= 0, self.demand[items], 0).sum(axis=1)

    def _move(self, items: np.ndarray, source: np.ndarray, target: np.ndarray) -> None:
        """The items [p, _ITEMS] of each row go from one bin to another; no bin is in two rows."""
        demand, work = self._demand(items), np.where(items >= 0, self.item_work[items], 0).sum(axis=1)
        row, column = np.nonzero(items >= 0)
        self.assigned[items[row, column]] = target[row]
        self.left[source] += demand
        self.left[target] -= demand
        self.work[source] -= work
        self.work[target] += work


def _sums(of_item: np.ndarray, items: np.ndarray, choices: np.ndarray) -> np.ndarray:
    """int64 [p, choices]: sums over every choice of the items [p, _ITEMS] of each row."""
    return np.where(items >= 0, of_item[items], 0) @ choices.T
