"""Draws: sample index -> active set, window, motion, reference. Every index is computed alone, from keys only.

A stage's sample index is cut into blocks. A block holds exact numbers of every active set (stratified counts) in a
keyed, evenly spread order. The windows of one active set lie on an endless tape: pass after pass over all windows
eligible for it, each pass in its own keyed order, each window as long as its duration. A block owns a fixed stretch of
that tape, whatever came before.
"""

import collections
import dataclasses

import numpy as np

from omnihuman_jax.conditions import NUM_CONDITIONS, Condition
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.stages import NUM_SETS, SET_BITS, SUBSET, Stage
from omnihuman_jax.typing import MOTION_LATENTS

# What a random number is for: one key each, so that no two uses share a stream.
PURPOSE_COUNTS, PURPOSE_BLOCK, PURPOSE_PASS, PURPOSE_SHUFFLE = range(4)

_CACHED_PASSES = 24  # of groups above _SMALL_PASS windows; smaller ones are quicker made than found
_SMALL_PASS = 1024


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


class StageDraws:
    """The endless sequence of samples of one stage; `rows` are the catalog rows that it may draw."""

    def __init__(self, catalog: Catalog, stage: Stage, stage_index: int, rows: np.ndarray, seed: int, block: int):
        self._catalog, self._stage, self._index, self._seed, self._block = catalog, stage, stage_index, seed, block
        eligible = catalog.eligible[rows]
        keep = stage.mode == "keep"
        # The rate of an active set on the sample index; in mode "keep" all are drawn from one tape, under bitmask 0.
        self._rate = np.eye(1, NUM_SETS)[0] if keep else stage.distribution()
        self._groups: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        shared: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}  # groups of the same windows share their arrays
        for bits in SET_BITS[self._rate > 0]:
            member = SUBSET[bits][eligible]
            key = np.packbits(member).tobytes()
            if key not in shared:
                shared[key] = (rows[member].astype(np.int32), catalog.duration_s[rows[member]])
            self._groups[int(bits)] = shared[key]
        self._passes: collections.OrderedDict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = (
            collections.OrderedDict()
        )

    def block(self, number: int, end: int | None = None) -> Draws:
        """The samples of block `number`; with `end`, the last block of a stage of `end` samples."""
        start = number * self._block
        stop = start + self._block if end is None else min(end, start + self._block)
        size = stop - start
        bits = random_bits(self._seed, PURPOSE_BLOCK, self._index, 3 * self._block + 4 + NUM_CONDITIONS, a=number)
        noise = uniform(bits)
        order, motion, other = noise[: 3 * self._block].reshape(3, -1)[:, :size]
        phases, motion_phase = noise[-NUM_CONDITIONS - 4 : -4], noise[-1]
        if self._stage.mode == "keep":
            row = self._windows(0, start, stop, size)
            active = self._kept(row, number)
        else:
            counts = stratified_counts(self._stage, start, stop, phases)
            # Each set's samples are spread over the block, jittered: a part of a block comes close to the ratios, too.
            sets = np.repeat(SET_BITS, counts)
            number_in_set = np.arange(size) - np.repeat(np.cumsum(counts) - counts, counts)
            active = sets[np.argsort((number_in_set + order) / counts[sets], kind="stable")].astype(np.int32)
            row = np.empty(size, np.int32)
            for condition_bits in np.flatnonzero(counts):
                row[active == condition_bits] = self._windows(
                    int(condition_bits), start, stop, int(counts[condition_bits])
                )
        has_reference = active >> Condition.REFERENCE & 1 > 0
        reference = np.where(has_reference, (other * self._catalog.num_references[row]).astype(np.int32), -1)
        return Draws(row, active, self._motion(row, active, motion, motion_phase), reference)

    def range(self, start: int, stop: int, end: int | None = None) -> Draws:
        """Samples [start, stop), of a stage that ends at sample `end` (None: does not end)."""
        blocks = [self.block(number, end) for number in range(start // self._block, -(-stop // self._block))]
        first = start - start // self._block * self._block
        joined = Draws(*(np.concatenate([getattr(b, f.name) for b in blocks]) for f in dataclasses.fields(Draws)))
        return joined.take(slice(first, first + stop - start))

    def _windows(self, bits: int, start: int, stop: int, count: int) -> np.ndarray:
        """The `count` windows that active set `bits` draws in samples [start, stop): its stretch of the tape."""
        rows, _ = self._groups[bits]
        rate = self._rate[bits]
        # In windows of mean duration: one pass is len(rows) long and yields len(rows) draws.
        at = start * rate + (np.arange(count) + 0.5) / count * ((stop - start) * rate)
        result = np.empty(count, np.int32)
        pass_of = np.floor(at / len(rows)).astype(np.int64)
        for number in range(int(pass_of[0]), int(pass_of[-1]) + 1):
            mine = slice(*np.searchsorted(pass_of, [number, number + 1]))
            order, ends = self._pass(bits, number)
            along = (at[mine] / len(rows) - number) * ends[-1]
            # Each pass is also turned by a keyed angle: with a fixed stride, a window's chance is its duration only
            # then.
            turn = (
                uniform(random_bits(self._seed, PURPOSE_PASS, self._index, 1, a=number, b=2 * bits + 1))[0] * ends[-1]
            )
            along = (along + turn) % ends[-1]
            result[mine] = rows[order[np.minimum(np.searchsorted(ends, along, side="right"), len(rows) - 1)]]
        return result

    def _pass(self, bits: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Keyed order of a group's windows in one pass, and where each ends on the tape (seconds)."""
        key = (bits, number)
        if key in self._passes:
            self._passes.move_to_end(key)
            return self._passes[key]
        rows, duration_s = self._groups[bits]
        noise = random_bits(self._seed, PURPOSE_PASS, self._index, len(rows), a=number, b=2 * bits)
        order = np.argsort(noise, kind="stable").astype(np.int32)
        made = order, np.cumsum(duration_s[order])
        if len(rows) > _SMALL_PASS:
            self._passes[key] = made
            if len(self._passes) > _CACHED_PASSES:
                self._passes.popitem(last=False)
        return made

    def _kept(self, row: np.ndarray, number: int) -> np.ndarray:
        """Mode "keep": each condition that the window is eligible for stays with the probability of its ratio."""
        noise = random_bits(self._seed, PURPOSE_COUNTS, self._index, NUM_CONDITIONS * self._block, a=number)
        keep = self._stage.ratios > uniform(noise).reshape(NUM_CONDITIONS, -1)[:, : len(row)].T
        return self._catalog.eligible[row] & (keep << np.arange(NUM_CONDITIONS)).sum(axis=1).astype(np.int32)

    def _motion(self, row: np.ndarray, active: np.ndarray, noise: np.ndarray, phase: float) -> np.ndarray:
        """Motion on the stage's share of the windows with more than 2 latent frames, evenly over the active sets."""
        can = np.flatnonzero(self._catalog.latent_frames[row] > MOTION_LATENTS)
        can = can[np.lexsort((noise[can], active[can]))]
        edges = np.floor(np.arange(len(can) + 1) * self._stage.motion + phase)
        motion = np.zeros(len(row), bool)
        motion[can[np.diff(edges) > 0]] = True
        return motion
