"""The folder OUTPUT/launch of a local job, as status, logs and cancel read it from another process."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from launch import external
from launch.spec import RunSpec
from omnihuman_jax.runtime import files


def state_dir(spec: RunSpec) -> Path:
    return Path(spec.output) / "launch"


def log_path(folder: Path, attempt: int, rank: int) -> Path:
    return folder / "logs" / f"attempt-{attempt:04d}.rank-{rank}.log"


def process_start(pid: int) -> str:
    """When a process was started, in ticks since boot (tells it from a later one of the same id); empty if none runs
    any more.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]  # ended, and nobody has asked how


def survivors(folder: Path) -> list[int]:
    """Process ids of ranks that still run, of a launcher that was killed."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    started = state.get("started", {})
    return [
        pid for rank, pid in state["processes"].items() if started.get(rank) and process_start(pid) == started[rank]
    ]


def read(spec: RunSpec) -> dict[str, Any]:
    """state.json; FileNotFoundError if nothing was ever started."""
    path = state_dir(spec) / "state.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, so {spec.name} was not started with --target local")
    return json.loads(path.read_text(encoding="utf-8"))


def next_attempt(folder: Path) -> int:
    """Attempts count on over launches: logs stay, and an attempt's number means one thing."""
    try:
        return json.loads((folder / "state.json").read_text(encoding="utf-8"))["attempt"] + 1
    except FileNotFoundError:
        return 0


def write(folder: Path, data: dict[str, Any]) -> None:
    """state.json, all or nothing, with who writes it."""
    data = data | {"launcher": {"pid": os.getpid(), "started": process_start(os.getpid())}}
    files.write_text(folder / "state.json", json.dumps(data, indent=2) + "\n")


def launcher_pid(state: dict[str, Any]) -> int | None:
    """The launcher's process id while it works on the job; None once that ended, or it was killed."""
    pid, started = state["launcher"]["pid"], state["launcher"]["started"]
    return pid if state["state"] == "running" and started and process_start(pid) == started else None


def status(spec: RunSpec) -> int:
    """Launcher, attempt, processes and the last events."""
    state, folder = read(spec), state_dir(spec)
    pid = launcher_pid(state)
    running = state["state"] == "running"
    now = f"running, launcher {pid}" if pid else "its launcher was killed" if running else state["text"]
    print(f"{spec.name}: {now}; attempt {state['attempt']}" + ("" if running else f", code {state['code']}"))
    for rank, process in state["processes"].items():
        print(f"  rank {rank}: process {process} {'runs' if process_start(process) else 'is gone'}")
    for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()[-5:]:
        event = json.loads(line)
        parts = [f"rank {event['rank']}" if event["rank"] is not None else "", event["text"]]
        parts.append(f"code {event['code']}" if event["code"] is not None else "")
        clock = time.strftime("%H:%M:%S", time.localtime(event["time_s"]))
        print(f"  {clock} attempt {event['attempt']} {event['kind']} {' '.join(filter(None, parts))}".rstrip())
    return 0


def logs(spec: RunSpec, *, rank: int, follow: bool, lines: int) -> int:
    """The log of a rank's newest attempt."""
    folder = state_dir(spec)
    path = log_path(folder, read(spec)["attempt"], rank)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; the logs are in {folder / 'logs'}")
    return external.run(["tail", "--lines", str(lines), *(["--follow"] if follow else []), str(path)])


def cancel(spec: RunSpec) -> int:
    """SIGTERM to the launcher, which lets its processes save; waits for it."""
    state = read(spec)
    pid = launcher_pid(state)
    if pid is None:
        print(f"{spec.name}: no job is running")
        return 0
    os.kill(pid, signal.SIGTERM)
    # The launcher itself kills what outlives the grace period.
    deadline = time.monotonic() + spec.grace_s + 30
    while launcher_pid(state) is not None:
        if time.monotonic() > deadline:
            raise ChildProcessError(f"launcher {pid} of {spec.name} still runs after {spec.grace_s + 30} s")
        time.sleep(0.1)
    print(f"{spec.name}: {read(spec)['text']}")
    return 0
