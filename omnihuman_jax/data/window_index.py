"""The windows that a stage may draw, sorted by what they are eligible for, with a running sum of their durations.

So the windows that serve an active set are a few stretches of one array, for every active set the same array, and the
window at a given hour of them is found by bisection.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.stages import NUM_SETS, SUBSET, Stage
from omnihuman_jax.typing import FPS

TRAIN_SPLIT = "train"
_CHUNK = 1 << 20  # rows looked at together: what a pass over the catalog takes of memory


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class WindowIndex:
    """rows: int32 [n], of the catalog, by eligible set and then as they lie there. ends: unsigned [n], ticks of all
    rows up to each and with it. starts [17]: where each eligible set begins in `rows`. ticks_per_s: of `ends`.
    largest: int64 [16, 4], of each eligible set: video tokens, with a reference's, text tokens, latent frames.
    """

    rows: np.ndarray
    ends: np.ndarray
    starts: np.ndarray
    ticks_per_s: int
    largest: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """int64 [16]: windows by eligible set."""
        return np.diff(self.starts)

    @property
    def ticks(self) -> np.ndarray:
        """int64 [16]: ticks by eligible set."""
        edges = (
            np.concatenate([np.zeros(1, self.ends.dtype), self.ends])[self.starts] if len(self.ends) else self.starts
        )
        return np.diff(edges.astype(np.int64))

    @property
    def hours(self) -> np.ndarray:
        """float64 [16]: hours by eligible set."""
        return self.ticks / (3600 * self.ticks_per_s)


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class ServingWindows:
    """The windows of an index that can serve an active set: n `windows` of `ticks` in all."""

    index: WindowIndex
    windows: int
    ticks: int
    _ends: np.ndarray
    _shift: np.ndarray

    @classmethod
    def of(cls, index: WindowIndex, active_bits: int) -> "ServingWindows":
        """Those that are eligible for every condition of `active_bits`."""
        sets = np.flatnonzero(SUBSET[active_bits] & (index.counts > 0))
        ticks = index.ticks
        ends = np.cumsum(ticks[sets])
        before = (np.cumsum(ticks) - ticks)[sets]  # ticks of the index before each set
        return cls(index, int(index.counts[sets].sum()), int(ticks[sets].sum()), ends, before - (ends - ticks[sets]))

    def rows_at(self, ticks: np.ndarray) -> np.ndarray:
        """int32: catalog rows of the windows at these ticks, int64 in [0, `ticks`)."""
        at = ticks + self._shift[np.searchsorted(self._ends, ticks, side="right")]
        order = np.argsort(at)  # bisection of neighbours one after the other stays in the processor's cache
        # In the dtype of `ends`: otherwise numpy would convert all of them.
        found = np.searchsorted(self.index.ends, at[order].astype(self.index.ends.dtype), side="right")
        rows = np.empty(len(at), np.int32)
        rows[order] = self.index.rows[found]
        return rows


def build(catalog: Catalog, stage: Stage) -> WindowIndex:
    """The index of a stage: the training split, within the stage's limits, without what is eligible for nothing."""
    kinds = np.concatenate([np.zeros(0, np.uint8), *(_kinds(catalog, stage, part) for part in _parts(len(catalog)))])
    counts = np.zeros(NUM_SETS, np.int64)
    for part in _parts(len(kinds)):
        counts += np.bincount(kinds[part], minlength=NUM_SETS)
    counts[0] = 0
    starts = np.concatenate([[0], np.cumsum(counts)])
    rows, largest = _sorted_rows(catalog, kinds, starts)
    ends, ticks_per_s = _running_ticks(catalog, rows)
    return WindowIndex(rows=rows, ends=ends, starts=starts, ticks_per_s=ticks_per_s, largest=largest)


def limits(stage: Stage) -> tuple[int, int, int]:
    """What `build` depends on, of a stage."""
    return stage.min_frames, stage.max_frames, stage.max_tokens


def _parts(size: int) -> Iterator[slice]:
    return (slice(first, min(first + _CHUNK, size)) for first in range(0, size, _CHUNK))


def _kinds(catalog: Catalog, stage: Stage, part: slice) -> np.ndarray:
    """uint8: eligible set of each row, 0 of those that are left out."""
    sizes = catalog.numbers(part)
    frames = sizes.frames
    keep = catalog.split.take(part) == TRAIN_SPLIT
    keep &= frames >= stage.min_frames
    if stage.max_frames:
        keep &= frames <= stage.max_frames
    if stage.max_tokens:
        keep &= sizes.window_tokens <= stage.max_tokens
    return np.where(keep, sizes.eligible, 0).astype(np.uint8)


def _sorted_rows(catalog: Catalog, kinds: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`rows` and `largest` of the index, part by part."""
    rows, largest, filled = np.empty(starts[-1], np.int32), np.zeros((NUM_SETS, 4), np.int64), starts.copy()
    for part in _parts(len(kinds)):
        order = np.argsort(kinds[part], kind="stable")
        numbers = catalog.numbers(part)
        tokens = numbers.window_tokens
        sizes = tokens, tokens + numbers.reference_tokens, numbers.text_tokens, numbers.latent_frames
        edges = np.searchsorted(kinds[part][order], np.arange(NUM_SETS + 1))
        for kind in range(1, NUM_SETS):
            mine = order[edges[kind] : edges[kind + 1]]
            if len(mine):
                rows[filled[kind] : filled[kind] + len(mine)] = mine + part.start
                filled[kind] += len(mine)
                largest[kind] = np.maximum(largest[kind], [size[mine].max() for size in sizes])
    return rows, largest


def _running_ticks(catalog: Catalog, rows: np.ndarray) -> tuple[np.ndarray, int]:
    """`ends` and `ticks_per_s`: ticks are frames where all durations are whole frames, thousandths of one if not."""
    for ticks_per_s in (FPS, 1000 * FPS):
        total, exact = 0, True
        ends: np.ndarray = np.empty(len(rows), np.uint32)
        for part in _parts(len(rows)):
            given = catalog.duration_s[rows[part]] * ticks_per_s
            ticks = np.maximum(1, np.rint(given)).astype(np.uint64)
            exact &= bool((np.abs(given - ticks) < 1e-3).all())
            running = np.cumsum(ticks, dtype=np.uint64) + np.uint64(total)
            total = int(running[-1])
            if total >= 1 << 32 and ends.dtype == np.uint32:
                ends = ends.astype(np.uint64)
            ends[part] = running
        if exact:
            break
    return ends, ticks_per_s
