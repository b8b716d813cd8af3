"""Checkpoints of a run: Orbax v1, asynchronous, whole or not at all, and never a silent fresh start.

What lies in one, and how it is read, is `checkpoint_reader`.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from omnihuman_jax.checkpoint import fingerprint, orbax_slices, seals
from omnihuman_jax.checkpoint.parts import State, context_for, flatten, parts_of
from omnihuman_jax.checkpoint.reader import CheckpointError, CheckpointReader, RunRecord
from omnihuman_jax.checkpoint.save_thread import Save
from omnihuman_jax.runtime import exit_codes, processes, storage

logger = logging.getLogger(__name__)

_saves = itertools.count()


@dataclasses.dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """A checkpoint every `interval` steps (and at the end); the newest `keep` stay, and every `keep_every`-th (0:
    none).

    They lie in `directory`, a folder or a URI such as gs://bucket/run (which needs gcsfs); empty: in RUN/checkpoints.
    local_directory: a folder on each host's own disk (or in its memory) for copies of the steps between, empty: none. A
        restart takes the newest step that is whole in either tier
    local_interval: of these copies; it divides `interval`. local_keep: how many stay
    retries, retry_delay_s: how often storage that does not answer is asked again, after doubling pauses from the delay
        on: a read is repeated, a save is made anew of the state of the step that has come by then
    max_failed_saves: so many saves in a row (their tries do not count) that failed, for another reason than a full
        disk, end the attempt; a host may be sick
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
                f"checkpoint: interval {self.interval}, keep {self.keep}, max_failed_saves {self.max_failed_saves} must"
                f" be >= 1, keep_every {self.keep_every} must be >= 0"
            )

    def _validate_local(self) -> None:
        every, directory = self.local_interval, self.local_directory
        if bool(directory) != bool(every):
            raise ValueError(
                f"checkpoint.local_directory {directory!r} and local_interval {every}: set both, for copies on each"
                " host's own disk, or neither"
            )
        if "://" in directory:
            raise ValueError(f"checkpoint.local_directory {directory!r} must be a folder on each host's own disk")
        if every < 0 or self.local_keep < 1:
            raise ValueError(f"checkpoint.local_interval {every} must be >= 0 and local_keep {self.local_keep} >= 1")
        if every and (every >= self.interval or self.interval % every):
            fits = [n for n in range(1, self.interval) if self.interval % n == 0]
            near = sorted(sorted(fits, key=lambda n: (abs(n - every), n))[:2])
            raise ValueError(
                f"checkpoint.local_interval {every} must be below interval {self.interval} and divide it; the nearest: "
                f"{' or '.join(map(str, near)) or 'none'}"
            )


class Checkpoints(CheckpointReader):
    """The checkpoints of one run directory; all processes call every method, in the same order.

    A failed save is no error: the run goes on, the steps before stay. `failed_saves` counts those in a row,
    `disk_is_full` says what the last one failed of. If it was anything else, `due` says when to try again: the state
    that was to be saved is gone by then (its buffers were donated to the next step), so the try takes the one of its
    own step.

    Args:
        directory: of the run's checkpoints.
        config: when to save, what to keep, how long to wait for storage.
        notify: called with (kind, details) for what has to be known later: a step that was set aside, a save that
            failed.
        expected: why there must be checkpoints ("has saved step 30"), where there must: a folder without any is storage
            that is gone.
    """

    def __init__(
        self,
        directory: Path | str,
        config: CheckpointConfig,
        notify: Callable[[str, dict[str, Any]], None] = lambda kind, details: None,
        expected: str = "",
    ):
        super().__init__(directory)
        self._config = config
        self._notify = notify
        self._expected = expected
        self._identity = ""
        self._saving: Save | None = None
        self._counts = True
        self._tries = 0
        self._again_at: float | None = None
        self.failed_saves = 0
        self.disk_is_full = False
        self._stall_s = 0.0
        self.last_save: dict[str, Any] = {}
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
                f"no checkpoint in {self.directory}, which is {'empty' if self._folder.is_dir() else 'not there'}, but"
                f" this run {self._expected}; bring it back, or remove the run directory to start over"
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
        return storage.ask(what, look, retries=self._config.retries, delay_s=self._config.retry_delay_s)

    def _recognise(self) -> None:
        storage.recognise(self._folder, self._identity)

    def __exit__(self, kind: Any, *_: object) -> None:
        # An end that all processes have agreed on leaves no save half done.
        if kind is None or issubclass(kind, processes.RunEnded):
            self.close()

    def close(self) -> None:
        """Waits for a save in progress."""
        self.wait()

    def due(self, step: int, *, last: bool = False) -> str:
        """After every step: why `save` has to be called with its state; "" if it has not.

        `interval`, and also for the `last` step; `again` for one that failed, whose pause is over. The processes ask
        one another only while a save is being written, or waits for its next try.
        """
        if last or step % self._config.interval == 0:
            return "interval"
        if self._saving is not None:
            seen = processes.gather([self._saving.is_running, self._saving.error is not None])
            if any(failed for _, failed in seen) or not any(running for running, _ in seen):
                self.wait()
        if self._saving is not None or self._again_at is None:
            return ""
        return "again" if processes.gather(time.monotonic() >= self._again_at)[0] else ""

    def save(self, state: State, record: RunRecord, why: str = "interval") -> bool:
        """Starts a save and returns once the arrays are copied to the host; an earlier save is waited for. False: it
        failed.

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

    def finish(self, state: State, record: RunRecord) -> bool:
        """Until the save of `state`, the last one, is on disk and sealed, with all its tries; False if none of them was
        good.
        """
        while not self.wait() and self._again_at is not None:
            time.sleep(max(0.0, self._again_at - time.monotonic()))
            self.save(state, record, "again")
        return self.failed_saves == 0

    @property
    def is_hopeless(self) -> bool:
        """`max_failed_saves` in a row, and not of a full disk."""
        return self.failed_saves >= self._config.max_failed_saves and not self.disk_is_full

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
        reason, number = "", next(_saves)
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
                    orbax_slices.use(context)
                with context:
                    response = ocp.save_checkpointables_async(
                        self._folder / str(record.step), parts, custom_metadata=json.loads(json.dumps(metadata))
                    )
                self._saving = Save(record.step, number, response, lambda: self._seal(record.step), self._make_room)
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
                if saving.no_room:
                    self._notify("older_checkpoints_stay", {"step": saving.step, "reason": saving.no_room})
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
            "the next save is a new try"
            if pause is None
            else f"the first step in {pause:g} s is try {self._tries + 1}",
        )  # fmt: skip
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                seals.remove_partial(self._folder)
                if (self._folder / str(step)).exists():
                    (self._folder / str(step)).rmtree()
        self._notify(
            "save_failed", {"step": step, "reason": failures[0], "in_a_row": self.failed_saves, "again_in_s": pause}
        )
        return False

    def _next_pause(self) -> float | None:
        """Seconds to the next try of a save that has failed, None: at the next interval."""
        if self.disk_is_full or self._tries >= self._config.retries:
            return None
        self._tries += 1
        return self._config.retry_delay_s * 2.0 ** (self._tries - 1)

    def _seal(self, step: int) -> int:
        """After the commit, on process 0: bytes of the step that is now sealed."""
        self._recognise()  # Orbax makes a folder that is gone anew, below the mount
        if jax.process_index() != 0:
            return 0
        return seals.write(self._folder / str(step))

    def _make_room(self) -> None:
        """After the seal, on process 0: older steps go; the first error once all were tried."""
        if jax.process_index() != 0:
            return
        steps, every, errors = self.steps, self._config.keep_every, []
        for old in steps[: -self._config.keep]:
            if not (every and old % every == 0):
                try:
                    (self._folder / str(old)).rmtree()
                except OSError as error:
                    errors.append(error)
        if errors:
            raise errors[0]

    def choose(self, abstract: State | None = None, below: int | None = None) -> int | None:
        """The newest step (under `below`) that every process finds whole; those that are not are set aside, with a
        note.

        Each process looks at its share of the files, and all vote, without a collective. None: there is no checkpoint
        at all. `abstract`: of the state, for those who store it as it lies on the devices.

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
                f"{self.directory} has no whole checkpoint left; the damaged ones are in "
                f"{self.directory}/{seals.SET_ASIDE} ({', '.join(lost)}): restore one from a backup, or "
                "remove the run directory to start over"
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
        processes.gather(
            None
        )  # nobody may still be looking at what moves: it would miss the step, which is a user's error

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
