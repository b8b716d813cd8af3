"""The plan: `batch(k)` is a pure function of (catalog, schedule, config, seed, k). No iterator, no prefix, no reading.

A stage's steps are cut into chunks. Chunk c owns samples [c n, (c + 1) n) of the stage's sample index (`draws.py`) and
packs them into exactly its own sequences; the last few that do not fit are skipped and counted. n is calibrated on the
stage's first chunks so that little is skipped and little of a sequence stays empty.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import math
import threading
from collections.abc import Sequence

import numpy as np

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data.bins import pack_prefix
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.draws import PURPOSE_SHUFFLE, Draws, StageDraws, random_bits
from omnihuman_jax.stages import CONTAINS, NUM_SETS, FeasibilityReport, Stage, StageSchedule
from omnihuman_jax.typing import MOTION_LATENTS

VERSION = 1  # of the plan's algorithm: part of the fingerprint
TRAIN_SPLIT = "train"

_SKIP, _SKIP_CHECKED = (
    0.004,
    0.008,
)  # shares that the calibration lets chunks skip: on average, and at worst where checked
_PILOT_SAMPLES, _CHECK_SAMPLES = 65536, 8192
_CACHED_CHUNKS = 4
_FILL_WARNING = 0.75


@dataclasses.dataclass(kw_only=True, slots=True)
class PlanConfig:
    """Sizes of a step and of its packed sequences (`typing.PackedShape` has what they mean for the batch).

    sequences_per_step: B, over all hosts. latent_tokens L, text_tokens S, windows G, latent_frames F, frames T: what a
    sequence holds; T counts the rows of audio and pose features, a driven window takes its frames + 2 * margin.
    margin: neighbouring frames that audio or pose reads on each side (the larger m of the model's).
    chunk_steps: steps planned together. block: samples over which the ratios are exact.
    repeat_warning: a set of windows drawn more often than this, on average, is warned of.
    """

    sequences_per_step: int = 8
    latent_tokens: int = 4096
    text_tokens: int = 512
    windows: int = 8
    latent_frames: int = 64
    frames: int = 512
    margin: int = 5
    chunk_steps: int = 64
    block: int = 400
    repeat_warning: float = 100.0

    def validate(self) -> None:
        """ValueError naming the field that is out of range."""
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "margin" else 1
            if not math.isfinite(value) or value < least:
                raise ValueError(f"plan.{field.name} must be >= {least}, not {value}")

    @property
    def capacity(self) -> np.ndarray:
        """int64 [5]: what one sequence holds, in the order of `DEMANDS`."""
        return np.asarray(
            [self.latent_tokens, self.text_tokens, self.windows, self.latent_frames, self.frames], np.int64
        )


DEMANDS = ("latent_tokens", "text_tokens", "windows", "latent_frames", "frames")


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


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Chunk:
    """A packed chunk: its placed samples, the sequence of each (step * B + b, ascending), samples drawn in all."""

    draws: Draws
    sequence: np.ndarray
    drawn: int
    first_step: int
    num_steps: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class StageReport:
    """What the plan makes of a stage; arrays [4] by `Condition`.

    target, realised: share of windows on which a condition is active. motion_target, motion: share of those windows
        with
    more than 2 latents. fill: share of each capacity in use, by `DEMANDS`. skipped: share of drawn windows that did not
    fit. chunks_seen: of `chunks`, over which the realised figures were taken. feasibility: counts and repeats.
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
    warnings: tuple[str, ...]


class _StagePlan:
    """One stage: which windows it draws, how many a step, and its chunks. Not thread-safe: `Plan` holds the lock."""

    def __init__(self, catalog: Catalog, stage: Stage, index: int, first_step: int, config: PlanConfig, seed: int):
        self.stage, self.index, self.first_step = stage, index, first_step
        self._catalog, self._config, self._seed = catalog, config, seed
        self.rows = eligible_rows(catalog, stage)
        self.counts = np.bincount(catalog.eligible[self.rows], minlength=NUM_SETS)
        self.hours = np.bincount(catalog.eligible[self.rows], catalog.duration_s[self.rows], NUM_SETS) / 3600
        stage.check(self.counts, self.hours)
        _check_sizes(catalog, stage, self.rows, config)
        self.draws = StageDraws(catalog, stage, index, self.rows, seed, config.block)
        self.num_chunks = -(-stage.steps // config.chunk_steps)
        self._per_chunk: int | None = None
        self._last: tuple[int, int, int | None] | None = None

    def demands(self, draws: Draws) -> np.ndarray:
        """int64 [n, 5]: what each sample takes of a sequence, in the order of `DEMANDS`."""
        return demands(self._catalog, self._config, draws.row, draws.active)

    @property
    def per_chunk(self) -> int:
        """Samples of every chunk but the last."""
        if self._per_chunk is None:
            self._per_chunk = self._calibrate()
        return self._per_chunk

    def _calibrate(self) -> int:
        """The count that fills chunks best while they skip no more than allowed; it does not depend on the stage's
        length.
        """
        config, steps = self._config, self._config.chunk_steps
        room = config.capacity * (steps * config.sequences_per_step)
        sample = self.demands(self.draws.range(0, 4 * config.block))
        guess = max(1, int(np.min(room / np.maximum(sample.mean(axis=0), 1e-9))))
        # How full packing gets a chunk, in the dim that binds ...
        ahead = int(1.3 * guess) + 8
        fills = []
        for pilot in range(2):
            demand = self.demands(self.draws.range(pilot * ahead, (pilot + 1) * ahead))
            fit, _ = self._pack(demand, steps, int(0.98 * guess), max(1, guess >> 8))
            fills.append(demand[:fit].sum(axis=0) / room)
        fill = np.mean(fills, axis=0)
        binding = int(fill.argmax())
        # ... and with that, without packing, how many samples each of many chunks would hold.
        chunks = int(np.clip(_PILOT_SAMPLES / guess, 8, 64))
        top = int(1.05 * guess) + 1
        demand = self.demands(self.draws.range(0, chunks * top + ahead))[:, binding]
        edges = np.concatenate([[0], np.cumsum(demand)])
        trials = np.arange(top, 0, -max(1, guess >> 10))
        starts = trials[:, None] * np.arange(chunks)
        holds = np.searchsorted(edges, edges[starts] + room[binding] * fill[binding], side="right") - 1 - starts
        skips = np.maximum(0, trials[:, None] - holds).mean(axis=1)
        score = (
            np.minimum(trials[:, None], holds).mean(axis=1) - 0.25 * skips
        )  # nothing is won by drawing what never fits
        score[skips > _SKIP * trials] = -1
        for trial in trials[score.argmax() :]:
            if self._skips(int(trial)) <= _SKIP_CHECKED:
                return int(trial)
        return 1

    def _skips(self, per_chunk: int) -> float:
        """The largest share that the first chunks skip, really packed: of the first alone, the first two ..."""
        skipped, worst = 0, 0.0
        for chunk in range(int(np.clip(_CHECK_SAMPLES // per_chunk, 2, 16))):
            demand = self.demands(self.draws.range(chunk * per_chunk, (chunk + 1) * per_chunk))
            skipped += per_chunk - self._pack(demand, self._config.chunk_steps, per_chunk, max(1, per_chunk >> 9))[0]
            worst = max(worst, skipped / ((chunk + 1) * per_chunk))
        return worst

    def _pack(self, demand: np.ndarray, steps: int, guess: int, tolerance: int) -> tuple[int, np.ndarray]:
        return pack_prefix(demand, self._config.capacity, steps * self._config.sequences_per_step, guess, tolerance)

    def samples(self, chunk: int) -> tuple[int, int, int | None]:
        """The range of the sample index that a chunk owns, and where the stage ends if that changes the range.

        The last chunk takes as many as fit. A block that begins in it ends with it, so that the ratios are exact over
        the stage; what that block holds depends on where it ends, so the end is searched for.
        """
        if chunk < self.num_chunks - 1:
            return chunk * self.per_chunk, (chunk + 1) * self.per_chunk, None
        if self._last is None:
            start = chunk * self.per_chunk if chunk else 0
            steps, ahead, fit = self.stage.steps - chunk * self._config.chunk_steps, self._config.block, 0
            while fit == 0 or fit == ahead // 2:  # twice as many until they no longer fit
                demand = self.demands(self.draws.range(start, start + ahead))
                fit, _ = self._pack(demand, steps, fit or ahead, max(1, ahead >> 9))
                ahead *= 2
            while True:
                stop = start + fit
                end = stop if (stop - 1) // self._config.block * self._config.block >= start else None
                if fit == 1 or self._pack(self.demands(self.draws.range(start, stop, end)), steps, fit, fit)[0] == fit:
                    break
                fit -= max(1, fit >> 9)
            self._last = start, stop, end
        return self._last

    @property
    def total(self) -> int:
        """Samples of the stage."""
        return self.samples(self.num_chunks - 1)[1]

    def chunk(self, number: int) -> Chunk:
        """Draws and packs a chunk."""
        config = self._config
        start, stop, end = self.samples(number)
        num_steps = min(config.chunk_steps, self.stage.steps - number * config.chunk_steps)
        bins = num_steps * config.sequences_per_step
        draws = self.draws.range(start, stop, end)
        fit, assigned = self._pack(self.demands(draws), num_steps, len(draws), max(1, len(draws) >> 10))
        kept = draws.take(slice(0, fit))
        # Best fit puts windows of one size together: shuffle, so that each step gets sequences of every kind.
        noise = random_bits(self._seed, PURPOSE_SHUFFLE, self.index, bins, a=number)
        sequence = np.argsort(np.argsort(noise, kind="stable"), kind="stable")[assigned]
        order = np.argsort(sequence, kind="stable")
        first = self.first_step + number * config.chunk_steps
        return Chunk(kept.take(order), sequence[order], len(draws), first, num_steps)


class Plan:
    """The batches of a run. Raises ValueError, with the numbers, on a stage that the catalog cannot feed."""

    def __init__(self, catalog: Catalog, schedule: StageSchedule, config: PlanConfig, seed: int):
        config.validate()
        schedule.validate()
        if not 0 <= seed < 1 << 63:
            raise ValueError(f"seed {seed} outside [0, 2**63)")
        self.catalog, self.schedule, self.config, self.seed = catalog, schedule, config, seed
        self._stages = [
            _StagePlan(catalog, stage, i, first, config, seed)
            for i, (stage, first) in enumerate(zip(schedule.rows, schedule.starts))
        ]
        self._chunks: collections.OrderedDict[tuple[int, int], Chunk] = collections.OrderedDict()
        self._lock = threading.Lock()

    def batch(self, step: int) -> BatchPlan:
        """The windows of step `step` in [0, total_steps), whatever was asked before; thread-safe."""
        index, _ = self.schedule.stage_at(step)
        chunk = self._chunk(index, (step - self._stages[index].first_step) // self.config.chunk_steps)
        batch = self.config.sequences_per_step
        first = (step - chunk.first_step) * batch
        edges = np.searchsorted(chunk.sequence, np.arange(first, first + batch + 1))
        draws, base = chunk.draws, edges[0]
        sequences = tuple(
            tuple(
                PlacedWindow(
                    row=int(draws.row[i]),
                    active=ConditionSet(int(draws.active[i])),
                    motion=bool(draws.motion[i]),
                    reference=int(draws.reference[i]),
                    slot=int(i - base),
                )
                for i in range(start, stop)
            )
            for start, stop in itertools.pairwise(edges)
        )
        return BatchPlan(step=step, stage=index, sequences=sequences)

    def report(self, max_chunks: int = 64) -> tuple[StageReport, ...]:
        """Ratios, fill, skips and repeats of every stage, over at most `max_chunks` evenly spaced chunks of each."""
        return tuple(self._report(plan, max_chunks) for plan in self._stages)

    def fingerprint(self) -> str:
        """sha256 of everything that a batch depends on but the step."""
        parts = [VERSION, self.seed, dataclasses.asdict(self.config), dataclasses.asdict(self.schedule)]
        return hashlib.sha256((self.catalog.fingerprint() + json.dumps(parts, sort_keys=True)).encode()).hexdigest()

    def _chunk(self, stage: int, number: int) -> Chunk:
        with self._lock:
            key = (stage, number)
            if key not in self._chunks:
                self._chunks[key] = self._stages[stage].chunk(number)
                if len(self._chunks) > _CACHED_CHUNKS:
                    self._chunks.popitem(last=False)
            self._chunks.move_to_end(key)
            return self._chunks[key]

    def _report(self, plan: _StagePlan, max_chunks: int) -> StageReport:
        seen = np.unique(np.linspace(0, plan.num_chunks - 1, min(max_chunks, plan.num_chunks)).round().astype(int))
        chunks = [self._chunk(plan.index, int(number)) for number in seen]
        placed = sum(len(chunk.draws) for chunk in chunks)
        drawn = sum(chunk.drawn for chunk in chunks)
        active = np.concatenate([chunk.draws.active for chunk in chunks])
        motion = np.concatenate([chunk.draws.motion for chunk in chunks])
        long = self.catalog.latent_frames[np.concatenate([chunk.draws.row for chunk in chunks])] > MOTION_LATENTS
        used = sum(plan.demands(chunk.draws).sum(axis=0) for chunk in chunks)
        sequences = sum(chunk.num_steps for chunk in chunks) * self.config.sequences_per_step
        feasibility = plan.stage.check(plan.counts, plan.hours, float(plan.total))
        skipped = 1 - placed / drawn
        warnings = feasibility.warnings(self.config.repeat_warning)
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
            target=plan.stage.target(plan.hours),
            realised=CONTAINS[active].mean(axis=0),
            motion_target=plan.stage.motion,
            motion=float(motion[long].mean()) if long.any() else 0.0,
            fill=fill,
            skipped=skipped,
            chunks=plan.num_chunks,
            chunks_seen=len(chunks),
            feasibility=feasibility,
            warnings=tuple(warnings),
        )


def eligible_rows(catalog: Catalog, stage: Stage) -> np.ndarray:
    """Catalog rows that a stage may draw: the training split, within the stage's limits of frames and tokens."""
    keep = (catalog.split == TRAIN_SPLIT) & (catalog.frames >= stage.min_frames)
    if stage.max_frames:
        keep &= catalog.frames <= stage.max_frames
    if stage.max_tokens:
        keep &= catalog.window_tokens <= stage.max_tokens
    return np.flatnonzero(keep)


def demands(catalog: Catalog, config: PlanConfig, row: np.ndarray, active: np.ndarray) -> np.ndarray:
    """int64 [n, 5]: what windows with these active sets (bits) take of a sequence, in the order of `DEMANDS`."""
    on = CONTAINS[active]
    driven = on[:, Condition.AUDIO] | on[:, Condition.POSE]
    result = [
        catalog.window_tokens[row] + np.where(on[:, Condition.REFERENCE], catalog.reference_tokens[row], 0),
        np.where(on[:, Condition.TEXT], catalog.text_tokens[row], catalog.empty_text_tokens),
        np.ones(len(row), np.int64),
        catalog.latent_frames[row],
        np.where(driven, catalog.frames[row] + 2 * config.margin, 0),
    ]
    return np.stack(result, axis=1).astype(np.int64)


def _check_sizes(catalog: Catalog, stage: Stage, rows: np.ndarray, config: PlanConfig) -> None:
    """ValueError if a window that the stage may draw, at its largest, is bigger than a whole sequence."""
    largest = demands(catalog, config, rows, catalog.eligible[rows] & stage.conditions.bits)
    largest[:, 1] = np.maximum(largest[:, 1], catalog.empty_text_tokens)
    for dim, name in enumerate(DEMANDS):
        too_big = largest[:, dim] > config.capacity[dim]
        if too_big.any():
            worst = rows[largest[:, dim].argmax()]
            cure = "set the stage's max_tokens or max_frames" if dim in (0, 3, 4) else "encode shorter texts"
            raise ValueError(
                f"stage {stage.name!r}: {too_big.sum()} of {len(rows)} windows are bigger than a sequence: window"
                f" {catalog.window_id[worst]} needs {largest[:, dim].max()} {name}, a sequence has"
                f" {config.capacity[dim]}; raise plan.{name} or {cure}"
            )


def format_report(reports: Sequence[StageReport]) -> str:
    """The report as plain text, a few lines a stage."""
    lines = []
    for report in reports:
        ratios = ", ".join(f"{c.label} {report.realised[c]:.2%} (target {report.target[c]:.2%})" for c in Condition)
        fill = ", ".join(f"{name} {share:.0%}" for name, share in report.fill.items())
        repeats = ", ".join(
            f"{ConditionSet(int(e)).label} {report.feasibility.counts[e]} windows x"
            f" {report.feasibility.eligible_repeats[e]:.1f}"
            for e in np.flatnonzero(report.feasibility.counts)
        )
        lines += [
            (
                f"stage {report.name}: {report.steps} steps, {report.windows} windows, {report.skipped:.2%} skipped"
                f" (seen: {report.chunks_seen} of {report.chunks} chunks)"
            ),
            f"  ratios: {ratios}; motion {report.motion:.2%} (target {report.motion_target:.2%})",
            f"  fill: {fill}",
            f"  eligible: {repeats}",
            *(f"  warning: {warning}" for warning in report.warnings),
        ]
    return "\n".join(lines)
