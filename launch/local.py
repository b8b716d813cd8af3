"""A run as processes of this machine: how a laptop user runs a spec, how specs are tested, and where faults are
injected.

    outcome = run_local(load_spec("launch/examples/local.yaml"), on_event=print)

Every attempt starts a process a host with that host's devices simulated. The first process to end decides by its exit
code for the whole job (`omnihuman_jax.runtime.exit_codes`): the others are ended, and the job is restarted or not. What
happened lies in OUTPUT/launch: state.json (now), events.jsonl (ever), logs/ by attempt and rank.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from launch import command, local_state
from launch.local_state import log_path, next_attempt, state_dir
from launch.spec import RunSpec
from launch.supervise import read_secrets
from omnihuman_jax.runtime import exit_codes
from omnihuman_jax.runtime.exit_codes import AfterExit

MAX_PROCESSES = 16
# After a crash the survivors cannot save, since a save needs all: they get this long, not the whole grace period.
CRASH_GRACE_S = 5.0
STEADY_S = 60.0
MAX_PAUSE_S = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LocalProcesses:
    """Processes of an attempt, and the CPU devices that each simulates; 0: the machine's own."""

    count: int
    devices: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened: `attempt` (about to start; nothing runs), `started` and `exited` (a process),
    `terminating` and `killing` (the others), `restart`, `end` (of the job)."""

    kind: str
    time_s: float
    attempt: int
    rank: int | None = None
    pid: int | None = None
    code: int | None = None
    text: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How the job ended: its code, attempts made, restarts that were counted and that were free."""

    code: int
    attempts: int
    counted: int
    free: int
    events: tuple[Event, ...]


# (attempt, rank, processes, port of the coordinator) -> argv
CommandOf = Callable[[int, int, LocalProcesses, int], list[str]]


def processes_of(spec: RunSpec) -> LocalProcesses:
    """The spec's hosts as processes; ValueError if they are too many for one machine."""
    machines, local = spec.machines, spec.local
    processes = local.processes or (machines.processes if local.simulate else 1)
    if not local.simulate:
        if processes != 1 or local.devices:
            raise ValueError(
                "local.simulate is false, which means one process with this machine's own devices; remove "
                "local.processes and local.devices"
            )
        return LocalProcesses(count=1, devices=0)
    if processes > MAX_PROCESSES:
        raise ValueError(
            f"{machines} are too many processes for this machine (at most {MAX_PROCESSES}); set "
            "local.processes and local.devices"
        )
    return LocalProcesses(count=processes, devices=local.devices or machines.devices_per_host)


def check(spec: RunSpec) -> None:
    """ValueError or FileNotFoundError on what cannot run here."""
    processes_of(spec)
    if "://" in spec.output:
        raise ValueError(f"output {spec.output!r} must be a folder of this machine with --target local")
    if kubernetes := [name for name, ref in spec.secrets.items() if ref.secret]:
        raise ValueError(
            f"secrets.{kubernetes[0]}: a Kubernetes secret cannot be read here; give file for --target local"
        )
    read_secrets({name: ref.file for name, ref in spec.secrets.items()})


class LocalJob:
    """One job. `run()` blocks; `pids()`, `attempt` and `stop()` may be used from other threads meanwhile.

    Args:
        spec: the run.
        processes: of attempt k, if not the spec's own: a job may restart on another number of processes.
        on_event: called in `run`'s thread with each event; `attempt` comes before anything is started.
        command_of: what a process runs, if not the trainer.
        environment: added to every process.
        echo: where the output of rank 0 is shown; None shows nothing.
        crash_grace_s, pause_s: between SIGTERM and SIGKILL after a crash; before the first counted restart (doubles in
            a loop).
    """

    def __init__(
        self,
        spec: RunSpec,
        *,
        processes: Callable[[int], LocalProcesses] | None = None,
        on_event: Callable[[Event], None] | None = None,
        command_of: CommandOf | None = None,
        environment: Mapping[str, str] | None = None,
        echo: IO[str] | None = None,
        crash_grace_s: float = CRASH_GRACE_S,
        pause_s: float = 1.0,
        poll_s: float = 0.05,
    ):
        self.spec = spec
        self.folder = state_dir(spec)
        self.attempt = 0
        self._processes = processes or (lambda attempt: processes_of(spec))
        self._on_event = on_event
        self.command_of = command_of or self._trainer
        self._environment = dict(environment or {})
        self._echo = echo
        self._crash_grace_s = crash_grace_s
        self._pause_s = pause_s
        self._poll_s = poll_s
        self._running: dict[int, subprocess.Popen] = {}
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._events: list[Event] = []

    def pids(self) -> dict[int, int]:
        """Process id of every rank that runs now; each leads a session (and group) of its own."""
        return {rank: process.pid for rank, process in list(self._running.items()) if process.poll() is None}

    def stop(self) -> None:
        """Asks the processes to save and stop, by SIGTERM; `run` returns when they have, or after the grace period.

        A second call waits no longer: SIGKILL.
        """
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def run(self) -> Outcome:
        """Attempts until done, failed, or stopped. ValueError if another launcher works on this output."""
        check(self.spec)
        secrets = read_secrets({name: ref.file for name, ref in self.spec.secrets.items()})
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / "lock", self.spec.output):
            self._outlast()
            first = self.attempt = next_attempt(self.folder)
            counted = free = 0
            pause = self._pause_s
            while True:
                began = time.monotonic()
                code = self._run_attempt(secrets)
                verdict = exit_codes.after_exit(code)
                counted += verdict is AfterExit.RESTART_COUNTED
                free += verdict is AfterExit.RESTART_FREE
                why = self._reason_to_end(verdict, counted)
                if why:
                    self._emit("end", code=code, text=why)
                    self._write_state("ended", code=code, text=why)
                    return Outcome(
                        code=code,
                        attempts=self.attempt - first + 1,
                        counted=counted,
                        free=free,
                        events=tuple(self._events),
                    )
                self._emit("restart", code=code, text=f"{verdict.value}; {counted} of {self.spec.restarts} used")
                if verdict is AfterExit.RESTART_COUNTED:
                    self._stop.wait(pause)
                    pause = min(pause * 2, MAX_PAUSE_S) if time.monotonic() - began < STEADY_S else self._pause_s
                self.attempt += 1

    def _outlast(self) -> None:
        """Until no rank of a launcher that was killed is left: it may still be saving, where the next attempt would
        write.

        They had SIGTERM when that launcher died, so their grace period runs already; what outlives it is killed.
        """
        deadline, told = time.monotonic() + self.spec.grace_s, False
        while left := local_state.survivors(self.folder):
            if not told:
                told = True
                print(
                    f"{self.spec.name}: waiting for processes of an earlier launcher: {', '.join(map(str, left))}",
                    file=sys.stderr,
                )
            if time.monotonic() > deadline or self._hurry.is_set():
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGKILL)
            time.sleep(self._poll_s)

    def _reason_to_end(self, verdict: AfterExit, counted: int) -> str:
        """Why there is no further attempt; empty if there is one."""
        if verdict is AfterExit.DONE:
            return "done"
        if verdict is AfterExit.FAIL:
            return "an error that a restart does not cure"
        if self._stop.is_set():
            return "stopped; the same command continues"
        if counted > self.spec.restarts:
            return f"failed {counted} times, {self.spec.restarts} restarts allowed"
        return ""

    def _run_attempt(self, secrets: Mapping[str, str]) -> int:
        """One attempt from start to the end of its last process; the code that stands for all."""
        processes = self._processes(self.attempt)
        self._emit("attempt", text=f"{processes.count} processes, {processes.devices or 'own'} devices each")
        if self._stop.is_set():
            return exit_codes.RESTART
        port = free_port()
        # JAX would listen on every interface, and asks nobody who he is.
        environment = self._child_environment(secrets) | {"JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}"}
        with contextlib.ExitStack() as stack:
            stack.callback(self._kill)
            for rank in range(processes.count):
                log = stack.enter_context(log_path(self.folder, self.attempt, rank).open("ab"))
                self._running[rank] = _start(self.command_of(self.attempt, rank, processes, port), environment, log)
                self._emit("started", rank=rank, pid=self._running[rank].pid)
            self._write_state("running")
            shown = stack.enter_context(
                log_path(self.folder, self.attempt, 0).open("r", encoding="utf-8", errors="replace")
            )
            return self._watch(shown)

    def _watch(self, shown: IO[str]) -> int:
        """Waits for all processes; ends the others once one has failed, or has finished and they do not."""
        first: int | None = None
        deadline = float("inf")
        stopping = False
        while self._running:
            ended = self._collect()
            self._show(shown)
            failed = sorted((code for _, code in ended if code != exit_codes.OK), key=_precedence)
            if failed and first is None:
                first = failed[0]
                saving = exit_codes.after_exit(first) is AfterExit.RESTART_FREE
                deadline = min(deadline, time.monotonic() + (self.spec.grace_s if saving else self._crash_grace_s))
                # Also those that could save: before a job is joined nobody tells them that another was stopped.
                if self._running:
                    self._signal(signal.SIGTERM, "terminating")
            elif ended and deadline == float("inf"):
                deadline = time.monotonic() + self.spec.grace_s
            if self._stop.is_set() and not stopping:
                stopping = True
                self._signal(signal.SIGTERM, "terminating")
                deadline = min(deadline, time.monotonic() + self.spec.grace_s)
            if time.monotonic() > deadline or (self._hurry.is_set() and self._running):
                self._hurry.clear()
                # Nobody failed but some have finished and the rest does not: it hangs.
                first = exit_codes.HANG if first is None else first
                self._signal(signal.SIGKILL, "killing")
                deadline = float("inf")
            time.sleep(self._poll_s)
        self._show(shown)
        return exit_codes.OK if first is None else first

    def _collect(self) -> list[tuple[int, int]]:
        """Rank and code of the processes that have ended since."""
        ended = []
        for rank, process in list(self._running.items()):
            if (returncode := process.poll()) is not None:
                code = exit_codes.of_returncode(returncode)
                del self._running[rank]
                ended.append((rank, code))
                self._emit("exited", rank=rank, pid=process.pid, code=code)
        if ended and self._running:
            self._write_state("running")
        return ended

    def _signal(self, number: signal.Signals, kind: str) -> None:
        for rank, process in self._running.items():
            self._emit(kind, rank=rank, pid=process.pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def _kill(self) -> None:
        """No process outlives `run`, however it is left."""
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._running.clear()

    def _trainer(self, attempt: int, rank: int, processes: LocalProcesses, port: int) -> list[str]:
        join = [f"--coordinator=127.0.0.1:{port}", f"--num-processes={processes.count}", f"--process-id={rank}"]
        return [sys.executable, *command.train(self.spec, join, simulate=processes.devices)]

    def _child_environment(self, secrets: Mapping[str, str]) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COORDINATOR")}
        for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
            inherited.pop(name, None)
        own = {"RESTART_ATTEMPT": str(self.attempt)}
        return inherited | command.environment(self.spec) | self._environment | dict(secrets) | own

    def _show(self, log: IO[str]) -> None:
        if self._echo is not None and (text := log.read()):
            self._echo.write(text)
            self._echo.flush()

    def _emit(self, kind: str, **fields: Any) -> None:
        event = Event(kind=kind, time_s=time.time(), attempt=self.attempt, **fields)
        self._events.append(event)
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(event)) + "\n")
        if self._on_event is not None:
            self._on_event(event)

    def _write_state(self, state: str, **fields: Any) -> None:
        processes = {str(rank): process.pid for rank, process in self._running.items()}
        started = {rank: local_state.process_start(pid) for rank, pid in processes.items()}
        data = {
            "name": self.spec.name,
            "state": state,
            "attempt": self.attempt,
            "processes": processes,
            "started": started,
        }
        local_state.write(self.folder, data | fields)


def run_local(spec: RunSpec, **options: Any) -> Outcome:
    """`LocalJob(spec, **options).run()`; with SIGTERM or Ctrl-C passed on as a request to save and stop, in the main
    thread.
    """
    job = LocalJob(spec, **options)
    if threading.current_thread() is not threading.main_thread():
        return job.run()
    before = {number: signal.signal(number, lambda *_: job.stop()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return job.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _precedence(code: int) -> int:
    """Of codes seen together: an error of the user explains the others, then a saved stop."""
    return [AfterExit.FAIL, AfterExit.RESTART_FREE, AfterExit.RESTART_COUNTED].index(exit_codes.after_exit(code))


def _start(argv: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen:
    """A process in a session of its own that ends with this one; it is `argv` itself, under the process id that is
    returned.
    """
    guard = [sys.executable, "-IS", str(Path(__file__).with_name("end_with_parent.py")), str(os.getpid())]
    return subprocess.Popen(
        [*guard, *argv], env=dict(environment), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip


@contextlib.contextmanager
def _locked(path: Path, output: str) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another launcher is running the job in {output}; see `omnihuman status`, or stop it with "
                "`omnihuman cancel`"
            ) from None
        yield
