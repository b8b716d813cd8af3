"""`omnihuman train --fork RUN@STEP`: a run goes on from the whole state of another one, under stages of its own."""

import json
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from omnihuman_jax import cli
from omnihuman_jax.checkpoint.reader import CheckpointReader
from omnihuman_jax.checkpoint.record import CheckpointError
from omnihuman_jax.commands import train
from omnihuman_jax.config import load_config, parse_fork
from omnihuman_jax.runtime.incidents import append_line, read_lines
from omnihuman_jax.telemetry.metrics import read_metrics
from omnihuman_jax.training import resume
from omnihuman_jax.training.resume import must_be_there
from omnihuman_jax.training.run_guard import ROLLBACKS, Rollbacks
from tests.training import runs

STEP, END = 5, 9
EVERY = ("--config.mesh.tensor=2", "--config.checkpoint.interval=5", "--config.stages.rows[1].steps=4")
OTHER_RATIOS = ("--config.stages.rows[1].audio=0.1", "--config.stages.rows[1].pose=0.0")


# What is forked is a whole run: all of them wait for it.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_dataset(tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """A run to the end, with checkpoints after its first stage and at its end."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    _train(folder, dataset)
    return folder


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory, dataset: Path, straight: Path) -> Path:
    """A fork under other ratios that nobody disturbed."""
    folder = tmp_path_factory.mktemp("arm") / "run"
    _train(folder, dataset, f"--config.fork={straight}@{STEP}", *OTHER_RATIOS)
    return folder


def _train(run: Path, dataset: Path, *options: str, stop_after: int | None = None, accept: bool = False) -> None:
    config = load_config(str(runs.CONFIG), [f"--config.data.dataset={dataset}", *EVERY, *options])
    train.train(config, run, stop_after=stop_after, accept_changes=accept, progress=False)


def _same(run: Path, other: Path) -> bool:
    ours, theirs = runs.checkpoint(run, END), runs.checkpoint(other, END)
    return ours.keys() == theirs.keys() and all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


def test_with_nothing_changed_it_is_the_run_that_it_was_forked_from(
    straight: Path, dataset: Path, tmp_path: Path
) -> None:
    fork = f"{straight}@{STEP}"
    _train(tmp_path / "run", dataset, f"--config.fork={fork}")
    assert runs.records(tmp_path / "run") == runs.records(straight)[STEP:]
    assert _same(tmp_path / "run", straight)
    origin = json.loads((tmp_path / "run" / "origin.json").read_text())
    (entry,) = origin["forks"]
    assert (entry["run"], entry["step"], entry["name"]) == (str(straight), STEP, "tiny") and entry["changes"] == []
    with CheckpointReader(tmp_path / "run" / "checkpoints") as checkpoints:
        record = checkpoints.record(END)
    assert record.origin == origin and record.config["fork"] == fork
    (event,) = [e for e in read_lines(tmp_path / "run" / "events" / "0000-0.jsonl") if e["event"] == "fork"]
    assert (event["run"], event["step"]) == (str(straight), STEP)


def test_stopped_and_continued_a_fork_has_the_bits_of_one_that_was_not(
    arm: Path, straight: Path, dataset: Path, tmp_path: Path
) -> None:
    options = (f"--config.fork={straight}@{STEP}", *OTHER_RATIOS)
    _train(tmp_path / "run", dataset, *options, stop_after=7)
    moved = straight.rename(straight.with_name("gone"))  # it needs its origin no more
    try:
        _train(tmp_path / "run", dataset, *options)
    finally:
        moved.rename(straight)
    assert runs.records(tmp_path / "run") == runs.records(arm) and _same(tmp_path / "run", arm)


def test_its_own_rows_are_what_it_trains_on(arm: Path, straight: Path) -> None:
    lines = runs.records(arm)
    assert [line["step"] for line in lines] == list(range(STEP + 1, END + 1))
    assert {line["ratio_target/audio"] for line in lines} == {0.1} and lines[-1]["ratio/pose"] == 0
    (entry,) = json.loads((arm / "origin.json").read_text())["forks"]
    assert "stages.rows[1].audio: 0.5 -> 0.1" in entry["changes"]
    # Moments, averages and counts go on; they do not begin again.
    ours, first = runs.checkpoint(arm, END), runs.checkpoint(straight, STEP)
    counts = [name for name in ours if name.endswith("/count")]
    assert sorted(int(ours[name]) - int(first[name]) for name in counts) == [0, END - STEP, END - STEP]
    assert not np.array_equal(ours["ema/proj_out/kernel"], first["ema/proj_out/kernel"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config.fork={straight}"], "write RUN@STEP"),
        (["--config.fork={straight}@last"], "write RUN@STEP"),
        (["--config.fork={straight}@0"], "step 0 is weights alone; start from them with --config.initial_weights="),
        (["--config.fork={straight}@3"], "has no step 3; it has [5, 9]"),
        (["--config.fork={straight}@9"], "nothing is left to train, the stages end at step 9"),
        (["--config.fork=runs/nowhere@5"], "nowhere/checkpoints does not exist"),
        (["--config.fork=gs:/bucket/run@5"], "write gs://BUCKET/PATH"),
        (["--config.fork=az://container/run@5"], "az:// is not supported"),
        (["--config.fork={straight}@5", "--config.initial_weights=x"], "leave out initial_weights x"),
        (["--config.fork={straight}@5", "--config.model.rope_axes=(8,4,4)"], "model.rope_axes[0]: 4 -> 8"),
        (["--config.fork={straight}@5", "--config.model.num_dual_layers=2"], "num_dual_layers: 1 -> 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_forked(options: list[str], message: str, straight: Path, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        _train(tmp_path / "run", dataset, *(option.format(straight=straight) for option in options))
    assert isinstance(error.value, cli.USER_ERRORS) and "\n" not in str(error.value)
    assert message in str(error.value) and not list(tmp_path.glob("run/checkpoints/*[0-9]"))


def test_on_the_command_line_it_is_an_option_and_an_error_of_one_line(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--config={runs.CONFIG}", f"--run={tmp_path / 'run'}", "--fork=runs/tiny@x"]
    assert cli.main(["train", *arguments]) == 2
    assert capsys.readouterr().err == (
        "omnihuman train: fork 'runs/tiny@x': write RUN@STEP, such as runs/theatre/run@800\n"
    )


def test_a_run_with_another_beginning_is_not_forked_into(
    arm: Path, straight: Path, dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"was begun without a fork, not of .*; train in another --run"):
        _train(straight, dataset, f"--config.fork={arm}@{END - 1}", accept=True)
    other = shutil.copytree(arm, tmp_path / "run")
    with pytest.raises(ValueError, match=rf"was trained with another configuration.*fork: .*@{STEP} -> .*@6"):
        _train(other, dataset, f"--config.fork={straight}@6", *OTHER_RATIOS)
    shutil.rmtree(other / "checkpoints")
    shutil.rmtree(other / "events")
    (other / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=rf"was begun as a fork of .*@{STEP}, not of .*@6; train in another --run"):
        _train(other, dataset, f"--config.fork={straight}@6", *OTHER_RATIOS)
    with pytest.raises(ValueError, match=r"was begun as a fork of .*, not without one"):
        _train(other, dataset, *OTHER_RATIOS)


def test_a_fork_need_not_have_saved_what_came_before_it(tmp_path: Path) -> None:
    assert parse_fork("gs://bucket/a@b@12") == ("gs://bucket/a@b", 12)
    append_line(tmp_path / "metrics.jsonl", {"step": 820})
    assert "has trained 820 steps" in must_be_there(tmp_path, 200, Rollbacks(tmp_path))
    assert must_be_there(tmp_path, 200, Rollbacks(tmp_path), first=800) == ""
    append_line(tmp_path / ROLLBACKS, {"first": 810, "to": 815, "checkpoint": 800})
    assert Rollbacks(tmp_path).begun_anew_at(800) == 815 and Rollbacks(tmp_path).begun_anew_at() == 0


def test_a_rollback_does_not_begin_a_run_anew_that_had_saved(tmp_path: Path) -> None:
    guard = SimpleNamespace(rollbacks=Rollbacks(tmp_path))
    append_line(tmp_path / "events" / "0000-0.jsonl", {"event": "saved", "step": 5})
    append_line(tmp_path / "events" / "0001-0.jsonl", {"event": "saved", "step": 9})
    resume._check_none_was_saved(tmp_path, guard, "", 5)  # type: ignore[arg-type]  # before the first save: as it began
    with pytest.raises(CheckpointError, match=r"before step 9, .* has no checkpoint from before it any more \(step 5"):
        resume._check_none_was_saved(tmp_path, guard, "", 8)  # type: ignore[arg-type]


@pytest.mark.parametrize("after", [6, 8])  # before its first checkpoint, and after one
def test_killed_and_started_again_it_has_the_same_bits(
    after: int, straight: Path, dataset: Path, tmp_path: Path
) -> None:
    more = ("--config.stages.rows[1].steps=30", "--config.mesh.tensor=2", f"--fork={straight}@{STEP}", *OTHER_RATIOS)
    every = f"--config.checkpoint.interval={100 if after == 6 else 2}"
    process = runs.start(tmp_path / "killed", dataset, *more, every, devices=8)
    while not (log := tmp_path / "killed" / "metrics.jsonl").is_file() or read_metrics(log.parent)[-1:] == []:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    while read_metrics(log.parent)[-1]["step"] < after:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    runs.train(tmp_path / "killed", dataset, *more, every, devices=8)
    runs.train(tmp_path / "calm", dataset, *more, every, devices=8)
    assert runs.records(tmp_path / "killed") == runs.records(tmp_path / "calm")
    ours, theirs = (runs.checkpoint(tmp_path / name, STEP + 30) for name in ("killed", "calm"))
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs) and ours.keys() == theirs.keys()
