"""The experiment of docs/any_clip_trains.md in small: clips are robbed as it says, every fault is answered, its
commands are ones, and its page says what was measured. `make any-clip` runs the whole of it.
"""

import collections
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from data_pipelines.curate.clip_sets import read_clips
from data_pipelines.encode.clip_encoder import WindowConfig
from data_pipelines.encode.encode import EncodeConfig, encode, parse_arguments
from data_pipelines.puppet_theatre.truth import Truth
from omnihuman_jax.commands import ablate, train
from omnihuman_jax.commands.replay import Replayed
from omnihuman_jax.conditions import Condition
from omnihuman_jax.config import load_config
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.keypoints import NUM_KEYPOINTS
from omnihuman_jax.data.plan import Plan
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.runtime.incidents import append_line
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.typing import FPS, SAMPLE_RATE_HZ
from tests import quick_xla
from tests.any_clip import damage, measure, page, run
from tests.any_clip.damage import FLIPPED, HELD_OUT, KINDS, Fate, Shares
from tests.sampling import tiny_run

# As many as it takes for each kind of damage once.
SHARES = Shares(silent=0.5, poseless=0.3, corrupt=0.4)


def write_theatre(folder: Path, *, train: int = 10, held_out: int = 3, frames: int = 40, side: int = 64) -> Path:
    """What `omnihuman theatre` leaves, as far as this experiment reads it: moving noise with a tone."""
    (folder / "videos").mkdir(parents=True)
    (folder / "truth").mkdir()
    points = np.zeros((frames, NUM_KEYPOINTS, 3), np.float32)
    points[:, :11] = (side / 2, side / 2, 1)  # the head's
    box = np.tile(np.array([10, 10, 40, 40], np.float32), (frames, 1))
    per_frame = np.zeros(frames, np.float32)
    for number in range(train + held_out):
        rng, name = np.random.default_rng(number), f"theatre-{number:06d}"
        pictures = rng.integers(0, 255, (frames, side, side, 3), dtype=np.uint8)
        wave = 0.3 * np.sin(np.arange(frames * SAMPLE_RATE_HZ // FPS) * (0.05 + 0.01 * number)).astype(np.float32)
        video = folder / "videos" / f"{name}.mp4"
        media_omnihuman.write_video(video, pictures, FPS, audio=wave, sample_rate=SAMPLE_RATE_HZ)
        video.with_suffix(".txt").write_text("a man speaks\n")
        split = "train" if number < train else "unseen_face"
        Truth(
            opening_T=per_frame, spread_T=per_frame, heard_T=per_frame, gap_T=per_frame, width_T=per_frame,
            mouth_seen_T=np.ones(frames, bool), keypoints_TJ3=points, mouth_box_T4=box, face_box_T4=box,
            faces_T=np.ones(frames, np.int32), gestures_TG=np.zeros((frames, 1), np.float32),
            facts={"plan": {"split": split, "fault": "none"}, "shots": [[0, frames]], "eligible": ["text"]},
        ).save(folder / "truth" / f"{name}.npz")  # fmt: skip
    return folder


def test_there_are_as_many_of_each_as_the_shares_say() -> None:
    names = [f"c{i}" for i in range(60)]
    fates = damage.draw_fates(names, Shares(), seed=3)
    assert sum(fate.silent for fate in fates.values()) == 30 and sum(fate.poseless for fate in fates.values()) == 18
    kinds = collections.Counter(fate.corrupt for fate in fates.values() if fate.corrupt)
    assert kinds.total() == 6 and set(kinds) == set(KINDS)
    # Drawn independently: some are robbed twice.
    assert any(fate.silent and fate.poseless for fate in fates.values())
    assert damage.draw_fates(names, Shares(), seed=3) == fates != damage.draw_fates(names, Shares(), seed=4)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> run.Experiment:
    """Robbed, encoded with tiny networks and split into its arms."""
    out = tmp_path_factory.mktemp("any_clip")
    one = run.Experiment(out=out, hours=0.001, seeds=(1,), steps=8, windows=4, shares=SHARES)
    write_theatre(out / "theatre")
    tiny_run.write_bert(out / "text")
    tiny_run.write_whisper(out / "speech")
    run.rob(one)
    networks = {"text_encoder": str(out / "text"), "speech_encoder": str(out / "speech"), "speech_layers": (0,)}
    windows = WindowConfig(area=48 * 48, frames=(9,), stride=10, references=2, margin=2)
    encode(out / "incomplete" / "clips", out / run.ALL, EncodeConfig(**networks, windows=windows))
    run.split_arms(one)
    return one


def test_what_was_robbed_is_gone_and_held_out_clips_are_whole(experiment: run.Experiment) -> None:
    out = experiment.out
    fates, clips = damage.read_fates(out / "incomplete"), read_clips(out / "incomplete" / "clips")
    assert len(clips) == 13 and len(fates) == 10
    for clip in clips:
        fate = fates.get(clip.video.removesuffix(".mp4"), Fate())
        expected = {"text", "reference", *["audio"] * (not fate.silent), *["pose"] * (not fate.poseless)}
        assert set(clip.eligible) == expected and clip.has_audio == (not fate.silent)
        assert clip.split == ("train" if clip.video.removesuffix(".mp4") in fates else HELD_OUT)
        if not fate.corrupt:
            video = out / "incomplete" / "videos" / clip.video
            assert (media_omnihuman.read_audio(video, SAMPLE_RATE_HZ) is None) == fate.silent
            whole = media_omnihuman.read_video(out / "theatre" / "videos" / clip.video)
            assert np.array_equal(media_omnihuman.read_video(video), whole)  # the pictures are the same packets


def test_every_corrupt_clip_is_answered(experiment: run.Experiment, tmp_path: Path) -> None:
    dataset = experiment.out / run.ALL
    fates, catalog = damage.read_fates(experiment.out / "incomplete"), Catalog.load(dataset)
    records = open_records(dataset)
    unreadable = [row for row in range(len(catalog)) if records[row] is None]
    flipped = [name for name, fate in fates.items() if fate.corrupt == FLIPPED]
    assert len(flipped) == 1 and unreadable == damage.windows_of(catalog, flipped).tolist() != []
    for row in unreadable:  # as a run does
        line = {"window": str(catalog.window_id[row]), "reason": records.unreadable[row]}
        append_line(tmp_path / "quarantine.jsonl", line)
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    became = damage.what_became(fates, json.loads((dataset / "encode.json").read_text()), lines)
    answers = {row["done"]: (row["stage"], row["reason"]) for row in became}
    assert len(became) == len(answers) == 4 and "nobody" not in {stage for stage, _ in answers.values()}
    cut, overwritten, gone, flipped_ = (answers[kind] for kind in KINDS)
    assert cut[0] == overwritten[0] == gone[0] == "encode" and flipped_[0] == f"train, {len(unreadable)} records"
    assert " has 40 frames, " in cut[1] and "changed since curate" in overwritten[1] and "is gone" in gone[1]
    assert "hash mismatch" in flipped_[1] and not any("/" in reason for _, reason in (cut, overwritten, gone))


def test_the_arms_differ_in_what_is_trained_on_alone(experiment: run.Experiment) -> None:
    fates = damage.read_fates(experiment.out / "incomplete")
    every, complete = (Catalog.load(experiment.out / arm) for arm in run.ARMS)
    whole = [name for name, fate in fates.items() if fate.is_complete]
    trained = np.flatnonzero(complete.split == "train")
    assert trained.tolist() == damage.windows_of(complete, whole).tolist() != []
    assert (every.split == "train").sum() > len(trained)
    assert np.array_equal(every.split == HELD_OUT, complete.split == HELD_OUT)
    assert open_records(experiment.out / run.COMPLETE)[int(trained[0])] is not None


def test_the_ratios_are_met_to_the_window_however_incomplete_the_set(experiment: run.Experiment) -> None:
    """Half of the clips are silent and audio is on half of the windows: exactly, in both arms."""
    flipped = [name for name, fate in damage.read_fates(experiment.out / "incomplete").items() if fate.corrupt]
    for command in run.training(dataclasses.replace(experiment, steps=80)):
        options, overrides = train.parse(command.argv[1:])
        config = load_config(options.config, overrides)
        catalog = Catalog.load(config.data.dataset)
        lost = {str(catalog.window_id[row]) for row in damage.windows_of(catalog, flipped)}
        seen = measure.counted(Plan(catalog, config.stages, config.data.plan, config.seed), lost)
        assert seen.windows > 500 and (seen.readable == seen.windows) == (config.data.dataset.endswith(run.COMPLETE))
        for label in (condition.label for condition in Condition):
            assert abs(seen.placed[label] - seen.asked[label]) <= 1
        assert sum(json.loads(json.dumps(dataclasses.asdict(seen)))["by_set"].values()) == seen.readable


def test_its_commands_are_ones(experiment: run.Experiment) -> None:
    (encoding,) = run.encoding(experiment)
    assert encoding.argv[0] == "encode" and parse_arguments(encoding.argv[1:]).stride == 10
    trainings = run.training(dataclasses.replace(experiment, steps=80, seeds=(1, 2)))
    assert len({command.name for command in trainings}) == 4
    for command in trainings:
        options, overrides = train.parse(command.argv[1:])
        config = load_config(options.config, overrides)
        config.validate()
        (stage,) = config.stages.rows
        assert stage.steps == 80 and stage.ratios[Condition.POSE] == 0.3 and config.checkpoint.keep == 4
    with pytest.raises(ValueError, match="--steps 25 must be a multiple of 4"):
        dataclasses.replace(experiment, steps=25).validate()


def made_up() -> dict[str, object]:
    """A result as `run.measured` gives it, with losses that are 0.1 lower in the first arm."""
    rng = np.random.default_rng(0)
    people = [f"p{i // 4}" for i in range(16)]
    rows = rng.uniform(0.5, 0.6, (1, 1, 2, 16, 4)).repeat(2, 0).repeat(3, 1)
    rows[..., 3], rows[..., 1] = 1, 0.8 * rows[..., 0]
    rows[0, ..., :3] -= 0.1
    conditions = dict.fromkeys(measure.CONDITIONS)
    found = measure.HeldOut(
        steps=[5, 10], people=conditions | dict.fromkeys(conditions, people), rows_ASTNK=dict.fromkeys(conditions, rows)
    )
    seen = {
        "windows": 100, "readable": 95, "asked": {"text": 90.0, "reference": 90.0, "audio": 50.0, "pose": 30.0},
        "placed": {"text": 90, "reference": 90, "audio": 50, "pose": 30},
        "read": {"text": 86, "reference": 86, "audio": 46, "pose": 29}, "by_set": {"text+reference": 95},
    }  # fmt: skip
    gradients = {"windows": 3, "loss": 0.5, "norm": 0.25, "largest": {"base": 0.3, "audio": 0.0, "pose": 0.125}}
    return {
        "hours": 0.1, "steps": 8, "seeds": (1, 2, 3), "cpu_minutes": 1.5,
        "clips": {"trained on": 10, "silent": 5, "without a pose": 3, "corrupt": 1, "complete": 3, "held out": 4},
        "windows": {"all": 90, "complete": 30},
        "became": [{"clip": "c", "done": KINDS[0], "stage": "encode", "reason": "c.mp4: truncated | x"}],
        "found_by_check": {"unreadable record": 9},
        "ratios": {"all": seen, "complete": seen},
        "losses": {"all": {"step": [1, 2, 3, 4], "loss": [4, 3, 2, 1], "loss/text+reference": [4.0, None, 2.0, 1.0]}},
        "looked_at": [3], "gradients": {"text+reference": gradients}, "held_out": measure.compare(found),
    }  # fmt: skip


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    result = json.loads(json.dumps(made_up()))
    text = page.tables(result)
    assert "5 silent (50%), 3 without a pose (30%), 1 corrupt (10%); 3 are whole" in text
    assert "| all | audio | 50% | 50.0 of 100 | 50 | +0.000 | 46 of 95 | -1.58 |" in text
    assert "| text+reference | 95 | 4.000 | 1.000 | 3 | 0.250 | exactly 0 | 0.125 |" in text
    assert "c.mp4: truncated / x" in text and "unreadable record x 9" in text
    (loss,) = (line for line in text.splitlines() if line.startswith("| loss, text and reference"))
    assert "-0.1000 [-0.1000, -0.1000] | -0.1000, -0.1000, -0.1000 | 16 of 4 |" in loss
    page.write_pictures(result, tmp_path)
    for name in ("loss", "held_out"):
        ElementTree.fromstring((tmp_path / f"any_clip_{name}.svg").read_text())
    assert page.PAGE.read_text().count(f"<!-- {page.REGION}: ") == 2


def test_gradients_and_losses_are_told_by_active_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one(active: str, loss: float, **groups: float) -> Replayed:
        norms = {"base": 3.0, "audio": 0.0, "pose": 0.0} | groups
        norm = float(np.hypot(norms["base"], norms["audio"]))
        return Replayed(window="w", slot=0, active=active, loss=loss, grad_norm=norm, group_norms=norms,
                        inputs_finite=True)  # fmt: skip

    windows = [one("", 9.0), one("text", 1.0), one("text+audio", 2.0, audio=4.0), one("text", 0.0), one("text", 2.0)]
    monkeypatch.setattr(measure, "read_config", lambda folder: None)
    monkeypatch.setattr(measure, "replay", lambda config, folder, step: (step - 1, iter(windows)))
    found = measure.gradients(tmp_path, [3, 5])
    # Neither the whole batch nor a placeholder, whose loss is 0.
    assert {active: (of.windows, of.loss, of.norm) for active, of in found.items()} == {
        "text": (4, 1.5, 3.0), "text+audio": (2, 2.0, 5.0),
    }  # fmt: skip
    assert found["text"].largest["audio"] == 0 and found["text+audio"].largest["audio"] == 4
    append_line(tmp_path / "metrics.jsonl", {"step": 1, "loss": 2.0, "loss/text": 3.0})
    append_line(tmp_path / "metrics.jsonl", {"step": 2, "loss": 1.0})
    assert measure.losses(tmp_path) == {"step": [1, 2], "loss": [2.0, 1.0], "loss/text": [3.0, None]}


@pytest.mark.slow
def test_the_whole_story(tmp_path: Path) -> None:
    """The command itself, but for the drawing and without `--write`: from clips to the tables."""
    write_theatre(tmp_path / "theatre", train=12, held_out=4)
    one = run.Experiment(out=tmp_path, hours=0.01, seeds=(1,), steps=8, windows=4)
    drawn = next(command for command in run.drawing(one) if command.name == "theatre")
    (tmp_path / ablate.STAMPS).mkdir()
    (tmp_path / ablate.STAMPS / "theatre.json").write_text(json.dumps({"command": drawn.command, "seconds": 0}))
    options = ["--out", str(tmp_path), "--hours", "0.01", "--steps", "8", "--seeds", "1", "--windows", "4"]
    command = [sys.executable, "-m", "tests.any_clip.run", *options]
    # One device, unlike this process.
    subprocess.run(command, cwd=page.ROOT, env=os.environ | {"XLA_FLAGS": quick_xla.FLAGS}, check=True, timeout=1200)
    result = json.loads((tmp_path / run.RESULT).read_text())
    assert result["clips"]["silent"] == 6 and "nobody" not in {row["stage"] for row in result["became"]}
    assert all(np.isfinite(one["difference"]).all() for one in result["held_out"]["measures"].values())
    assert set(result["gradients"]) and (tmp_path / ablate.STAMPS / "train-complete-1.json").is_file()
