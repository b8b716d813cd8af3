"""Which sequence of a step goes where: groups of neighbours get equal work, however many groups the mesh has.

A sequence of L tokens costs the same in all layers but attention, which costs each window the square of its own tokens.
So sequences of equal length differ in work, and data groups, which hold neighbouring sequences, would wait for the
heaviest.
"""

import numpy as np


def work_of(demand: np.ndarray) -> np.ndarray:
    """int64 [n]: pairs of tokens that attention compares in each window; `demand` [n, 5] as `plan_config.DEMANDS`."""
    return np.square(demand[:, 0] + demand[:, 1])


def balanced_order(work_SB: np.ndarray) -> np.ndarray:
    """int64 [S, B]: an order of each step's B sequences in which aligned groups of 2, 4, 8 ... of them have nearly
    equal sums of work, and so have their halves.

    The heaviest is joined with the lightest, pairs again so, to the end; what is odd is joined last. A function of the
    work alone: the number of groups, and so the mesh, changes nothing.
    """
    steps, batch = work_SB.shape
    order = np.tile(np.arange(batch)[None, :, None], (steps, 1, 1))
    work = work_SB
    while order.shape[1] > 1:
        groups = order.shape[1]
        by_work = np.argsort(-work, axis=1, kind="stable")
        parts = 2 if groups % 2 == 0 else groups
        # Dealt out there and back: part 0 from the heaviest on, part 1 from the lightest on.
        taken = [by_work[:, i * groups // parts : (i + 1) * groups // parts] for i in range(parts)]
        taken = [part[:, ::-1] if i % 2 else part for i, part in enumerate(taken)]
        order = np.concatenate([np.take_along_axis(order, part[:, :, None], axis=1) for part in taken], axis=2)
        work = sum(np.take_along_axis(work, part, axis=1) for part in taken)
    return order[:, 0]
