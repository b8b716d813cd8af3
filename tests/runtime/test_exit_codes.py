"""One table from exit codes to what a launcher does."""

import signal
import subprocess
import sys

import pytest

from omnihuman_jax.runtime import exit_codes
from omnihuman_jax.runtime.exit_codes import AfterExit


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (0, AfterExit.DONE),
        (2, AfterExit.FAIL),
        (130, AfterExit.FAIL),
        (42, AfterExit.RESTART_FREE),
        (1, AfterExit.RESTART_COUNTED),
        (43, AfterExit.RESTART_COUNTED),
        (44, AfterExit.RESTART_COUNTED),
        (134, AfterExit.RESTART_COUNTED),
        (137, AfterExit.RESTART_COUNTED),
        (143, AfterExit.RESTART_COUNTED),
        (255, AfterExit.RESTART_COUNTED),
    ],
)
def test_what_is_done_after_an_exit(code: int, verdict: AfterExit) -> None:
    assert exit_codes.after_exit(code) is verdict


def test_the_codes_are_apart_and_a_signal_reads_as_in_a_shell() -> None:
    codes = [value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)]
    assert len(codes) == len(set(codes)) and all(0 <= code < 256 for code in codes)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process.send_signal(signal.SIGKILL)
    assert exit_codes.of_returncode(process.wait(10)) == exit_codes.KILLED == 137
    process.stdin.close()
    assert exit_codes.of_returncode(42) == 42
