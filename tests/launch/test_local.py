"""The restart rule on real processes: small Python programs in place of the trainer, which `test_local_training.py`
runs.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch import local, local_state
from launch.local import Event, LocalJob, LocalProcesses, Outcome, run_local
from launch.spec import RunSpec
from omnihuman_jax.runtime import exit_codes
from tests.launch.specs import spec

SLEEP = "import time; time.sleep(60)"
# SIGTERM ends it with the code of a saved stop.
SAVES = (
    "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(42))\nprint('ready',"
    " flush=True)\ntime.sleep(60)"
)
IGNORES = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"


def a_spec(tmp_path: Path, **fields: object) -> RunSpec:
    accelerator = {"type": "cpu", "nodes": 2, "devices": 1}
    return spec({"accelerator": accelerator, "output": str(tmp_path / "run"), "grace_s": 5, "restarts": 2}, fields)


def run(job_spec: RunSpec, programs: dict[tuple[int, int], str], default: str = "", **options: object) -> Outcome:
    """Runs `programs[attempt, rank]`, or `default`."""

    def command_of(attempt: int, rank: int, processes: LocalProcesses, port: int) -> list[str]:
        return [sys.executable, "-c", programs.get((attempt, rank), default)]

    return run_local(job_spec, command_of=command_of, pause_s=0.01, crash_grace_s=0.5, **options)


def kinds(outcome: Outcome) -> list[str]:
    return [event.kind for event in outcome.events]


def test_done_is_done(tmp_path: Path) -> None:
    outcome = run(a_spec(tmp_path), {})
    assert (outcome.code, outcome.attempts, outcome.counted, outcome.free) == (0, 1, 0, 0)
    assert kinds(outcome) == ["attempt", "started", "started", "exited", "exited", "end"]


def test_a_user_error_fails_at_once_and_ends_the_others(tmp_path: Path) -> None:
    before = time.monotonic()
    outcome = run(a_spec(tmp_path), {(0, 1): "import sys; sys.exit(2)"}, default=SLEEP)
    assert (outcome.code, outcome.attempts, outcome.counted) == (2, 1, 0)
    assert time.monotonic() - before < 60
    codes = {event.rank: event.code for event in outcome.events if event.kind == "exited"}
    assert codes == {1: 2, 0: 143}


def test_crashes_are_counted_until_there_are_too_many(tmp_path: Path) -> None:
    outcome = run(a_spec(tmp_path), {}, default="import os; os.abort()")
    assert (outcome.code, outcome.attempts, outcome.counted) == (134, 3, 3)
    assert outcome.events[-1].text == "failed 3 times, 2 restarts allowed"


def test_a_saved_stop_restarts_for_free(tmp_path: Path) -> None:
    programs = {(attempt, rank): "import sys; sys.exit(42)" for attempt in range(4) for rank in range(2)}
    outcome = run(a_spec(tmp_path, restarts=0), programs)
    assert (outcome.code, outcome.attempts, outcome.counted, outcome.free) == (0, 5, 0, 4)


def test_the_first_code_decides(tmp_path: Path) -> None:
    """A peer that dies of a saved stop (134) a moment later does not make it a crash."""
    programs = {(0, 0): "import sys; sys.exit(42)", (0, 1): "import os, time; time.sleep(0.5); os.abort()"}
    assert run(a_spec(tmp_path, restarts=0), programs).free == 1


def test_a_process_that_is_killed_restarts_all(tmp_path: Path) -> None:
    job_spec = a_spec(tmp_path)
    seen: list[str] = []

    def kill_one(event: Event) -> None:
        if event.kind == "started" and event.attempt == 0 and event.rank == 1:
            os.kill(event.pid, signal.SIGKILL)

    attempts = "import os; print('attempt', os.environ['RESTART_ATTEMPT'])"
    outcome = run(job_spec, {(0, 0): SLEEP, (0, 1): SLEEP}, default=attempts, on_event=kill_one)
    assert (outcome.code, outcome.attempts, outcome.counted) == (0, 2, 1)
    first = next(event for event in outcome.events if event.kind == "exited")
    assert (first.rank, first.code) == (1, 137)
    seen = [local_state.log_path(local.state_dir(job_spec), 1, rank).read_text() for rank in range(2)]
    assert seen == ["attempt 1\n", "attempt 1\n"]


@pytest.mark.parametrize("program", [IGNORES, f"import os, signal; os.kill(os.getpid(), signal.SIGSTOP)\n{SLEEP}"])
def test_a_process_that_does_not_end_is_killed(tmp_path: Path, program: str) -> None:
    outcome = run(
        a_spec(tmp_path, restarts=1), {(0, 0): program, (0, 1): "import time; time.sleep(0.5); raise RuntimeError"}
    )
    assert (outcome.code, outcome.counted) == (0, 1)
    assert "killing" in kinds(outcome)


def test_a_process_that_hangs_after_the_others_finished_is_a_hang(tmp_path: Path) -> None:
    outcome = run(a_spec(tmp_path, restarts=0, grace_s=1), {(0, 1): SLEEP})
    assert (outcome.code, outcome.counted) == (exit_codes.HANG, 1)


def test_attempts_may_have_another_layout(tmp_path: Path) -> None:
    crash = "import sys; sys.exit(1)"
    grows = lambda attempt: LocalProcesses(count=2 + attempt, devices=1)  # noqa: E731
    outcome = run(a_spec(tmp_path), {(0, 0): crash}, processes=grows)
    assert [sum(e.kind == "started" and e.attempt == k for e in outcome.events) for k in (0, 1)] == [2, 3]


def test_stop_saves_and_ends(tmp_path: Path) -> None:
    job_spec = a_spec(tmp_path, env={"A": "b"})
    job = LocalJob(job_spec, command_of=lambda *_: [sys.executable, "-c", SAVES])
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(job.run()))
    thread.start()
    logs = [local_state.log_path(local.state_dir(job_spec), 0, rank) for rank in range(2)]
    deadline = time.monotonic() + 20
    while not all(log.exists() and log.read_text() for log in logs) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(job.pids()) == 2
    job.stop()
    thread.join(20)
    assert outcomes and (outcomes[0].code, outcomes[0].counted) == (42, 0)
    assert outcomes[0].events[-1].text == "stopped; the same command continues"
    assert not job.pids()


def test_no_process_outlives_a_launcher_that_fails(tmp_path: Path) -> None:
    pids: list[int] = []

    def fail(event: Event) -> None:
        if event.kind == "started":
            pids.append(event.pid or 0)
        if len(pids) == 2:
            raise RuntimeError("of the test")

    with pytest.raises(RuntimeError, match="of the test"):
        run(a_spec(tmp_path), {}, default=SLEEP, on_event=fail)
    assert len(pids) == 2 and not any(local_state.process_start(pid) for pid in pids)


def test_a_second_stop_waits_no_longer(tmp_path: Path) -> None:
    job = LocalJob(a_spec(tmp_path, grace_s=60), command_of=lambda *_: [sys.executable, "-c", IGNORES])
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(job.run()))
    thread.start()
    deadline = time.monotonic() + 20
    while len(job.pids()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    job.stop()
    job.stop()
    thread.join(20)
    assert outcomes and not job.pids() and outcomes[0].events[-1].text == "stopped; the same command continues"


def test_a_second_launcher_is_refused_and_a_later_one_counts_on(tmp_path: Path) -> None:
    job_spec = a_spec(tmp_path)

    def start_another(event: Event) -> None:
        if event.kind == "attempt":
            with pytest.raises(ValueError, match="another launcher is running the job in"):
                run(job_spec, {})

    assert run(job_spec, {}, on_event=start_another).code == 0
    later = run(job_spec, {})
    assert {event.attempt for event in later.events} == {1}


def test_secrets_come_from_files_and_stay_out_of_state_and_argv(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret-value\n")
    job_spec = a_spec(tmp_path, secrets={"HF_TOKEN": {"file": str(file)}}, compilation_cache="/nowhere")
    program = (
        "import os; assert os.environ['HF_TOKEN'] == 's3cret-value'; assert os.environ['JAX_COMPILATION_CACHE_DIR']; "
        "assert os.environ['JAX_COORDINATOR_BIND_ADDRESS'].startswith('127.0.0.1:')"
    )
    assert run(job_spec, {}, default=program).code == 0
    for path in local.state_dir(job_spec).rglob("*"):
        assert path.is_dir() or "s3cret" not in path.read_text()


def test_the_trainers_command_names_every_process(tmp_path: Path) -> None:
    job = LocalJob(a_spec(tmp_path, overrides={"seed": 3}))
    argv = job.command_of(0, 1, LocalProcesses(count=2, devices=4), 1234)
    assert argv[:6] == [sys.executable, "-m", "omnihuman_jax.cli", "--simulate-devices", "4", "train"]
    assert argv[-4:] == ["--coordinator=127.0.0.1:1234", "--num-processes=2", "--process-id=1", "--config.seed=3"]


def test_a_tpu_spec_runs_here_as_it_is_or_folded(tmp_path: Path) -> None:
    tpu = {"type": "v6e", "topology": "2x4", "slices": 2}
    assert local.processes_of(a_spec(tmp_path, accelerator=tpu)) == LocalProcesses(count=4, devices=4)
    assert local.processes_of(
        a_spec(tmp_path, accelerator=tpu, local={"processes": 2, "devices": 8})
    ) == LocalProcesses(count=2, devices=8)
    own = local.processes_of(a_spec(tmp_path, accelerator=tpu, local={"simulate": False}))
    assert own == LocalProcesses(count=1, devices=0)


def test_status_logs_and_cancel(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job_spec = a_spec(tmp_path)
    with pytest.raises(FileNotFoundError, match="was not started with --target local"):
        local_state.status(job_spec)
    run(job_spec, {}, default="print('hello from a rank')")
    assert local_state.status(job_spec) == 0
    assert "run: done; attempt 0, code 0" in capfd.readouterr().out
    assert local_state.logs(job_spec, rank=1, follow=False, lines=5) == 0
    assert "hello from a rank" in capfd.readouterr().out
    with pytest.raises(FileNotFoundError, match="rank-7"):
        local_state.logs(job_spec, rank=7, follow=False, lines=5)
    assert local_state.cancel(job_spec) == 0
    assert "no job is running" in capfd.readouterr().out


LAUNCHER = """
import pathlib, sys
from launch.local import run_local
from tests.launch.test_local import SAVES, a_spec
sys.exit(run_local(a_spec(pathlib.Path(sys.argv[1])), command_of=lambda *_: [sys.executable, "-c", SAVES]).code)
"""


def start_launcher(job_spec: RunSpec) -> subprocess.Popen:
    """A launcher as a process of its own, as `omnihuman submit` is one."""
    return subprocess.Popen([sys.executable, "-c", LAUNCHER, str(Path(job_spec.output).parent)])


def test_cancel_from_another_process_lets_the_ranks_save(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job_spec = a_spec(tmp_path)
    launcher = start_launcher(job_spec)
    log = local_state.log_path(local.state_dir(job_spec), 0, 1)
    deadline = time.monotonic() + 20
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert local_state.status(job_spec) == 0
    shown = capfd.readouterr().out
    assert f"running, launcher {launcher.pid}" in shown and shown.count(" runs") == 2
    waiter = threading.Thread(target=local_state.cancel, args=(job_spec,))
    waiter.start()
    assert launcher.wait(20) == exit_codes.RESTART
    waiter.join(20)
    assert "run: stopped; the same command continues" in capfd.readouterr().out


def test_the_ranks_end_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    job_spec = a_spec(tmp_path)
    launcher = start_launcher(job_spec)
    state_file = local.state_dir(job_spec) / "state.json"
    log = local_state.log_path(local.state_dir(job_spec), 0, 1)
    deadline = time.monotonic() + 20
    while not (log.exists() and log.read_text() and state_file.exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    processes = list(json.loads(state_file.read_text())["processes"].values())
    assert len(processes) == 2
    launcher.kill()
    launcher.wait(20)
    while any(local_state.process_start(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(local_state.process_start(process) for process in processes)
    assert local_state.status(job_spec) == 0


@pytest.mark.parametrize(
    "program", ["import time; time.sleep(0.7)", IGNORES], ids=["saves for a while", "does not end"]
)
def test_ranks_of_a_launcher_that_was_killed_are_outlasted(tmp_path: Path, program: str) -> None:
    job_spec = a_spec(tmp_path, grace_s=2)
    folder = local_state.state_dir(job_spec)
    folder.mkdir(parents=True)
    old = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    other = subprocess.Popen([sys.executable, "-c", SLEEP])
    try:
        # `other` has the number of a rank that ended long ago.
        left = {
            "processes": {"0": old.pid, "1": other.pid},
            "started": {"0": local_state.process_start(old.pid), "1": "1"},
        }
        local_state.write(folder, {"name": "run", "state": "running", "attempt": 3, **left})
        seen: list[str] = []
        outcome = run(job_spec, {}, on_event=lambda event: seen.append(local_state.process_start(old.pid)))
        assert outcome.code == 0 and outcome.events[0].attempt == 4
        assert seen and not any(seen)
        assert old.wait(5) == (0 if program != IGNORES else -signal.SIGKILL) and other.poll() is None
    finally:
        for process in (old, other):
            process.kill()
            process.wait()
