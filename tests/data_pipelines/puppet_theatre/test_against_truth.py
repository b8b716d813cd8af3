"""Curate's tags and landmarks scored against the truth."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.curate.clip_sets import load_landmarks, read_clips
from data_pipelines.curate.curate import CurateConfig, curate
from data_pipelines.curate.known_clips import write_clips
from data_pipelines.curate.tagging import CHECKS
from data_pipelines.puppet_theatre import against_truth, programme
from data_pipelines.puppet_theatre.faults import DELAYS, FAULTS
from data_pipelines.puppet_theatre.theatre import TheatreConfig, theatre
from data_pipelines.puppet_theatre.truth import Truth
from data_pipelines.shares import Share
from omnihuman_jax.conditions import Condition
from omnihuman_jax.data.keypoints import INDEX
from tests.data_pipelines.puppet_theatre.conftest import short


def fault_of(truth: Truth, fault: str, **planned: Any) -> Truth:
    """The same clip, had this been planted."""
    return dataclasses.replace(truth, facts={**truth.facts, "plan": {**truth.facts["plan"], "fault": fault, **planned}})


def test_a_judge_without_error_scores_full_marks(tiny_theatre: Path) -> None:
    clips = read_clips(tiny_theatre / "clips")
    # As if they were long enough to be judged by ear.
    long = [dataclasses.replace(clip, start_frame=0, end_frame=200) for clip in clips]
    judged = list(against_truth.judge(long, tiny_theatre / "truth"))
    for condition in Condition:
        for share in against_truth.precision_and_recall(judged, condition):
            assert share.hits == share.total
    for j, clip in zip(judged, clips):
        seen = against_truth.see(
            against_truth.Judged(clip, j.truth, j.right), load_landmarks(tiny_theatre / "clips", clip)
        )
        assert seen.body == 0 and seen.face == 1 and (math.isnan(seen.aperture) or seen.aperture > 0.9)


def test_wrong_tags_and_points_cost(tiny_theatre: Path) -> None:
    clips = read_clips(tiny_theatre / "clips")
    first = clips[0]
    everything = tuple(condition.label for condition in Condition)
    judged = list(
        against_truth.judge([dataclasses.replace(c, eligible=everything) for c in clips], tiny_theatre / "truth")
    )
    precision, recall = against_truth.precision_and_recall(judged, Condition.AUDIO)
    assert (precision.hits, precision.total, recall.total) == (0, len(clips), 0)  # all are shorter than five seconds
    assert all(share.hits == 0 for share in against_truth.right_by_fault(judged, Condition.AUDIO).values())
    wrong = against_truth.wrong_tags(judged, Condition.AUDIO)
    assert {said for _, said in wrong} == {against_truth.TAGGED} and sum(map(len, wrong.values())) == len(clips)
    found = load_landmarks(tiny_theatre / "clips", first)
    moved = found.keypoints_TJ3.copy()
    moved[:, : INDEX["left_hip"], :2] += [3, 4]
    wrong = dataclasses.replace(found, keypoints_TJ3=moved, face_T=np.arange(first.frames) % 2 == 0)
    seen = against_truth.see(judged[0], wrong)
    assert seen.body == pytest.approx(5 / judged[0].truth.facts["figure_px"], rel=1e-3)
    assert seen.face == pytest.approx(0.5, abs=0.05)


def test_a_missing_tag_is_told_with_curates_reason(tiny_theatre: Path) -> None:
    clip = read_clips(tiny_theatre / "clips")[0]
    why = {"reason": "blurred", "score": 1.0, "threshold": 15.0}
    bare = dataclasses.replace(clip, eligible=(), reasons={c.label: why for c in Condition})
    judged = list(against_truth.judge([bare], tiny_theatre / "truth"))
    assert judged[0].right >= {"pose"}
    assert against_truth.wrong_tags(judged, Condition.POSE) == {(judged[0].fault, "blurred"): [Path(clip.video).stem]}


def test_faults_are_found_by_what_curate_says(tiny_theatre: Path) -> None:
    """A judge who says of each clip what its fault is told by, and one who says "blurred" of all."""
    clips = read_clips(tiny_theatre / "clips")
    planted = {j.clip.clip_id: j.fault for j in against_truth.judge(clips, tiny_theatre / "truth")}

    def told(said: Callable[[str], tuple[str, ...]]) -> dict[str, tuple[Share, Share]]:
        spoken = [
            dataclasses.replace(clip, reasons={w: {"reason": w} for w in said(planted[clip.clip_id])[:1]})
            for clip in clips
        ]
        return against_truth.found_faults(list(against_truth.judge(spoken, tiny_theatre / "truth")))

    perfect = told(lambda fault: FAULTS[fault].told_by)
    assert set(perfect) == {fault for fault in planted.values() if FAULTS[fault].told_by or fault == "cut"}
    for fault, (precision, recall) in perfect.items():
        if fault != "cut":  # each half is a clip, and curate said nothing about either
            assert precision.value == recall.value == 1 and precision.total >= recall.total >= 1
    blurred = told(lambda fault: ("blurred",))
    for fault, (precision, recall) in blurred.items():
        if fault not in ("blur", "cut"):
            assert precision.total == 0 and recall.hits == 0 < recall.total


def test_a_cut_is_found_where_a_video_is_several_clips(tiny_theatre: Path) -> None:
    judged = list(against_truth.judge(read_clips(tiny_theatre / "clips"), tiny_theatre / "truth"))
    cut = [dataclasses.replace(j, truth=fault_of(j.truth, "cut")) for j in judged[:1]]
    whole = [dataclasses.replace(j, truth=fault_of(j.truth, "none")) for j in judged[1:3]]
    assert against_truth.found_faults([*cut, *cut, *whole])["cut"] == (Share(2, 2), Share(2, 2))
    precision, recall = against_truth.found_faults([*cut, *whole, *whole[:1]])["cut"]
    assert (precision, recall) == (Share(0, 2), Share(0, 1))


@pytest.mark.parametrize(
    ("delay_s", "group"),
    [(0.0, "0"), (0.08, "80 to 120"), (-0.12, "-120 to -80"), (0.2, "160 to 200"), (-0.8, "-800 to -680")],
)
def test_delays_are_grouped_with_their_sign(tiny_theatre: Path, delay_s: float, group: str) -> None:
    (j, *_) = against_truth.judge(read_clips(tiny_theatre / "clips"), tiny_theatre / "truth")
    fault = "late" if delay_s > 0 else "early" if delay_s else "none"
    late = dataclasses.replace(
        j, truth=fault_of(j.truth, fault, delay_s=delay_s), clip=dataclasses.replace(j.clip, end_frame=200)
    )
    assert list(against_truth.by_delay([late])) == [group]


def test_every_delay_that_is_planted_has_its_group() -> None:
    for low, high in DELAYS.values():
        for frames in range(round(low * 25), round(high * 25) + 1):
            assert any(a <= abs(40 * frames) <= b for a, b in against_truth._DELAYS), frames


def test_what_tells_a_fault_is_what_curate_says() -> None:
    """Each of the words is a reason of curate for a condition that the fault spoils."""
    for fault in FAULTS.values():
        for word in fault.told_by:
            asked = [check.of for check in CHECKS if check.reason == word]
            assert asked and (asked[0] is None or asked[0] in fault.spoils), (fault.name, word)
        assert bool(fault.told_by) == bool(fault.spoils), fault.name


def test_the_tables_name_every_fault(tiny_theatre: Path) -> None:
    text = against_truth.tables(tiny_theatre, tiny_theatre / "clips")
    faults = {j.fault for j in against_truth.judge(read_clips(tiny_theatre / "clips"), tiny_theatre / "truth")}
    assert all(f"| {fault} |" in text for fault in faults) and "| audio | clear faults, and none |" in text
    assert "of 0 videos no clip was made" in text


def test_a_clip_without_landmarks_is_scored_and_told_of(tiny_theatre: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare, *others = read_clips(tiny_theatre / "clips")
    bare = dataclasses.replace(bare, scores={**bare.scores, "looked_at": 0.0})
    monkeypatch.setattr(against_truth, "read_clips", lambda folder: [bare, *others])
    text = against_truth.tables(tiny_theatre, tiny_theatre / "clips")
    assert text.startswith(f"{1 + len(others)} clips of ")
    assert f"curate looked for no landmarks: {Path(bare.video).stem}\n" in text


def test_a_video_without_a_clip_is_told_of(tiny_theatre: Path, tmp_path: Path) -> None:
    lost, *kept = [(clip, load_landmarks(tiny_theatre / "clips", clip)) for clip in read_clips(tiny_theatre / "clips")]
    write_clips(tmp_path, [row for row in kept if row[0].video != lost[0].video])
    text = against_truth.tables(tiny_theatre, tmp_path)
    assert "of 1 videos no clip was made" in text and Path(lost[0].video).stem in text


def test_delays_are_no_clear_faults() -> None:
    """Whether a sound that comes late is wrong depends on how late: no yes or no is asked of it."""
    unclear = {name for name, fault in FAULTS.items() if not fault.clear}
    assert unclear == {*DELAYS, "partly_dubbed"}


def test_a_head_is_in_the_group_of_its_height() -> None:
    def of(head_px: float) -> str:
        seen = against_truth.SeenClip("flat", "half", face=1, hands=1, body=0, aperture=1, head_px=head_px)
        return seen.head

    assert [of(35), of(48), of(95.9), of(300)] == [
        "head below 48 px", "head of 48 px or more", "head of 64 px or more", "head of 160 px or more",
    ]  # fmt: skip


@pytest.mark.slow
def test_curate_tags_what_is_planted(
    recordings: Path, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clear faults, through the unchanged curate: no clip with one is tagged for audio, and most in sync are."""
    clear = {"none": 3, "silent": 1, "no_track": 1, "music": 1, "covered": 1, "turned_away": 1, "still": 1}
    played = short(faults=clear, seconds=(7.0, 7.0), short_side=256)
    calm = dataclasses.replace(played.weak, styles={"shaded": 1}, scenery={"plain": 1}, facing=0.0, drift=0.0)
    monkeypatch.setitem(programme.PROGRAMMES, "clear", dataclasses.replace(played, weak=calm))
    config = TheatreConfig(
        hours=14 * 7 / 3600, seed=1, programme="clear", voices="recorded", recordings=recordings, lines=lines
    )
    theatre(tmp_path, config)
    curate(tmp_path / "videos", tmp_path / "curated", CurateConfig())
    judged = list(against_truth.judge(read_clips(tmp_path / "curated"), tmp_path / "truth"))
    assert len(judged) >= 14 and {clip.split for clip in read_clips(tmp_path / "curated")} > {"train"}
    precision, recall = against_truth.precision_and_recall(judged, Condition.AUDIO)
    assert precision.value >= 0.9 and recall.value >= 0.7, (str(precision), str(recall))
    seen = [against_truth.see(j, load_landmarks(tmp_path / "curated", j.clip)) for j in judged if j.fault == "none"]
    assert np.mean([s.face for s in seen]) > 0.98 and np.mean([s.aperture for s in seen]) > 0.85
    assert np.nanmean([s.body for s in seen]) < 0.05
