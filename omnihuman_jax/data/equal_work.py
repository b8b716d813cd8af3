"""Which sequence of a step goes where: groups of neighbours get equal work, however many groups the mesh has.

A sequence of L tokens costs the same in all layers but attention, which costs each window the square of its own tokens.
So sequences of equal length differ in work, and data groups, which hold neighbouring sequences, would wait for the
heaviest.
"""

import numpy as np

_SWAPS, _CANDIDATES = 6, 128  # exchanges of a split; items of a part that are looked at for one


def work_of(demand: np.ndarray) -> np.ndarray:
    """int64 [n]: pairs of tokens that attention compares in each window; `demand` [n, 5] as `plan_config.DEMANDS`."""
    return np.square(demand[:, 0] + demand[:, 1])


def balanced_order(work_SB: np.ndarray) -> np.ndarray:
    """int64 [S, B]: an order of each step's B sequences in which neighbours in groups of B / 2, B / 4 ... have nearly
    equal sums of work.

    The sequences are split into parts of equal number and nearly equal work, and these again, to the end: in three or
    more parts where B has odd factors, in halves after that. A function of the work alone: the number of groups, and so
    the mesh, changes nothing.
    """
    steps, batch = work_SB.shape
    order = np.tile(np.arange(batch), (steps, 1))
    size = batch
    for parts in sorted(_prime_factors(batch), reverse=True):
        nodes = order.reshape(-1, size)
        work = work_SB[np.repeat(np.arange(steps), batch // size)[:, None], nodes]
        order, size = np.take_along_axis(nodes, _split(work, parts), axis=1), size // parts
    return order.reshape(steps, batch)


def _split(work_NM: np.ndarray, parts: int) -> np.ndarray:
    """int64 [N, M]: for each row an order of its items whose `parts` equal parts have nearly equal sums.

    The items are taken in rounds of `parts` of nearly one work, the most unequal rounds first; of a round the heaviest
    goes to the part that is lightest so far. Then the heaviest and the lightest part exchange what evens them out most.
    """
    rows, size = work_NM.shape
    items = np.argsort(-work_NM, axis=1, kind="stable").reshape(rows, -1, parts)
    work = np.take_along_axis(work_NM, items.reshape(rows, size), axis=1).reshape(items.shape)
    rounds = np.argsort(work[:, :, -1] - work[:, :, 0], axis=1, kind="stable")
    sums, result = np.zeros((rows, parts), np.int64), np.empty((rows, parts, size // parts), np.int64)
    every = np.arange(rows)
    for number in range(size // parts):
        chosen = rounds[:, number]
        lightest = np.argsort(sums, axis=1, kind="stable")
        result[every[:, None], lightest, number] = items[every, chosen]
        sums[every[:, None], lightest] += work[every, chosen]
    for _ in range(_SWAPS):
        _exchange(np.take_along_axis(work_NM, result.reshape(rows, size), axis=1).reshape(result.shape), result)
    return result.reshape(rows, size)


def _exchange(work_NPK: np.ndarray, items_NPK: np.ndarray) -> None:
    """Swaps, in each row of `items_NPK`, one item of the heaviest part with one of the lightest, where that helps."""
    every, sums = np.arange(len(work_NPK)), work_NPK.sum(axis=2)
    heavy, light = sums.argmax(axis=1), sums.argmin(axis=1)
    apart = sums[every, heavy] - sums[every, light]
    stride = -(-work_NPK.shape[2] // _CANDIDATES)
    ours, theirs = work_NPK[every, heavy, ::stride], work_NPK[every, light, ::stride]
    left = np.abs(apart[:, None, None] - 2 * (ours[:, :, None] - theirs[:, None, :])).reshape(len(every), -1)
    best = left.argmin(axis=1)
    rows = np.flatnonzero(left[every, best] < apart)
    give, take = (stride * part[rows] for part in np.divmod(best, ours.shape[1]))
    a, b = (rows, heavy[rows], give), (rows, light[rows], take)
    items_NPK[a], items_NPK[b] = items_NPK[b], items_NPK[a]


def _prime_factors(number: int) -> list[int]:
    factors, factor = [], 2
    while number > 1:
        if number % factor:
            factor += 1
        else:
            factors.append(factor)
            number //= factor
    return factors
