"""`make theatre` in small: its very commands, from drawn people to the table against the truth."""

import dataclasses
import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from data_pipelines.puppet_theatre import programme
from data_pipelines.sample_media import SampleMedia
from omnihuman_jax import cli

ROOT = Path(__file__).resolve().parents[3]
CLIPS = 4
# What makes each command of the recipe a small one; the last word on an option counts.
SMALLER = {
    "theatre": ("--voices", "recorded", "--workers", "1", "--hours", str(CLIPS * 6 / 3600)),
    "sample-media": (),
    "encode": (),
    "train": (
        "--no-progress", "--config.stages.rows[0].steps=2", "--config.model.width=96", "--config.model.num_heads=2",
        "--config.model.num_single_layers=1", "--config.mesh.data=8", "--config.data.plan.sequences_per_step=8",
        "--config.data.plan.repeat_warning=1000",
    ),
    "evaluate": ("--windows", "2", "--batch", "6", "--steps", "1"),
}  # fmt: skip


def recipe(out: Path) -> list[list[str]]:
    """The words of each `omnihuman` command that `make theatre` would run."""
    told = subprocess.run(
        ["make", "--dry-run", "--always-make", "theatre", f"THEATRE={out}", "PYTHON=python3"],
        cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, "MAKEFLAGS": ""},
    ).stdout.replace("\\\n", " ")  # fmt: skip
    found = [shlex.split(line) for line in told.splitlines() if "bin/omnihuman " in line]
    return [words[next(i for i, word in enumerate(words) if word.endswith("bin/omnihuman")) + 1 :] for words in found]


def test_the_recipe_leads_from_nothing_to_the_table(
    recordings: Path,
    lines: Path,
    sample_media: SampleMedia,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    held_out = {name: (0.0, *rest) for name, (_, *rest) in programme.SPLITS.items()}
    held_out |= {name: (0.5, *held_out[name][1:]) for name in ("train", "unseen_face_and_speech")}
    monkeypatch.setattr(programme, "SPLITS", held_out)
    short = dataclasses.replace(programme.PROGRAMMES["faces"], seconds=(6.0, 6.0))
    monkeypatch.setitem(programme.PROGRAMMES, "faces", short)
    commands = recipe(tmp_path)
    assert [words[0] for words in commands] == list(SMALLER)
    for words in commands:
        own = ["--recordings", str(recordings), "--lines", str(lines)] if words[0] == "theatre" else []
        assert cli.main([*words, *SMALLER[words[0]], *own]) == 0, words
    result = json.loads((tmp_path / "lip_sync.json").read_text())
    assert result["split"] == "unseen_face_and_speech" and result["step"] == 2
    assert result["correlation"]["ceiling: the codec's round trip"]["value"] > 0.3
    assert result["correlation"]["own sound"]["windows"] == 2
    assert (tmp_path / "lip_sync.gif").stat().st_size > 1000 and (tmp_path / "lip_sync.html").is_file()
    assert "against the truth" in capsys.readouterr().out
