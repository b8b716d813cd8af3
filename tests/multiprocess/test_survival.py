"""Several processes, and one of them dies, hangs, fails or is asked to stop: all end soon, with the code that says what
to do.
"""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from omnihuman_jax.runtime import exit_codes
from omnihuman_jax.runtime.incidents import read_lines
from omnihuman_jax.telemetry.metrics import read_metrics
from tests.training import runs

OPTIONS = (
    "--config.stages.rows[1].steps=395", "--config.checkpoint.interval=5", "--heartbeat-s=10", "--shutdown-s=10",
    "--config.watchdog.step_s=20",
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_dataset(tmp_path_factory.mktemp("data") / "dataset")


def reached(jobs: list[subprocess.Popen], run: Path, step: int) -> None:
    """Until `step` is logged and the checkpoint before it is complete."""
    complete = run / "checkpoints" / str(step // 5 * 5) / "manifest.json"
    for _ in range(15_000):
        if (
            (run / "metrics.jsonl").exists()
            and any(line["step"] >= step for line in read_metrics(run))
            and complete.exists()
        ):
            return
        assert all(job.poll() is None for job in jobs), runs.outcomes(jobs)
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached")


@pytest.mark.slow
def test_a_signal_to_one_and_a_failure_of_one_end_all(tmp_path: Path, dataset: Path) -> None:
    # Nobody dies unheard here: what waits long for a core is not taken for dead.
    patient = (*OPTIONS, "--heartbeat-s=60", "--config.watchdog.step_s=120")
    jobs = runs.start_all(tmp_path, dataset, *patient)
    reached(jobs, tmp_path, 6)
    jobs[1].send_signal(signal.SIGTERM)
    begin = time.monotonic()
    codes, outputs = runs.outcomes(jobs)
    assert codes == [exit_codes.RESTART] * 2 and time.monotonic() - begin < 20, outputs
    stopped = read_metrics(tmp_path)[-1]["step"]
    assert all(f"stopped by a signal at step {stopped} of 400" in output for output in outputs)
    assert (tmp_path / "checkpoints" / str(stopped) / "manifest.json").exists()
    # The next attempt begins there, and process 0 learns from process 1 why it has to leave.
    jobs = runs.start_all(tmp_path, dataset, *patient, faults={1: ("raise", 4)})
    codes, outputs = runs.outcomes(jobs)
    assert codes == [exit_codes.FAILURE] * 2
    assert "RuntimeError: planted at batch 4" in outputs[1] and "process 1 left with exit code 1" in outputs[0]
    assert read_metrics(tmp_path)[-1]["step"] >= stopped + 2


# The other one after a kill: JAX ends it at the missed heartbeats, or a collective with the dead fails before that.
LOST_A_PEER = (exit_codes.ABORTED, exit_codes.FAILURE)
FATES: dict[str, tuple[int | tuple[int, ...], int | tuple[int, ...]]] = {
    "kill 1": (LOST_A_PEER, exit_codes.KILLED),
    "kill 0": (exit_codes.KILLED, LOST_A_PEER),
    "stop 1": (exit_codes.ABORTED, exit_codes.KILLED),  # SIGSTOP: ended by the test once the other is gone
    "interrupt 1": (exit_codes.INTERRUPTED, exit_codes.INTERRUPTED),
    "sleep 1": (exit_codes.HANG, exit_codes.HANG),
    "user_error 1": (exit_codes.USER_ERROR, exit_codes.USER_ERROR),
    "raise 0": (exit_codes.FAILURE, exit_codes.FAILURE),
}
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "interrupt": signal.SIGINT}


@pytest.mark.slow
@pytest.mark.parametrize("fate", FATES)
def test_nobody_is_left_behind(tmp_path: Path, dataset: Path, fate: str) -> None:
    kind, rank = fate.split()
    victim = int(rank)
    faults = {} if kind in SIGNALS else {victim: (kind, 7)}
    jobs = runs.start_all(tmp_path, dataset, *OPTIONS, faults=faults)
    if kind in SIGNALS:
        reached(jobs, tmp_path, 6)
        jobs[victim].send_signal(SIGNALS[kind])
    begin = time.monotonic()
    if kind == "stop":
        jobs[1 - victim].wait(timeout=100)
        os.kill(jobs[victim].pid, signal.SIGKILL)
    codes, outputs = runs.outcomes(jobs, timeout=200)
    for code, expected in zip(codes, FATES[fate], strict=True):
        assert code in (expected if isinstance(expected, tuple) else (expected,)), outputs
    if kind in SIGNALS:
        assert time.monotonic() - begin < 40
    if kind == "sleep":
        assert "in faulty" in (tmp_path / "stacks-1.txt").read_text()
    last = read_metrics(tmp_path)[-1]["step"]
    runs.finish(*runs.start_all(tmp_path, dataset, *OPTIONS, f"--stop-after={last + 2}"))
    assert read_metrics(tmp_path)[-1]["step"] == last + 2


@pytest.mark.slow
def test_all_agree_on_the_newest_whole_checkpoint(tmp_path: Path, dataset: Path) -> None:
    options = (*OPTIONS, "--config.checkpoint.keep=9")
    runs.train(tmp_path, dataset, *options, "--stop-after=22", processes=2)
    straight = runs.records(tmp_path)
    # One is short, which one of the two processes sees; one has a bit flipped.
    next((tmp_path / "checkpoints" / "22" / "ema").rglob("d/*")).write_bytes(b"")
    file = max((tmp_path / "checkpoints" / "20" / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = np.fromfile(file, np.uint8)
    data[len(data) // 2] ^= 1
    data.tofile(file)
    jobs = runs.start_all(tmp_path, dataset, *options, "--stop-after=22")
    codes, outputs = runs.outcomes(jobs)
    assert codes == [0, 0], outputs
    assert [record["step"] for record in straight] == [record["step"] for record in runs.records(tmp_path)]
    assert runs.records(tmp_path) == straight
    assert sorted(path.name for path in (tmp_path / "checkpoints" / "damaged").iterdir()) == ["20-1", "22-1"]
    assert [line["step"] for line in read_lines(tmp_path / "incidents.jsonl") if "moved_to" in line] == [22, 20]


@pytest.mark.slow
def test_the_last_save_fails_for_one_of_two_and_is_made_again_of_the_same_step(tmp_path: Path, dataset: Path) -> None:
    jobs = runs.start_all(
        tmp_path,
        dataset,
        "--config.checkpoint.retry_delay_s=0.2",
        "--config.checkpoint.retries=2",
        faults={1: ("unfinished", 12)},
    )
    codes, outputs = runs.outcomes(jobs)
    assert codes == [exit_codes.OK] * 2, outputs
    (failed,) = [line for line in read_lines(tmp_path / "incidents.jsonl") if line["incident"] == "save_failed"]
    assert (
        failed["step"] == 12
        and "planted" in failed["reason"]
        and (tmp_path / "checkpoints" / "12" / "manifest.json").exists()
    )


@pytest.mark.slow
def test_saves_that_fail_for_one_of_two_fail_for_both_and_are_made_again(
    tmp_path: Path, dataset: Path, request: pytest.FixtureRequest
) -> None:
    """One process does not see the folder, then one cannot write while the other waits for it, then the folder is gone
    for both.
    """
    options = (
        *OPTIONS,
        "--config.checkpoint.keep=99",
        "--config.checkpoint.retry_delay_s=0.2",
        "--config.checkpoint.interval=20",
    )
    folder = tmp_path / "checkpoints"

    def failures() -> list[dict]:
        return [line for line in read_lines(tmp_path / "incidents.jsonl") if line["incident"] == "save_failed"]

    def until(condition: Callable[[], bool]) -> None:
        for _ in range(15_000):
            if condition():
                return
            assert all(job.poll() is None for job in jobs), runs.outcomes(jobs)
            time.sleep(0.02)
        raise AssertionError("not reached")

    def newest() -> int:
        return max((int(file.parent.name) for file in folder.glob("*/manifest.json")), default=0)

    jobs = runs.start_all(tmp_path, dataset, *options, "--config.stages.rows[1].steps=1995", faults={1: ("blind", 10)})
    request.addfinalizer(lambda: [job.kill() for job in jobs])
    until(lambda: newest() > 20)
    assert [line["in_a_row"] for line in failures()] == [1, 1] and all(
        "planted" in line["reason"] for line in failures()
    )
    (early,) = [int(file.parent.name) for file in folder.glob("*/manifest.json") if int(file.parent.name) % 20]
    assert 20 < early < 40  # sooner than the interval says, and once
    # Process 1 cannot write a file of any size: process 0 would wait for it in a barrier of Orbax, for minutes.
    _, hard = resource.prlimit(jobs[1].pid, resource.RLIMIT_FSIZE)
    resource.prlimit(jobs[1].pid, resource.RLIMIT_FSIZE, (1 << 12, hard))
    begin, before = time.monotonic(), newest()
    until(lambda: len(failures()) == 3)
    resource.prlimit(jobs[1].pid, resource.RLIMIT_FSIZE, (hard, hard))
    until(lambda: newest() > before + 20)
    assert time.monotonic() - begin < 100 and "File too large" in failures()[2]["reason"]
    folder.rename(tmp_path / "away")
    until(lambda: len(failures()) > 3)
    (tmp_path / "away").rename(folder)
    last = failures()[-1]["step"]
    until(lambda: newest() > last)
    jobs[0].send_signal(signal.SIGTERM)
    codes, outputs = runs.outcomes(jobs)
    assert codes == [exit_codes.RESTART] * 2, outputs
    # The next start finds none of it, and both leave for a restart.
    folder.rename(tmp_path / "away")
    jobs = runs.start_all(
        tmp_path, dataset, *options, "--config.stages.rows[1].steps=1995", "--config.checkpoint.retries=1"
    )
    codes, outputs = runs.outcomes(jobs)
    assert codes == [exit_codes.RETRY] * 2 and all("did not answer in 2 tries" in output for output in outputs), outputs
