"""A watchdog for what no exception reports: Python that sleeps, a collective whose peer is gone, a file system that
hangs.

JAX's heartbeats come from C++ threads and go on while a process hangs. This thread is fed by the training loop instead;
when it starves it writes the stacks of all threads, so that one can see where, and ends the process, which ends the
job.
"""

import contextlib
import dataclasses
import faulthandler
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from omnihuman_jax.runtime import exit_codes, processes


@dataclasses.dataclass(kw_only=True, slots=True)
class WatchdogConfig:
    """Seconds without progress after which a process gives up; 0 never does.

    start_s: from the start to the first finished step, without `restore_s`: opening the data set, compiling, the first
        collectives
    step_s: from one step to the next
    save_s: a save that the loop waits for: the one before, or the last
    restore_s: choosing and reading a checkpoint
    """

    start_s: float = 3600.0
    step_s: float = 1800.0
    save_s: float = 3600.0
    restore_s: float = 3600.0

    @property
    def longest_s(self) -> float:
        """How long one process may keep the others waiting: the longest of the limits, a week where one is none; and a
        minute.

        Whoever hangs is to be ended by his own watchdog, with his stacks, not by the others' impatience.
        """
        limits = [getattr(self, field.name) for field in dataclasses.fields(self)]
        return 60.0 + (max(limits) if all(limits) else 7 * 86400.0)

    def validate(self) -> None:
        """ValueError on a negative limit."""
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(f"watchdog.{field.name} must be >= 0 (0: no limit), not {getattr(self, field.name)}")


class Watchdog:
    """One a process, from its start on. `beat()` after every step; `allow(...)` around what has a limit of its own."""

    def __init__(self, config: WatchdogConfig, stacks: Path | None = None, *, poll_s: float = 0.25):
        self.config = config
        self._stacks = stacks
        self._poll_s = poll_s
        self._lock = threading.Lock()
        self._deadline: tuple[float, float, str] | None = None  # (when, limit, of what)
        self._stopped = threading.Event()
        self._set(config.start_s, "the start, up to the first step")
        threading.Thread(target=self._run, name="omnihuman-watchdog", daemon=True).start()

    def beat(self) -> None:
        """Progress: the next step has `step_s` from now."""
        self._set(self.config.step_s, "a training step")

    @contextlib.contextmanager
    def allow(self, seconds: float, what: str) -> Iterator[None]:
        """`what` may take `seconds`; afterwards what was watched before has its whole time again."""
        before = self._deadline
        self._set(seconds, what)
        try:
            yield
        finally:
            if before is None:
                self._deadline = None
            else:
                self._set(before[1], before[2])

    def stop(self) -> None:
        """Nothing is watched any more."""
        self._stopped.set()

    def _set(self, seconds: float, what: str) -> None:
        with self._lock:
            self._deadline = (time.monotonic() + seconds, seconds, what) if seconds else None

    def _run(self) -> None:
        while not self._stopped.wait(self._poll_s):
            with self._lock:
                deadline = self._deadline
            if deadline is not None and time.monotonic() > deadline[0]:
                self._give_up(deadline[1], deadline[2])

    def _give_up(self, seconds: float, what: str) -> None:
        message = f"no progress for {seconds:g} s ({what})"
        print(f"watchdog: {message}; the stacks of all threads:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        if self._stacks is not None:
            with contextlib.suppress(OSError):
                self._stacks.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError), self._stacks.open("a") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} process {processes.own_index()}: {message}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        processes.abandon(exit_codes.HANG, message)
