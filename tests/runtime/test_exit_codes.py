"""One table from exit codes to what a launcher does."""

import signal
import subprocess
import sys

import pytest

from omnihuman_jax.runtime import exit_codes
from omnihuman_jax.runtime.exit_codes import Verdict


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (0, Verdict.DONE),
        (2, Verdict.FAIL),
        (130, Verdict.FAIL),
        (42, Verdict.RESTART_FREE),
        (1, Verdict.RESTART_COUNTED),
        (43, Verdict.RESTART_COUNTED),
        (44, Verdict.RESTART_COUNTED),
        (134, Verdict.RESTART_COUNTED),
        (137, Verdict.RESTART_COUNTED),
        (143, Verdict.RESTART_COUNTED),
        (255, Verdict.RESTART_COUNTED),
    ],
)
def test_verdicts(code: int, verdict: Verdict) -> None:
    assert exit_codes.verdict(code) is verdict


def test_the_codes_are_apart_and_a_signal_reads_as_in_a_shell() -> None:
    codes = [value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)]
    assert len(codes) == len(set(codes)) and all(0 <= code < 256 for code in codes)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process.send_signal(signal.SIGKILL)
    assert exit_codes.of_returncode(process.wait(10)) == exit_codes.KILLED == 137
    process.stdin.close()
    assert exit_codes.of_returncode(42) == 42
