"""A stop is answered at once while there is nothing to save, and between two steps of a run wherever it began."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from omnihuman_jax.runtime import exit_codes, processes, signals
from omnihuman_jax.telemetry.metrics import read_metrics
from tests.training import runs

CODES = {signal.SIGTERM: exit_codes.RESTART, signal.SIGINT: exit_codes.INTERRUPTED}
# Longer than any answer may take.
LONG_S = 60

STAYS = """
import signal, sys, threading
from omnihuman_jax.runtime import signals
from tests.training import moments
with signals.listening(*signals.STOPS) as listener:
    def end(code, reason): signals.exit_now(code) if reason != "Ctrl-C, twice" else signals.exit_now(77)
    listener.joined(lambda: None, lambda number: print("passed on", number.name, flush=True), end)
    if sys.argv[1] == "handed over":
        listener.hand_over()
    moments.stay("work", 60)
"""


def stays(state: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", STAYS, state], stdout=subprocess.PIPE, text=True, stderr=subprocess.STDOUT
    )
    runs.wait_until(process, "work")
    return process


@pytest.mark.parametrize("number", CODES)
def test_a_stop_is_answered_while_the_main_thread_is_in_c(number: signal.Signals) -> None:
    process, begin = stays("before"), time.monotonic()
    process.send_signal(number)
    output = process.communicate(timeout=LONG_S)[0]
    assert process.returncode == CODES[number] and time.monotonic() - begin < LONG_S / 4
    assert "before the first step: there is nothing to save; the same command continues" in output


def test_the_loop_is_told_once_and_a_second_ctrl_c_means_it() -> None:
    process = stays("handed over")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "passed on SIGTERM\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "passed on SIGINT\n" and process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LONG_S)
    assert process.returncode == 77


def test_signals_go_back_to_whom_they_were_taken_from() -> None:
    before = [signal.getsignal(number) for number in signals.STOPS]
    with signals.listening(*signals.STOPS) as listener:
        assert signals.current() is listener and all(signal.getsignal(number) not in before for number in signals.STOPS)
        with signals.listening(signal.SIGINT) as inner:
            assert inner is listener
        # JAX is in use here: this program keeps its signals.
        runs.jax.devices()
        assert not processes.join(None, None, None)
        assert signals.current() is None and [signal.getsignal(number) for number in signals.STOPS] == before


def test_a_loop_that_joined_nothing_asks_for_its_own_signals() -> None:
    with processes.stop_request() as stop:
        assert not stop.agreed(1)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed(2) and stop.by_hand
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with processes.stop_request() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed(1) and not stop.by_hand


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_dataset(tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """A run of two steps, to go on with."""
    run = tmp_path_factory.mktemp("stopped")
    runs.train(run, dataset, "--stop-after=2")
    return run


def test_a_resumed_run_answers_sigterm_while_it_compiles(stopped: Path, dataset: Path) -> None:
    process = runs.start(stopped, dataset, "--stop-after=4", moment=("compiling", LONG_S))
    runs.wait_until(process, "compiling")
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    codes, outputs = runs.outcomes([process])
    assert codes == [exit_codes.RESTART] and time.monotonic() - begin < LONG_S / 4, outputs
    assert "stopped by SIGTERM before the first step" in outputs[0]
    assert read_metrics(stopped)[-1]["step"] == 2


@pytest.mark.slow
def test_a_resumed_run_answers_sigterm_after_its_first_step(stopped: Path, dataset: Path) -> None:
    process = runs.start(stopped, dataset, moment=("the first step", 3.0))
    runs.wait_until(process, "the first step")
    process.send_signal(signal.SIGTERM)
    codes, outputs = runs.outcomes([process])
    assert codes == [exit_codes.RESTART], outputs
    assert (
        "stopped by a signal at step 3 of" in outputs[0] and (stopped / "checkpoints" / "3" / "manifest.json").exists()
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_is_stopped_while_the_other_waits_for_it(
    tmp_path: Path, dataset: Path, number: signal.Signals, victim: int
) -> None:
    runs.train(tmp_path, dataset, "--stop-after=2", processes=2)
    # The one that stays compiles, the other has compiled and waits.
    jobs = runs.start_all(tmp_path, dataset, "--stop-after=4", moments={1: ("compiling", LONG_S)})
    runs.wait_until(jobs[1], "compiling")
    time.sleep(10)
    begin = time.monotonic()
    jobs[victim].send_signal(number)
    codes, outputs = runs.outcomes(jobs)
    assert codes == [CODES[number]] * 2 and time.monotonic() - begin < LONG_S / 4, outputs
    runs.finish(*runs.start_all(tmp_path, dataset, "--stop-after=4"))
    assert read_metrics(tmp_path)[-1]["step"] == 4
