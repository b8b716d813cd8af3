"""The plan: `batch(k)` is a pure function of (catalog, schedule, config, seed, k). No iterator, no prefix, no reading.

`stage_plan.py` says how a stage's windows are drawn and packed.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import threading
from collections.abc import Sequence

import numpy as np

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data import window_index
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.joined_catalog import JoinedCatalog
from omnihuman_jax.data.plan_config import DEMANDS as DEMANDS
from omnihuman_jax.data.plan_config import PlanConfig as PlanConfig
from omnihuman_jax.data.plan_config import demands as demands
from omnihuman_jax.data.stage_plan import Chunk, StagePlan
from omnihuman_jax.data.stage_windows import StageWindows
from omnihuman_jax.stages import CONTAINS, NUM_SETS, FeasibilityReport, StageSchedule
from omnihuman_jax.typing import MOTION_LATENTS

# Of the plan's algorithm: part of the fingerprint. 1 sorted all windows anew for every pass; 2 left sequences as they
# were packed, unequal in work.
VERSION = 3
_SETS = [ConditionSet(bits) for bits in range(NUM_SETS)]
_CACHED_CHUNKS = 4
_FILL_WARNING = 0.75


@dataclasses.dataclass(frozen=True, slots=True)
class PlacedWindow:
    """One window of a sequence: catalog row, active set, motion active, which reference (-1: none), number in the
    step.
    """

    row: int
    active: ConditionSet
    motion: bool
    reference: int
    slot: int


@dataclasses.dataclass(frozen=True, slots=True)
class BatchPlan:
    """What step `step` trains on: for each of the B sequences its windows, slot by slot."""

    step: int
    stage: int
    sequences: tuple[tuple[PlacedWindow, ...], ...]

    @property
    def windows(self) -> tuple[PlacedWindow, ...]:
        """All windows of the step, in the order of their slots."""
        return tuple(window for sequence in self.sequences for window in sequence)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class DatasetReport:
    """What a stage draws from one data set of several.

    target, realised: share of the stage's windows that are its own. realised_of_set: float64 [16], the same of each
    active set's windows, NaN where none was seen; target_of_set beside it. feasibility: counts and repeats.
    """

    name: str
    target: float
    realised: float
    target_of_set: np.ndarray
    realised_of_set: np.ndarray
    feasibility: FeasibilityReport


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class StageReport:
    """What the plan makes of a stage; arrays [4] by `Condition`.

    target, realised: share of windows on which a condition is active. motion_target, motion: share of those windows
        with
    more than 2 latents. fill: share of each capacity in use, by `DEMANDS`. skipped: share of drawn windows that did not
    fit. chunks_seen: of `chunks`, over which the realised figures were taken. feasibility: counts and repeats,
    of all data sets together. datasets: each of several; () of one alone.
    """

    name: str
    steps: int
    windows: int
    target: np.ndarray
    realised: np.ndarray
    motion_target: float
    motion: float
    fill: dict[str, float]
    skipped: float
    chunks: int
    chunks_seen: int
    feasibility: FeasibilityReport
    datasets: tuple[DatasetReport, ...]
    warnings: tuple[str, ...]


class Plan:
    """The batches of a run. Raises ValueError, with the numbers, on a stage that the catalog cannot feed."""

    def __init__(self, catalog: Catalog | JoinedCatalog, schedule: StageSchedule, config: PlanConfig, seed: int):
        config.validate()
        schedule.validate()
        if not 0 <= seed < 1 << 63:
            raise ValueError(f"seed {seed} outside [0, 2**63)")
        self.catalog, self.schedule, self.config, self.seed = catalog, schedule, config, seed
        indices = {window_index.limits(stage): stage for stage in schedule.rows}  # stages of equal limits share one
        built = {limits: StageWindows.of(catalog, stage) for limits, stage in indices.items()}
        catalog.release()
        self._stages = [
            StagePlan(catalog, stage, i, first, built[window_index.limits(stage)], config, seed)
            for i, (stage, first) in enumerate(zip(schedule.rows, schedule.starts))
        ]
        self._chunks: collections.OrderedDict[tuple[int, int], Chunk] = collections.OrderedDict()
        self._lock = threading.Lock()

    def batch(self, step: int) -> BatchPlan:
        """The windows of step `step` in [0, total_steps), whatever was asked before; thread-safe."""
        index, chunk, edges = self._place(step)
        mine = chunk.draws.take(slice(edges[0], edges[-1]))
        columns = (column.tolist() for column in (mine.row, mine.active, mine.motion, mine.reference))
        windows = [
            PlacedWindow(row, _SETS[active], motion, reference, slot)
            for slot, (row, active, motion, reference) in enumerate(zip(*columns))
        ]
        starts = (edges - edges[0]).tolist()
        sequences = tuple(tuple(windows[start:stop]) for start, stop in itertools.pairwise(starts))
        return BatchPlan(step=step, stage=index, sequences=sequences)

    def report(self, max_chunks: int = 64) -> tuple[StageReport, ...]:
        """Ratios, fill, skips and repeats of every stage, over at most `max_chunks` evenly spaced chunks of each."""
        return tuple(self._report(plan, max_chunks) for plan in self._stages)

    def dataset_shares(self, steps: range) -> dict[str, float]:
        """For a line of metrics, of several data sets: the share of the windows of these steps, all of one stage, that
        each has, and the stage's target. {} of one data set.
        """
        if not isinstance(self.catalog, JoinedCatalog) or not steps:
            return {}
        names, plan = self.catalog.names, self._stages[self.schedule.stage_at(steps[0])[0]]
        rows = np.concatenate([self._rows(step) for step in steps])
        drawn = np.bincount(self.catalog.dataset_of(rows), minlength=len(names))
        shares, targets = drawn / max(1, len(rows)), plan.windows.target(plan.stage)
        return {
            **{f"dataset/{name}": float(share) for name, share in zip(names, shares)},
            **{f"dataset_target/{name}": float(target) for name, target in zip(names, targets)},
        }

    def fingerprint(self) -> str:
        """VERSION, and the sha256 of everything that a batch depends on but the step: `3-<64 hex digits>`."""
        parts = [self.seed, dataclasses.asdict(self.config), dataclasses.asdict(self.schedule)]
        content = self.catalog.fingerprint() + json.dumps(parts, sort_keys=True)
        return f"{VERSION}-{hashlib.sha256(content.encode()).hexdigest()}"

    def _place(self, step: int) -> tuple[int, Chunk, np.ndarray]:
        """The stage and the chunk of a step, and where each of its sequences begins in the chunk's draws."""
        index, _ = self.schedule.stage_at(step)
        chunk = self._chunk(index, (step - self._stages[index].first_step) // self.config.chunk_steps)
        batch = self.config.sequences_per_step
        first = (step - chunk.first_step) * batch
        return index, chunk, np.searchsorted(chunk.sequence, np.arange(first, first + batch + 1))

    def _rows(self, step: int) -> np.ndarray:
        """Catalog rows of a step."""
        _, chunk, edges = self._place(step)
        return chunk.draws.row[edges[0] : edges[-1]]

    def _chunk(self, stage: int, number: int) -> Chunk:
        with self._lock:
            key = (stage, number)
            if key not in self._chunks:
                self._chunks[key] = self._stages[stage].chunk(number)
                if len(self._chunks) > _CACHED_CHUNKS:
                    self._chunks.popitem(last=False)
            self._chunks.move_to_end(key)
            return self._chunks[key]

    def _report(self, plan: StagePlan, max_chunks: int) -> StageReport:
        seen = np.unique(np.linspace(0, plan.num_chunks - 1, min(max_chunks, plan.num_chunks)).round().astype(int))
        chunks = [self._chunk(plan.number, int(number)) for number in seen]
        placed = sum(len(chunk.draws) for chunk in chunks)
        drawn = sum(chunk.drawn for chunk in chunks)
        active = np.concatenate([chunk.draws.active for chunk in chunks])
        motion = np.concatenate([chunk.draws.motion for chunk in chunks])
        long = self.catalog.latent_frames[np.concatenate([chunk.draws.row for chunk in chunks])] > MOTION_LATENTS
        used = sum(plan.demands(chunk.draws).sum(axis=0) for chunk in chunks)
        sequences = sum(chunk.num_steps for chunk in chunks) * self.config.sequences_per_step
        feasibility = plan.windows.check(plan.stage, float(plan.total))
        datasets = self._datasets(plan, chunks, feasibility)
        skipped = 1 - placed / drawn
        warnings = [line for one in feasibility for line in one.warnings(self.config.repeat_warning)]
        warnings += [
            f"stage {plan.stage.name!r}: no window of data set {one.name!r} is ever drawn: none serves what the stage"
            " asks for within its limits"
            for one in datasets
            if not one.target
        ]
        if skipped > 0.01:
            warnings.append(
                f"stage {plan.stage.name!r}: {skipped:.1%} of the windows are skipped; raise plan.chunk_steps"
            )
        fill = dict(zip(DEMANDS, (used / (sequences * self.config.capacity)).tolist()))
        if max(fill.values()) < _FILL_WARNING:
            warnings.append(
                f"stage {plan.stage.name!r}: sequences are {max(fill.values()):.0%} full; raise plan.chunk_steps or its"
                " limits"
            )
        return StageReport(
            name=plan.stage.name,
            steps=plan.stage.steps,
            windows=plan.total,
            target=plan.windows.ratios(plan.stage),
            realised=CONTAINS[active].mean(axis=0),
            motion_target=plan.stage.motion,
            motion=float(motion[long].mean()) if long.any() else 0.0,
            fill=fill,
            skipped=skipped,
            chunks=plan.num_chunks,
            chunks_seen=len(chunks),
            feasibility=_together(feasibility),
            datasets=datasets,
            warnings=tuple(warnings),
        )

    def _datasets(
        self, plan: StagePlan, chunks: Sequence[Chunk], feasibility: Sequence[FeasibilityReport]
    ) -> tuple[DatasetReport, ...]:
        """Of each of several data sets."""
        if not isinstance(self.catalog, JoinedCatalog):
            return ()
        active = np.concatenate([chunk.draws.active for chunk in chunks])
        of = self.catalog.dataset_of(np.concatenate([chunk.draws.row for chunk in chunks]))
        seen = np.stack([np.bincount(active[of == d], minlength=NUM_SETS) for d in range(len(plan.windows))])
        target, shares = plan.windows.target(plan.stage), plan.windows.shares(plan.stage)
        with np.errstate(invalid="ignore"):
            of_set = seen / seen.sum(axis=0)
        return tuple(
            DatasetReport(
                name=name,
                target=float(target[d]),
                realised=float(seen[d].sum() / seen.sum()),
                target_of_set=shares[:, d],
                realised_of_set=of_set[d],
                feasibility=feasibility[d],
            )
            for d, name in enumerate(plan.windows.names)
        )


def version_of(fingerprint: str) -> int:
    """The plan's VERSION that a fingerprint was made with; the first did not say it."""
    return int(fingerprint.split("-")[0]) if "-" in fingerprint else 1


def _together(parts: Sequence[FeasibilityReport]) -> FeasibilityReport:
    """Of several data sets, what the stage asks of all their windows."""
    if len(parts) == 1:
        return parts[0]

    def total(name: str) -> np.ndarray:
        return np.sum([getattr(part, name) for part in parts], axis=0)

    counts, candidates = total("counts"), total("candidates")
    active = np.sum([part.active_repeats * part.candidates for part in parts], axis=0)
    eligible = np.sum([part.eligible_repeats * part.counts for part in parts], axis=0)
    return FeasibilityReport(
        stage=parts[0].stage,
        counts=counts,
        hours=total("hours"),
        candidates=candidates,
        expected=total("expected"),
        active_repeats=active / np.maximum(candidates, 1),
        eligible_repeats=eligible / np.maximum(counts, 1),
    )


def format_report(reports: Sequence[StageReport]) -> str:
    """The report as plain text, a few lines a stage."""
    lines = []
    for report in reports:
        ratios = ", ".join(f"{c.label} {report.realised[c]:.2%} (target {report.target[c]:.2%})" for c in Condition)
        fill = ", ".join(f"{name} {share:.0%}" for name, share in report.fill.items())
        lines += [
            (
                f"stage {report.name}: {report.steps} steps, {report.windows} windows, {report.skipped:.2%} skipped"
                f" (seen: {report.chunks_seen} of {report.chunks} chunks)"
            ),
            f"  ratios: {ratios}; motion {report.motion:.2%} (target {report.motion_target:.2%})",
            f"  fill: {fill}",
            f"  eligible: {_repeats(report.feasibility)}",
            *(line for one in report.datasets for line in _dataset_lines(one)),
            *(f"  warning: {warning}" for warning in report.warnings),
        ]
    return "\n".join(lines)


def _repeats(found: FeasibilityReport) -> str:
    """Windows by eligible set, and how often each is drawn."""
    return ", ".join(
        f"{ConditionSet(int(e)).label} {found.counts[e]} windows x {found.eligible_repeats[e]:.1f}"
        for e in np.flatnonzero(found.counts)
    )


def _dataset_lines(one: DatasetReport) -> list[str]:
    """Three lines: its share, its windows by eligible set, and how often they are drawn for each active set."""
    found = one.feasibility
    active = ", ".join(
        f"{ConditionSet(int(a)).label} x {found.active_repeats[a]:.2f}" for a in np.flatnonzero(found.expected)
    )
    return [
        f"  data set {one.name}: {one.realised:.2%} of the windows (target {one.target:.2%})",
        f"    eligible: {_repeats(found)}",
        f"    drawn for: {active}",
    ]
