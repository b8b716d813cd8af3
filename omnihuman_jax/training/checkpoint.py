"""Checkpoints: Orbax v1, asynchronous, whole or not at all, and never a silent fresh start.

A step holds four parts that can be read alone: `params`, `ema`, `optimizer` (moments and counts) and `progress` (step and
counters), and as its metadata the resolved config and the plan's fingerprint. Sampling reads one part, resume all of them.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from omnihuman_jax import exit_codes
from omnihuman_jax.training import checkpoint_slices, fingerprint, processes, seals, storage
from omnihuman_jax.training.checkpoint_parts import assemble_state, context_for, flatten, mismatches, parts_of
from omnihuman_jax.training.train_state import TrainState

logger = logging.getLogger(__name__)

WEIGHTS = {"raw": "params", "ema": "ema"}
FORMAT = 2


@dataclasses.dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """A checkpoint every `interval` steps (and at the end); the newest `keep` stay, and every `keep_every`-th (0: none).

    They lie in `directory`, a folder or a URI such as gs://bucket/run (which needs gcsfs); empty: in RUN/checkpoints.
    local_directory: a folder on each host's own disk (or in its memory) for copies of the steps between, empty: none. A restart
        takes the newest step that is whole in either tier
    local_interval: of these copies; it divides `interval`. local_keep: how many stay
    retries, retry_delay_s: how often storage that does not answer is asked again, after doubling pauses from the delay on: a read
        is repeated, a save is made anew of the state of the step that has come by then
    max_failed_saves: so many saves in a row (their tries do not count) that failed, for another reason than a full disk, end the
        attempt; a host may be sick
    """

    interval: int = 1000
    keep: int = 3
    keep_every: int = 0
    directory: str = ""
    local_directory: str = ""
    local_interval: int = 0
    local_keep: int = 1
    retries: int = 6
    retry_delay_s: float = 1.0
    max_failed_saves: int = 5

    def validate(self) -> None:
        """ValueError on intervals below 1."""
        if self.retries < 0 or self.retry_delay_s < 0:
            raise ValueError(f"checkpoint.retries {self.retries} and retry_delay_s {self.retry_delay_s} must be >= 0")
        self._validate_local()
        if self.interval < 1 or self.keep < 1 or self.keep_every < 0 or self.max_failed_saves < 1:
            raise ValueError(
                f"checkpoint: interval {self.interval}, keep {self.keep}, max_failed_saves {self.max_failed_saves} must be >= 1, "
                f"keep_every {self.keep_every} must be >= 0"
            )

    def _validate_local(self) -> None:
        every, directory = self.local_interval, self.local_directory
        if bool(directory) != bool(every):
            raise ValueError(
                f"checkpoint.local_directory {directory!r} and local_interval {every}: set both, for copies on each host's own "
                f"disk, or neither"
            )
        if "://" in directory:
            raise ValueError(f"checkpoint.local_directory {directory!r} is no folder of a host's own disk")
        if every < 0 or self.local_keep < 1:
            raise ValueError(f"checkpoint.local_interval {every} must be >= 0 and local_keep {self.local_keep} >= 1")
        if every and (every >= self.interval or self.interval % every):
            fits = [n for n in range(1, self.interval) if self.interval % n == 0]
            near = sorted(sorted(fits, key=lambda n: (abs(n - every), n))[:2])
            raise ValueError(
                f"checkpoint.local_interval {every} must be below interval {self.interval} and divide it; the nearest: "
                f"{' or '.join(map(str, near)) or 'none'}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """What a checkpoint says about the run that wrote it: resolved config (JSON), plan fingerprint, finished steps.

    `origin` says where weights that were not born in this run come from: what `omnihuman import` read, with the sha256 of
    every file; a run that starts from an import keeps it.
    """

    config: Mapping[str, Any]
    fingerprint: str
    step: int
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT, "config": dict(self.config), "fingerprint": self.fingerprint, "step": self.step,
            "origin": dict(self.origin),
        }  # fmt: skip

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "RunRecord":
        """Out of what a checkpoint says."""
        return cls(config=stored["config"], fingerprint=stored["fingerprint"], step=stored["step"], origin=stored.get("origin", {}))

    def part(self, weights: str) -> str:
        """The part that holds these weights (`ema` or `raw`): at step 0, which `omnihuman import` writes, the average of
        the parameters is the parameters, and lies there once."""
        if weights not in WEIGHTS:
            raise ValueError(f"weights {weights!r}: choose ema or raw")
        return "params" if self.step == 0 else WEIGHTS[weights]


def checkpoint_directory(run_dir: Path | str) -> Path | str:
    """Where a run's checkpoints lie, as its own config.json says."""
    file = Path(run_dir) / "config.json"
    stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return stored.get("checkpoint", {}).get("directory") or Path(run_dir) / "checkpoints"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, with the file and the cure."""


class DamagedError(CheckpointError):
    """A checkpoint whose files are all there, and wrong."""


class _Save:
    """A save in progress: a thread waits for Orbax, then (process 0) seals the step and makes room."""

    def __init__(self, step: int, response: Any, finish: Callable[[], int]):
        self.step = step
        self.error: BaseException | None = None
        self.nbytes = 0
        self.seconds = 0.0
        self._begin = time.monotonic()
        self._response, self._finish = response, finish
        self._thread = threading.Thread(target=self._run, name=f"omnihuman-save-{step}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._response.result()
            self.nbytes = self._finish()
        except BaseException as error:
            self.error = error
            logger.error("saving step %d failed: %s", self.step, storage.cause(error))
            processes.post(f"save_failed/{self.step}", storage.cause(error))
        self.seconds = time.monotonic() - self._begin

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def wait(self) -> str:
        """Until it is whole, or has failed here or on another process: why, or ""."""
        while self._thread.is_alive():
            self._thread.join(0.2)
            # Whoever failed reaches no barrier of this save: do not wait for that.
            if self._thread.is_alive() and (elsewhere := processes.posted(f"save_failed/{self.step}")):
                return next(iter(elsewhere.values()))
        return "" if self.error is None else storage.cause(self.error)


class Checkpoints:
    """The checkpoints of one run directory; all processes call every method, in the same order.

    A failed save is no error: the run goes on, the steps before stay. `failed_saves` counts those in a row, `disk_is_full` says
    what the last one failed of. If it was anything else, `due` says when to try again: the state that was to be saved is
    gone by then (its buffers were donated to the next step), so the try takes the one of its own step.

    Args:
        directory: of the run's checkpoints.
        config: None for a reader, which removes nothing, and does not wait for storage that does not answer.
        notify: called with (kind, details) for what has to be known later: a step that was set aside, a save that failed.
        expected: why there must be checkpoints ("has saved step 30"), where there must: a folder without any is storage that is
            gone.
    """

    def __init__(
        self,
        directory: Path | str,
        config: CheckpointConfig | None = None,
        notify: Callable[[str, dict[str, Any]], None] = lambda kind, details: None,
        expected: str = "",
    ):
        self.directory = Path(directory).absolute() if "://" not in str(directory) else directory
        self._folder = epath.Path(self.directory)
        self._config = config
        self._notify = notify
        self._expected = expected
        self._identity = ""
        self._saving: _Save | None = None
        self._counts = True
        self._tries = 0
        self._again_at: float | None = None
        self.failed_saves = 0
        self.disk_is_full = False
        self._stall_s = 0.0
        self.last_save: dict[str, Any] = {}
        if config is not None:
            self._ask(f"opening {self.directory}", self._open)
            identity = processes.gather(self._identity)[0]
            self._ask(f"opening {self.directory}", lambda: storage.recognise(self._folder, identity))
            self._identity = identity

    def _open(self) -> None:
        """On process 0: the folder, without what a save that died has left."""
        if jax.process_index() != 0:
            return
        if self._expected and not (seals.committed_steps(self._folder) or seals.aside(self._folder)):
            raise storage.Gone(
                f"no checkpoint in {self.directory}, which is {'empty' if self._folder.is_dir() else 'not there'}, but this run "
                f"{self._expected}; bring it back, or remove the run directory to start over"
            )
        try:
            self._identity = storage.identify(self._folder)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            if self._expected:
                raise storage.Gone(f"{self.directory}: {error.strerror}") from error
            raise CheckpointError(f"checkpoints cannot be written to {self.directory}: {error.strerror}") from error
        for name in seals.remove_partial(self._folder):
            logger.info("removed %s/%s, left by a save that was cut short", self.directory, name)

    def _ask(self, what: str, look: Callable[[], Any]) -> Any:
        if self._config is not None:
            return storage.ask(what, look, retries=self._config.retries, delay_s=self._config.retry_delay_s)
        try:
            return look()
        except OSError as error:
            if storage.does_not_answer(error):
                raise CheckpointError(f"{what}: storage does not answer: {storage.cause(error)}") from error
            raise

    def _recognise(self) -> None:
        if self._config is not None:
            storage.recognise(self._folder, self._identity)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        # An end that all processes have agreed on leaves no save half done.
        if kind is None or issubclass(kind, processes.RunEnded):
            self.close()

    def close(self) -> None:
        """Waits for a save in progress."""
        self.wait()

    @property
    def latest_step(self) -> int | None:
        """The newest finished checkpoint, None if there is none."""
        return self.steps[-1] if self.steps else None

    @property
    def steps(self) -> list[int]:
        """Steps that were saved to the end; read from disk every time: a list that is kept lies after a failed save."""
        return [step for step in seals.committed_steps(self._folder) if seals.is_sealed(self._folder / str(step))]

    def due(self, step: int, *, last: bool = False) -> str:
        """After every step: why `save` has to be called with its state; "" if it has not.

        `interval`, and also for the `last` step; `again` for one that failed, whose pause is over. The processes ask one another
        only while a save is being written, or waits for its next try.
        """
        if last or (self._config is not None and step % self._config.interval == 0):
            return "interval"
        if self._saving is not None:
            seen = processes.gather([self._saving.is_running, self._saving.error is not None])
            if any(failed for _, failed in seen) or not any(running for running, _ in seen):
                self.wait()
        is_time = self._again_at is not None and processes.gather(time.monotonic() >= self._again_at)[0]
        return "again" if is_time else ""

    def save(self, state: TrainState, record: RunRecord, why: str = "interval") -> bool:
        """Starts a save and returns once the arrays are copied to the host; an earlier save is waited for. False: it failed.

        `why`: what `due` said. One of an interval that fails counts, and has all its tries.
        """
        begin = time.monotonic()
        self.wait()
        self._counts = why == "interval"
        if self._again_at is None:
            self._tries = 0
        self._start(parts_of(state), record)
        self._stall_s += time.monotonic() - begin
        return self._saving is not None

    def finish(self, state: TrainState, record: RunRecord) -> bool:
        """Until the save of `state`, the last one, is on disk and sealed, with all its tries; False if none of them was good."""
        while not self.wait() and self._again_at is not None:
            time.sleep(max(0.0, self._again_at - time.monotonic()))
            self.save(state, record, "again")
        return self.failed_saves == 0

    @property
    def is_hopeless(self) -> bool:
        """`max_failed_saves` in a row, and not of a full disk."""
        return self._config is not None and self.failed_saves >= self._config.max_failed_saves and not self.disk_is_full

    @property
    def is_idle(self) -> bool:
        """No save is in progress on this process."""
        return self._saving is None or not self._saving.is_running

    def take_stall(self) -> float:
        """Seconds that `save` has kept the caller waiting since the last call."""
        stall, self._stall_s = self._stall_s, 0.0
        return stall

    def save_weights(self, params: Any, record: RunRecord) -> None:
        """Saves parameters that no step has changed yet (`record.step` 0) and waits until they are on disk.

        No moments and no average: a run that starts from them begins with zeros and with the parameters themselves.
        """
        self._start({"params": params}, record, frugal=True)
        if not self.wait():
            raise OSError(f"{self.directory}/{record.step} could not be written; see the line above")

    def _start(self, parts: dict[str, Any], record: RunRecord, *, frugal: bool = False) -> None:
        reason = ""
        try:
            # Before any of them enters Orbax, whose barriers wait minutes for one that has failed.
            self._recognise()
        except OSError as error:
            reason = storage.cause(error)
        if self._settle(record.step, reason):
            try:
                metadata = record.to_json() | {"sums": fingerprint.sums(flatten(parts))}
                context = context_for(self.directory)
                if frugal:
                    checkpoint_slices.use(context)
                with context:
                    response = ocp.save_checkpointables_async(
                        self._folder / str(record.step), parts, custom_metadata=json.loads(json.dumps(metadata))
                    )
                self._saving = _Save(record.step, response, lambda: self._finish(record.step))
            except Exception as error:
                reason = storage.cause(error)
            self._settle(record.step, reason)

    def wait(self) -> bool:
        """Blocks until the save in progress is on disk and sealed; False if it, or one before it, failed."""
        if (saving := self._saving) is not None:
            reason = saving.wait()
            if self._settle(saving.step, reason):
                self.failed_saves, self._again_at = 0, None
                self.last_save = {"step": saving.step, "seconds": saving.seconds, "bytes": saving.nbytes}
                self._notify("saved", self.last_save)
            self._saving = None
        return self.failed_saves == 0

    def _settle(self, step: int, reason: str) -> bool:
        """All processes agree on whether the save of `step` is (still) good; if not, what it left is removed."""
        failures = [why for why in processes.gather(reason) if why]
        if not failures:
            return True
        self._saving = None
        self.failed_saves += self._counts
        self.disk_is_full = any(storage.has_no_room(why) for why in failures)
        pause = self._next_pause()
        self._again_at = None if pause is None else time.monotonic() + pause
        logger.error(
            "step %d was NOT saved (%s); the run goes on, all checkpoints before it stay; %s", step, failures[0],
            "the next save is a new try" if pause is None else f"the first step in {pause:g} s is try {self._tries + 1}",
        )  # fmt: skip
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                seals.remove_partial(self._folder)
                if (self._folder / str(step)).exists():
                    (self._folder / str(step)).rmtree()
        self._notify("save_failed", {"step": step, "reason": failures[0], "in_a_row": self.failed_saves, "again_in_s": pause})
        return False

    def _next_pause(self) -> float | None:
        """Seconds to the next try of a save that has failed, None: at the next interval."""
        if self._config is None or self.disk_is_full or self._tries >= self._config.retries:
            return None
        self._tries += 1
        return self._config.retry_delay_s * 2.0 ** (self._tries - 1)

    def _finish(self, step: int) -> int:
        """After the commit, on process 0: the seal, and only then room for the next; bytes written."""
        self._recognise()  # Orbax makes a folder that is gone anew, below the mount
        if jax.process_index() != 0:
            return 0
        nbytes = seals.write(self._folder / str(step))
        if self._config is None:
            return nbytes
        steps, every = self.steps, self._config.keep_every
        for old in steps[: -self._config.keep]:
            if not (every and old % every == 0):
                with contextlib.suppress(OSError):
                    (self._folder / str(old)).rmtree()
        return nbytes

    def choose(self, abstract: TrainState | None = None, below: int | None = None) -> int | None:
        """The newest step (under `below`) that every process finds whole; those that are not are set aside, with a note.

        Each process looks at its share of the files, and all vote, without a collective. None: there is no checkpoint at all.
        `abstract`: of the state, for those who store it as it lies on the devices.

        Raises:
            CheckpointError: there were checkpoints, and none of them is whole.
            RunEnded: storage did not answer, or had nothing of what this run has saved, however often it was asked.
        """
        steps = self._ask(f"looking for checkpoints in {self.directory}", self._present_steps)
        steps = processes.gather(steps)[0]
        for step in reversed([step for step in steps if below is None or step < below]):
            reason = self._ask(f"checking {self.directory}/{step}", functools.partial(self._damage, step))
            reasons = [why for why in processes.gather(reason) if why]
            if not reasons:
                return int(step)
            self.reject(step, reasons[0])
        if lost := list(seals.aside(self._folder)):
            raise CheckpointError(
                f"{self.directory} has no whole checkpoint left; damaged ones lie in {self.directory}/{seals.SET_ASIDE} "
                f"({', '.join(lost)}): restore one from a backup, or remove the run directory to start over"
            )
        return None

    def _present_steps(self) -> list[int]:
        self._recognise()
        return seals.committed_steps(self._folder)

    def _damage(self, step: int) -> str:
        """`seals.damage` of this process's share; a folder that goes away meanwhile is no damage."""
        reason = seals.damage(self._folder / str(step), jax.process_index(), jax.process_count())
        if reason:
            self._recognise()
        return reason

    def reject(self, step: int, reason: str) -> None:
        """Sets a step aside, loudly; all processes call it."""
        logger.error("checkpoint %s/%d is set aside, the one before it is next: %s", self.directory, step, reason)
        processes.gather(None)  # nobody may still be looking at what moves: it would miss the step, which is a user's error

        def move() -> None:
            target = seals.set_aside(self._folder, step, reason)
            self._notify("checkpoint_rejected", {"step": step, "reason": reason, "moved_to": str(target)})

        self._by_lead(move)

    def roll_back(self, step: int) -> None:
        """Moves the checkpoints of `step` and later out of the way; all processes call it."""

        def move() -> None:
            for later in [later for later in seals.committed_steps(self._folder) if later >= step]:
                seals.set_aside(self._folder, later, f"rolled back to before step {step}", under="rolled_back")

        self._by_lead(move)

    def _by_lead(self, move: Callable[[], None]) -> None:
        """`move` on process 0; if its storage refuses, all leave for a restart, which looks anew."""
        reason = ""
        if jax.process_index() == 0:
            try:
                move()
            except OSError as error:
                reason = storage.cause(error)
        if reason := processes.gather(reason)[0]:
            raise processes.RunEnded(f"{self.directory}: a checkpoint could not be moved: {reason}", exit_codes.RETRY)

    def record(self, step: int) -> RunRecord:
        """The record of a step; CheckpointError if it is missing or of another format."""
        return RunRecord.from_json(self._ask(f"reading {self.directory}/{step}", lambda: self._metadata(step)).custom_metadata)

    def _metadata(self, step: int) -> Any:
        where = f"{self.directory}/{step}"
        self._recognise()
        if step not in self.steps:
            raise CheckpointError(f"{self.directory} has no step {step}; it has {self.steps or 'none'}")
        if reason := seals.damage(self._folder / str(step)):
            self._recognise()
            raise DamagedError(f"{where} is damaged: {reason}; {_CURE}")
        try:
            with context_for(self.directory):
                metadata = ocp.checkpointables_metadata(self._folder / str(step))
        except Exception as error:
            if storage.does_not_answer(error):
                raise storage.Gone(storage.cause(error)) from error
            raise DamagedError(f"{where} is damaged: {storage.cause(error)}; {_CURE}") from error
        stored = metadata.custom_metadata
        if not isinstance(stored, dict) or stored.get("format") != FORMAT:
            raise CheckpointError(f"{where} has no readable record of its run (format {FORMAT}); {_CURE}")
        return metadata

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The whole state of a step, in the shardings of `abstract`; CheckpointError names what does not fit."""
        state = assemble_state(self._load(step, parts_of(abstract)), abstract)
        if int(state.step) != step:
            raise CheckpointError(f"{self.directory}/{step} holds the state of step {int(state.step)}; {_CURE}")
        return state

    def restore_part(self, step: int, part: str, abstract: Any) -> Any:
        """One part alone (`params`, `ema`, ...), in the shardings of `abstract`."""
        return self._load(step, {part: abstract})[part]

    def _load(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        where = f"{self.directory}/{step}"
        metadata = self._ask(f"reading {where}", lambda: self._metadata(step))
        stored = metadata.metadata
        written: dict[str, int] = metadata.custom_metadata["sums"]
        if missing := sorted(set(abstract) - {name for name, value in stored.items() if value is not None}):
            if {name.split("/")[0] for name in written}.issuperset(missing):
                raise DamagedError(f"{where} is damaged: the metadata of {', '.join(missing)} cannot be read; {_CURE}")
            raise CheckpointError(f"{where} lacks {', '.join(missing)}; {_CURE}")
        problems = [line for name in abstract for line in mismatches(name, stored[name], abstract[name])]
        if problems:
            shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            raise CheckpointError(f"{where} does not fit this model: {shown}")
        loaded, reason = self._ask(f"reading {where}", functools.partial(self._try_to_load, step, abstract))
        if reasons := [why for why in processes.gather(reason) if why]:
            raise DamagedError(f"{where} cannot be read: {reasons[0]}; {_CURE}")
        changed = [name for name, value in fingerprint.sums(flatten(loaded)).items() if written.get(name) != value]
        if changed:
            raise DamagedError(
                f"{where} has changed since it was written: {len(changed)} arrays have another fingerprint, {changed[0]} is the "
                f"first; {_CURE}"
            )
        return loaded

    def _try_to_load(self, step: int, abstract: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
        """(what this process reads, ""), or (None, why it cannot); each for itself, so that none waits for one that fails."""
        try:
            context, own = context_for(self.directory), jax.process_index()
            context.multiprocessing.primary_host, context.multiprocessing.active_processes = own, {own}
            with context:
                return ocp.load_checkpointables(self._folder / str(step), abstract), ""
        except Exception as error:
            if storage.does_not_answer(error):
                raise storage.Gone(storage.cause(error)) from error
            self._recognise()
            return None, storage.cause(error)


_CURE = "remove that folder to go back to the checkpoint before it, or train in another --run"


def load_weights(directory: Path | str, abstract: Any, *, weights: str = "ema", step: int | None = None) -> tuple[Any, RunRecord]:
    """Weights of a checkpoint for sampling or export: (parameters in the shardings of `abstract`, record).

    Args:
        directory: the run's `checkpoints` folder.
        abstract: ShapeDtypeStructs of the parameters, or a function of the record that makes them.
        weights: `ema` or `raw`.
        step: None for the newest.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights {weights!r}: choose ema or raw")
    if "://" not in str(directory) and not Path(directory).is_dir():
        raise FileNotFoundError(f"{directory} does not exist; give the run directory of `omnihuman train`")
    with Checkpoints(directory) as checkpoints:
        step = checkpoints.latest_step if step is None else step
        if step is None:
            raise FileNotFoundError(f"{directory} has no finished checkpoint; train first, or wait for the first save")
        record = checkpoints.record(step)
        shapes = abstract(record) if callable(abstract) else abstract
        return checkpoints.restore_part(step, record.part(weights), shapes), record
