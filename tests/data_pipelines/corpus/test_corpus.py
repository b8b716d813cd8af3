"""The corpus is what its plan says, and curate finds what construction decides: on a part of it (all: make corpus)."""

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.curate.curate import CurateConfig, curate
from data_pipelines.curate.part_tags import COPY, DUPLICATE
from data_pipelines.sample_media import SampleMedia
from data_pipelines.shares import Share
from omnihuman_jax.runtime.files import file_sha256
from omnihuman_jax.serving import media_omnihuman
from tests.data_pipelines.corpus import score
from tests.data_pipelines.corpus.make import TrueVideo, make, read_truth, seen
from tests.data_pipelines.corpus.plan import COPIES, COUNTS, LATE, Planned, plan, subset
from tests.data_pipelines.corpus.scenes import SCENES


def chosen(*names: str) -> list[Planned]:
    """Videos of the plan by their names, without the suffix, in the plan's order."""
    videos = [video for video in plan() if video.name.removesuffix(".mp4") in names]
    assert len(videos) == len(names)
    return videos


def test_the_plan_is_the_seeds_and_has_every_fault() -> None:
    videos = plan()
    assert len(videos) == 240 == sum(COUNTS.values()) == len({video.name for video in videos})
    assert videos == plan() and videos != plan(seed=1)
    assert {video.fault for video in videos} == set(COUNTS)
    for video in videos:
        assert video.start >= 0 and video.heard_start >= 0
        assert not (video.fault == "dubbed" and video.heard == video.scene)
        assert video.fault != "late" or video.start - video.heard_start == LATE
    copies = [video for video in videos if video.original]
    assert {video.how for video in copies} == set(COPIES)
    assert {video.original for video in copies} <= {video.name for video in videos if not video.original}
    assert [len(list(subset(videos, each))) for each in (1, 100)] == [len(COUNTS), 240]


def test_a_video_shows_what_is_planted(sample_media: SampleMedia) -> None:
    by_name = {video.name.removesuffix(".mp4"): video for video in plan() if not video.original}
    dark = seen(by_name["black-01"])
    assert not dark[30:].any() and dark[:30].any()
    boxed = by_name["letterbox-00"]
    rows = seen(boxed).max((0, 2, 3)) == 0
    assert rows.sum() / len(rows) == pytest.approx(boxed.how, abs=0.02) and rows[0] and rows[-1]
    mixed, cut = seen(by_name["dissolve-00"]).astype(int), seen(by_name["cut-00"]).astype(int)
    jump = np.abs(np.diff(cut, axis=0)).mean((1, 2, 3))
    assert jump.argmax() + 1 == by_name["cut-00"].how and np.abs(np.diff(mixed, axis=0)).mean((1, 2, 3)).max() < 15
    assert not np.diff(seen(by_name["frozen-00"]).astype(int), axis=0).any()
    height, width = seen(by_name["vertical-00"]).shape[1:3]
    assert width / height == pytest.approx(9 / 16, abs=0.01)


def test_the_same_seed_gives_the_same_bytes_as_players_show_them(sample_media: SampleMedia, tmp_path: Path) -> None:
    videos = chosen("rotated-00", "vfr-01", "fps12-02", "silent-00", "duplicate-01")
    first, again = (make(tmp_path / name, videos) for name in ("first", "again"))
    assert first == again == read_truth(tmp_path / "first")
    for truth in first:
        path = tmp_path / "first" / "videos" / truth.name
        assert file_sha256(path) == file_sha256(tmp_path / "again" / "videos" / truth.name)
        header = media_omnihuman.probe(path)
        assert (header.height, header.width) == (truth.height, truth.width)
        assert header.duration_s == pytest.approx(truth.frames / 25, abs=0.09)
        assert bool(header.audio_rate) == (truth.sound != "none")
    turned = next(video for video in videos if video.fault == "rotated")
    shown = media_omnihuman.read_video(tmp_path / "first" / "videos" / turned.name, duration_s=0.2).astype(int)
    assert np.abs(shown[3] - seen(turned)[3]).mean() < 6  # turned back, not upside down
    assert SCENES[turned.scene].faces == 1


def test_the_same_moments_in_two_crops_are_counted_apart_too() -> None:
    def judged(name: str, group: int, start: int = 0, original: str = "", **facts: object) -> score.Judged:
        own = {"scene": "toy", "mirrored": False, "sound": "none", **facts}
        truth = TrueVideo(
            name=name, fault="nobody", start=start, shots=[[0, 60]], black=[False], height=16, width=16, faces=0,
            hands=None, scene_text=False, original=original, **own,
        )  # fmt: skip
        return score.Judged(truth, (score.Made(name, 0, 60, 16, 16, {}, {}, None, group),))

    videos = [judged("a", 1), judged("b", 1, original="a"), judged("c", 1, start=3), judged("d", -1, start=3)]
    others = [judged("e", 2, start=40), judged("f", 2, start=40, mirrored=True), judged("g", -1, sound="own")]
    found = score.duplicates([*videos, *others])
    wrong = tuple((pair, True, False) for pair in ("a = c", "b = c", "e = f"))
    assert found.rows == (("a = b", True, True), *wrong)
    # a and b with c and d, and c with d; of these a, b and c are one group.
    assert score.same_moments([*videos, *others]) == Share(2, 5)


@pytest.mark.slow
def test_what_construction_decides_is_found(sample_media: SampleMedia, tmp_path: Path) -> None:
    """Of the kinds that cost no landmarks."""
    videos = chosen("black-00", "frozen-00", "nobody-00", "nobody-01", "duplicate-03", "duplicate-07")
    make(tmp_path, videos)
    funnel = curate(tmp_path / "videos", tmp_path / "table", CurateConfig(workers=1, part_videos=100))
    judged = score.judge(read_truth(tmp_path), tmp_path / "table")
    found = score.exact(judged)
    assert [(share.hits, share.total) for share in (found["black"][1], found["frozen"][1])] == [(1, 1)] * 2
    (pairs,) = (lane for lane in score.lanes(judged) if lane.name.startswith("duplicates"))
    assert pairs.rows == (
        ("nobody-00.mp4 = duplicate-03.mp4", True, True),
        ("nobody-01.mp4 = duplicate-07.mp4", True, True),
    )
    assert found["same bytes"][1].hits == 1 and funnel["duplicates"] == {DUPLICATE: 1, COPY: 1}
    somebody = next(lane for lane in score.lanes(judged) if lane.name.startswith("somebody"))
    assert not any(given or due for _, given, due in somebody.rows) and len(somebody.rows) == 4
    assert "| black | the black shot alone is too dark, and serves nothing | 1 of 1 |" in score.tables(judged)


@pytest.mark.slow
def test_a_video_of_every_fault(sample_media: SampleMedia, tmp_path: Path) -> None:
    make(tmp_path, list(subset(plan(), 1)))
    curate(tmp_path / "videos", tmp_path / "table", CurateConfig(workers=2))
    judged = score.judge(read_truth(tmp_path), tmp_path / "table")
    print(score.tables(judged))
    assert not {fault: names for fault, (_, _, names) in score.exact(judged).items() if names}
    by_name = {lane.name: lane for lane in score.lanes(judged)}
    for name in (score.TEXT_LANE, "somebody is there", "two faces", "duplicates, pairs"):
        assert not by_name[name].misses, name
