"""One host's process, kept running by the launchers' rule."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch import raise_memlock, supervise

COUNTS = """
import os, pathlib, sys
attempt = int(os.environ["RESTART_ATTEMPT"])
pathlib.Path(sys.argv[1], f"attempt-{attempt}").touch()
sys.exit([int(code) for code in sys.argv[2].split(",")][attempt])
"""


def start(*arguments: str, **env: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "launch.supervise", *arguments]
    return subprocess.Popen(
        command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(folder: Path, codes: str, *options: str, **env: str) -> tuple[int, int, str]:
    """Code, attempts and output of a program that exits with one code an attempt."""
    process = start(*options, "--", "-c", COUNTS, str(folder), codes, **env)
    output = process.communicate(timeout=60)[0]
    return process.returncode, len(list(folder.glob("attempt-*"))), output


SAVES = (
    "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(42))\nprint('ready',"
    " flush=True)\ntime.sleep(60)"
)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIHUMAN_RESTART_PAUSE_S", "0.01")


@pytest.mark.parametrize(
    ("codes", "restarts", "code", "attempts"),
    [("1,0", 3, 0, 2), ("2,0", 3, 2, 1), ("42,42,42,0", 1, 0, 4), ("1,137,1", 2, 1, 3), ("42,0", 0, 42, 1)],
)
def test_the_rule(tmp_path: Path, codes: str, restarts: int, code: int, attempts: int) -> None:
    assert run(tmp_path, codes, f"--restarts={restarts}")[:2] == (code, attempts)


def test_attempts_go_on_from_the_environment_and_the_first_code_is_kept(tmp_path: Path) -> None:
    first = tmp_path / "code"
    code, attempts, _ = run(tmp_path, "0,0,0,7", f"--first-code={first}", RESTART_ATTEMPT="3")
    assert (code, attempts) == (7, 1) and (tmp_path / "attempt-3").exists()
    assert first.read_text() == "7\n"
    run(tmp_path, "9", f"--first-code={first}", RESTART_ATTEMPT="0")
    assert first.read_text() == "7\n"


def test_a_done_process_leaves_no_code(tmp_path: Path) -> None:
    run(tmp_path, "0", f"--first-code={tmp_path / 'code'}")
    assert not (tmp_path / "code").exists()


def test_sigterm_is_passed_on_and_ends_the_restarts() -> None:
    process = start("--restarts=5", "--", "-c", SAVES)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 42
    process.stdout.close()


def test_a_secret_reaches_the_process_alone(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    process = start(
        f"--secret=T={tmp_path / 'token'}", "--", "-c", "import os, sys; sys.exit(0 if os.environ['T'] == 'abc' else 3)"
    )
    assert process.wait(60) == 0
    process.stdout.close()
    first = tmp_path / "code"
    missing = start("--secret=T=/nowhere/token", f"--first-code={first}", "--", "-c", "pass")
    output = missing.communicate(timeout=60)[0]
    assert missing.returncode == 2 and "/nowhere/token does not exist" in output and first.read_text() == "2\n"


def test_pauses_grow_in_a_loop_of_failures() -> None:
    assert supervise.next_pause(1.0, uptime_s=1.0) == 2.0
    assert supervise.next_pause(50.0, uptime_s=1.0) == supervise.MAX_PAUSE_S
    assert supervise.next_pause(32.0, uptime_s=3600.0) == supervise.first_pause()


def test_raise_memlock_becomes_its_arguments() -> None:
    command = [sys.executable, "-m", raise_memlock.__name__, "-c", "import os; print(os.getpid())"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines = process.communicate(timeout=60)[0].splitlines()
    assert lines[-1] == str(process.pid)  # the same process: signals reach the trainer
