"""SyncNet from a path: its measure of a film whose light follows its sound, its stage, what `select` makes of it."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from data_pipelines.curate import curate as curate_module
from data_pipelines.curate import file_stages, part_work, source_list, stage_parts, sync_network
from data_pipelines.curate.adapters import AdapterOptions, Adapters
from data_pipelines.curate.curate import CurateConfig, curate
from data_pipelines.curate.data_facts import read_facts
from data_pipelines.curate.file_stages import BY_PREVIEW, ScanOptions
from data_pipelines.curate.found_videos import CaptionOptions
from data_pipelines.curate.selection import select
from data_pipelines.curate.stage_keys import stage_keys
from data_pipelines.curate.stage_parts import Table
from data_pipelines.curate.sync_network import SyncNetwork
from data_pipelines.curate.tagging import Thresholds, tag
from data_pipelines.sample_media import SampleMedia
from omnihuman_jax.evaluation import sync_offsets
from omnihuman_jax.evaluation.mfcc import mfcc
from omnihuman_jax.serving import media_omnihuman
from tests.data_pipelines.onnx_models import loudness_sync_network, mean_of_all, write
from tests.encoders import tiny_networks

FRAMES = 50
# A face in the middle of pictures of 160 pixels.
BOX = np.tile(np.array([60, 60, 100, 100], np.float32), (FRAMES, 1, 1))
PLACE = {"start_frame": 0, "end_frame": FRAMES, "height": 160, "width": 160}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> SyncNetwork:
    return SyncNetwork.load(str(loudness_sync_network(tmp_path_factory.mktemp("net") / "sync.onnx")))


def film(path: Path, *, late: int = 0, columns: int = 1) -> Path:
    """Noise whose loudness changes from frame to frame, and pictures as light as it is loud; in more columns than one
    the others flicker on their own. late: frames that the sound comes after its picture.
    """
    rng = np.random.default_rng(0)
    wave = (rng.standard_normal(FRAMES * 640) * np.repeat(10 ** rng.uniform(-3, -0.8, FRAMES), 640)).astype(np.float32)
    cepstra = mfcc(wave)[: 4 * FRAMES, 0]
    loud = np.pad(cepstra, (0, 4 * FRAMES - len(cepstra)), "edge").reshape(FRAMES, 4).mean(1)
    light = [10 * loud, *(10 * rng.permutation(loud) for _ in range(columns - 1))]
    frames = np.concatenate([np.broadcast_to(one[:, None, None, None], (FRAMES, 160, 160, 3)) for one in light], 2)
    sound = np.concatenate([np.zeros(640 * late, np.float32), wave])[: FRAMES * 640]
    media_omnihuman.write_video(path, np.clip(frames, 0, 255).astype(np.uint8), audio=sound, sample_rate=16000)
    return path


@pytest.mark.parametrize("late", [0, 3, -2])
def test_offsets_have_their_size_and_sign(network: SyncNetwork, tmp_path: Path, late: int) -> None:
    """A sound that is late has a positive offset, as that of the phone proxy."""
    path = film(tmp_path / "film.mp4", late=max(late, 0))
    if late < 0:  # cut off at the front: the sound of later pictures
        frames = media_omnihuman.read_video(path)
        wave = media_omnihuman.read_audio(path, 16000)
        assert wave is not None
        media_omnihuman.write_video(
            tmp_path / "early.mp4", frames, audio=np.concatenate([wave[640 * -late :], wave[: 640 * -late]]),
            sample_rate=16000,
        )  # fmt: skip
        path = tmp_path / "early.mp4"
    found = file_stages.sync(str(path), **PLACE, track_box_TN4=BOX, has_audio=True, network=network)
    assert found["syncnet_offset_s"] == pytest.approx(late / 25) and found["syncnet_confidence"] > 2
    assert found["syncnet_track"] == 0 and found["syncnet_lead"] == 0 and found["syncnet_distance"] < 3


def test_who_speaks_of_two(network: SyncNetwork, tmp_path: Path) -> None:
    boxes = np.concatenate([BOX + np.array([160, 0, 160, 0], np.float32), BOX], 1)
    place = {**PLACE, "width": 320}
    path = str(film(tmp_path / "two.mp4", columns=2))
    found = file_stages.sync(path, **place, track_box_TN4=boxes, has_audio=True, network=network)
    assert found["syncnet_track"] == 1 and found["syncnet_lead"] > 2


def test_pictures_of_more_lines_are_looked_at_smaller(network: SyncNetwork, tmp_path: Path) -> None:
    """Boxes are in displayed pixels: that of a face beside which everything flickers is found again."""
    path, size = film(tmp_path / "two.mp4", columns=2), (1440, 2880)
    large = tmp_path / "large.mp4"
    media_omnihuman.write_video(
        large, media_omnihuman.read_video(path, size=size)[:20], audio=media_omnihuman.read_audio(path, 16000, 0, 0.8),
        sample_rate=16000,
    )  # fmt: skip
    found = file_stages.sync(
        str(large), 0, 20, *size, track_box_TN4=9 * BOX[:20], has_audio=True, network=network
    )  # fmt: skip
    assert found["syncnet_offset_s"] == 0 and found["syncnet_confidence"] > 1


def test_what_cannot_be_judged_says_why(network: SyncNetwork, tmp_path: Path) -> None:
    path = str(film(tmp_path / "film.mp4"))

    def why(box: np.ndarray = BOX, *, has_audio: bool = True, **place: int) -> str:
        given = {**PLACE, **place}
        return str(file_stages.sync(path, **given, track_box_TN4=box, has_audio=has_audio, network=network)["sync_why"])

    assert why(has_audio=False) == file_stages.NO_TRACK and why(BOX[:, :0]) == file_stages.NO_FACE
    assert why(BOX[:5], end_frame=5) == file_stages.TOO_SHORT
    media_omnihuman.write_video(
        tmp_path / "film.mp4", media_omnihuman.read_video(path), audio=np.zeros(FRAMES * 640, np.float32)
    )
    assert why() == file_stages.SILENT


def test_inputs_in_either_order(network: SyncNetwork, tmp_path: Path) -> None:
    other = SyncNetwork.load(str(loudness_sync_network(tmp_path / "turned.onnx", sound_first=True)))
    rng = np.random.default_rng(1)
    faces, wave = rng.integers(0, 256, (9, 224, 224, 3), np.uint8), rng.standard_normal(9 * 640).astype(np.float32) / 9
    assert network.measure(faces, wave) == other.measure(faces, wave)
    by_hand = sync_offsets.measure(
        lambda faces, cepstra: (faces.mean((2, 3, 4)) / 10, cepstra[:, 0].reshape(-1, 5, 4).mean(2)), faces, wave
    )
    assert network.measure(faces, wave).distance == pytest.approx(by_hand.distance, rel=1e-5)


def test_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"SyncNet has faces \[N, 3, 5, 224, 224\] and cepstra \[N, 1, 13, 20\]"):
        SyncNetwork.load(str(mean_of_all(tmp_path / "other.onnx", ["N", 3, 224, 224])))
    with pytest.raises(FileNotFoundError, match="no such network"):
        AdapterOptions(sync_network=str(tmp_path / "none.onnx")).load()
    flat = [
        helper.make_node("ReduceMean", ["faces"], ["face"], axes=[1, 2, 3, 4], keepdims=0),
        helper.make_node("ReduceMean", ["cepstra"], ["sound"], axes=[1, 2, 3], keepdims=0),
    ]
    inputs = {"faces": ["N", 3, 5, 224, 224], "cepstra": ["N", 1, 13, 20]}
    with pytest.raises(ValueError, match=r"puts out \(8,\) and \(8,\); SyncNet has features \[N, D\] of both"):
        SyncNetwork.load(str(write(tmp_path / "flat.onnx", flat, inputs, ["face", "sound"])))


def test_thresholds_ask_for_it_and_nothing_by_default() -> None:
    good = dict.fromkeys(("seconds", "short_side_px", "face_px", "sharpness"), 1000.0)
    good |= {"brightness": 100.0, "motion": 0.1, "frozen_share": 0.0, "audio_tracks": 1.0, "loudness_dbfs": -20.0}
    good |= {"looked_at": 1.0, "speech_share": 1.0, "face_share": 1.0, "faces_share": 0.0, "source_fps": 25.0}
    good |= {"bits_per_pixel": 1.0, "lip_sync_confidence": 1.0, "lip_sync_offset_s": 0.0, "pose_share": 1.0}
    good |= {"body_confidence": 1.0}
    synced = {"syncnet_confidence": 4.0, "syncnet_distance": 8.0, "syncnet_offset_s": -0.12}
    assert "audio" in tag(good, Thresholds())[0] and "audio" in tag(good | synced, Thresholds())[0]
    for name, passes, fails in (
        ("min_syncnet_confidence", 3.0, 5.0), ("max_syncnet_distance", 9.0, 7.0), ("max_syncnet_offset_s", 0.12, 0.08),
    ):  # fmt: skip
        assert "audio" in tag(good | synced, Thresholds(**{name: passes}))[0]
        eligible, reasons = tag(good | synced, Thresholds(**{name: fails}))
        assert "SyncNet" in reasons["audio"]["reason"] and "pose" in eligible
        assert "was not computed" in tag(good, Thresholds(**{name: passes}))[1]["audio"]["reason"]


def test_a_stage_of_its_own_follows_the_landmarks(
    network: SyncNetwork, sample_media: SampleMedia, tmp_path: Path
) -> None:
    """A table is given the network afterwards: that stage alone is run; looser thresholds run it for who is looked at
    then, and no one else; `select` asks for it, or says that it lacks it.
    """
    (tmp_path / "media").mkdir()
    for name in ("jwpIntro", "bikes"):
        frames = media_omnihuman.read_video(sample_media.videos / f"{name}.mp4", size=(144, 192), duration_s=1.0)
        media_omnihuman.write_video(tmp_path / "media" / f"{name}.mp4", frames, audio=tiny_networks.wave(1.0))

    def work(given: Adapters, loosest: Thresholds) -> dict[str, int]:
        options = ScanOptions()
        table = Table(folder=tmp_path / "table", keys=stage_keys(options, given), loosest=loosest)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(source_list, "_LEAST_PARTS", 1)
            videos = source_list.look_up(table, tmp_path / "media", CaptionOptions(default="A video."))
        table.save()
        (task,) = curate_module._tasks(table, videos, options, loosest, given)
        return dict(part_work.work(task).rows) if part_work.to_make(task) else {}

    asks = Thresholds(min_syncnet_confidence=0.1)
    assert work(Adapters(), Thresholds()).keys() == {"scan", "preview", "look", "listen"}
    with pytest.raises(ValueError, match="has no scores of SyncNet, which the thresholds ask for"):
        select(tmp_path / "table", asks, tmp_path / "sets")
    given = Adapters(sync=network)
    assert work(given, Thresholds()) == {"sync": 2} and not work(given, Thresholds())
    table = Table.open(tmp_path / "table")
    rows = table.read("sync", 0).to_pylist()
    assert sorted(str(row["sync_why"]) for row in rows) == sorted(["None", BY_PREVIEW])
    (man,) = (row for row in rows if row["sync_why"] is None)
    assert all(np.isfinite(man[name]) for name in sync_network.SCORES)
    anybody = Thresholds(min_pose_share=0, min_pose_face_share=0, min_body_confidence=0)
    assert work(given, anybody) == {"look": 1, "listen": 1, "sync": 1}
    after = table.read("sync", 0).to_pylist()
    assert man in after and {row["sync_why"] for row in after} == {None, file_stages.NO_FACE}
    funnel = select(tmp_path / "table", dataclasses.replace(anybody, min_syncnet_confidence=0.1), tmp_path / "sets")
    assert funnel["clips"] == 2
    facts = read_facts(tmp_path / "sets")
    assert "syncnet_confidence" in str(facts)
    other = dataclasses.replace(network, digest="another")
    keys = [stage_keys(ScanOptions(), Adapters(sync=one)) for one in (network, other)]
    assert [stage for stage in keys[0] if keys[0][stage] != keys[1][stage]] == ["sync"]
    assert stage_parts.stated_choice(table.part("sync", 0)) == stage_parts.stated_choice(table.part("look", 0))
    config = CurateConfig(thresholds=asks)
    shutil.rmtree(tmp_path / "table")
    with pytest.raises(ValueError, match="ask for scores of SyncNet, and none are made; give --sync-network"):
        curate(tmp_path / "media", tmp_path / "table", config)
