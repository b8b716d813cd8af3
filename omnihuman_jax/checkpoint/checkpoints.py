"""The checkpoints of a run: one object, made of parts.

    Checkpoints
      reader   CheckpointReader   record, arrays and fingerprints of a finished step      reader.py
      writer   CheckpointWriter   saves while the run goes on, tries again, makes room     writer.py
      local    LocalCopies        copies on each host's own disk, or None                  local_copies.py

Reader and writer share one `CheckpointFolder` (folder.py): where checkpoints outlive every host, that it is still the
same place, and how long it is waited for. Which of its steps is whole, and what becomes of those that are not, is
step_folders.py. With `checkpoint.local_directory` there are two tiers: a restart takes the newest step that is whole in
either. Never a silent fresh start: a folder that must hold checkpoints and holds none is an error.

Below them: what a state's parts are called (parts.py), what a step says about its run (record.py), what files it has
(manifest.py), what its numbers add up to (fingerprint.py).
"""

import logging
import time
from pathlib import Path
from typing import Any, Self

from omnihuman_jax.checkpoint import step_folders
from omnihuman_jax.checkpoint.folder import open_folder
from omnihuman_jax.checkpoint.local_copies import Copy, LocalCopies
from omnihuman_jax.checkpoint.parts import State, StateT
from omnihuman_jax.checkpoint.reader import CheckpointReader
from omnihuman_jax.checkpoint.record import CheckpointError, RunRecord
from omnihuman_jax.checkpoint.step_folders import Notify
from omnihuman_jax.checkpoint.writer import CheckpointConfig, CheckpointWriter
from omnihuman_jax.runtime import processes

logger = logging.getLogger(__name__)

LOCAL = "local"


def open_checkpoints(
    directory: Path | str,
    config: CheckpointConfig,
    notify: Notify = lambda kind, details: None,
    expected: str = "",
    reach: int = 0,
) -> "Checkpoints":
    """Of a run that trains: in one tier or two, as the config says; all processes call this.

    Args:
        directory: of the run's checkpoints: a folder, or a URI.
        config: when to save, what to keep, how long to wait for storage.
        notify: called with (kind, details) for what has to be known later: a save, a step that was set aside.
        expected: why there must be checkpoints ("has saved step 30"), where there must.
        reach: the newest checkpoint that is so many steps older than the last one stays too, for a rollback (0: none).
    """
    folder = open_folder(directory, retries=config.retries, delay_s=config.retry_delay_s, expected=expected)
    local = None
    if config.local_directory:
        local = LocalCopies(
            config.local_directory, folder.identity, interval=config.local_interval, keep=config.local_keep,
            notify=notify,
        )  # fmt: skip
    return Checkpoints(CheckpointReader(folder), CheckpointWriter(folder, config, notify, reach), local, notify)


class Checkpoints:
    """The checkpoints of one run; all processes call every method, in the same order.

    After each step `due` says whether to `save`. At a start `choose` names the step to go on from; `record` and
    `restore` read it, and `reject` takes it out of the way where it turns out to be damaged.

    Args:
        reader, writer: of one folder.
        local: copies of the steps between on each host's own disk, if there are any.
        notify: called with (kind, details) of a step that was set aside.
    """

    def __init__(
        self, reader: CheckpointReader, writer: CheckpointWriter, local: LocalCopies | None, notify: Notify
    ) -> None:
        self.reader, self.writer, self.local = reader, writer, local
        self._notify = notify
        self._chosen: Copy | None = None
        self._stall_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        # An end that all processes have agreed on leaves no save half done.
        if kind is None or issubclass(kind, processes.RunEnded):
            self.close()

    def close(self) -> None:
        """Waits for the saves in progress."""
        self.writer.wait()
        if self.local is not None:
            self.local.wait()

    def due(self, step: int, *, last: bool = False) -> str:
        """After every step: why `save` has to be called with its state; "" if it has not.

        `interval` and `again` are the writer's, `local` is a copy on the hosts' own disks.
        """
        if why := self.writer.due(step, last=last):
            return why
        return LOCAL if self.local is not None and self.local.due(step) else ""

    def save(self, state: State, record: RunRecord, why: str = "interval") -> bool:
        """Starts a save and returns once the arrays are copied to the host; an earlier one is waited for. False: it
        failed.

        `why`: what `due` said.
        """
        begin = time.monotonic()
        good = True
        if why == LOCAL:
            assert self.local is not None, "there is one tier: no local copy is due"
            self.local.save(state, record)
        else:
            good = self.writer.save(state, record, why)
        self._stall_s += time.monotonic() - begin
        return good

    def take_stall(self) -> float:
        """Seconds that `save` has kept the caller waiting since the last call."""
        stall, self._stall_s = self._stall_s, 0.0
        return stall

    def wait(self) -> bool:
        """`CheckpointWriter.wait`."""
        return self.writer.wait()

    def finish(self, state: State, record: RunRecord) -> bool:
        """`CheckpointWriter.finish`."""
        return self.writer.finish(state, record)

    @property
    def last_failure(self) -> str:
        """Why the last save that failed did."""
        return self.writer.last_failure

    @property
    def failed_saves(self) -> int:
        """Scheduled saves in a row that failed."""
        return self.writer.failed_saves

    @property
    def is_hopeless(self) -> bool:
        """`CheckpointWriter.is_hopeless`."""
        return self.writer.is_hopeless

    def choose(self, abstract: State | None = None, below: int | None = None) -> int | None:
        """The newest step (under `below`) that is whole in either tier; checkpoints that are not are set aside.

        `abstract`: of the state: local copies are stored as it is on the devices. None: there is no checkpoint at all.

        Raises:
            CheckpointError: there were checkpoints, and nothing is whole.
            RunEnded: storage did not answer, or had nothing of what this run has saved, however often it was asked.
        """
        self._chosen = None
        if self.local is None:
            return step_folders.newest_whole(self.reader.folder, self._notify, below)
        step, none_is_whole = None, None
        try:
            step = step_folders.newest_whole(self.reader.folder, self._notify, below)
        except CheckpointError as error:  # on all processes
            none_is_whole = error
        # Back from steps that went wrong goes to a checkpoint: a copy may be gone by the next start, which has to find
        # the same.
        assert abstract is not None, "a local copy is stored as it lies on the devices"
        if below is None:
            self._chosen = self.local.newest(abstract, above=step or 0)
        if self._chosen is not None:
            logger.warning(
                "resuming from the local copy of step %d; the newest checkpoint is %s",
                self._chosen.step,
                step or "none",
            )
            step = self._chosen.step
        elif none_is_whole is not None:
            raise none_is_whole
        # Of steps that are to be made again: the new copies must not be mixed up with these.
        self.local.forget((step or 0) + 1)
        return step

    def _copy_of(self, step: int) -> Copy | None:
        return self._chosen if self._chosen is not None and self._chosen.step == step else None

    def record(self, step: int) -> RunRecord:
        """The record of a step that was chosen, or of any checkpoint."""
        copy = self._copy_of(step)
        return self.reader.record(step) if copy is None else copy.record

    def restore(self, step: int, abstract: StateT) -> StateT:
        """The whole state of such a step, in the shardings of `abstract`; CheckpointError names what does not fit."""
        copy = self._copy_of(step)
        if copy is None or self.local is None:
            return self.reader.restore(step, abstract)
        return self.local.restore(copy, abstract)

    def reject(self, step: int, reason: str) -> None:
        """Takes a damaged step out of the way, loudly."""
        copy = self._copy_of(step)
        if copy is None or self.local is None:
            step_folders.reject(self.reader.folder, step, reason, self._notify)
        else:
            self.local.reject(copy, reason)

    def roll_back(self, step: int) -> None:
        """Moves the checkpoints of `step` and later out of the way, and removes such copies."""
        step_folders.roll_back(self.reader.folder, step)
        if self.local is not None:
            self.local.forget(step)
