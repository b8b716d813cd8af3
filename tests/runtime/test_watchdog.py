"""The watchdog, in processes that hang for real."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from omnihuman_jax.commands import train
from omnihuman_jax.runtime import exit_codes, processes
from omnihuman_jax.runtime.watchdog import WatchdogConfig
from omnihuman_jax.training import resume
from tests.training import tiny_config

PROGRAM = """
import sys, time
from pathlib import Path
from omnihuman_jax.runtime.watchdog import Watchdog, WatchdogConfig

def a_place_to_hang():
    time.sleep(60)

watchdog = Watchdog(WatchdogConfig(step_s=1.0, start_s=2.5), Path(sys.argv[1]), poll_s=0.1)
time.sleep(1.5)  # a start has its own time
with watchdog.allow(5.0, "reading"):
    time.sleep(1.5)
time.sleep(1.5)  # and has it again after a read
for _ in range(4):
    watchdog.beat()
    time.sleep(0.5)
with watchdog.allow(5.0, "saving"):
    time.sleep(1.5)
print("alive", flush=True)
a_place_to_hang()
"""


def test_a_hang_ends_with_the_stacks_of_all_threads_and_its_own_code(tmp_path: Path) -> None:
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "stacks")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == exit_codes.HANG and done.stdout == "alive\n"
    for told in (done.stderr, (tmp_path / "stacks").read_text()):
        assert "no progress for 1 s (a training step)" in told and "in a_place_to_hang" in told
    assert time.monotonic() - begin < 40


def test_a_start_that_hangs_is_ended_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, str]] = []
    over = threading.Event()

    def abandon(code: int, reason: str) -> None:
        told.append((code, reason))
        over.set()

    def opens_a_data_set(config: object, ask: object) -> None:
        raise ValueError("ended" if over.wait(20) else "nobody saw it hang")

    monkeypatch.setattr(processes, "abandon", abandon)  # which ends the process
    monkeypatch.setattr(resume, "with_generations", lambda config, stored: config)  # there is no data set
    monkeypatch.setattr(resume, "assemble", opens_a_data_set)
    config = tiny_config.get_config()
    config.watchdog.start_s = 0.3
    with pytest.raises(ValueError, match="ended"):
        train.train(config, tmp_path / "run", progress=False)
    assert told[0] == (exit_codes.HANG, "no progress for 0.3 s (the start, up to the first step)")
    assert "in opens_a_data_set" in (tmp_path / "run" / "stacks-0.txt").read_text()
    assert all(thread.name != "omnihuman-watchdog" or thread.join(5) is None for thread in threading.enumerate())
    with pytest.raises(ValueError, match=r"watchdog\.start_s must be >= 0"):
        WatchdogConfig(start_s=-1).validate()
