"""One stage of the plan: which windows it draws, how many a chunk, and where in the chunk's sequences they lie.

A stage's steps are cut into chunks. Chunk c owns samples [c n, (c + 1) n) of the stage's sample index (`draws.py`) and
packs them into exactly its own sequences; the last few that do not fit are skipped and counted. n is calibrated on the
stage's first chunks so that little is skipped and little of a sequence stays empty.
"""

import dataclasses

import numpy as np

from omnihuman_jax.data.bins import pack_prefix
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.draws import PURPOSE_SHUFFLE, Draws, StageDraws, random_bits
from omnihuman_jax.data.equal_bins import even_out
from omnihuman_jax.data.equal_work import balanced_order, work_of
from omnihuman_jax.data.joined_catalog import JoinedCatalog
from omnihuman_jax.data.plan_config import PlanConfig, check_sizes, demands
from omnihuman_jax.data.stage_windows import StageWindows
from omnihuman_jax.stages import Stage

# Shares that the calibration lets chunks skip: on average, and at worst where checked.
_SKIP, _SKIP_CHECKED = 0.004, 0.008
_PILOT_SAMPLES, _CHECK_SAMPLES = 65536, 8192


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Chunk:
    """A packed chunk: its placed samples, the sequence of each (step * B + b, ascending), samples drawn in all."""

    draws: Draws
    sequence: np.ndarray
    drawn: int
    first_step: int
    num_steps: int


class StagePlan:
    """One stage. Not thread-safe: `Plan` holds the lock."""

    def __init__(
        self,
        catalog: Catalog | JoinedCatalog,
        stage: Stage,
        number: int,
        first_step: int,
        windows: StageWindows,
        config: PlanConfig,
        seed: int,
    ):
        self.stage, self.number, self.first_step, self.windows = stage, number, first_step, windows
        self._catalog, self._config, self._seed = catalog, config, seed
        windows.check(stage)
        for part, index in zip(windows.catalogs, windows.indices):
            check_sizes(part, stage, index, config)
        self.draws = StageDraws(catalog, stage, number, windows, seed, config.block)
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
        ahead, top = int(1.1 * guess) + 8, int(1.05 * guess) + 1
        chunks = int(np.clip(_PILOT_SAMPLES / guess, 2, 64))
        demand = self.demands(self.draws.range(0, max(_checked(top) * top, chunks * top + ahead)))
        # How full packing gets a chunk, in the dim that binds ...
        pilots = [demand[pilot * ahead : (pilot + 1) * ahead] for pilot in range(2)]
        fill = np.mean([part[: self._pack(part, steps)[0]].sum(axis=0) / room for part in pilots], axis=0)
        binding = int(fill.argmax())
        # ... and with that, without packing, how many samples each of many chunks would hold.
        edges = np.concatenate([[0], np.cumsum(demand[:, binding])])
        trials = np.arange(top, 0, -max(1, guess >> 10))
        starts = trials[:, None] * np.arange(chunks)
        holds = np.searchsorted(edges, edges[starts] + room[binding] * fill[binding], side="right") - 1 - starts
        skips = np.maximum(0, trials[:, None] - holds).mean(axis=1)
        # Nothing is won by drawing what never fits.
        score = np.minimum(trials[:, None], holds).mean(axis=1) - 0.25 * skips
        score[skips > _SKIP * trials] = -1
        trial = int(trials[score.argmax()])
        while (over := self._skips(trial, demand) - _SKIP_CHECKED) > 0 and trial > 1:
            trial = max(1, trial - max(1, guess >> 10, int(over * trial)))
        return trial

    def _skips(self, per_chunk: int, demand: np.ndarray) -> float:
        """The largest share that the first chunks skip, really packed: of the first alone, the first two ...; `demand`
        of the stage's first samples.
        """
        skipped, worst = 0, 0.0
        for chunk in range(_checked(per_chunk)):
            own = demand[chunk * per_chunk : (chunk + 1) * per_chunk]
            if len(own) < per_chunk:
                own = self.demands(self.draws.range(chunk * per_chunk, (chunk + 1) * per_chunk))
            skipped += per_chunk - self._pack(own, self._config.chunk_steps)[0]
            worst = max(worst, skipped / ((chunk + 1) * per_chunk))
            if worst > _SKIP_CHECKED:
                break
        return worst

    def _pack(self, demand: np.ndarray, steps: int) -> tuple[int, np.ndarray]:
        return pack_prefix(demand, self._config.capacity, steps * self._config.sequences_per_step)

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
                fit, _ = self._pack(self.demands(self.draws.range(start, start + ahead)), steps)
                ahead *= 2
            while True:
                stop = start + fit
                end = stop if (stop - 1) // self._config.block * self._config.block >= start else None
                if fit == 1 or self._pack(self.demands(self.draws.range(start, stop, end)), steps)[0] == fit:
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
        draws = self.draws.range(start, stop, end)
        demand = self.demands(draws)
        fit, assigned = self._pack(demand, num_steps)
        demand, bins = demand[:fit], num_steps * config.sequences_per_step
        work = work_of(demand)
        assigned = even_out(demand, config.capacity, assigned, bins, work)
        sequence = self._places(number, num_steps, assigned, work)[assigned]
        order = np.argsort(sequence, kind="stable")
        first = self.first_step + number * config.chunk_steps
        return Chunk(draws.take(order), sequence[order], len(draws), first, num_steps)

    def _places(self, number: int, num_steps: int, assigned: np.ndarray, work: np.ndarray) -> np.ndarray:
        """int64 [bins]: where each bin comes, step * B + b.

        Packing puts windows of one size together: bins are shuffled, so that each step gets sequences of every kind.
        Within a step they come in an order that gives every group of neighbours its share of the work.
        """
        bins = num_steps * self._config.sequences_per_step
        noise = random_bits(self._seed, PURPOSE_SHUFFLE, self.number, bins, a=number)
        shuffled = np.argsort(noise, kind="stable").reshape(num_steps, -1)
        of_bin = np.bincount(assigned, work, bins).astype(np.int64)
        order = balanced_order(of_bin[shuffled])
        place = np.empty(bins, np.int64)
        place[np.take_along_axis(shuffled, order, axis=1).ravel()] = np.arange(bins)
        return place


def _checked(per_chunk: int) -> int:
    """How many chunks of this many samples are packed to see what they skip."""
    return int(np.clip(_CHECK_SAMPLES // per_chunk, 2, 16))
