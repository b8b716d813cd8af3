"""Draws: sample index -> active set, window, motion, reference. Every index is computed alone, from keys only.

A stage's sample index is cut into blocks. A block holds exact numbers of every active set (stratified counts) in a
keyed, evenly spread order; of several data sets, each set's number is split over them by their weights. The draws of
one active set from one data set are numbered without end, and a block owns a fixed stretch of these numbers, whatever
came before. n windows eligible for the set make a pass of n draws: at n even places along all their hours, turned by an
angle of the pass, and visited in the pass's own keyed order (`permutation.py`). So a window's chance is its duration, a
pass draws it as often as its share says, rounded down or up, and no pass is ever computed.
"""

import dataclasses

import numpy as np

from omnihuman_jax.conditions import NUM_CONDITIONS, Condition
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.joined_catalog import JoinedCatalog
from omnihuman_jax.data.permutation import GOLDEN, mixed, permuted
from omnihuman_jax.data.stage_windows import StageWindows
from omnihuman_jax.data.window_index import ServingWindows
from omnihuman_jax.stages import NUM_SETS, Stage
from omnihuman_jax.typing import MOTION_LATENTS

# What a random number is for: one key each, so that no two uses share a stream.
PURPOSE_COUNTS, PURPOSE_BLOCK, PURPOSE_PASS, PURPOSE_SHUFFLE, PURPOSE_DATASET = range(5)


def random_bits(seed: int, purpose: int, stage: int, size: int, a: int = 0, b: int = 0) -> np.ndarray:
    """uint64 [size]: the raw stream of Philox, which no numpy version may change, keyed on all arguments but `size`."""
    key = np.asarray([seed, purpose << 32 | stage], np.uint64)
    return np.random.Philox(key=key, counter=np.asarray([0, a, b, 0], np.uint64)).random_raw(size)


def uniform(bits: np.ndarray) -> np.ndarray:
    """Random bits as float64 in [0, 1)."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def stratified_counts(stage: Stage, start: int, end: int, phases: np.ndarray) -> np.ndarray:
    """How many of the samples [start, end) have each active set: int64 [16], by bitmask.

    Every condition's total is the difference of its rounded ratio x index, so totals over consecutive ranges are exact
    to half a sample. The joint is split condition by condition, each share rounded down or up, up with the probability
    of its fraction. `phases`: 4 numbers in [0, 1) that decide on the rounding.
    """
    ratios = stage.ratios
    totals = np.floor(ratios * end + 0.5 + 1e-9).astype(np.int64) - np.floor(ratios * start + 0.5 + 1e-9).astype(
        np.int64
    )
    if stage.mode == "nested":
        totals = np.minimum.accumulate(totals)
        counts = np.zeros(NUM_SETS, np.int64)
        for level, (at_least, more) in enumerate(zip([end - start, *totals], [*totals, 0])):
            counts[(1 << level) - 1] = at_least - more
        return counts
    counts = np.asarray([end - start], np.int64)  # by the bits of the conditions split so far
    for condition in range(NUM_CONDITIONS):
        exact = np.round(counts * ratios[condition], 9)
        on = np.floor(exact).astype(np.int64)
        fraction = exact - on
        rest = int(totals[condition] - on.sum())
        # Systematic sampling: `rest` of the cells are rounded up, each with the probability of its fraction. The
        # phase is drawn from those that give `rest` (it is the whole or the next whole number to the fractions' sum).
        cumulative = np.round(np.cumsum(fraction), 9)
        split = 1 - cumulative[-1] % 1
        whole = int(np.floor(cumulative[-1]))
        phase = phases[condition] * split if rest <= whole else split + phases[condition] * (1 - split)
        edges = np.floor(np.concatenate([[0.0], cumulative]) + phase)
        up = np.diff(edges).astype(np.int64)
        if (
            split == 1 and rest != whole
        ):  # fractions sum to a whole number, the rounded total is one off: the largest take it
            up = up + np.bincount(np.argmax(fraction), minlength=len(up)) * (rest - whole)
        counts = np.concatenate([counts - on - up, on + up])
    return counts


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Draws:
    """Consecutive samples: catalog row, bits of the active set, motion active, index of the reference (-1: none)."""

    row: np.ndarray
    active: np.ndarray
    motion: np.ndarray
    reference: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def take(self, index: np.ndarray | slice) -> "Draws":
        return Draws(self.row[index], self.active[index], self.motion[index], self.reference[index])


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class _Asked:
    """What consecutive samples ask for, before any window is looked up: active set, tape (set, data set; in mode "keep"
    the set is 0) and number of the draw on it, random numbers in [0, 1) for motion and reference, block and its phase
    of motion.
    """

    active: np.ndarray
    tape: np.ndarray
    at: np.ndarray
    motion: np.ndarray
    other: np.ndarray
    block: np.ndarray
    phase: np.ndarray


class StageDraws:
    """The endless sequence of samples of one stage; `windows` has what it may draw."""

    def __init__(
        self,
        catalog: Catalog | JoinedCatalog,
        stage: Stage,
        stage_index: int,
        windows: StageWindows,
        seed: int,
        block: int,
    ):
        self._catalog, self._stage, self._number, self._seed, self._block = catalog, stage, stage_index, seed, block
        # The rate of an active set on the sample index; in mode "keep" all are drawn as one, under bitmask 0.
        of_set = np.eye(1, NUM_SETS)[0] if stage.mode == "keep" else stage.distribution()
        # A tape has the draws of an active set from a data set.
        self._windows, self._shares = windows, windows.shares(stage)
        self._rate = (of_set[:, None] * self._shares).ravel()
        self._serving = {
            int(tape): ServingWindows.of(windows.indices[tape % len(windows)], int(tape // len(windows)))
            for tape in np.flatnonzero(self._rate > 0)
        }

    def block(self, number: int, end: int | None = None) -> Draws:
        """The samples of block `number`; with `end`, the last block of a stage of `end` samples."""
        stop = (number + 1) * self._block
        return self.range(number * self._block, stop if end is None else min(end, stop), end)

    def range(self, start: int, stop: int, end: int | None = None) -> Draws:
        """Samples [start, stop), of a stage that ends at sample `end` (None: does not end)."""
        first = start // self._block
        blocks = [self._asked(number, end) for number in range(first, -(-stop // self._block))]
        asked = _Asked(*(np.concatenate([getattr(b, f.name) for b in blocks]) for f in dataclasses.fields(_Asked)))
        row = np.empty(len(asked.at), np.int32)
        for tape, serving in self._serving.items():
            mine = asked.tape == tape
            row[mine] = self._drawn(tape, serving, asked.at[mine])
        # In mode "keep" `active` says which conditions stay if the window is eligible for them.
        active = asked.active & self._catalog.eligible[row] if self._stage.mode == "keep" else asked.active
        has_reference = active >> Condition.REFERENCE & 1 > 0
        reference = np.where(has_reference, (asked.other * self._catalog.num_references[row]).astype(np.int32), -1)
        draws = Draws(row, active, self._motion(row, active, asked), reference)
        return draws.take(slice(start - first * self._block, stop - first * self._block))

    def _asked(self, number: int, end: int | None) -> _Asked:
        start = number * self._block
        size = self._block if end is None else min(end - start, self._block)
        bits = random_bits(self._seed, PURPOSE_BLOCK, self._number, 3 * self._block + 4 + NUM_CONDITIONS, a=number)
        noise = uniform(bits)
        order, motion, other = noise[: 3 * self._block].reshape(3, -1)[:, :size]
        phases, motion_phase = noise[-NUM_CONDITIONS - 4 : -4], noise[-1]
        keep = self._stage.mode == "keep"
        of_set = size * np.eye(1, NUM_SETS, dtype=np.int64)[0]
        counts = self._shared(
            of_set if keep else stratified_counts(self._stage, start, start + size, phases), number
        ).ravel()
        # Each tape's samples are spread over the block, jittered: a part of a block comes close to the ratios, too.
        tapes = np.repeat(np.arange(len(counts)), counts)
        number_on_tape = np.arange(size) - np.repeat(np.cumsum(counts) - counts, counts)
        spread = np.argsort((number_on_tape + order) / counts[tapes], kind="stable")
        # A tape's draws of the block, evenly over the stretch of numbers that is the block's by its rate.
        rate = self._rate[tapes]
        at = (start * rate + (number_on_tape + 0.5) / counts[tapes] * (size * rate))[spread]
        tape = tapes[spread]
        active = self._kept(number)[:size] if keep else (tape // len(self._windows)).astype(np.int32)
        return _Asked(active, tape, at, motion, other, np.full(size, number), np.full(size, motion_phase))

    def _shared(self, counts: np.ndarray, number: int) -> np.ndarray:
        """int64 [16, D]: a block's draws of each active set over the data sets, each share rounded down or up.

        Systematic sampling: up with the probability of the fraction, and over the blocks about as often as that says.
        """
        if len(self._windows) == 1:
            return counts[:, None]
        turn = random_bits(self._seed, PURPOSE_DATASET, self._number, NUM_SETS)
        phase = uniform(turn + np.full(NUM_SETS, number, np.uint64) * GOLDEN)
        edges = np.floor(np.cumsum(self._shares, axis=1) * counts[:, None] + phase[:, None]).astype(np.int64)
        edges[:, -1] = counts  # whatever the sum of the shares is rounded to
        return np.diff(np.minimum(edges, counts[:, None]), axis=1, prepend=0)

    def _drawn(self, tape: int, serving: ServingWindows, at: np.ndarray) -> np.ndarray:
        """Catalog rows of a tape's draws by their numbers."""
        bits, dataset = divmod(tape, len(self._windows))
        turn, key = random_bits(self._seed, PURPOSE_PASS, self._number, 2, b=bits | dataset << NUM_CONDITIONS)
        number, place = np.divmod(np.floor(at).astype(np.int64), serving.windows)
        number = number.astype(np.uint64)
        stratum = permuted(place, serving.windows, mixed(key + number * GOLDEN))
        # Every pass is turned further, evenly over the passes: with fixed places some windows would never be drawn.
        along = (stratum + uniform(turn + number * GOLDEN)) * (serving.ticks / serving.windows)
        rows = serving.rows_at(np.minimum(along.astype(np.int64), serving.ticks - 1))
        return rows + np.int32(self._windows.first_rows[dataset])

    def _kept(self, number: int) -> np.ndarray:
        """Mode "keep": bits of the conditions that stay, each with the probability of its ratio."""
        noise = random_bits(self._seed, PURPOSE_COUNTS, self._number, NUM_CONDITIONS * self._block, a=number)
        keep = self._stage.ratios > uniform(noise).reshape(NUM_CONDITIONS, -1).T
        return (keep << np.arange(NUM_CONDITIONS)).sum(axis=1).astype(np.int32)

    def _motion(self, row: np.ndarray, active: np.ndarray, asked: _Asked) -> np.ndarray:
        """Motion on the stage's share of a block's windows with more than 2 latent frames, evenly over the active
        sets.
        """
        can = np.flatnonzero(self._catalog.latent_frames[row] > MOTION_LATENTS)
        can = can[np.lexsort((asked.motion[can], active[can], asked.block[can]))]
        block = asked.block[can]
        in_block = np.arange(len(can)) - np.searchsorted(block, block)
        share, phase = self._stage.motion, asked.phase[can]
        motion = np.zeros(len(row), bool)
        motion[can] = np.floor((in_block + 1) * share + phase) > np.floor(in_block * share + phase)
        return motion
