"""Stopped at any step, by any means, a run ends where it would have ended; what cannot be continued says so."""

import dataclasses
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from omnihuman_jax.checkpoint.reader import CheckpointReader
from omnihuman_jax.checkpoint.record import CheckpointError, RunRecord
from omnihuman_jax.commands import train
from omnihuman_jax.config import changed_fields, from_json, to_json
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.plan import VERSION
from omnihuman_jax.runtime import exit_codes
from omnihuman_jax.runtime.incidents import read_lines
from omnihuman_jax.runtime.processes import RunEnded
from omnihuman_jax.telemetry.events import last_saved
from omnihuman_jax.telemetry.goodput import read_goodput
from omnihuman_jax.telemetry.metrics import read_metrics
from omnihuman_jax.training.resume import continue_record
from tests.training import runs

STEPS, INTERVAL = 30, 5
# 5 steps of the first stage, then the pose stage.
OPTIONS = (
    f"--config.stages.rows[1].steps={STEPS - 5}",
    f"--config.checkpoint.interval={INTERVAL}",
    "--config.checkpoint.keep=9",
)

EIGHT = ("--config.mesh.tensor=2",)  # the runs have 4 devices, this process has 8


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_dataset(tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """A run that nobody disturbed."""
    run = tmp_path_factory.mktemp("straight")
    runs.train(run, dataset, *OPTIONS)
    return run


def wait_for(process: subprocess.Popen, run: Path, step: int) -> None:
    """Until `step` is logged and the checkpoint before it is whole."""
    saved = run / "checkpoints" / str(step // INTERVAL * INTERVAL)
    for _ in range(60_000):
        logged = (run / "metrics.jsonl").exists() and any(line["step"] >= step for line in read_metrics(run))
        if logged and (step < INTERVAL or saved.is_dir()):
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached")


def assert_same_run(run: Path, straight: Path) -> None:
    assert runs.records(run) == runs.records(straight)
    ours, theirs = runs.checkpoint(run, STEPS), runs.checkpoint(straight, STEPS)
    assert ours.keys() == theirs.keys() and {name.split("/")[0] for name in ours} == {
        "params",
        "ema",
        "optimizer",
        "progress",
    }
    different = [
        name
        for name in ours
        if ours[name].tobytes() != theirs[name].tobytes() or ours[name].dtype != theirs[name].dtype
    ]
    assert different == []


def test_kill_9_and_resume_is_bit_for_bit_the_undisturbed_run(tmp_path: Path, dataset: Path, straight: Path) -> None:
    process = runs.start(tmp_path, dataset, *OPTIONS)
    wait_for(process, tmp_path, 13)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    killed_at = max(line["step"] for line in read_metrics(tmp_path))
    assert 13 <= killed_at < STEPS
    runs.train(tmp_path, dataset, *OPTIONS)
    assert_same_run(tmp_path, straight)
    # Every second of both attempts is accounted for, and no step twice.
    goodput = read_goodput(tmp_path)
    assert [attempt.code for attempt in goodput.attempts] == [None, exit_codes.OK]
    assert sum(attempt.new for attempt in goodput.attempts) == STEPS == goodput.attempts[1].last
    assert sum(goodput.seconds.values()) == pytest.approx(goodput.wall, rel=1e-6)
    assert all(
        goodput.seconds[kind] > 0
        for kind in ("productive", "compile", "restore", "save", "data_wait", "start_up", "down")
    )


@pytest.mark.slow
def test_sigterm_stops_with_a_checkpoint_and_resumes_the_same_way(
    tmp_path: Path, dataset: Path, straight: Path
) -> None:
    process = runs.start(tmp_path, dataset, *OPTIONS)
    wait_for(process, tmp_path, 3)
    process.send_signal(signal.SIGTERM)
    output = process.communicate()[0]
    assert process.returncode == exit_codes.RESTART and "the same command continues" in output
    stopped_at = read_metrics(tmp_path)[-1]["step"]
    with CheckpointReader(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step == stopped_at < STEPS
    runs.train(tmp_path, dataset, *OPTIONS)
    assert_same_run(tmp_path, straight)


def test_what_is_logged(straight: Path) -> None:
    lines = read_metrics(straight)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["stage"] for line in lines] == ["audio"] * 5 + ["pose"] * (STEPS - 5)
    # Ratios realised by the windows that the steps really saw, over each stage.
    for line in (lines[4], lines[-1]):
        for condition in ("text", "reference", "audio", "pose"):
            assert line[f"ratio/{condition}"] == pytest.approx(line[f"ratio_target/{condition}"], abs=0.04)
    assert lines[4]["ratio/pose"] == lines[5]["learning_rate/audio"] * 0 == 0
    assert lines[4]["learning_rate/pose"] == 0 < lines[5]["learning_rate/pose"]
    # The pose group warms up on its own once its stage begins: half of the rate, then all of it.
    assert lines[5]["learning_rate/pose"] == pytest.approx(lines[5]["learning_rate"] / 2)
    assert any(name.startswith("loss/") and "+" in name for name in lines[-1])
    assert lines[-1]["matmul_peak_share"] > 0 and lines[-1]["tokens_per_s"] > 0
    config = from_json(json.loads((straight / "config.json").read_text()))
    assert config.stages.total_steps == STEPS and (straight / "dataset.json").exists()
    # When each checkpoint was whole, how long that took, and how large it is: the manifest's sizes.
    saved = [event for event in read_lines(straight / "events" / "0000-0.jsonl") if event["event"] == "saved"]
    assert [event["step"] for event in saved] == list(range(INTERVAL, STEPS + 1, INTERVAL)) and last_saved(
        straight
    ) == STEPS
    for event in saved:
        files = json.loads((straight / "checkpoints" / str(event["step"]) / "manifest.json").read_text())["files"]
        assert event["bytes"] == sum(files.values()) and event["s"] > 0


def test_parameters_of_a_condition_wait_for_their_stage(straight: Path) -> None:
    early, late = runs.checkpoint(straight, 5), runs.checkpoint(straight, 10)
    pose = [name.removeprefix("params/") for name in early if name.startswith("params/pose_guider/")]
    # Not one update, and no decay, in the stage before: the average is still what it began as.
    assert pose and all(np.array_equal(early[f"params/{name}"], early[f"ema/{name}"]) for name in pose)
    assert not all(np.array_equal(late[f"params/{name}"], late[f"ema/{name}"]) for name in pose)
    assert not np.array_equal(early["params/proj_out/kernel"], early["ema/proj_out/kernel"])
    moments = [name for name in early if name.startswith("optimizer/inner_states/pose")]
    assert moments and not any(early[name].any() for name in moments)
    counts = {name: int(value) for name, value in late.items() if name.endswith("/count")}
    assert sorted(counts.values()) == [5, 10, 10]  # pose, audio, base


def resume(run: Path, dataset: Path, *options: str) -> int:
    """The command again, in this process (8 devices: a mesh may change)."""
    arguments = [f"--config={runs.CONFIG}", f"--run={run}", f"--config.data.dataset={dataset}", "--no-progress"]
    return train.main([*arguments, *OPTIONS, *EIGHT, *options])


@pytest.fixture
def copy(straight: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(straight, tmp_path / "copy"))


def test_a_finished_run_stays_as_it_is(copy: Path, dataset: Path, straight: Path) -> None:
    assert resume(copy, dataset) == 0
    assert runs.records(copy) == runs.records(straight)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--config.optimizer.learning_rate=1.0", r"optimizer.learning_rate: 0.003 -> 1.0"),
        ("--config.model.mlp_ratio=4.0", r"model.mlp_ratio: 2.0 -> 4.0"),
        ("--config.stages.rows[1].audio=0.4", r"stages.rows\[1\].audio: 0.5 -> 0.4; data plan"),
        ("--config.seed=12", r"seed: 11 -> 12; data plan .*fingerprint"),
    ],
)
def test_a_changed_config_is_refused(copy: Path, dataset: Path, option: str, message: str) -> None:
    before = (copy / "metrics.jsonl").read_text(), (copy / "config.json").read_text()
    with pytest.raises(ValueError, match=message + r".*--accept-changes"):
        resume(copy, dataset, option)
    assert before == ((copy / "metrics.jsonl").read_text(), (copy / "config.json").read_text())


def test_a_changed_dataset_is_refused_unless_accepted(copy: Path, dataset: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(dataset, tmp_path / "other"))
    catalog = Catalog.load(other)
    catalog.select(np.arange(len(catalog) - 1)).save(other)
    with pytest.raises(
        ValueError, match=r"data plan \(catalogs and their weights, stages, sizes or seed\): fingerprint"
    ):
        resume(copy, other)
    assert resume(copy, other, "--accept-changes") == 0
    assert resume(copy, Path(shutil.copytree(dataset, tmp_path / "moved"))) == 0  # the same data elsewhere


def test_a_run_of_another_plan_version_is_refused(copy: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as a changed data set: the cure is another."""
    monkeypatch.setattr("omnihuman_jax.data.plan.VERSION", VERSION + 1)
    message = (
        rf"version of the data plan: {VERSION} -> {VERSION + 1} .* goes on as before\)\. Undo that, .*--accept-changes"
    )
    with pytest.raises(ValueError, match=message) as error:
        resume(copy, dataset)
    assert "fingerprint" not in str(error.value)
    assert resume(copy, dataset, "--accept-changes") == 0


def everything(run: Path) -> dict[str, bytes]:
    """What a refused start may not touch: all but the log of the start itself."""
    files = (path for path in run.rglob("*") if path.is_file() and path.parent.name != "events")
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.mark.parametrize("of_before", [False, True])
def test_other_features_are_refused_before_anything_is_overwritten(
    copy: Path, dataset: Path, tmp_path: Path, of_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same windows, encoded otherwise: the catalog, and so the plan, is the same. Checkpoints of before they said
    what their features are leave it to the run's own dataset.json.
    """
    other = Path(shutil.copytree(dataset, tmp_path / "other"))
    spec = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps(spec | {"speech_layers": [1, 2]}))
    if of_before:
        read = RunRecord.from_json
        monkeypatch.setattr(RunRecord, "from_json", lambda stored: dataclasses.replace(read(stored), data={}))
    before = everything(copy)
    longer = "--config.stages.rows[1].steps=40"
    for options in ((), (longer,)):
        with pytest.raises(ValueError, match=r"features of the data set \(speech_layers: \[0, 2\] -> \[1, 2\]\)"):
            resume(copy, other, *options)
        assert everything(copy) == before
    assert resume(copy, other, "--accept-changes") == 0


def test_a_field_that_a_run_did_not_have_yet_is_no_change(copy: Path, dataset: Path) -> None:
    """A config field of a newer version, at its default: the stored config says nothing of it, and nothing changed."""
    config = json.loads((copy / "config.json").read_text())
    stored = RunRecord(config=config, fingerprint="f", step=STEPS)
    older = json.loads(json.dumps(config))
    del older["optimizer"]["learning_rate"], older["numerics"], older["model"]["audio"]["neighbours"]
    record = dataclasses.replace(stored, config=to_json(from_json(older)))
    accepted = continue_record(copy, dataclasses.replace(stored, config=older), record, accept_changes=False)
    assert accepted.config == record.config
    other = json.loads(json.dumps(record.config))
    other["optimizer"]["learning_rate"] = 1.0
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate: [\d.e-]+ -> 1\.0\. Undo"):
        continue_record(
            copy, dataclasses.replace(stored, config=older), dataclasses.replace(record, config=other),
            accept_changes=False,
        )  # fmt: skip


def damage(run: Path, step: int, part: str = "params") -> None:
    for data in (run / "checkpoints" / str(step) / part).rglob("d/*"):
        data.write_bytes(b"")


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_goes_on(
    copy: Path, dataset: Path, straight: Path
) -> None:
    damage(copy, STEPS)
    runs.train(copy, dataset, *OPTIONS)
    assert_same_run(copy, straight)
    assert (copy / "checkpoints" / "damaged" / f"{STEPS}-1" / "why.json").is_file()
    (incident,) = read_lines(copy / "incidents.jsonl")
    assert (
        incident["incident"] == "checkpoint_rejected"
        and incident["step"] == STEPS
        and "has 0 bytes" in incident["reason"]
    )


def test_no_whole_checkpoint_is_no_fresh_start(copy: Path, dataset: Path, straight: Path) -> None:
    for step in range(INTERVAL, STEPS + 1, INTERVAL):
        damage(copy, step)
    with pytest.raises(
        CheckpointError, match=r"no whole checkpoint left; the damaged ones are in .*damaged \(10-1, 15-1, .*backup"
    ):
        resume(copy, dataset)
    with pytest.raises(CheckpointError, match="has no whole checkpoint left"):  # nor the next time
        resume(copy, dataset)
    assert runs.records(copy) == runs.records(straight)
    shutil.rmtree(copy / "checkpoints")
    waiting = ("--config.checkpoint.retries=1", "--config.checkpoint.retry_delay_s=0.01")
    for why in (
        f"this run has saved step {STEPS}",
        f"this run has trained {STEPS} steps, with a checkpoint every {INTERVAL}",
    ):
        with pytest.raises(RunEnded, match=f"no checkpoint in .*, which is not there, but {why}") as ended:
            resume(copy, dataset, *waiting)
        assert ended.value.exit_code == exit_codes.RETRY
        shutil.rmtree(copy / "events")  # as a run of an older version: what it logged still says so


def test_free_fields_do_not_change_what_is_computed(straight: Path) -> None:
    config = from_json(json.loads((straight / "config.json").read_text()))
    changed = dataclasses.replace(config, name="other", mesh=dataclasses.replace(config.mesh, data=1, fsdp=4))
    assert changed_fields(to_json(config), to_json(changed)) == []


@pytest.mark.slow
def test_sigterm_while_a_resumed_run_compiles_is_answered(dataset: Path, tmp_path: Path) -> None:
    """The signal of a preemption that comes right after a restart; it once was never answered, nor was any later
    one.
    """
    options = ("--config.checkpoint.interval=3", "--config.stages.rows[1].steps=20000")
    runs.train(tmp_path, dataset, *options, "--stop-after=3")
    process = runs.start(tmp_path, dataset, *options)
    printed = ""
    while "step 3 of" not in printed:
        line = process.stdout.readline()
        assert line, printed
        printed += line
    process.send_signal(signal.SIGTERM)
    try:
        (code,), (output,) = runs.outcomes([process], timeout=200)
    finally:
        process.kill()
    assert code == exit_codes.RESTART, output
