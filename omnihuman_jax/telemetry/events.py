"""Where the time of a run goes: an event log that `omnihuman goodput` adds up. No account anywhere is needed.

RUN/events/<attempt>-<process>.jsonl, one JSON line an event, in the order of their ends, `t` in seconds since 1970:

    {"event": "start", "t", "process", "processes", "devices", "restart"}       t: when the process began
    {"event": "fork", "t", "run", "step"}       process 0: the run began with that run's state after that step
    {"event": "span", "t", "s", "kind"}       `s` seconds up to `t` of compile, restore, save, samples (else: start-up)
    {"event": "steps", "t", "s", "wait_s", "first", "last"}       steps first .. last (from 1): `s` seconds, `wait_s`
    for data {"event": "hosts", "t", "step", "host_s"}       process 0: each host's own seconds a step (data and
    dispatch, no devices) {"event": "saved", "t", "s", "step", "bytes"}       process 0: a checkpoint was whole, `s`
    seconds after its save began {"event": "end", "t", "code"}       missing where the process was killed, or left
    because another one did

The spans of the loop come from the loop itself, what JAX compiles elsewhere from `jax.monitoring`. Orbax's own events
of a save end before its manifest is written, and come of saves that fail on another host too: the loop says when one is
whole.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.monitoring

from omnihuman_jax.runtime import exit_codes, processes, variables
from omnihuman_jax.runtime.incidents import append_line, read_lines

FOLDER = "events"
# Steps are written together until they took this long: a line a second at most.
FLUSH_S = 1.0
_COMPILED = "/jax/core/compile/backend_compile_duration"

Item = TypeVar("Item")


class EventLog:
    """Of one process and attempt; used by the thread that trains.

    seconds: what was written, added up by kind; data_wait_s: the wait for data so far.
    """

    def __init__(self, run_dir: Path):
        attempt = processes.gather(_next_attempt(run_dir / FOLDER))[0]
        self.attempt = attempt
        self._path = run_dir / FOLDER / f"{attempt:04d}-{jax.process_index()}.jsonl"
        self.seconds: dict[str, float] = {}
        self.data_wait_s = 0.0
        self._open: str | None = None
        self._first: int | None = None
        self._looping = False
        self._last, self._stepped, self._waited, self._host, self._host_steps = 0, 0.0, 0.0, 0.0, 0
        self._mark = time.perf_counter()
        self._write(
            {
                "event": "start", "t": _process_start(), "process": jax.process_index(),
                "processes": jax.process_count(),
                "devices": jax.device_count(), "restart": variables.whole("RESTART_ATTEMPT", attempt),
            }
        )  # fmt: skip
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> None:
        self._flush()
        code = exit_codes.OK if error is None else exit_codes.of_error(error)
        self._write({"event": "end", "t": time.time(), "code": code})
        jax.monitoring.unregister_event_duration_listener(self._heard)

    @contextlib.contextmanager
    def span(self, kind: str) -> Iterator[None]:
        """A stretch of the training thread's time; steps before it are written first, and it counts as none of
        theirs.
        """
        self._lap()
        self._flush()
        outer, self._open = self._open, kind
        began = time.perf_counter()
        try:
            yield
        finally:
            self._open = outer
            self._span(kind, time.perf_counter() - began)
            self._mark = time.perf_counter()

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """`items`, with the wait for each of them told apart."""
        iterator = iter(items)
        self._looping, self._mark = True, time.perf_counter()
        while True:
            self._lap()
            began = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self._mark = time.perf_counter()
                self._waited += self._mark - began
                self._host += self._mark - began
                self.data_wait_s += self._mark - began
            yield item

    def dispatched(self) -> None:
        """The devices have the step; the host's own work on it is over."""
        self._host += time.perf_counter() - self._mark
        self._host_steps += 1

    def step(self, done: int) -> None:
        """`done` steps are finished."""
        self._lap()
        if self._first is None:
            self._first = done
        self._last = done
        if self._stepped + self._waited >= FLUSH_S:
            self._flush()

    def compare_hosts(self, done: int) -> dict[str, float]:
        """Each host's seconds a step since the last call, as far as the others have told theirs (none is waited
        for).
        """
        own, self._host, self._host_steps = self._host / max(self._host_steps, 1), 0.0, 0
        processes.post("host_s", own)
        if jax.process_index() != 0:
            return {}
        seconds = {"0": own} | processes.posted("host_s")
        self._write({"event": "hosts", "t": time.time(), "step": done, "host_s": seconds})
        return seconds

    def forked(self, run: str, step: int) -> None:
        """The run began with the state that `run` had after `step`."""
        if jax.process_index() == 0:
            self._write({"event": "fork", "t": time.time(), "run": run, "step": step})

    def saved(self, save: Mapping[str, Any]) -> None:
        """A checkpoint is whole: its step, seconds and bytes."""
        if jax.process_index() == 0:
            whole = {"step": save["step"], "bytes": save["bytes"]}
            self._write({"event": "saved", "t": time.time(), "s": round(save["seconds"], 6), **whole})

    def _lap(self) -> None:
        now = time.perf_counter()
        # Before the loop the time between spans is start-up: nobody's step.
        if self._looping:
            self._stepped += now - self._mark
        self._mark = now

    def _flush(self) -> None:
        if self._first is None:
            return
        self.seconds["steps"] = self.seconds.get("steps", 0.0) + self._stepped
        self.seconds["data_wait"] = self.seconds.get("data_wait", 0.0) + self._waited
        self._write(
            {
                "event": "steps", "t": time.time(), "s": round(self._stepped, 6), "wait_s": round(self._waited, 6),
                "first": self._first, "last": self._last,
            }
        )  # fmt: skip
        self._stepped, self._waited, self._first = 0.0, 0.0, None

    def _span(self, kind: str, seconds: float) -> None:
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds
        self._write({"event": "span", "t": time.time(), "s": round(seconds, 6), "kind": kind})

    def _heard(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _COMPILED and self._open is None and not self._looping:
            self._span("compile", duration_secs)

    def _write(self, record: dict[str, Any]) -> None:
        append_line(self._path, record)


def last_saved(run_dir: Path) -> int:
    """The newest step that the last attempt at this run that saved says it has saved, 0 if none does."""
    return next((max(steps) for steps in _saved(run_dir) if steps), 0)


def saved_steps(run_dir: Path) -> list[int]:
    """Every step that an attempt at this run says it has saved, be it there still or not."""
    return [step for steps in _saved(run_dir) for step in steps]


def _saved(run_dir: Path) -> Iterator[list[int]]:
    """Attempt by attempt, the last one first."""
    logs = (run_dir / FOLDER).glob("*-0.jsonl")
    for log in sorted(logs, key=lambda path: int(path.name.split("-")[0]), reverse=True):
        yield [int(line["step"]) for line in read_lines(log) if line.get("event") == "saved"]


def _next_attempt(folder: Path) -> int:
    names = [path.name for path in folder.glob("*.jsonl")] if folder.is_dir() else []
    return 1 + max((int(match[1]) for name in names if (match := re.match(r"(\d+)-\d+\.jsonl", name))), default=-1)


def _process_start() -> float:
    """When this process began: imports are part of what a start costs. Now, where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        # Not by btime of /proc/stat, which is in whole seconds: the start would lie up to one before the end of the
        # last attempt.
        age = float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
        return time.time() - age
    return time.time()
