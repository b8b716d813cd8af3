"""`omnihuman ablate`: what it prints, what it refuses, what it runs once, and the page of made-up results."""

import dataclasses
import fcntl
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from omnihuman_jax import cli
from omnihuman_jax.ablation.arm_commands import ArmCommand, Places
from omnihuman_jax.ablation.paper import FACES, PAPER
from omnihuman_jax.ablation.suite import hours
from omnihuman_jax.commands import ablate
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.config import write_config
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.runtime.incidents import append_line
from tests.training import runs, tiny_config

SMALL = PAPER.chosen(arms=("audio_10", "audio_50"), seeds=(1, 2), steps=4, shared_steps=5)


def test_a_dry_run_says_what_would_be_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "--out",
        str(tmp_path / "out"),
        "--arms",
        "audio_10,audio_50",
        "--seeds",
        "7,8",
        "--steps",
        "300",
        "--dry-run",
    ]
    assert ablate.main(argv) == 0
    printed = capsys.readouterr().out
    assert "audio_10: 300 steps, text 90%, reference 70%, audio 10%" in printed and "seeds 7, 8" in printed
    assert "asked: audio on 10 % of the windows gives worse lip-sync" in printed and "pose" not in printed
    asked = PAPER.chosen(arms=("audio_10", "audio_50"), seeds=(7, 8), steps=300)
    assert f"about {hours(asked)['faces']:.1f} hours for faces" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "there are no data: give --faces DIR or --bodies DIR"),
        (["--arms", "audio_11"], "no arm audio_11; the arms are audio_10"),
        (["--faces", "{tmp}/nowhere"], "nowhere/dataset does not exist; docs/ablations.md has the commands"),
        (["--faces", "x", "--width", "3"], "unknown argument '--width'"),
        (["--faces", "x", "--config", "nothing.py"], "nothing.py does not exist"),
        (["--faces", "gs://bucket/theatre"], "a bucket; give a local or mounted folder"),
        (["--seeds", "one"], "numbers with commas between, such as 1,2,3"),
    ],
)
def test_what_is_refused(argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [word.format(tmp=tmp_path) for word in argv]
    try:
        code = cli.main(["ablate", "--out", str(tmp_path / "out"), *given])
    except SystemExit as left:  # argparse's own
        code = left.code
    assert code == 2 and message in capsys.readouterr().err


def test_what_is_asked_is_decided_before_the_first_run(tmp_path: Path) -> None:
    ablate.decide(SMALL, tmp_path, [])
    ablate.decide(PAPER.chosen(arms=("audio_100",), seeds=(3,), steps=4, shared_steps=5), tmp_path, [])  # may be added
    decided = json.loads((tmp_path / ablate.DECIDED).read_text())
    assert {"arm audio_10", "arm audio_100", "comparison little audio, worse lips", "evaluation"} <= set(decided)
    easier = dataclasses.replace(SMALL.comparisons[0], smallest=0.01)
    for other, what in (
        (SMALL.chosen(steps=5), "arm audio_10"),
        (SMALL.chosen(windows=12), "evaluation"),
        (dataclasses.replace(SMALL, comparisons=(easier,)), "comparison little audio"),
    ):
        with pytest.raises(ValueError, match=f"begun with another {what}.*; give another --out"):
            ablate.decide(other, tmp_path, [])
    with pytest.raises(ValueError, match="begun with another overrides"):
        ablate.decide(SMALL, tmp_path, ["--config.optimizer.learning_rate=1"])


def test_what_is_finished_is_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = (ArmCommand(name=name, argv=argv) for name, argv in (("a", ("--version",)), ("b", ("nothing",))))
    with pytest.raises(SystemExit) as left:
        ablate.run_all([good, bad], tmp_path)
    assert left.value.code == 2
    printed = capsys.readouterr()
    assert "[1/2] $ omnihuman --version" in printed.out and "b failed (exit code 2)" in printed.err
    assert [path.stem for path in (tmp_path / ablate.STAMPS).iterdir()] == ["a"]
    ablate.run_all([good], tmp_path)
    assert "a: finished before" in capsys.readouterr().out
    descriptor = os.open(tmp_path / ".lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="in use: another `omnihuman ablate`, or a training that one has left"):
        ablate.run_all([good], tmp_path)
    os.close(descriptor)


def test_the_strong_clips_alone(tmp_path: Path) -> None:
    dataset = runs.write_dataset(tmp_path / "dataset")
    assert ablate.keep_strong(dataset, tmp_path / "strong", FACES)
    whole, kept = Catalog.load(dataset), Catalog.load(tmp_path / "strong")
    audio = ConditionSet.of(Condition.TEXT, Condition.REFERENCE, Condition.AUDIO).bits
    is_strong = (whole.eligible & audio) == audio
    assert 0 < is_strong.sum() < len(whole)
    assert np.array_equal(kept.split == "train", (whole.split == "train") & is_strong)
    assert np.array_equal(kept.split == "left_out", (whole.split == "train") & ~is_strong)
    row = int(np.flatnonzero(is_strong)[0])
    one, other = open_records(dataset)[row], open_records(tmp_path / "strong")[row]
    assert one is not None and other is not None and np.array_equal(one.latents_FHWC, other.latents_FHWC)
    # Where all are strong there is nothing to leave out.
    all_strong = dataclasses.replace(whole, eligible=np.full(len(whole), audio, np.int8))
    shutil.copytree(dataset, tmp_path / "all")
    all_strong.save(tmp_path / "all")
    assert not ablate.keep_strong(tmp_path / "all", tmp_path / "none", FACES) and not (tmp_path / "none").exists()


def made_up(places: Places, dataset: Path) -> None:
    """What the commands of SMALL would leave, with audio_50 better by 0.2."""
    random = np.random.default_rng(0)
    noise = random.normal(scale=0.02, size=16)
    for seed in SMALL.seeds:
        for arm in SMALL.parts[0].arms:
            run = places.run("faces", seed, arm.name)
            config = tiny_config.get_config()
            config.data.dataset, config.seed = str(dataset), seed
            config.stages = SMALL.parts[0].schedule(arm)
            run.mkdir(parents=True)
            write_config(config, run)
            better = 0.2 * (arm.name == "audio_50")
            for step in (6, 9):
                append_line(run / "metrics.jsonl", {"step": step, "mouth/correlation": 0.1 * step + better})
            windows = [
                {"window": f"w{i}", "person": f"p{i // 4}", "mouth": [0.4 + better + noise[i], 1.0, 1.0]}
                for i in range(16)
            ]
            folder = places.evaluation("faces", seed, arm.name)
            folder.mkdir()
            (folder / "lip_sync.json").write_text(json.dumps({"windows": windows}))
            clip = run / "training_samples" / "step_9" / "held_out.mp4"
            clip.parent.mkdir(parents=True)
            clip.write_bytes(b"")


def test_the_page_says_what_was_found_and_what_it_is_worth(tmp_path: Path) -> None:
    dataset = runs.write_dataset(tmp_path / "dataset")
    places = Places(out=tmp_path, config=ablate.DEFAULT_CONFIG, theatres={"faces": tmp_path})
    made_up(places, dataset)
    (row,) = ablate.write_results(SMALL, places, {})
    assert row["verdict"] == "not shown" and "2 of the 3 seeds" in row["why"] and row["effect"] == pytest.approx(0.2)
    found = json.loads((tmp_path / ablate.RESULT).read_text())
    little, much = (found["curves"][f"{arm}, seed 1"] for arm in ("audio_10", "audio_50"))
    assert little["step"] == [6, 9] and much["audio_windows"][1] > 3 * little["audio_windows"][1] > 0
    page = (tmp_path / ablate.PAGE).read_text()
    assert "happen by chance once in eight; 2 seeds, once in 4" in page and "not shown" in page
    assert "0.200 [0.200, 0.200]" in page and "windows with audio seen" in page
    assert 'src="faces/seed_1/audio_50/training_samples/step_9/held_out.mp4"' in page
    left_out = PAPER.chosen(arms=("audio_50", "strong_only"), seeds=(1,), steps=4, shared_steps=5)
    (row,) = ablate.write_results(left_out, places, {"strong_only": "no weak clips"})
    assert row["verdict"] == "not run" and "no weak clips" in (tmp_path / ablate.PAGE).read_text()
