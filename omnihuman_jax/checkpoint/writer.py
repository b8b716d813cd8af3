"""How a checkpoint is written: Orbax v1, while the run goes on; whole or not at all; what fails is tried again."""

import contextlib
import dataclasses
import itertools
import json
import logging
import time
from collections.abc import Sequence
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from omnihuman_jax.checkpoint import fingerprint, manifest, orbax_slices, step_folders
from omnihuman_jax.checkpoint.folder import CheckpointFolder
from omnihuman_jax.checkpoint.parts import State, context_for, flatten, parts_of
from omnihuman_jax.checkpoint.record import RunRecord
from omnihuman_jax.checkpoint.save_thread import Save
from omnihuman_jax.checkpoint.step_folders import Notify
from omnihuman_jax.runtime import processes, storage
from omnihuman_jax.runtime.locations import check_checkpoints, check_scheme

logger = logging.getLogger(__name__)

_saves = itertools.count()


@dataclasses.dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """A checkpoint every `interval` steps (and at the end); the newest `keep` stay, and every `keep_every`-th (0:
    none); and one that a rollback can go back to, from before as many steps as may go wrong in a row.

    They are in `directory`, a folder or a URI such as gs://bucket/run (not s3://); empty: in RUN/checkpoints.
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
        check_checkpoints(self.directory, "checkpoint.directory")
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
        if check_scheme(directory):
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


class CheckpointWriter:
    """Saves the steps of one run, one after another; all processes call every method, in the same order.

    A failed save is no error: the run goes on, the steps before stay. `failed_saves` counts those in a row,
    `last_failure` and `disk_is_full` say what the last one failed of. If the disk was not full, `due` says when to try
    again: the state that was to be saved is gone by then (its buffers were donated to the next step), so the try takes
    the one of its own step.

    Args:
        folder: that of `open_folder`.
        config: when to save, what to keep, how often to try.
        notify: called with (kind, details) of every save, good or failed.
        reach: the newest checkpoint that is so many steps older than the last one stays too (0: none).
    """

    def __init__(self, folder: CheckpointFolder, config: CheckpointConfig, notify: Notify, reach: int = 0):
        self._folder, self._config, self._notify, self._reach = folder, config, notify, reach
        self._saving: Save | None = None
        self._counts = True
        self._tries = 0
        self._again_at: float | None = None
        self.failed_saves = 0
        self.disk_is_full = False
        self.last_failure = ""
        self.last_save: dict[str, Any] = {}

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
        self.wait()
        self._counts = why == "interval"
        if self._again_at is None:
            self._tries = 0
        self._start(parts_of(state), record)
        return self._saving is not None

    def finish(self, state: State, record: RunRecord) -> bool:
        """Blocks until the last save, of `state`, is on disk with its manifest, with all its tries; False if none of
        them was good.
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

    def save_weights(self, params: Any, record: RunRecord) -> None:
        """Saves parameters that no step has changed yet (`record.step` 0) and waits until they are on disk.

        No moments and no average: a run that starts from them begins with zeros and with the parameters themselves.
        """
        self._start({"params": params}, record, frugal=True)
        if not self.wait():
            raise OSError(f"{self._folder}/{record.step} could not be written; see the line above")

    def _start(self, parts: dict[str, Any], record: RunRecord, *, frugal: bool = False) -> None:
        reason, number = "", next(_saves)
        try:
            # Before any of them enters Orbax, whose barriers wait minutes for one that has failed.
            self._folder.verify()
        except OSError as error:
            reason = storage.cause(error)
        if self._vote(record.step, reason):
            try:
                metadata = record.to_json() | {"sums": fingerprint.sums(flatten(parts))}
                context = context_for(self._folder.directory)
                if frugal:
                    orbax_slices.use(context)
                with context:
                    response = ocp.save_checkpointables_async(
                        self._folder.step(record.step), parts, custom_metadata=json.loads(json.dumps(metadata))
                    )
                self._saving = Save(
                    record.step, number, response, lambda: self._write_manifest(record.step), self._make_room
                )
            except Exception as error:
                reason = storage.cause(error)
            self._vote(record.step, reason)

    def wait(self) -> bool:
        """Blocks until the save in progress is on disk, manifest included; False if it, or one before it, failed."""
        if (saving := self._saving) is not None:
            reason = saving.wait()
            if self._vote(saving.step, reason):
                self.failed_saves, self._again_at = 0, None
                self.last_save = {"step": saving.step, "seconds": saving.seconds, "bytes": saving.nbytes}
                self._notify("saved", self.last_save)
                if saving.no_room:
                    self._notify("older_checkpoints_stay", {"step": saving.step, "reason": saving.no_room})
            self._saving = None
        return self.failed_saves == 0

    def _vote(self, step: int, reason: str) -> bool:
        """All processes agree on whether the save of `step` is (still) good; if not, what it left is removed."""
        failures = [why for why in processes.gather(reason) if why]
        if failures:
            self._give_up(step, failures)
        return not failures

    def _give_up(self, step: int, failures: Sequence[str]) -> None:
        self._saving = None
        self.failed_saves += self._counts
        self.last_failure = failures[0]
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
                manifest.remove_partial(self._folder.path)
                if self._folder.step(step).exists():
                    self._folder.step(step).rmtree()
        self._notify(
            "save_failed", {"step": step, "reason": failures[0], "in_a_row": self.failed_saves, "again_in_s": pause}
        )

    def _next_pause(self) -> float | None:
        """Seconds to the next try of a save that has failed, None: at the next interval."""
        if self.disk_is_full or self._tries >= self._config.retries:
            return None
        self._tries += 1
        return self._config.retry_delay_s * 2.0 ** (self._tries - 1)

    def _write_manifest(self, step: int) -> int:
        """After the commit, on process 0: writes the manifest; the bytes of the step."""
        self._folder.verify()  # Orbax makes a folder that is gone anew, below the mount
        return manifest.write(self._folder.step(step)) if jax.process_index() == 0 else 0

    def _make_room(self) -> None:
        """After the manifest, on process 0: older steps go."""
        if jax.process_index() == 0:
            step_folders.remove_old(self._folder, self._config.keep, self._config.keep_every, self._reach)
