"""What happens when numbers, records, disks or storage go wrong: runs of one process, as a user sees them."""

import errno
import itertools
import json
import math
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from omnihuman_jax.commands import replay
from omnihuman_jax.config import read_config, write_config
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.runtime import exit_codes
from omnihuman_jax.runtime.incidents import read_lines
from omnihuman_jax.runtime.processes import RunEnded
from omnihuman_jax.telemetry.metrics import read_metrics
from omnihuman_jax.training import resume
from tests.data import synthetic
from tests.training import runs, tiny_config

POISONED, DAMAGED = 2, 16  # rows of the catalog that the first steps read


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A run on a dataset with a latent that is no number and a record that cannot be read; with the dataset and its
    output.
    """
    folder = tmp_path_factory.mktemp("wrong")
    dataset = runs.write_dataset(folder / "dataset", poisoned=(POISONED,))
    synthetic.damage(dataset, runs.catalog(), DAMAGED)
    output = runs.train(folder / "run", dataset, "--config.checkpoint.interval=4")
    return folder / "run", dataset, output


def test_steps_that_are_not_finite_are_skipped_counted_and_named(wrong: tuple[Path, Path, str]) -> None:
    run, _, output = wrong
    lines = list(read_lines(run / "nonfinite.jsonl"))
    assert lines and all("w2" in [window["window"] for window in line["windows"]] for line in lines)
    assert all(line["not_finite"] == ["loss", "gradient"] and line["loss"] == "nan" for line in lines)
    logged = read_metrics(run)
    assert logged[-1]["step"] == 12 and logged[-1]["skipped_updates"] == len(lines)
    assert [line["step"] for line in logged if line["loss"] == "nan"] == [line["step"] for line in lines]
    assert f"`omnihuman replay --run {run} {lines[0]['step']}` looks at it" in output
    assert [line["step"] for line in read_lines(run / "incidents.jsonl")] == [line["step"] for line in lines]


@pytest.mark.slow
def test_replay_finds_the_window(wrong: tuple[Path, Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    run, _, _ = wrong
    step = next(read_lines(run / "nonfinite.jsonl"))["step"]
    # This process has 8 devices.
    assert replay.main([f"--run={run}", str(step), "--mesh=2,2,1,2"]) == 0
    printed = capsys.readouterr().out
    assert printed.strip().endswith("not finite alone: w2 (input, loss, gradient)")
    good = next(line["step"] for line in read_metrics(run) if line["loss"] != "nan" and line["step"] > 4)
    config = read_config(run)
    config.mesh.tensor = 2
    checkpoint, found = replay.replay(config, run, good)
    whole = next(found)
    logged = next(line for line in read_metrics(run) if line["step"] == good)
    assert checkpoint == (good - 1) // 4 * 4 and not whole.wrong
    if checkpoint == good - 1:  # the parameters are those of the step
        assert whole.loss == pytest.approx(logged["loss"], rel=1e-5)
    with pytest.raises(ValueError, match="steps are 1 to 12"):
        replay.replay(config, run, 13)


@pytest.mark.slow
def test_a_window_without_a_condition_tells_its_branch_nothing(wrong: tuple[Path, Path, str]) -> None:
    run, _, _ = wrong
    config = read_config(run)
    config.mesh.tensor = 2  # this process has 8 devices
    good = next(line["step"] for line in read_metrics(run) if line["loss"] != "nan" and line["step"] > 8)
    _, (_, *windows) = replay.replay(config, run, good)
    assert {"audio" in one.active for one in windows} == {"pose" in one.active for one in windows} == {False, True}
    for one in windows:
        assert math.hypot(*one.group_norms.values()) == pytest.approx(one.grad_norm, rel=1e-5)
        for group in ("audio", "pose"):  # not little: nothing
            assert (one.group_norms[group] > 0) == (group in one.active and one.loss > 0)


def test_a_record_that_cannot_be_read_is_named_once_and_counted(wrong: tuple[Path, Path, str]) -> None:
    run, _, output = wrong
    (line,) = read_lines(run / "quarantine.jsonl")
    assert line["record"] == DAMAGED and line["window"] == "w16" and line["reason"]
    assert read_metrics(run)[-1]["placeholders"] > 0 and "quarantine.jsonl names them" in output


@pytest.mark.slow
def test_a_resume_with_bad_data_is_bit_for_bit_the_run(wrong: tuple[Path, Path, str], tmp_path: Path) -> None:
    run, dataset, _ = wrong
    runs.train(tmp_path, dataset, "--config.checkpoint.interval=4", "--stop-after=7")
    runs.train(tmp_path, dataset, "--config.checkpoint.interval=4")
    assert runs.records(tmp_path) == runs.records(run)
    assert [line["record"] for line in read_lines(tmp_path / "quarantine.jsonl")] == [DAMAGED]
    ours, theirs = runs.checkpoint(tmp_path, 12), runs.checkpoint(run, 12)
    assert [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()] == []


@pytest.mark.slow
def test_parameters_that_went_wrong_are_rolled_back_and_not_for_ever(tmp_path: Path) -> None:
    """A learning rate that no model survives: back to a checkpoint from before, on from after, and in the end to a
    person.
    """
    dataset = runs.write_dataset(tmp_path / "dataset")
    run = tmp_path / "run"
    options = ("--config.stages.rows[1].steps=35", "--config.checkpoint.interval=1", "--config.checkpoint.keep=9")
    runs.train(run, dataset, *options, "--stop-after=4")
    options += (
        "--config.optimizer.learning_rate=1e30", "--config.numerics.max_skipped=3", "--config.numerics.max_rollbacks=2",
        "--accept-changes",
    )  # fmt: skip
    codes = []
    for _ in range(4):
        process = runs.start(run, dataset, *options)
        (code,), (output,) = runs.outcomes([process])
        codes.append(code)
        if code == exit_codes.USER_ERROR:
            break
    assert codes == [exit_codes.RETRY, exit_codes.RETRY, exit_codes.USER_ERROR], output
    assert "after 2 rollbacks" in output and "numerics.max_rollbacks" in output
    done = [line for line in read_lines(run / "rollbacks.jsonl") if "checkpoint" in line]
    assert len(done) == 2 and all(line["checkpoint"] <= line["first"] < line["to"] for line in done)
    assert done[1]["first"] >= done[0]["to"]  # further on, not the same steps again
    assert (run / "checkpoints" / "rolled_back").is_dir()


@pytest.mark.slow
def test_a_full_disk_while_a_run_saves_costs_that_checkpoint_only(tmp_path: Path) -> None:
    dataset = runs.write_dataset(tmp_path / "dataset")
    run = tmp_path / "run"
    process = runs.start(run, dataset, "--config.stages.rows[1].steps=35", "--config.checkpoint.interval=5")

    def reached(condition) -> None:
        for _ in range(2400):
            if condition():
                return
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        raise AssertionError("not reached")

    reached(lambda: (run / "checkpoints" / "5" / "manifest.json").exists())
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    # No file may grow past 32 KiB: what a full disk is to a checkpoint, while metrics.jsonl is shorter.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1 << 15, hard))
    reached(lambda: any(line["incident"] == "save_failed" for line in read_lines(run / "incidents.jsonl")))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    (code,), (output,) = runs.outcomes([process])
    assert code == exit_codes.OK and "was NOT saved" in output, output
    failed = [line["step"] for line in read_lines(run / "incidents.jsonl") if line["incident"] == "save_failed"]
    kept = sorted(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    assert failed and kept[-1] == 40 and not set(failed) & set(kept)


@pytest.mark.slow
def test_storage_that_is_gone_is_waited_for_and_then_left_for_a_restart(tmp_path: Path) -> None:
    dataset = runs.write_dataset(tmp_path / "dataset")
    run = tmp_path / "run"
    options = ("--config.data.retries=2", "--config.data.retry_delay_s=0.2", "--config.checkpoint.interval=4")
    process = runs.start(run, dataset, *options, fault=("no_storage", 0))
    (left,), (output,) = runs.outcomes([process])
    assert left == exit_codes.RETRY, output
    assert output.count("storage does not answer") >= 2 and "did not answer in 3 tries" in output
    assert not (run / "quarantine.jsonl").exists()  # no record is to blame
    for path in dataset.glob("*.away"):
        shutil.move(path, str(path).removesuffix(".away"))
    runs.train(run, dataset, *options)
    assert read_metrics(run)[-1]["step"] == 12 and read_metrics(run)[-1]["placeholders"] == 0


def test_a_data_set_that_a_run_has_had_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, away, run = tmp_path / "dataset", tmp_path / "away", tmp_path / "run"
    config = tiny_config.get_config()
    config.mesh.context = 2  # this process has 8 devices
    config.data.dataset, config.data.retries, config.data.retry_delay_s = str(dataset), 2, 0.1
    with pytest.raises(FileNotFoundError, match="no dataset here"):  # a first start: the path is wrong
        resume.open_parts(config, run)
    run.mkdir()
    write_config(config, run)
    with pytest.raises(
        RunEnded, match=r"opening .*dataset@1: storage did not answer in 3 tries: .*opened it before"
    ) as ended:
        resume.open_parts(config, run)
    assert ended.value.exit_code == exit_codes.RETRY and not ended.value.alone
    runs.write_dataset(away)
    threading.Timer(0.15, away.rename, [dataset]).start()
    assert len(resume.open_parts(config, run).records) == len(runs.catalog())
    load, calls = Catalog.load, itertools.count()

    def broken(folder: str) -> Catalog:
        if next(calls) < 2:
            raise OSError(errno.EIO, "Input/output error")
        return load(folder)

    monkeypatch.setattr(Catalog, "load", broken)
    assert resume.open_parts(config, tmp_path / "first start").records.directory == dataset and next(calls) == 3
    config.data.dataset = str(tmp_path / "datset")  # not what the run had: a slip of the pen
    with pytest.raises(FileNotFoundError, match="no dataset here"):
        resume.open_parts(config, run)


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_is_no_restart(tmp_path: Path) -> None:
    dataset = runs.write_dataset(tmp_path / "dataset")
    run = tmp_path / "run"
    process = runs.start(run, dataset, "--config.stages.rows[1].steps=95")
    while not (run / "metrics.jsonl").exists() or len(read_metrics(run)) < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    (code,), (output,) = runs.outcomes([process])
    assert code == exit_codes.INTERRUPTED and "stopped by hand at step" in output
    stopped = json.loads((run / "incidents.jsonl").read_text().splitlines()[-1])
    assert stopped["incident"] == "stopped" and (run / "checkpoints" / str(stopped["step"]) / "manifest.json").exists()


@pytest.mark.slow
def test_a_step_computed_twice_that_differs_ends_the_attempt_and_the_next_goes_on(tmp_path: Path) -> None:
    dataset = runs.write_dataset(tmp_path / "dataset")
    run = tmp_path / "run"
    options = ("--config.numerics.repeat_interval=3", "--config.checkpoint.interval=4")
    process = runs.start(run, dataset, *options, fault=("corrupt", 2))
    (code,), (output,) = runs.outcomes([process])
    assert code == exit_codes.RETRY and "step 6, computed twice, differs in" in output
    runs.train(run, dataset, *options)
    undisturbed = tmp_path / "undisturbed"
    runs.train(undisturbed, dataset, "--config.checkpoint.interval=4")
    assert runs.records(run) == runs.records(undisturbed)


def without_storage(folder: Path, how: str = "") -> None:
    """What a mount that vanishes leaves: nothing, or an empty folder."""
    folder.rename(folder.with_name("away"))
    if how == "empty":
        folder.mkdir()


def incidents(run: Path, kind: str) -> list[dict]:
    return [line for line in read_lines(run / "incidents.jsonl") if line["incident"] == kind]


def until(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise AssertionError("not reached")


RETRIES = ("--config.checkpoint.retries=4", "--config.checkpoint.retry_delay_s=0.2")


@pytest.mark.slow
def test_checkpoint_storage_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    """While saving the run goes on and saves sooner than its interval says; while reading it waits, and never begins
    anew.
    """
    dataset = runs.write_dataset(tmp_path / "dataset")
    run, folder = tmp_path / "run", tmp_path / "run" / "checkpoints"
    options = (
        *RETRIES,
        "--config.stages.rows[1].steps=95",
        "--config.checkpoint.interval=10",
        "--config.checkpoint.keep=99",
    )
    process = runs.start(run, dataset, *options, "--stop-after=45")
    until(process, lambda: (folder / "10" / "manifest.json").exists())
    without_storage(folder)
    until(process, lambda: bool(incidents(run, "save_failed")))
    assert not folder.exists()
    folder.with_name("away").rename(folder)
    (code,), (output,) = runs.outcomes([process])
    assert code == exit_codes.OK and "was NOT saved" in output, output
    failed = [line["step"] for line in incidents(run, "save_failed")]
    kept = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    assert failed[0] % 10 == 0 and not set(failed) & set(kept) and any(step % 10 for step in kept if step < 45), kept
    assert [line["step"] for line in read_lines(run / "events" / "0000-0.jsonl") if line["event"] == "saved"] == kept
    # The next start meets a mount that is not there yet, and then one that does not come.
    without_storage(folder, "empty")
    process = runs.start(run, dataset, *options, "--stop-after=46")
    printed = ""
    while "storage does not answer" not in printed:
        line = process.stdout.readline()
        assert line, printed
        printed += line
    assert "this run has saved step 45" in printed
    folder.rmdir()
    folder.with_name("away").rename(folder)
    (code,), (output,) = runs.outcomes([process])
    assert code == exit_codes.OK and read_metrics(run)[-1]["step"] == 46, output
    without_storage(folder)
    process = runs.start(run, dataset, *options, "--config.checkpoint.retries=1", "--stop-after=47")
    (code,), (output,) = runs.outcomes([process])
    assert code == exit_codes.RETRY and "did not answer in 2 tries" in output and not folder.exists(), output


@pytest.mark.slow
@pytest.mark.parametrize("what", ["max_failed_saves", "the last save"])
def test_saves_that_fail_for_good_end_the_attempt_for_a_restart(tmp_path: Path, what: str) -> None:
    dataset = runs.write_dataset(tmp_path / "dataset")
    run, folder = tmp_path / "run", tmp_path / "run" / "checkpoints"
    options = (
        "--config.checkpoint.retries=1",
        "--config.checkpoint.retry_delay_s=0.1",
        "--config.checkpoint.interval=4",
    )
    if what == "max_failed_saves":
        options += ("--config.checkpoint.max_failed_saves=2", "--config.stages.rows[1].steps=995")
    else:
        options += ("--config.stages.rows[1].steps=35", "--config.checkpoint.max_failed_saves=99")
    process = runs.start(run, dataset, *options)
    until(process, lambda: (folder / "4" / "manifest.json").exists())
    without_storage(folder, "empty")
    (code,), (output,) = runs.outcomes([process])
    assert code == exit_codes.RETRY, output
    last = read_metrics(run)[-1]["step"]
    if what == "max_failed_saves":
        assert "2 saves in a row failed" in output and last < 100
        assert {line["in_a_row"] for line in incidents(run, "save_failed")} == {1, 2}
    else:
        assert last == 40 and "step 40 of 40 could not be saved" in output
        assert (
            len([line for line in incidents(run, "save_failed") if line["step"] == 40]) == 2
        )  # the save and its one try
    assert list(folder.iterdir()) == []  # nothing was written below the mount
    folder.rmdir()
    folder.with_name("away").rename(folder)
    runs.train(run, dataset, *options, f"--stop-after={last + 1 if last < 40 else 40}")
