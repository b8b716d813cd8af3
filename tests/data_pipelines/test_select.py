"""Select on tables of numbers: tags against the rule read row by row, sweeps, weights, and what it takes."""

import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.curate import source_list, stage_parts
from data_pipelines.curate.clip_sets import read_clips
from data_pipelines.curate.selection import main, read_thresholds, select
from data_pipelines.curate.sets_writer import _words
from data_pipelines.curate.stage_parts import Table
from data_pipelines.curate.tagging import CHECKS, SCORES, Thresholds, tag, tag_all
from data_pipelines.curate.threshold_sweep import ThresholdSweep
from data_pipelines.encode import kept_dataset
from data_pipelines.encode.claim import SetParts
from data_pipelines.encode.clip_encoder import WindowConfig
from data_pipelines.encode.shard_plan import plan_shards
from omnihuman_jax.conditions import Condition
from tests.data_pipelines import made_table


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "table"
    made_table.write(folder, parts=3, videos=40, clips=5)
    return folder


@pytest.mark.parametrize(
    "thresholds",
    [
        Thresholds(),
        Thresholds(
            max_letterbox_share=0.1, max_pillarbox_share=0.2, max_dark_share=0.5, max_bright_share=0.6,
            min_voice_share=0.2, max_text_area_share=0.1, max_brisque=60, max_camera_motion=0.3,
            min_subject_motion=0.01, min_aesthetic=4, min_technical=0.3, min_syncnet_confidence=2,
            max_syncnet_distance=9, max_syncnet_offset_s=0.2,
        ),
    ],
    ids=["defaults", "strict"],
)  # fmt: skip
def test_columns_are_tagged_as_rows_are(thresholds: Thresholds) -> None:
    """The rule once more, in words of one row: the first check in the order of `CHECKS` that a score does not pass."""
    rng = np.random.default_rng(0)
    limits = {name: [c.limit(thresholds) for c in CHECKS if c.score == name] for name in SCORES}
    columns = {}
    for name in SCORES:
        # Each score near its thresholds or beyond all, and nearly always where it passes, so that later checks count.
        near = [limit + d for limit in limits[name] for d in (-0.01, 0, 0.01)]
        least = [c.limit(thresholds) for c in CHECKS if c.score == name and not str(c.threshold).startswith("max_")]
        most = [c.limit(thresholds) for c in CHECKS if c.score == name and str(c.threshold).startswith("max_")]
        usual = max(least, default=0.0) if not most else (max(least, default=0.0) + min(most)) / 2
        columns[name] = np.where(rng.random(1000) < 0.9, usual, rng.choice([0.0, np.nan, *near], 1000))
    found = tag_all(columns, thresholds)
    assert len(set(found.failed.ravel().tolist())) > 20 and len(set(found.bits.tolist())) > 5
    for row in range(1000):
        scores = {name: float(columns[name][row]) for name in SCORES}
        for condition in Condition:
            mine = [c for c in CHECKS if c.of in (None, condition)]
            first = next((c for c in mine if not _passes(scores[c.score], c.limit(thresholds), c)), None)
            code = found.failed[row, condition]
            assert (None if code == -1 else CHECKS[code]) is first
            assert bool(found.bits[row] >> condition & 1) == (first is None)
        eligible, reasons = tag(scores, thresholds)
        assert {c.label for c in Condition if found.bits[row] >> c & 1} == set(eligible)
        assert set(eligible) | set(reasons) == {c.label for c in Condition}


# Upper bounds at which all passes, known or not.
WHOLE = {"max_brisque": 1000, "max_camera_motion": 100, "max_syncnet_distance": 100, "max_syncnet_offset_s": 1}
WHOLE |= dict.fromkeys(
    ("max_letterbox_share", "max_pillarbox_share", "max_dark_share", "max_bright_share", "max_text_area_share"), 1
)


def _passes(score: float, limit: float, check: object) -> bool:
    score = abs(score) if check.score in ("lip_sync_offset_s", "syncnet_offset_s") else score  # type: ignore[attr-defined]
    if check.unknown_passes and score == 0:  # type: ignore[attr-defined]
        return True
    if str(check.threshold).startswith("min_") and limit == 0:  # type: ignore[attr-defined]
        return True  # a share of 0 is asked for: not even the score is
    if WHOLE.get(str(check.threshold)) == limit:  # type: ignore[attr-defined]
        return True  # the whole range is allowed
    return score <= limit if str(check.threshold).startswith("max_") else score >= limit  # type: ignore[attr-defined]


def test_the_funnel_is_the_sum_of_the_clips(table: Path, tmp_path: Path) -> None:
    funnel = select(table, Thresholds(), tmp_path / "sets", dataset="web", weight=0.5)
    clips = read_clips(tmp_path / "sets")
    assert len(clips) == funnel["clips"] == 600
    for condition in Condition:
        mine = [clip for clip in clips if condition in clip.conditions]
        assert funnel["eligible"][condition.label] == len(mine)
        assert funnel["eligible_seconds"][condition.label] == pytest.approx(sum(clip.seconds for clip in mine))
        missing = sum(funnel["reasons"][condition.label].values())
        assert missing == len(clips) - len(mine)
    assert funnel["serves_none"] == sum(not clip.eligible for clip in clips) > 0
    assert {(clip.dataset, clip.weight) for clip in clips} == {("web", 0.5)}
    head = json.loads((tmp_path / "sets" / "sets.json").read_text())
    assert (head["dataset"], head["weight"]) == ("web", 0.5), "for encode.json and the report"
    for clip in clips[:50]:
        eligible, reasons = tag(clip.scores, Thresholds())
        assert clip.eligible == eligible and clip.reasons.keys() == reasons.keys()
        for label, why in reasons.items():
            assert clip.reasons[label]["reason"] == why["reason"]
            assert clip.reasons[label]["score"] == pytest.approx(why["score"], rel=1e-5, abs=1e-5)
            assert clip.reasons[label]["threshold"] == why["threshold"]
    assert json.loads((tmp_path / "sets" / "funnel.json").read_text()) == json.loads(json.dumps(funnel))


def test_a_sweep_counts_what_each_value_would_give(table: Path, tmp_path: Path) -> None:
    sweep = ThresholdSweep.parse("min_pose_share=0.1:0.9:0.2")
    assert sweep.values == [0.1, 0.3, 0.5, 0.7, 0.9]
    select(table, Thresholds(), tmp_path / "sets", sweeps=[sweep])
    for value, counted, seconds in zip(sweep.values, sweep.clips, sweep.seconds, strict=True):
        funnel = select(table, dataclasses.replace(Thresholds(), min_pose_share=value), tmp_path / "other")
        assert [funnel["eligible"][c.label] for c in Condition] == counted.tolist()
        assert [funnel["eligible_seconds"][c.label] for c in Condition] == pytest.approx(seconds.tolist())
    assert len({tuple(row) for row in sweep.clips.tolist()}) > 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lip_sync=0:1:0.1", "'lip_sync' is no threshold; there are min_short_side_px"),
        ("min_pose_share=0:1", "NAME=FROM:TO:STEP"),
        ("min_pose_share=0:1:0", "NAME=FROM:TO:STEP"),
        ("min_pose_share=0:1:0.0001", "10001 values"),
        ("min_pose_share=0:2:1", r"min_pose_share must be in \[0, 1\], not 2"),
    ],
)
def test_a_sweep_that_is_none(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ThresholdSweep.parse(text)


def test_the_command(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "strict.yaml"
    file.write_text("min_sharpness: 40\nmax_motion: 0.5\n")
    arguments = [str(table), "--thresholds", str(file), "--out", str(tmp_path / "sets")]
    assert main([*arguments, "--sweep", "min_sharpness=20:60:20"]) == 0
    printed = capsys.readouterr().out
    assert "min_sharpness: clips (hours)" in printed and "600 clips" in printed
    assert read_thresholds(file) == Thresholds(min_sharpness=40, max_motion=0.5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="holds something that is no sets"):
        main([str(table), "--out", str(tmp_path / "mine")])
    with pytest.raises(FileNotFoundError, match="omnihuman curate --source"):
        main([str(tmp_path / "mine"), "--out", str(tmp_path / "sets")])
    file.write_text("min_sharpnes: 40\n")
    with pytest.raises(ValueError, match=r"strict\.yaml: min_sharpnes: no such field"):
        main(arguments)
    with pytest.raises(ValueError, match="--weight must be greater than 0"):
        select(table, Thresholds(), tmp_path / "sets", weight=0)


def test_what_another_curate_is_writing_stays(table: Path, tmp_path: Path) -> None:
    sets = tmp_path / "sets"
    places = [table, table / "listings", table / "sources", sets]
    written, left = ([place / f".made.parquet.{name}.part" for place in places] for name in ("0123abcd", "4567cdef"))
    for place in places:
        place.mkdir(exist_ok=True)
    for path in (*written, *left):
        path.write_bytes(b"half")
    for path in left:
        os.utime(path, (time.time() - 7200,) * 2)
    try:
        select(table, Thresholds(min_copy_distance=0), sets)
        assert all(path.is_file() for path in written) and not any(path.exists() for path in left)
    finally:
        for path in written:
            path.unlink(missing_ok=True)


def test_parts_that_are_not_made_are_counted(table: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "table"
    shutil.copytree(table, folder)
    stage_parts.Table.open(folder).part("listen", 1).unlink()
    funnel = select(folder, Thresholds(), tmp_path / "sets")
    assert funnel["unfinished_parts"] == 1 and funnel["clips"] == 400 == len(read_clips(tmp_path / "sets"))


@pytest.mark.slow
def test_a_million_clips_are_quick_and_small(tmp_path: Path) -> None:
    """A fifteenth of the paper's hours, in parts of their size: CPU and memory of this process alone."""
    import resource
    import time

    made_table.write(tmp_path / "table", parts=125, videos=1000, clips=8)
    begin = time.process_time()
    funnel = select(tmp_path / "table", Thresholds(), tmp_path / "sets")
    assert funnel["clips"] == 1_000_000 and time.process_time() - begin < 15
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 * 2**20


def test_a_word_that_two_checks_share_is_one_word() -> None:
    words = _words(np.array([0, -1, 2, 1], np.int8), ("a", "b", "a"))
    assert words.to_pylist() == ["a", None, "a", "b"] and words.dictionary.to_pylist() == ["a", "b"]


def test_what_a_dataset_is_made_by_is_read_a_few_rows_at_a_time(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    select(table, Thresholds(), tmp_path / "sets")
    together = kept_dataset.made_by(tmp_path / "sets", {})
    monkeypatch.setattr(kept_dataset, "_ROWS_AT_ONCE", 7)
    assert kept_dataset.made_by(tmp_path / "sets", {}) == together
    listed = source_list.read_listings(Table.open(table))
    other = listed.set_column(listed.column_names.index("caption"), "caption", [[*["a"] * 119, "b"]])
    monkeypatch.setattr(source_list, "read_listings", lambda table: other)
    assert kept_dataset.made_by(tmp_path / "sets", {})["clips"] != together["clips"]


@pytest.mark.parametrize("change", ["part", "thresholds", "fewer", "stages", "nothing"])
def test_sets_that_are_selected_anew_while_they_are_encoded_are_refused(change: str, tmp_path: Path) -> None:
    made_table.write(tmp_path / "table", parts=3, videos=2, clips=2)
    table, sets, anybody = Table.open(tmp_path / "table"), tmp_path / "sets", Thresholds(min_copy_distance=0)
    middle = table.part("listen", 1)
    if change == "part":
        middle.rename(tmp_path / "kept")  # another worker is at it
    select(table.folder, anybody, sets)
    planner = SetParts(sets, None)
    tasks = plan_shards(planner.all(), WindowConfig(), 16, 1.0)
    planned = [clip for task in tasks for clip in planner.clips(task)]
    parts, thresholds = SetParts(sets, None), anybody
    assert parts.clips(tasks[0]) == planned[: tasks[0].last]
    if change == "part":
        (tmp_path / "kept").rename(middle)
    elif change == "fewer":
        middle.unlink()
    elif change == "thresholds":
        thresholds = dataclasses.replace(anybody, min_sharpness=40.0)
    elif change == "stages":
        (table.folder / "look@made").rename(table.folder / "look@other")
        dataclasses.replace(table, keys={**table.keys, "look": "other"}).save()
    select(table.folder, thresholds, sets)
    if change == "nothing":
        assert [clip for task in tasks for clip in parts.clips(task)] == planned
        return
    with pytest.raises(ValueError, match=r"sets: has other clips than when encoding them began.*encode again"):
        for task in tasks:
            parts.clips(task)
