"""Landmarks only where a preview could be of use: what is skipped says so, what is computed is the same, and looser
thresholds compute what they let through and nothing else.
"""

import base64
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from data_pipelines.curate import clip_records, decode, file_stages, landmarks, part_work, source_list, stage_parts
from data_pipelines.curate import curate as curate_module
from data_pipelines.curate.clip_sets import load_landmarks, read_clips
from data_pipelines.curate.curate import CurateConfig
from data_pipelines.curate.data_facts import read_facts
from data_pipelines.curate.file_stages import BY_PREVIEW, ScanOptions
from data_pipelines.curate.found_videos import CaptionOptions
from data_pipelines.curate.reach import Reach, looser_fields, looser_of, stricter_of, within_reach
from data_pipelines.curate.selection import select
from data_pipelines.curate.stage_keys import stage_keys
from data_pipelines.curate.stage_parts import Table
from data_pipelines.curate.tagging import NOT_LOOKED_AT, SCORES, Thresholds
from data_pipelines.curate.threshold_sweep import ThresholdSweep
from data_pipelines.encode.clip_encoder import WindowConfig
from data_pipelines.encode.encode import EncodeConfig, encode
from data_pipelines.sample_media import SampleMedia
from omnihuman_jax.conditions import Condition
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.reporting import data_page
from omnihuman_jax.serving import media_omnihuman
from tests.encoders import tiny_networks

ANYBODY = Thresholds(min_pose_share=0, min_pose_face_share=0, min_body_confidence=0)


def made(root: Path, loosest: Thresholds) -> list[dict[str, int]]:
    """Makes in this process what the table in `root` lacks: rows by stage, of each part that lacked something."""
    options = ScanOptions()
    table = Table(folder=root / "table", keys=stage_keys(options), loosest=loosest)
    videos = source_list.look_up(table, root / "media", CaptionOptions(default="A video."))
    table.save()
    tasks = curate_module._tasks(table, videos, options, loosest)
    return [dict(part_work.work(task).rows) for task in tasks if part_work.to_make(task)]


@pytest.fixture(scope="module")
def curated(sample_media: SampleMedia, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A man who talks, and cyclists without a face."""
    root = tmp_path_factory.mktemp("cascade")
    (root / "media").mkdir()
    for name in ("jwpIntro", "bikes"):
        path = sample_media.videos / f"{name}.mp4"
        frames = media_omnihuman.read_video(path, size=(144, 192), duration_s=1.0)
        sound = tiny_networks.wave(1.0)
        media_omnihuman.write_video(root / "media" / f"{name}.mp4", frames, audio=sound)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_list, "_LEAST_PARTS", 1)  # both in one part
        assert made(root, Thresholds()) == [{"scan": 2, "preview": 2, "look": 2, "listen": 2}]
    return root


def rows(root: Path) -> dict[str, dict[str, Any]]:
    """Name of the video -> all that the table says of its clip, and its landmarks' record."""
    table, found = Table.open(root / "table"), {}
    names = {row["source"]: row["name"] for row in source_list.read_listings(table).to_pylist()}
    stages = [table.read(stage, 0).to_pylist() for stage in stage_parts.STAGES]
    for index, own in enumerate(zip(*stages, strict=True)):
        row = {name: value for stage in own for name, value in stage.items()}
        record = clip_records.read_record(table.landmarks(0), index)
        found[names[own[0]["source"]]] = {**row, "record": {name: array.tobytes() for name, array in record.items()}}
    return found


def test_who_is_not_in_the_preview_is_not_looked_at_and_the_row_says_so(curated: Path, tmp_path: Path) -> None:
    bikes, man = rows(curated)["bikes.mp4"], rows(curated)["jwpIntro.mp4"]
    assert bikes["landmarks_why"] == bikes["lip_sync_why"] == BY_PREVIEW and not bikes["record"]
    assert all(bikes[name] is None for name in (*file_stages.LANDMARK_SCORES, *file_stages.LIP_SYNC_SCORES))
    assert bikes["sharpness"] > 0 and bikes["loudness_dbfs"] > -60 and bikes["preview_face_share"] == 0
    assert man["landmarks_why"] is man["lip_sync_why"] is None and man["preview_face_share"] == 1
    funnel = select(curated / "table", Thresholds(), tmp_path / "sets")
    clips = {clip.video: clip for clip in read_clips(tmp_path / "sets")}
    assert clips["bikes.mp4"].eligible == ("text", "reference") and "pose" in clips["jwpIntro.mp4"].eligible
    assert clips["bikes.mp4"].reasons["pose"] == {"reason": NOT_LOOKED_AT, "score": 0, "threshold": 1}
    assert funnel["reasons"]["pose"] == {NOT_LOOKED_AT: 1}
    with pytest.raises(
        ValueError, match=r"bikes\.mp4 .* has no landmarks, .* run `omnihuman curate .* --loosest FILE`"
    ):
        load_landmarks(tmp_path / "sets", clips["bikes.mp4"])
    facts = read_facts(tmp_path / "sets")
    assert {"face_share", "looked_at", "text_area_share"} <= {one["score"] for one in facts["histograms"]}
    assert "text in the picture" not in {one["reason"] for one in facts["nearest"]}  # nobody asks
    assert all(clip["thumbnail"] for one in facts["nearest"] for clip in one["clips"])


def test_the_page_shows_thresholds_keypoints_and_dead_letters(curated: Path, tmp_path: Path) -> None:
    select(curated / "table", Thresholds(), tmp_path / "sets")
    facts = read_facts(tmp_path / "sets")
    table = Table.open(curated / "table")
    plain = {
        base64.b64encode(clip_records.read_record(table.thumbnails(0), i)["thumbnail"].tobytes()).decode()
        for i in (0, 1)
    }
    # The man, who has keypoints, is drawn on; the cyclists, whom nobody looked at, are not.
    shown = {clip["label"].split()[0]: clip["thumbnail"] in plain for one in facts["nearest"] for clip in one["clips"]}
    assert shown == {"jwpIntro.mp4": False, "bikes.mp4": True}
    facts["funnel"]["quarantine"] = [{"video": "lost.mp4", "stage": "scan", "reason": "cut off"}]
    facts["funnel"]["dead_letters"] = {"scan": 7}
    page = data_page.page(facts)
    assert page.count("data:image/jpeg;base64,") == sum(len(one["clips"]) for one in facts["nearest"]) > 10
    for one in facts["nearest"]:
        assert f"{one['reason']}: {one['score']}, threshold" in page
    assert page.count("<figcaption><b>face_share</b>") == 1 and "lost.mp4" in page and "and 6 more" in page
    lines = [name for one in facts["histograms"] for name, limit in one["marks"] if one["low"] <= limit <= one["high"]]
    assert lines and page.count('<line class="target"') == len(lines)


def test_what_is_computed_is_what_would_be_without_a_preview(curated: Path) -> None:
    path, record = str(curated / "media" / "jwpIntro.mp4"), rows(curated)["jwpIntro.mp4"]["record"]
    alone = landmarks.extract_landmarks(decode.clip_frames(path, 0, 25)).arrays()
    assert record.keys() == alone.keys()
    for name, array in alone.items():
        assert record[name] == array.tobytes()


def test_looser_thresholds_name_the_parts_and_compute_what_they_let_through(
    curated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = r"1 clips .* \(min_pose_share, .*\); the stages look and those after it of the parts 0 .*--loosest FILE"
    with pytest.raises(ValueError, match=message):
        select(curated / "table", ANYBODY, tmp_path / "sets")
    sweep, others = ThresholdSweep.parse("min_pose_face_share=0:0.5:0.25"), dataclasses.replace(ANYBODY)
    others.min_pose_face_share = 0.5
    with pytest.raises(ValueError, match=r"1 clips .* have no landmarks"):
        select(curated / "table", others, tmp_path / "sets", sweeps=[sweep])
    select(curated / "table", others, tmp_path / "sets")  # a face is asked for: the cyclists are out of reach

    shutil.copytree(curated, tmp_path / "grown")
    before, looked_at = rows(curated), []
    look = file_stages.look

    def watched(path: str, *place: int, **places: int) -> Any:
        looked_at.append(Path(path).name)
        return look(path, *place, **places)

    monkeypatch.setattr(file_stages, "look", watched)
    assert made(tmp_path / "grown", ANYBODY) == [{"look": 1, "listen": 1}] and looked_at == ["bikes.mp4"]
    after = rows(tmp_path / "grown")
    assert after["jwpIntro.mp4"] == before["jwpIntro.mp4"]
    changed = {name for name, value in after["bikes.mp4"].items() if value != before["bikes.mp4"][name]}
    assert changed == {
        *file_stages.LANDMARK_SCORES,
        *file_stages.LIP_SYNC_SCORES,
        "landmarks_why",
        "lip_sync_why",
        "record",
    }
    assert select(tmp_path / "grown" / "table", ANYBODY, tmp_path / "sets")["eligible"]["pose"] == 2
    assert not made(tmp_path / "grown", ANYBODY) and not made(tmp_path / "grown", Thresholds())

    # Killed between the landmarks and their rows, or between the stages: the same in the end.
    table = Table.open(tmp_path / "grown" / "table")
    for stage in ("look", "listen"):
        shutil.copy(Table.open(curated / "table").part(stage, 0), table.part(stage, 0))
        assert made(tmp_path / "grown", ANYBODY)[0].keys() == {"look", "listen"} - (
            {"look"} if stage == "listen" else set()
        )
        assert rows(tmp_path / "grown") == after


def test_points_are_in_pixels_of_the_whole_picture(sample_media: SampleMedia, tmp_path: Path) -> None:
    small = media_omnihuman.read_video(sample_media.videos / "jwpIntro.mp4", duration_s=0.2)
    large = media_omnihuman.read_video(sample_media.videos / "jwpIntro.mp4", size=(1080, 1440), duration_s=0.2)
    media_omnihuman.write_video(tmp_path / "large.mp4", large)
    assert decode.scored_size(1080, 1440) == (720, 960) and decode.scored_size(1920, 1080) == (1280, 720)
    assert decode.scored_size(480, 641) == (480, 641)
    scores, found = file_stages.look(str(tmp_path / "large.mp4"), 0, 5, 1080, 1440)
    expected = landmarks.extract_landmarks(small)
    seen = expected.keypoints_TJ3[..., 2] > 0.9
    error = np.abs(found.keypoints_TJ3[seen, :2] - 1080 / 480 * expected.keypoints_TJ3[seen, :2])
    assert seen.any() and np.median(error) < 10 and found.keypoints_TJ3[..., 0].max() > 960
    assert scores["face_px"] == pytest.approx(1080 / 480 * 140, rel=0.1)
    previewed, _ = file_stages.preview(str(tmp_path / "large.mp4"), 0, 5, 1080, 1440)
    assert previewed["preview_face_px"] == pytest.approx(scores["face_px"], rel=0.05)


def columns(**scores: float) -> dict[str, np.ndarray]:
    """One clip that passes everything, but for these scores."""
    good = dict.fromkeys((*SCORES, *file_stages.KNOWN_SCORES), 0.5)
    good |= dict.fromkeys(file_stages.PREVIEW_SCORES, 1.0)
    good |= {"seconds": 8, "short_side_px": 480, "source_fps": 25, "bits_per_pixel": 0.1, "sharpness": 100}
    good |= {"brightness": 120, "audio_tracks": 1, "preview_face_px": 100, "preview_faces_share": 0}
    return {name: np.array([float(value)]) for name, value in {**good, **scores}.items()}


@pytest.mark.parametrize(
    ("scores", "reached"),
    [
        ({}, True),
        ({"preview_face_share": 0.0}, False),
        ({"preview_face_share": 0.3}, True),  # a face in half of the frames is enough for pose
        ({"preview_pose_share": 0.0}, True),  # audio
        ({"preview_pose_share": 0.0, "audio_tracks": 0}, False),
        ({"preview_pose_share": 0.0, "preview_faces_share": 0.9}, False),
        ({"preview_pose_share": 0.6, "audio_tracks": 0}, True),
        ({"preview_pose_share": 0.0, "preview_face_px": 40}, True),  # 48 with the slack
        ({"preview_pose_share": 0.0, "preview_face_px": 30}, False),
        ({"preview_pose_share": 0.0, "seconds": 2}, False),
        ({"sharpness": 1}, False),  # of no use for anything
        ({"preview_face_share": np.nan}, False),  # of pictures that cannot be read
        ({"speech_share": np.nan, "face_share": np.nan, "loudness_dbfs": np.nan}, True),  # not known yet
    ],
)
def test_what_is_within_reach(scores: dict[str, float], reached: bool) -> None:
    assert within_reach(columns(**scores), Thresholds()).tolist() == [reached]


def test_a_face_that_references_ask_for_is_worth_a_look() -> None:
    alone = columns(audio_tracks=0, preview_pose_share=0, seconds=2)
    assert not within_reach(alone, Thresholds())[0]
    assert within_reach(alone, Thresholds(min_reference_face_share=0.1))[0]


def test_the_loosest_of_a_table_only_ever_grow() -> None:
    one, other = Thresholds(min_pose_share=0.5), Thresholds(min_pose_face_share=0.3, max_faces_share=0.5)
    both = looser_of(one, other)
    assert (both.min_pose_share, both.min_pose_face_share, both.max_faces_share) == (0.5, 0.3, 0.5)
    strict = stricter_of(one, other)
    assert (strict.min_pose_share, strict.min_pose_face_share, strict.max_faces_share) == (0.8, 0.5, 0.1)
    assert set(looser_fields(both, one)) == {"min_pose_face_share", "max_faces_share"}
    reach = Reach(loosest=both, preview="key")
    assert Reach.from_json(reach.to_json()).covers(Reach(loosest=one, preview="key"))
    assert not Reach(loosest=one, preview="key").covers(reach) and not reach.covers(Reach(loosest=one, preview="new"))
    assert not looser_fields(Thresholds(min_lip_sync_confidence=0.1), Thresholds())  # asks for no other landmarks
    with pytest.raises(
        ValueError, match=r"loosest: min_pose_share 0\.8 must not be stricter than that of `thresholds`, 0\.5"
    ):
        CurateConfig(thresholds=one, loosest=Thresholds()).validate()


def test_clips_without_landmarks_are_encoded(curated: Path, tmp_path: Path) -> None:
    select(curated / "table", Thresholds(), curated / "sets")
    config = EncodeConfig(
        text_encoder=str(tiny_networks.write_bert(tmp_path / "bert")),
        windows=WindowConfig(area=64 * 48, frames=(5,), references=1, margin=0),
        shard_mib=1,
    )
    encode(curated / "sets", tmp_path / "dataset", config, Console(quiet=True))
    catalog = Catalog.load(tmp_path / "dataset")
    eligible = dict(zip(catalog.clip_id.tolist(), catalog.eligible.tolist(), strict=True))
    for name, row in rows(curated).items():
        assert bool(eligible[row["clip_id"]] >> Condition.POSE & 1) == (name == "jwpIntro.mp4")
