"""Curate on the real sample media with damaged files among them; and its pure stages on their own."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.curate import curate as module
from data_pipelines.curate import (
    curate_command,
    file_stages,
    landmarks,
    lipsync,
    network_files,
    part_work,
    picture_scores,
    shots,
    source_list,
    stage_parts,
    stage_rows,
)
from data_pipelines.curate.clip_sets import load_landmarks, read_clips, table_folder
from data_pipelines.curate.clips import Clip
from data_pipelines.curate.curate import CurateConfig, Engine, curate
from data_pipelines.curate.file_stages import ScanOptions
from data_pipelines.curate.funnel import funnel_table
from data_pipelines.curate.part_task import Made, PartTask
from data_pipelines.curate.stage_keys import stage_keys
from data_pipelines.curate.stage_parts import Table
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
    stored = json.loads((curated.out / "sets" / "funnel.json").read_text())
    assert stored == {name: value for name, value in funnel.items() if name != "computed"}
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
    clips = funnel["clips"]
    assert funnel["computed"] == {
        "videos": 8,
        "clips": clips,
        "scan": clips + len(funnel["quarantine"]) + len(funnel["dropped"]),
        "preview": clips,
        "look": clips,
        "listen": clips,
    }
    for row in funnel["rows"]:
        assert set(row["eligible"]) | set(row["reasons"]) == {condition.label for condition in Condition}


def test_captions_come_from_the_sidecar_or_the_stated_default(curated: Curated) -> None:
    (jwp,), (carphone,) = of_video(curated, "jwpIntro"), of_video(curated, "carphone_pristine")
    assert jwp.caption_source == "sidecar" and jwp.caption.startswith("A bearded man")
    assert (carphone.caption, carphone.caption_source) == (curated.config.default_caption, "default")


def test_landmarks_lie_on_the_person_frame_by_frame(curated: Curated) -> None:
    looked_at = [clip for clip in curated.clips.values() if clip.scores["looked_at"]]
    assert {clip.video for clip in curated.clips.values()} - {clip.video for clip in looked_at} == {"nested/bikes.mp4"}
    for clip in looked_at:
        found = load_landmarks(curated.out, clip)
        frames = media_omnihuman.read_video(
            clip.video_path(table_folder(curated.out)), start_s=clip.start_s, duration_s=clip.seconds
        )
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


@pytest.mark.slow
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
    # Both faces beside each other: it is the own one's that speaks.
    lips = {name: load_landmarks(curated.out, clips[name]).aperture_T for name in ("jwpIntro", "testMovie")}
    both = np.stack([track[: min(map(len, lips.values()))] for track in lips.values()], axis=1)
    for track, name in enumerate(lips):
        wave = media_omnihuman.read_audio(clips[name].video_path(curated.out), duration_s=len(both) / 25, required=True)
        assert wave is not None
        speaks = lipsync.active_track(both, lipsync.phones(wave))
        assert speaks["active_track"] == track and speaks["active_lead"] > 0.05, (name, speaks)
        assert clips[name].scores["active_track"] == 0 and clips[name].scores["face_tracks"] == 1
        assert clips[name].scores["active_lip_sync_confidence"] == clips[name].scores["lip_sync_confidence"]
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


def test_a_second_run_does_nothing_and_a_part_that_is_gone_is_made_again(curated: Curated) -> None:
    def bytes_of(folder: Path) -> dict[Path, str]:
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}

    before, stamps = bytes_of(curated.out), {p: p.stat().st_mtime_ns for p in curated.out.glob("*@*/*")}
    assert len(stamps) == 8 * 6 and not any(path.name.startswith(".") for path in before)
    again = curate(curated.videos, curated.out, curated.config)
    assert again["computed"] == {"videos": 0, "clips": 0}
    assert {p: p.stat().st_mtime_ns for p in curated.out.glob("*@*/*")} == stamps
    assert {**again, "computed": None} == {**curated.funnel, "computed": None}

    os.utime(curated.videos / "nested" / "jwpIntro.mp4")  # touched, not changed
    shot = of_video(curated, "bikes")[0]
    table, shots_of_film = Table.open(curated.out), len(of_video(curated, "bikes"))
    table.part("look", shot.part).unlink()  # as a killed run would leave it
    (table.stage_folder("look") / f".part-{shot.part:05d}.parquet.12345678.part").write_text("half")
    (table.stage_folder("listen") / f".part-{shot.part:05d}.at").write_text("killed between a part and its note")
    resumed = curate(curated.videos, curated.out, curated.config)
    assert resumed["computed"] == {"videos": 0, "clips": shots_of_film, "look": shots_of_film}
    after = bytes_of(curated.out)
    after.pop(curated.out / "sources" / "added-00001.parquet")  # the new time of the touched one
    assert after == before  # MediaPipe repeats to the bit


def test_what_is_gone_stays_in_the_table_and_leaves_the_sets(curated: Curated, tmp_path: Path) -> None:
    videos, out = tmp_path / "media", tmp_path / "clips"
    shutil.copytree(curated.videos, videos)
    shutil.copytree(curated.out, out)
    (videos / "nested" / "testMovie.mp4").unlink()
    strict = dataclasses.replace(curated.config, thresholds=Thresholds(min_short_side_px=200, min_hand_share=0.2))
    parts = {path.name: path.stat().st_mtime_ns for path in out.glob("*@*/*")}
    funnel = curate(videos, out, strict)
    assert funnel["computed"] == {"videos": 0, "clips": 0}  # other thresholds need no decoding
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*@*/*")} == parts
    rows = {row["video"]: row for row in funnel["rows"]}
    assert "nested/testMovie.mp4" not in rows and funnel["videos"] == 7
    carphone = rows["nested/carphone_pristine.mp4"]
    assert carphone["eligible"] == [] and carphone["reasons"]["text"] == {
        "reason": "too small",
        "score": 144.0,
        "threshold": 200,
    }
    jwp = rows["nested/jwpIntro.mp4"]
    assert jwp["eligible"] == ["text", "reference", "audio"] and jwp["reasons"]["pose"]["reason"] == "hands not seen"


@pytest.mark.slow
def test_a_second_folder_joins_the_first_and_copies_are_found(curated: Curated, tmp_path: Path) -> None:
    """Two folders in one table; the second has a copy of one of the first's videos under another name."""
    videos, out = tmp_path / "media", tmp_path / "clips"
    shutil.copytree(curated.videos, videos)
    shutil.copytree(curated.out, out)
    (tmp_path / "more").mkdir()
    shutil.copyfile(videos / "nested" / "carphone_pristine.mp4", tmp_path / "more" / "again.mp4")
    funnel = curate(tmp_path / "more", out, curated.config)
    assert funnel["computed"]["videos"] == 1 and funnel["videos"] == 9
    assert funnel["clips"] == curated.funnel["clips"]  # the copy's clip is the same clip
    chosen = stage_parts.read_part(out / "sets" / "sets.parquet").to_pylist()
    (copy,) = [row for row in chosen if row["left_out"]]
    assert copy["left_out"] == "the same content as an earlier clip" and copy["eligible"] == 0
    assert [row["dedup_group"] for row in chosen if row["dedup_group"] >= 0] == [0, 0]


def test_command_prints_the_funnel(curated: Curated, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "curate.json"
    config.write_text(json.dumps({"max_seconds_per_video": SECONDS, "thresholds": {"min_hand_share": 0.2}}))
    command = ["--source", str(curated.videos), "--out", str(tmp_path / "clips"), "--config", str(config)]
    shutil.copytree(curated.out, tmp_path / "clips")
    assert curate_command.main(command) == 0
    printed = capsys.readouterr().out
    assert "eligible clips" in printed and "0 scored in this run" in printed and "silent" in printed
    config.write_text(json.dumps({"thresholds": {"min_hands": 0.2}}))
    with pytest.raises(ValueError, match="min_hands"):
        curate_command.main(command)
    with pytest.raises(ValueError, match="no videos in it"):
        (tmp_path / "nothing").mkdir()
        curate_command.main(["--source", str(tmp_path / "nothing"), "--out", str(tmp_path / "clips")])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        curate_command.main(["--source", str(tmp_path / "gone"), "--out", str(tmp_path / "clips")])


def test_many_clips_are_counted_by_reason(curated: Curated) -> None:
    reasons = {label: {} for label in curated.funnel["reasons"]} | {"audio": {"no audio track": 60}}
    table = funnel_table({**curated.funnel, "rows": [], "reasons": reasons, "clips": 60})
    cells = [list(column.cells) for column in table.columns]
    assert "no audio track" in cells[-1] and "-60" in [cell.strip() for cell in cells[4]]


def test_results_name_no_place_of_the_machine_and_can_be_moved(curated: Curated, tmp_path: Path) -> None:
    shutil.copytree(curated.videos.parent, tmp_path / "moved")
    written = [path.read_bytes() for path in (tmp_path / "moved" / "clips").rglob("*") if path.is_file()]
    assert not any(os.fsencode(curated.videos.parent) in data for data in written)
    for clip in read_clips(tmp_path / "moved" / "clips"):
        assert clip.video_path(tmp_path / "moved" / "clips").is_relative_to(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "media")
    with pytest.raises(FileNotFoundError, match="is gone; put it back"):
        read_clips(tmp_path / "moved" / "clips")[0].video_path(tmp_path / "moved" / "clips")


def test_a_clip_that_cannot_be_decoded_is_refused(curated: Curated) -> None:
    clip = of_video(curated, "carphone_pristine")[0]
    with pytest.raises(media_omnihuman.MediaError, match="10 of 50 frames decoded; re-encode it"):
        file_stages.look(str(clip.video_path(curated.out)), 90, 140, clip.height, clip.width)


def work_with_faults(task: PartTask) -> Made:
    """As a decoder that crashes, or the kernel that kills the largest process; and as a library whose errors have
    whatever class.
    """
    scan, look = file_stages.scan, file_stages.look

    def dies(path: str, options: ScanOptions) -> file_stages.Scan:
        if "bikes" in path:
            os.kill(os.getpid(), signal.SIGKILL)
        return scan(path, options)

    def fails(path: str, **place: int) -> Any:
        if "jwpIntro" in path:
            raise RuntimeError("CUDA error\x1b[2J in (1, 2)")
        return look(path, **place)

    file_stages.scan, file_stages.look = dies, fails
    try:
        return part_work.work(task)
    finally:
        file_stages.scan, file_stages.look = scan, look


def test_no_single_file_ends_a_run(sample_media: SampleMedia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One kills the process that reads it, one fails with an error that nobody foresaw, one has an unreadable caption:
    three dead letters, each with its stage, and the fourth is curated.
    """
    for name in ("bikes", "jwpIntro", "testMovie", "carphone_pristine"):
        shutil.copy(sample_media.videos / f"{name}.mp4", tmp_path / f"{name}.mp4")
    (tmp_path / "testMovie.txt").write_bytes("erklärt".encode("cp1252"))
    monkeypatch.setattr(module, "work", work_with_faults)
    config = CurateConfig(max_seconds_per_video=1.2, workers=2)
    funnel = curate(tmp_path, tmp_path / "out", config)
    letters = {row["video"]: row for row in funnel["quarantine"]}
    died = letters["bikes.mp4"]
    assert (died["stage"], died["reason"], died["tries"]) == ("scan", stage_rows.DIED, stage_rows.MAX_DEATHS)
    failed = letters["jwpIntro.mp4"]
    assert (failed["stage"], failed["exception"], failed["tries"]) == ("look", "RuntimeError", 2)
    assert failed["reason"].startswith("RuntimeError: CUDA error\\u001b[2J in (")
    unread = letters["testMovie.mp4"]
    assert unread["stage"] == "caption" and unread["reason"].startswith("testMovie.txt: not UTF-8")
    assert "--caption-encoding" in unread["reason"] and len(letters) == 3
    assert {clip.video for clip in read_clips(tmp_path / "out")} == {"carphone_pristine.mp4"}
    assert not [path for path in (tmp_path / "out").rglob(".*") if path.is_file()]
    # What was no fault of the files is tried again when that is asked for; what is known is kept.
    monkeypatch.undo()
    config = dataclasses.replace(config, caption_encoding="cp1252")
    kept = curate(tmp_path, tmp_path / "out", config)
    assert len(kept["quarantine"]) == 2 and kept["computed"] == {"videos": 0, "clips": 0}
    again = curate(tmp_path, tmp_path / "out", config, engine=Engine(retry_dead=True))
    assert not again["quarantine"] and again["computed"]["videos"] == 1
    assert next(clip for clip in read_clips(tmp_path / "out") if "testMovie" in clip.video).caption == "erklärt"


@pytest.mark.slow
def test_a_part_that_kills_every_process_is_given_up(tmp_path: Path, sample_media: SampleMedia) -> None:
    """Before it reaches a row, say for want of memory: the others are finished, and the command says so."""
    for name in ("carphone_pristine", "jwpIntro"):
        shutil.copy(sample_media.videos / f"{name}.mp4", tmp_path)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ChildProcessError, match="1 parts are not finished"):
        patch.setattr(module, "work", work_or_die)
        curate(tmp_path, tmp_path / "out", CurateConfig(max_seconds_per_video=1.0, workers=1))
    funnel = curate(tmp_path, tmp_path / "out", CurateConfig(max_seconds_per_video=1.0, workers=1))
    assert funnel["computed"]["videos"] == 1 and funnel["clips"] == 2


def work_or_die(task: PartTask) -> Made:
    if task.number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return part_work.work(task)


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ("reader", ["scan", "preview", "look", "listen"]),
        ("shots", ["scan", "preview", "look", "listen"]),
        ("landmarks", ["preview", "look", "listen"]),
        ("picture_scores", ["preview"]),
        ("hama/assets/asr_waveform.hama", ["listen"]),
        ("lipsync", ["listen"]),
        ("nothing", []),
    ],
)
def test_a_changed_stage_and_those_after_it_are_made_again(
    changed: str, again: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, options = stage_keys(ScanOptions()), ScanOptions()
    if changed == "reader":
        monkeypatch.setattr("data_pipelines.curate.stage_keys.READER_VERSION", 99)
    elif changed == "shots":
        options = ScanOptions(shots=shots.ShotConfig(min_s=2.0))
    elif changed.startswith("hama"):
        hashes = {**network_files.network_sha256(), changed: "0"}
        monkeypatch.setattr(network_files, "network_sha256", lambda: hashes)
    elif changed != "nothing":
        modules = {"landmarks": landmarks, "lipsync": lipsync, "picture_scores": picture_scores}
        monkeypatch.setattr(modules[changed], "VERSION", 99)
    after = stage_keys(options)
    assert [stage for stage in stage_parts.STAGES if after[stage] != before[stage]] == again


@pytest.mark.slow
def test_one_stage_more_opens_the_videos_for_that_stage_alone(
    curated: Curated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grow: a new version of the last stage, and one new video of nine."""
    videos, out = tmp_path / "media", tmp_path / "clips"
    shutil.copytree(curated.videos, videos)
    shutil.copytree(curated.out, out)
    shutil.copyfile(videos / "nested" / "jwpIntro.mp4", videos / "new.mp4")
    clips = curated.funnel["clips"]
    grown = curate(videos, out, curated.config)
    assert grown["computed"] == {"videos": 1, "clips": 1, "scan": 1, "preview": 1, "look": 1, "listen": 1}
    monkeypatch.setattr(lipsync, "VERSION", 99)
    heard = curate(videos, out, curated.config)
    assert heard["computed"] == {"videos": 0, "clips": 0, "listen": clips + 1}
    assert len(list(out.glob("listen@*"))) == 2 and len(list(out.glob("look@*"))) == 1


@pytest.mark.slow
def test_names_of_the_footage_do_nothing_in_the_terminal(
    sample_media: SampleMedia, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Markup, escape sequences, line breaks, bytes that are not UTF-8: printed as they are written, run by nobody."""
    names = [b"[red]a[/nope].mp4", b"\x1b[31mb\n.mp4", b"caf\xe9.mp4", b"-x $(id).mp4", b"[link=x.jpg", b"<b>.wav"]
    video = (sample_media.videos / "carphone_pristine.mp4").read_bytes()
    for number, name in enumerate(names):
        # An empty box behind the video, each of another length: the same content would be the same clip.
        padding = (8 + number).to_bytes(4, "big") + b"free" + bytes(number)
        with open(os.fsencode(tmp_path) + b"/" + name.replace(b"/", b"_"), "wb") as file:
            file.write(video + padding)
    (tmp_path / "[bold]c.mp4").write_bytes(b"no video")
    arguments = ["--source", str(tmp_path), "--out", str(tmp_path / "out"), "--max-seconds-per-video", "1.2"]
    assert curate_command.main(arguments) == 0
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
    with pytest.raises(FileNotFoundError, match="omnihuman curate --source"):
        read_clips(tmp_path)
    shutil.copytree(curated.videos, tmp_path / "media")
    out = tmp_path / "clips"
    shutil.copytree(curated.out, out)
    clip, table = of_video(curated, "jwpIntro")[0], Table.open(out)
    with pytest.raises(ValueError, match="rows for a clip of 7 frames"):
        load_landmarks(out, dataclasses.replace(clip, end_frame=clip.start_frame + 7))
    data = bytearray(table.landmarks(clip.part).read_bytes())
    data[len(data) // 3 : len(data) // 3 + 64] = bytes(64)
    table.landmarks(clip.part).write_bytes(data)
    with pytest.raises(ValueError, match=r"record 0 is not the landmarks of a clip .*; delete it and run curate again"):
        load_landmarks(out, clip)
    table.part("look", clip.part).write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match="not a readable part"):
        read_clips(out)
    (out / "sets" / "sets.json").write_text("{}")
    with pytest.raises(ValueError, match=r"sets\.json: not the head of sets"):
        read_clips(out)
    (out / "table.json").write_text('{"format": 99, "stages": {}}')
    with pytest.raises(ValueError, match="format 99, this version reads 1"):
        Table.open(out)


def test_cuts_are_found_and_pans_are_not(tmp_path: Path, sample_media: SampleMedia) -> None:
    jwp = media_omnihuman.read_video(sample_media.videos / "jwpIntro.mp4", size=(96, 128), duration_s=2)
    bikes = media_omnihuman.read_video(sample_media.videos / "bikes.mp4", size=(96, 128), duration_s=1)
    wide = np.random.default_rng(0).integers(0, 255, (12, 60, 3), np.uint8).repeat(8, 0).repeat(32, 1)
    pan = np.stack([wide[:, 12 * t : 12 * t + 128] for t in range(50)])
    media_omnihuman.write_video(tmp_path / "v.mp4", np.concatenate([jwp, bikes, pan]))
    watched = shots.watch(tmp_path / "v.mp4", shots.ShotConfig())
    changes = watched.changes
    assert not watched.dissolves and len(changes) == 124
    assert changes[80:].mean() > 15  # the pan changes as much as a cut, all the time
    assert shots.find_cuts(changes, shots.ShotConfig()) == [50, 75]


def test_ranges_trim_cuts_drop_short_shots_and_divide_long_ones() -> None:
    config = shots.ShotConfig(min_s=1.0, max_s=4.0, trim_frames=1)
    kept, short = shots.clip_ranges(400, [30, 40, 150], config)
    assert short == [(31, 39)]
    assert kept == [(0, 29), (41, 95), (95, 149), (151, 234), (234, 317), (317, 400)]
    assert all(25 <= end - start <= 100 for start, end in kept)
    with pytest.raises(ValueError, match="min_s <= max_s, not 5 and 4"):
        shots.ShotConfig(min_s=5, max_s=4).validate()


def test_ids_are_of_content_and_geometry() -> None:
    assert stage_parts.clip_id("ab" * 32, 3, 128) == "abababababababab-000003-000128"
    assert source_list.source_id("a", 1, 2) != source_list.source_id("a", 1, 3)


def test_a_small_folder_becomes_parts_enough_to_share(tmp_path: Path) -> None:
    names = [f"{n:03d}.mp4" for n in range(100)]
    ids = {name: source_list.source_id(name, 1, 1) for name in names}
    now = dict.fromkeys(names, (1, 1))
    first = source_list._added([], ids, now, part_videos=3)
    sizes = [sum(row["part"] == n for row in first) for n in range(40)]
    assert sizes == [3] * 33 + [1] + [0] * 6 and {row["name"] for row in first} == set(names)
    assert not source_list._added(first, ids, now, part_videos=3)
    more = source_list._added(first, {**ids, "new.mp4": "x"}, {**now, "new.mp4": (2, 2)}, part_videos=3)
    assert [(row["part"], row["name"]) for row in more] == [(34, "new.mp4")]


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
        curate_command.main(["--source", str(tmp_path), "--out", str(tmp_path / "out"), "--config", str(file)])


def test_numbers_that_are_none_are_refused_wherever_they_stand() -> None:
    with pytest.raises(ValueError, match=r"shots\.min_change must be a finite number, not nan"):
        CurateConfig(shots=shots.ShotConfig(min_change=float("nan"))).validate()
    with pytest.raises(ValueError, match="max_seconds_per_video must be a finite number, not inf"):
        CurateConfig(max_seconds_per_video=float("inf")).validate()
    with pytest.raises(ValueError, match="'utf-9' is unknown; give a name such as cp1252"):
        CurateConfig(caption_encoding="utf-9").validate()
    with pytest.raises(ValueError, match=r"default_caption has U\+001B at 1"):
        CurateConfig(default_caption="a\x1b[31m").validate()
