"""What is asked: arms, comparisons, a smaller experiment, and the commands that it comes to."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from omnihuman_jax.ablation import results
from omnihuman_jax.ablation.arm_commands import Places, commands
from omnihuman_jax.ablation.paper import PAPER
from omnihuman_jax.ablation.suite import METRICS, hours
from omnihuman_jax.config import load_config
from omnihuman_jax.evaluation.paired import NOT_SHOWN, REPRODUCED

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "ablations.py"


def places(tmp_path: Path) -> Places:
    return Places(out=tmp_path, config=CONFIG, theatres={"faces": tmp_path / "f", "bodies": tmp_path / "b"})


def test_the_paper_s_suite_fits_together() -> None:
    PAPER.validate()
    assert [arm.name for part in PAPER.parts for arm in part.arms] == [
        "audio_10", "audio_50", "audio_100", "reference_30", "strong_only", "pose_20", "pose_50", "pose_80",
    ]  # fmt: skip
    for part in PAPER.parts:
        assert len({arm.stage.steps for arm in part.arms}) == 1  # equal steps
    assert sum(hours(PAPER).values()) < 6.5 and len(PAPER.seeds) == 3
    broken = dataclasses.replace(PAPER.comparisons[0], metric="taste")
    with pytest.raises(ValueError, match="unknown metric"):
        dataclasses.replace(PAPER, comparisons=(broken,)).validate()
    lost = dataclasses.replace(PAPER.comparisons[0], more="audio_40")
    with pytest.raises(ValueError, match="faces has no arm 'audio_40'; its arms are audio_10"):
        dataclasses.replace(PAPER, comparisons=(lost,)).validate()


def test_a_smaller_one_asks_what_it_can() -> None:
    small = PAPER.chosen(arms=("audio_10", "audio_50"), seeds=(4, 5), steps=40, shared_steps=30)
    assert [part.name for part in small.parts] == ["faces"] and small.seeds == (4, 5)
    assert small.parts[0].shared_steps == 30 and {arm.stage.steps for arm in small.parts[0].arms} == {40}
    assert [one.name for one in small.comparisons] == ["little audio, worse lips"]
    assert PAPER.chosen(shared_steps=7).parts[1].shared_steps == 7  # over its two stages
    assert PAPER.chosen() == PAPER and small.fingerprint() != PAPER.fingerprint()
    with pytest.raises(ValueError, match="no arm audio_11; the arms are audio_10, "):
        PAPER.chosen(arms=("audio_11",))
    with pytest.raises(ValueError, match="--steps 0: an arm trains 1 step at least"):
        PAPER.chosen(steps=0)
    with pytest.raises(ValueError, match="1 shared steps for the 2 shared stages of bodies"):
        PAPER.chosen(shared_steps=1)


def test_every_command_trains_what_the_suite_says(tmp_path: Path) -> None:
    small = PAPER.chosen(seeds=(1, 2), steps=40, shared_steps=30)
    made = list(commands(small, places(tmp_path), rounds=2))
    assert len(made) == 2 * (2 + 2 * 8) and len({job.name for job in made}) == len(made)
    # Seed by seed, what is forked from before what forks.
    assert [job.name for job in made[:4]] == [
        "faces-1-shared-train", "faces-1-audio_10-train", "faces-1-audio_10-evaluate", "faces-1-audio_50-train",
    ]  # fmt: skip
    for job in made:
        if job.argv[0] != "train":
            continue
        _, part, seed, name = job.argv[2].rsplit(":", 1)[1], *job.name.split("-")[:3]
        config = load_config(job.argv[2], [word for word in job.argv[3:] if word.startswith("--config.")])
        arm = None if name == "shared" else small.part(part).arm(name)
        assert config.stages == small.part(part).schedule(arm) and config.seed == int(seed)
        if arm:
            assert f"--fork={tmp_path}/{part}/seed_{seed}/shared@30" in job.argv and config.stages.total_steps == 70
            assert config.samples.interval == 20 and config.samples.split == small.split
            strong = tmp_path / "faces" / "strong_only"
            assert (config.data.dataset == str(strong)) == arm.strong_only
    asked = [job.argv for job in made if job.argv[0] == "evaluate"]
    assert all("--seed" in argv and argv[argv.index("--seed") + 1] == "0" for argv in asked)
    assert sum("--chains" in argv for argv in asked) == 4  # the two arms of the drift, in two seeds
    with pytest.raises(ValueError, match="no arm or part 'audio_11'"):
        load_config(f"{CONFIG}:audio_11")


def measured(shift: float, seed: int, windows: int = 24) -> dict:
    """A made-up lip_sync.json: correlations of about 0.5 + shift, the same noise whatever the shift."""
    random = np.random.default_rng(7)
    noise = random.normal(scale=0.02, size=windows) + 0.01 * seed
    return {
        "windows": [
            {
                "window": f"w{i}",
                "person": f"p{i // 4}",
                "mouth": [0.5 + shift + noise[i], 1.0, 1.0],
                "gestures": None,
            }
            for i in range(windows)
        ]
    }


def test_a_comparison_of_made_up_results() -> None:
    one = PAPER.comparisons[0]
    less = [measured(0.0, seed) for seed in (1, 2, 3)]
    row = results.compare(one, [measured(0.2, seed) for seed in (1, 2, 3)], less)
    assert row["verdict"] == REPRODUCED and row["effect"] == pytest.approx(0.2) and row["chance"] == 1 / 8
    assert row["windows"] == 24 and row["people"] == 6 and "reproduced" in results.told(row)
    assert results.compare(one, less, less)["verdict"] == NOT_SHOWN
    two = results.compare(one, [measured(0.2, seed) for seed in (1, 2)], less[:2])
    assert two["verdict"] == NOT_SHOWN and "2 of the 3 seeds" in two["why"]
    # Only the windows that every run has.
    fewer = results.compare(one, [measured(0.2, 1, windows=12), *(measured(0.2, seed) for seed in (2, 3))], less)
    assert fewer["windows"] == 12
    pose = results.compare(PAPER.comparisons[5], less, less)
    assert pose["verdict"] == results.NOT_RUN and METRICS["gesture_range"].what in pose["why"]
