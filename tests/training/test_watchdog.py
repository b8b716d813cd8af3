"""The watchdog, in processes that hang for real."""

import subprocess
import sys
import time
from pathlib import Path

from omnihuman_jax import exit_codes

PROGRAM = """
import sys, time
from pathlib import Path
from omnihuman_jax.training.watchdog import Watchdog, WatchdogConfig

def a_place_to_hang():
    time.sleep(60)

watchdog = Watchdog(WatchdogConfig(step_s=1.0), Path(sys.argv[1]), poll_s=0.1)
time.sleep(1.5)  # not armed before the first step
with watchdog.allow(5.0, "reading"):
    time.sleep(1.5)
time.sleep(1.5)  # nor after a read that came before it
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
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "stacks")], capture_output=True, text=True, timeout=60)
    assert done.returncode == exit_codes.HANG and done.stdout == "alive\n"
    for told in (done.stderr, (tmp_path / "stacks").read_text()):
        assert "no progress for 1 s (a training step)" in told and "in a_place_to_hang" in told
    assert time.monotonic() - begin < 40
