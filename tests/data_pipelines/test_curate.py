"""Curate on the real sample media with damaged files among them; and its pure stages on their own."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.curate import curate as module
from data_pipelines.curate import decode, file_stages, landmarks, lipsync, network_files, shots, workers
from data_pipelines.curate.clips import Clip, Landmarks, load_landmarks, read_clips
from data_pipelines.curate.curate import CurateConfig, curate, funnel_table
from data_pipelines.curate.tagging import Thresholds, tag
from data_pipelines.sample_media import SampleMedia
from omnihuman_jax.conditions import Condition
from omnihuman_jax.data.keypoints import INDEX, RIGHT_HAND
from omnihuman_jax.serving import media_omnihuman

SECONDS = 8.0


@dataclasses.dataclass
class Curated:
    videos: Path
    out: Path
    config: CurateConfig
    funnel: dict[str, Any]

    @property
    def clips(self) -> dict[str, Clip]:
        return {clip.clip_id: clip for clip in read_clips(self.out)}


@pytest.fixture(scope="module")
def curated(sample_media: SampleMedia, tmp_path_factory: pytest.TempPathFactory) -> Curated:
    """The five clips, three files that cannot be used and one that is no video, curated by two processes."""
    root = tmp_path_factory.mktemp("curate")
    videos = root / "media" / "nested"
    videos.mkdir(parents=True)
    for path in sample_media.videos.iterdir():
        shutil.copy(path, videos)
    (videos / "carphone_pristine.txt").unlink()
    (videos / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(30_000))
    whole = (videos / "bikes.mp4").read_bytes()
    (videos / "cut_short.mp4").write_bytes(whole[: len(whole) // 2])
    media_omnihuman.write_video(videos / "one frame.mp4", np.zeros((1, 64, 64, 3), np.uint8))
    (videos / "notes.pdf").write_bytes(b"%PDF")
    config = CurateConfig(max_seconds_per_video=SECONDS, workers=2)
    return Curated(
        videos=root / "media", out=root / "clips", config=config, funnel=curate(root / "media", root / "clips", config)
    )


def of_video(curated: Curated, name: str) -> list[Clip]:
    return [clip for clip in curated.clips.values() if clip.video == f"nested/{name}.mp4"]


def test_each_clip_gets_the_conditions_that_it_can_serve(curated: Curated) -> None:
    for name in ("jwpIntro", "testMovie"):
        (clip,) = of_video(curated, name)
        assert clip.eligible == ("text", "reference", "audio", "pose") and clip.reasons == {}
    (carphone,), (woman,), bikes = (
        of_video(curated, n) for n in ("carphone_pristine", "WolfgangLanger_Pexels", "bikes")
    )
    assert carphone.eligible == woman.eligible == ("text", "reference", "pose")
    assert carphone.reasons["audio"] == {"reason": "no audio track", "score": 0.0, "threshold": 1}
    assert woman.reasons["audio"] == {"reason": "silent", "score": -120.0, "threshold": -60}
    assert woman.scores["hand_share"] > 0.5 and 0 < woman.scores["hand_confidence"] <= 1
    assert carphone.scores["hand_share"] == 0.0
    assert len(bikes) >= 3  # a film of several shots
    for clip in bikes:
        assert "audio" not in clip.eligible and "pose" not in clip.eligible and "text" in clip.eligible
        assert clip.reasons["pose"]["score"] < clip.reasons["pose"]["threshold"]


def test_funnel_accounts_for_every_video(curated: Curated) -> None:
    funnel = curated.funnel
    assert funnel == {k: v for k, v in json.loads((curated.out / "funnel.json").read_text()).items() if k != "config"}
    assert funnel["videos"] == 8 and funnel["clips"] == len(funnel["rows"]) == len(curated.clips)
    reasons = {row["video"]: row["reason"] for row in funnel["quarantine"]}
    assert set(reasons) == {"nested/noise.mp4", "nested/cut_short.mp4"}
    assert {row["stage"] for row in funnel["quarantine"]} == {"scan"}
    assert funnel["passed_over"] == {"files of other types": ["nested/notes.pdf"]}
    assert all(reason and str(curated.videos) not in reason for reason in reasons.values())
    assert [row["reason"] for row in funnel["dropped"] if "one frame" in row["video"]] == [
        "a shot of 0.04 s is too short"
    ]
    assert funnel["eligible"]["audio"] == 2 and funnel["eligible"]["text"] == funnel["clips"]
    assert funnel["computed"] == {"videos": 8, "clips": funnel["clips"]}
    for row in funnel["rows"]:
        assert set(row["eligible"]) | set(row["reasons"]) == {condition.label for condition in Condition}


def test_captions_come_from_the_sidecar_or_the_stated_default(curated: Curated) -> None:
    (jwp,), (carphone,) = of_video(curated, "jwpIntro"), of_video(curated, "carphone_pristine")
    assert jwp.caption_source == "sidecar" and jwp.caption.startswith("A bearded man")
    assert (carphone.caption, carphone.caption_source) == (curated.config.default_caption, "default")


def test_landmarks_lie_on_the_person_frame_by_frame(curated: Curated) -> None:
    for clip in curated.clips.values():
        found = load_landmarks(curated.out, clip)
        frames = media_omnihuman.read_video(clip.video_path(curated.out), start_s=clip.start_s, duration_s=clip.seconds)
        assert frames.shape[:3] == (clip.frames, clip.height, clip.width)
        x, y, confidence = np.moveaxis(found.keypoints_TJ3, -1, 0)
        assert x.min() >= 0 and y.min() >= 0 and x.max() < clip.width and y.max() < clip.height
        assert confidence.min() >= 0 and confidence.max() <= 1
    (jwp,) = of_video(curated, "jwpIntro")
    found = load_landmarks(curated.out, jwp)
    nose, mouth = found.keypoints_TJ3[:, INDEX["nose"], :2], found.mouth_box_T4
    assert found.face_T.all() and (mouth[:, 2] > mouth[:, 0]).all() and (mouth[:, 3] > mouth[:, 1]).all()
    face = found.face_box_T4
    assert ((nose > face[:, :2]) & (nose < face[:, 2:])).all()
    assert (mouth[:, 1] > nose[:, 1] - 5).all()  # the mouth is under the nose
    shoulders = found.keypoints_TJ3[:, [INDEX["left_shoulder"], INDEX["right_shoulder"]], 0]
    assert (shoulders[:, 0] > shoulders[:, 1]).all()  # his left is on the right of the picture
    (woman,) = of_video(curated, "WolfgangLanger_Pexels")
    hand = load_landmarks(curated.out, woman).keypoints_TJ3[:, RIGHT_HAND]
    seen = hand[..., 2].any(-1)
    assert seen.mean() > 0.5 and not hand[~seen].any()


def test_lips_follow_their_own_sound_and_no_other(curated: Curated) -> None:
    clips = {name: of_video(curated, name)[0] for name in ("jwpIntro", "testMovie", "carphone_pristine")}
    thresholds = Thresholds()
    for seen, clip in clips.items():
        aperture = load_landmarks(curated.out, clip).aperture_T
        for heard in ("jwpIntro", "testMovie"):
            path = clips[heard].video_path(curated.out)
            wave = media_omnihuman.read_audio(path, duration_s=clip.seconds, required=True)
            assert wave is not None
            scores = {
                **clips[heard].scores,
                **clip.scores,
                "audio_tracks": 1.0,
                "loudness_dbfs": -30.0,
                "seconds": SECONDS,
                **lipsync.lip_sync_scores(aperture, wave),
            }
            eligible, reasons = tag(scores, thresholds)
            if seen == heard:
                assert "audio" in eligible and abs(scores["lip_sync_offset_s"]) <= 0.16
            else:
                assert "phone proxy" in reasons["audio"]["reason"]
    # The same sound half a second late: found, and refused for it.
    aperture, wave = (
        load_landmarks(curated.out, clips["jwpIntro"]).aperture_T,
        media_omnihuman.read_audio(clips["jwpIntro"].video_path(curated.out)),
    )
    assert wave is not None
    late = lipsync.lip_sync_scores(aperture, np.concatenate([np.zeros(8000, np.float32), wave])[: aperture.size * 640])
    assert abs(late["lip_sync_offset_s"] - clips["jwpIntro"].scores["lip_sync_offset_s"] - 0.5) <= 0.08
    _, reasons = tag({**clips["jwpIntro"].scores, **late}, thresholds)
    assert reasons["audio"]["reason"].startswith("sound and lips apart")


def test_a_second_run_does_nothing_and_a_damaged_result_is_made_again(curated: Curated) -> None:
    def stamps() -> dict[Path, int]:
        kept = [*(curated.out / "clips").rglob("*"), *(curated.out / "videos").rglob("*")]
        return {path: path.stat().st_mtime_ns for path in kept if path.is_file()}

    before, rows = stamps(), (curated.out / "clips.jsonl").read_text()
    again = curate(curated.videos, curated.out, curated.config)
    assert again["computed"] == {"videos": 0, "clips": 0} and stamps() == before
    assert (curated.out / "clips.jsonl").read_text() == rows
    assert {**again, "computed": None} == {**curated.funnel, "computed": None}

    os.utime(curated.videos / "nested" / "jwpIntro.mp4")  # touched, not changed
    (shot,) = [clip for clip in of_video(curated, "bikes") if clip.start_frame == 0]
    (curated.out / "clips" / shot.clip_id / "scores.json").write_text('{"key": ')  # as a killed run could leave it
    (curated.out / "clips" / shot.clip_id / "landmarks.npz").unlink()
    resumed = curate(curated.videos, curated.out, curated.config)
    assert resumed["computed"] == {"videos": 0, "clips": 1}
    assert (curated.out / "clips.jsonl").read_text() == rows


def test_other_thresholds_need_no_decoding_and_what_is_gone_is_forgotten(curated: Curated, tmp_path: Path) -> None:
    videos, out = tmp_path / "media", tmp_path / "clips"
    shutil.copytree(curated.videos, videos)
    shutil.copytree(curated.out, out)
    strict = dataclasses.replace(curated.config, thresholds=Thresholds(min_short_side_px=200, min_hand_share=0.2))
    (videos / "nested" / "testMovie.mp4").unlink()
    funnel = curate(videos, out, strict)
    assert funnel["computed"] == {"videos": 0, "clips": 0}
    rows = {row["clip_id"]: row for row in funnel["rows"]}
    assert not any("testMovie" in clip_id for clip_id in rows)
    assert not list((out / "clips").glob("*testMovie*")) and not list((out / "videos").glob("*testMovie*"))
    carphone = next(row for row in rows.values() if "carphone" in row["clip_id"])
    assert carphone["eligible"] == [] and carphone["reasons"]["text"] == {
        "reason": "too small",
        "score": 144.0,
        "threshold": 200,
    }
    jwp = next(row for row in rows.values() if "jwpIntro" in row["clip_id"])
    assert jwp["eligible"] == ["text", "reference", "audio"] and jwp["reasons"]["pose"]["reason"] == "hands not seen"


def test_command_prints_the_funnel(curated: Curated, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "curate.json"
    config.write_text(json.dumps({"max_seconds_per_video": SECONDS, "thresholds": {"min_hand_share": 0.2}}))
    command = ["--videos", str(curated.videos), "--out", str(tmp_path / "clips"), "--config", str(config)]
    shutil.copytree(curated.out, tmp_path / "clips")
    assert module.main(command) == 0
    printed = capsys.readouterr().out
    assert "eligible clips" in printed and "0 scored in this run" in printed and "silent" in printed
    config.write_text(json.dumps({"thresholds": {"min_hands": 0.2}}))
    with pytest.raises(ValueError, match="min_hands"):
        module.main(command)
    with pytest.raises(ValueError, match="no videos in it"):
        (tmp_path / "nothing").mkdir()
        module.main(["--videos", str(tmp_path / "nothing"), "--out", str(tmp_path / "clips")])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        module.main(["--videos", str(tmp_path / "gone"), "--out", str(tmp_path / "clips")])


def test_many_clips_are_counted_by_reason(curated: Curated) -> None:
    row = next(row for row in curated.funnel["rows"] if "carphone" in row["clip_id"])
    rows = [{**row, "clip_id": f"clip-{i}"} for i in range(60)]
    table = funnel_table({**curated.funnel, "rows": rows, "clips": 60})
    cells = [list(column.cells) for column in table.columns]
    assert "no audio track" in cells[-1] and "-60" in [cell.strip() for cell in cells[4]]


def test_results_name_no_place_of_the_machine_and_can_be_moved(curated: Curated, tmp_path: Path) -> None:
    shutil.copytree(curated.videos.parent, tmp_path / "moved")
    text = "".join(path.read_text() for path in (tmp_path / "moved" / "clips").rglob("*.json*"))
    assert str(curated.videos.parent) not in text
    for clip in read_clips(tmp_path / "moved" / "clips"):
        assert clip.video_path(tmp_path / "moved" / "clips").is_relative_to(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "media")
    with pytest.raises(FileNotFoundError, match="is gone; put it back"):
        read_clips(tmp_path / "moved" / "clips")[0].video_path(tmp_path / "moved" / "clips")


def test_a_clip_that_cannot_be_decoded_is_quarantined(curated: Curated, tmp_path: Path) -> None:
    clip = of_video(curated, "carphone_pristine")[0]
    video = decode.inspect(clip.video_path(curated.out), clip.video, "carphone", clip.sha256)
    task = file_stages.AnalysisTask(clip_id="x", video=video, start_frame=90, end_frame=140, folder=str(tmp_path / "x"))
    analysis = file_stages.analyse(task)
    assert analysis.error == "10 of 50 frames decoded; re-encode it" and analysis.scores == {}
    assert file_stages.recall_analysis(task) == dataclasses.replace(analysis, computed=False)
    assert not (tmp_path / "x" / "landmarks.npz").exists()


def scan_that_dies(task: file_stages.ScanTask) -> file_stages.Scan:
    """As a decoder that crashes, or the kernel that kills the largest process."""
    if "bikes" in task.name:
        os.kill(os.getpid(), signal.SIGKILL)
    return file_stages.scan(task)


def analysis_that_fails(task: file_stages.AnalysisTask) -> file_stages.Analysis:
    """With the errors that libraries raise, whatever their class."""
    if "jwpIntro" in task.clip_id:
        landmarks.extract_landmarks = _raise
    return file_stages.analyse(task)


def _raise(frames: Any) -> Any:
    raise RuntimeError(f"CUDA error\x1b[2J in {next(iter(frames)).shape}")


def test_no_single_file_ends_a_run(sample_media: SampleMedia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One kills the process that reads it, one fails with an error that nobody foresaw, one has an unreadable caption:
    three dead letters, each with its stage, and the fourth is curated.
    """
    for name in ("bikes", "jwpIntro", "testMovie", "carphone_pristine"):
        shutil.copy(sample_media.videos / f"{name}.mp4", tmp_path / f"{name}.mp4")
    (tmp_path / "testMovie.txt").write_bytes("erklärt".encode("cp1252"))
    monkeypatch.setattr(module, "_SCAN", dataclasses.replace(module._SCAN, compute=scan_that_dies))
    monkeypatch.setattr(module, "_SCORE", dataclasses.replace(module._SCORE, compute=analysis_that_fails))
    config = CurateConfig(max_seconds_per_video=2.0, workers=2)
    funnel = curate(tmp_path, tmp_path / "out", config)
    letters = {row["video"]: (row["stage"], row["reason"]) for row in funnel["quarantine"]}
    assert letters["bikes.mp4"] == ("scan", workers.DIED)
    stage, reason = letters["jwpIntro.mp4"]
    assert stage == "score" and reason.startswith("RuntimeError: CUDA error\\u001b[2J in (")
    stage, reason = letters["testMovie.mp4"]
    assert stage == "caption" and reason.startswith("testMovie.txt: not UTF-8") and "--caption-encoding" in reason
    assert {clip.video for clip in read_clips(tmp_path / "out")} == {"carphone_pristine.mp4"}
    # What was no fault of the files is tried again; what is known is kept.
    monkeypatch.undo()
    again = curate(tmp_path, tmp_path / "out", dataclasses.replace(config, caption_encoding="cp1252"))
    assert not again["quarantine"] and again["computed"]["videos"] == 1
    assert next(clip for clip in read_clips(tmp_path / "out") if "testMovie" in clip.video).caption == "erklärt"


@pytest.mark.parametrize("changed", ["reader", "scan", "network", "scores"])
def test_what_an_older_reader_or_network_found_is_looked_at_again(
    changed: str, curated: Curated, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, number = "nested/carphone_pristine.mp4", 0
    clip = next(clip for clip in curated.clips.values() if clip.video == name)
    scan_task = file_stages.ScanTask(
        path=str(curated.videos / name),
        name=name,
        video_id="nested__carphone_pristine",
        record=str(curated.out / "videos" / "nested__carphone_pristine.json"),
        shots=curated.config.shots,
        max_seconds=SECONDS,
    )
    scan = file_stages.recall_scan(scan_task)
    assert scan is not None and scan.video is not None
    task = file_stages.AnalysisTask(
        clip_id=clip.clip_id,
        video=scan.video,
        start_frame=scan.ranges[number][0],
        end_frame=scan.ranges[number][1],
        folder=str(curated.out / "clips" / clip.clip_id),
    )
    assert file_stages.recall_analysis(task) is not None
    if changed == "reader":
        monkeypatch.setattr(file_stages, "READER_VERSION", 99)
    elif changed == "scan":
        monkeypatch.setattr(file_stages, "VERSION", 99)
        task = dataclasses.replace(task, video=dataclasses.replace(scan.video, source_fps=12.0))
    elif changed == "network":
        hashes = {**network_files.network_sha256(), "hama/assets/asr_waveform.hama": "0"}
        monkeypatch.setattr(network_files, "network_sha256", lambda: hashes)
    else:
        monkeypatch.setattr(lipsync, "VERSION", 99)
    assert (file_stages.recall_scan(scan_task) is None) == (changed in ("reader", "scan"))
    assert file_stages.recall_analysis(task) is None


def test_a_damaged_record_of_a_scan_is_made_again(curated: Curated, tmp_path: Path) -> None:
    record = curated.out / "videos" / "nested__carphone_pristine.json"
    kept = json.loads(record.read_text())
    task = file_stages.ScanTask(
        path=str(curated.videos / "nested" / "carphone_pristine.mp4"),
        name="nested/carphone_pristine.mp4",
        video_id="nested__carphone_pristine",
        record=str(tmp_path / "x.json"),
        shots=curated.config.shots,
        max_seconds=SECONDS,
    )
    for damaged in ({**kept, "video": {}}, {**kept, "ranges": [1]}, {"question": kept["question"]}, kept):
        Path(task.record).write_text(json.dumps(damaged))
        assert (file_stages.recall_scan(task) is not None) == (damaged is kept)
    gone = dataclasses.replace(task, path=str(tmp_path / "gone.mp4"))
    assert file_stages.recall_scan(gone) is None
    assert file_stages.scan(gone).error == "FileNotFoundError: No such file or directory"


def test_names_of_the_footage_do_nothing_in_the_terminal(
    sample_media: SampleMedia, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Markup, escape sequences, line breaks, bytes that are not UTF-8: printed as they are written, run by nobody."""
    names = [b"[red]a[/nope].mp4", b"\x1b[31mb\n.mp4", b"caf\xe9.mp4", b"-x $(id).mp4", b"[link=x.jpg", b"<b>.wav"]
    for name in names:
        name = name.replace(b"/", b"_")
        shutil.copy(sample_media.videos / "carphone_pristine.mp4", os.fsencode(tmp_path) + b"/" + name)
    (tmp_path / "[bold]c.mp4").write_bytes(b"no video")
    arguments = ["--videos", str(tmp_path), "--out", str(tmp_path / "out"), "--max-seconds-per-video", "1.2"]
    assert module.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "[bold]c.mp4" in "".join(printed.split())
    assert "passed over: files of other types: 2 (<b>.wav, [link=x.jpg)" in printed
    clips = read_clips(tmp_path / "out")
    assert {clip.video for clip in clips} == {
        "[red]a[_nope].mp4", "\\u001b[31mb\\u000a.mp4", "caf\\xe9.mp4", "-x $(id).mp4",
    }  # fmt: skip
    for clip in clips:
        clip.video.encode()
        assert clip.video_path(tmp_path / "out").is_file() and clip.clip_id[0] not in "-."


def test_damaged_results_are_refused_by_their_readers(curated: Curated, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="omnihuman curate --videos"):
        read_clips(tmp_path)
    (tmp_path / "clips.jsonl").write_text((curated.out / "clips.jsonl").read_text() + '{"clip_id": "x"}\n')
    with pytest.raises(ValueError, match=r"clips\.jsonl:\d+: not a clip"):
        read_clips(tmp_path)
    (tmp_path / "landmarks.npz").write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match="not a landmarks file"):
        Landmarks.load(tmp_path / "landmarks.npz")
    clip = of_video(curated, "jwpIntro")[0]
    with pytest.raises(ValueError, match="rows for a clip of 7 frames"):
        load_landmarks(curated.out, dataclasses.replace(clip, end_frame=clip.start_frame + 7))


def test_cuts_are_found_and_pans_are_not(tmp_path: Path, sample_media: SampleMedia) -> None:
    jwp = media_omnihuman.read_video(sample_media.videos / "jwpIntro.mp4", size=(96, 128), duration_s=2)
    bikes = media_omnihuman.read_video(sample_media.videos / "bikes.mp4", size=(96, 128), duration_s=1)
    wide = np.random.default_rng(0).integers(0, 255, (12, 60, 3), np.uint8).repeat(8, 0).repeat(32, 1)
    pan = np.stack([wide[:, 12 * t : 12 * t + 128] for t in range(50)])
    media_omnihuman.write_video(tmp_path / "v.mp4", np.concatenate([jwp, bikes, pan]))
    changes = shots.frame_changes(tmp_path / "v.mp4")
    assert len(changes) == 124 and changes[80:].mean() > 15  # the pan changes as much as a cut, all the time
    assert shots.find_cuts(changes, shots.ShotConfig()) == [50, 75]


def test_ranges_trim_cuts_drop_short_shots_and_divide_long_ones() -> None:
    config = shots.ShotConfig(min_s=1.0, max_s=4.0, trim_frames=1)
    kept, short = shots.clip_ranges(400, [30, 40, 150], config)
    assert short == [(31, 39)]
    assert kept == [(0, 29), (41, 95), (95, 149), (151, 234), (234, 317), (317, 400)]
    assert all(25 <= end - start <= 100 for start, end in kept)
    with pytest.raises(ValueError, match="min_s <= max_s, not 5 and 4"):
        shots.ShotConfig(min_s=5, max_s=4).validate()


def test_ids_are_safe_and_distinct() -> None:
    ids = decode.video_ids(["a/b c.mp4", "a__b_c.mp4", "Ä ü.mov", "x.mp4", "X.avi"])
    assert len({value.casefold() for value in ids.values()}) == 5
    assert ids["Ä ü.mov"] == "Ä_ü" and not any(set(value) & set("/ ") for value in ids.values())


def test_bad_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match="workers"):
        CurateConfig(workers=0).validate()
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        CurateConfig(thresholds=Thresholds(min_pose_share=2)).validate()
    with pytest.raises(ValueError, match="max_seconds_per_video"):
        CurateConfig(max_seconds_per_video=0).validate()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("min_sharpness", float("nan"), "thresholds.min_sharpness must be a finite number, not nan"),
        ("max_motion", float("inf"), "thresholds.max_motion must be a finite number, not inf"),
        ("min_face_px", -1, "min_face_px must be at least 0, not -1"),
        ("max_brightness", 300, r"max_brightness must be in \[0, 255\], not 300"),
        ("min_loudness_dbfs", 3, r"min_loudness_dbfs must be in \[-120, 0\], not 3"),
        ("min_body_confidence", 1.5, r"min_body_confidence must be in \[0, 1\], not 1.5"),
        ("min_brightness", 250, r"min_brightness 250(\.0)? must not be above max_brightness 245"),
    ],
)
def test_thresholds_out_of_range_are_refused(field: str, value: float, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        CurateConfig(thresholds=Thresholds(**{field: value})).validate()
    file = tmp_path / "curate.json"
    file.write_text(json.dumps({"thresholds": {field: value}}))
    with pytest.raises(ValueError, match=message):
        module.main(["--videos", str(tmp_path), "--out", str(tmp_path / "out"), "--config", str(file)])


def test_numbers_that_are_none_are_refused_wherever_they_stand() -> None:
    with pytest.raises(ValueError, match=r"shots\.min_change must be a finite number, not nan"):
        CurateConfig(shots=shots.ShotConfig(min_change=float("nan"))).validate()
    with pytest.raises(ValueError, match="max_seconds_per_video must be a finite number, not inf"):
        CurateConfig(max_seconds_per_video=float("inf")).validate()
    with pytest.raises(ValueError, match="'utf-9' is unknown; give a name such as cp1252"):
        CurateConfig(caption_encoding="utf-9").validate()
    with pytest.raises(ValueError, match=r"default_caption has U\+001B at 1"):
        CurateConfig(default_caption="a\x1b[31m").validate()
