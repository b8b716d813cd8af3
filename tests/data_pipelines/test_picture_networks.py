"""Scores of stills, of the camera and of voices: on pictures and sounds of which the answer is known."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from data_pipelines.curate import brisque, network_files, stills, text_overlay
from data_pipelines.curate.camera_motion import split_motion
from data_pipelines.curate.onnx_networks import open_network
from data_pipelines.curate.voice import voice_share
from data_pipelines.sample_media import SampleMedia
from omnihuman_jax.serving import media_omnihuman


@pytest.fixture(scope="module")
def carphone(sample_media: SampleMedia) -> np.ndarray:
    """uint8 [100, 144, 192, 3]: a face, a window, no text."""
    return media_omnihuman.read_video(sample_media.videos / "carphone_pristine.mp4", duration_s=4)


def test_written_text_is_found_where_it_is(carphone: np.ndarray) -> None:
    frame = cv2.resize(carphone[30], (384, 288), interpolation=cv2.INTER_CUBIC)
    network = network_files.fetched(text_overlay.NETWORK)
    assert text_overlay.text_boxes(frame, network) == [] and text_overlay.text_area_share([frame]) == 0
    (width, height), _ = cv2.getTextSize("AND THEN WE LEFT", cv2.FONT_HERSHEY_SIMPLEX, 0.8, 2)
    cv2.putText(frame, "AND THEN WE LEFT", (60, 260), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255), 2)
    (box,) = text_overlay.text_boxes(frame, network)
    written = np.zeros(frame.shape[:2], bool)
    written[260 - height : 260, 60 : 60 + width] = True
    found = np.zeros(frame.shape[:2], np.uint8)
    cv2.fillPoly(found, [box.astype(np.int32)], 1)
    assert (written & (found > 0)).sum() > 0.95 * written.sum() and found.sum() < 1.8 * written.sum()
    share = text_overlay.text_area_share([frame])
    assert abs(share - found.mean()) < 0.005 and share == text_overlay.text_area_share([frame, frame])


def test_boxes_grow_by_the_rule_and_overlaps_count_once() -> None:
    probability = np.zeros((100, 200), np.float32)
    cv2.fillPoly(probability, [cv2.boxPoints(((100, 50), (80, 20), 30)).astype(np.int32)], 0.9)
    probability[5:8, 5:60] = 0.5  # above the threshold of a pixel, not of a box
    (box,) = text_overlay.boxes_of(probability)
    sides = sorted(np.linalg.norm(box[i] - box[i + 1]) for i in (0, 1))
    # Twice DB's area * ratio / perimeter, of sides that drawing and dilation each made one longer.
    grown = 2 * 1.6 * 82 * 22 / (2 * (82 + 22))
    assert np.allclose(sides, [22 + grown, 82 + grown], atol=1) and np.allclose(box.mean(0), (100, 50), atol=1)
    square = np.array([[0, 0], [9, 0], [9, 9], [0, 9]], np.float32)
    assert text_overlay.covered_share([square, square, square + 50], 100, 200) == 200 / 20000


def test_text_of_one_still_alone_does_not_count() -> None:
    def box(x: float, y: float, width: float = 60) -> np.ndarray:
        return np.array([(x, y), (x + width, y), (x + width, y + 10), (x, y + 10)], np.float32)

    subtitle, longer, face, other_face = box(40, 80), box(20, 81, 100), box(70, 20), box(110, 40)
    # The next subtitle lies in the place of the one before; half of a box has to.
    found = text_overlay.confirmed([[subtitle, face], [longer], [other_face]], 100, 200)
    assert [len(of_still) for of_still in found] == [1, 1, 0]
    assert found[0][0] is subtitle and found[1][0] is longer
    assert [len(of) for of in text_overlay.confirmed([[box(0, 0)], [box(40, 0)]], 100, 200)] == [0, 0]
    assert len(text_overlay.confirmed([[face]], 100, 200)[0]) == 1


@pytest.mark.parametrize(("noise", "expected"), [(0, 33.7184), (10, 27.8404), (40, 70.1054)])
def test_brisque_is_that_of_its_package(noise: float, expected: float) -> None:
    """The expected numbers are those of `brisque` 0.2.0, with a float() of an array of one number mended."""
    rng = np.random.default_rng(0)
    scales = (1, 2, 4, 8, 16, 32)
    picture = sum(np.kron(rng.normal(0, s, (96 // s, 128 // s, 3)), np.ones((s, s, 1))) for s in scales)
    noisy = np.clip(128 + 2 * picture + rng.normal(0, 1, (96, 128, 3)) * noise, 0, 255)
    assert brisque.brisque(noisy.astype(np.uint8)) == pytest.approx(expected, abs=0.001)


def test_brisque_rises_with_what_spoils_a_picture(carphone: np.ndarray) -> None:
    frame, rng = carphone[30], np.random.default_rng(0)
    clean = brisque.brisque(frame)
    noisy = np.clip(frame + rng.normal(0, 15, frame.shape), 0, 255).astype(np.uint8)
    assert clean is not None and clean == brisque.brisque(frame.copy())
    for spoilt in (noisy, cv2.GaussianBlur(frame, (0, 0), 2)):
        score = brisque.brisque(spoilt)
        assert score is not None and score > clean + 10
    assert brisque.brisque(np.full((64, 64, 3), 9, np.uint8)) is None
    assert brisque.brisque(np.full((8, 64, 3), 9, np.uint8)) is None


def test_bars_are_counted_through_a_codec(carphone: np.ndarray, tmp_path: Path) -> None:
    boxed = carphone[:50].copy()
    boxed[:, :20], boxed[:, 124:], boxed[:, :, :12] = 0, 12, 0
    media_omnihuman.write_video(tmp_path / "boxed.mp4", boxed)
    keeper = stills.Stills(50)
    assert len(list(keeper.watch(media_omnihuman.iter_video(tmp_path / "boxed.mp4")))) == 50 and len(keeper.kept) == 3
    found = stills.still_scores(keeper.kept)
    assert found["letterbox_share"] == pytest.approx(40 / 144, abs=0.01)
    assert found["pillarbox_share"] == pytest.approx(12 / 192, abs=0.01)
    assert found["dark_share"] < 0.02  # of what is between the bars
    lumas = carphone[:3, ..., 1]
    assert stills.bars(lumas) == stills.bars(np.zeros((3, 48, 64), np.uint8)) == (0, 0, 0, 0)
    flash = boxed[:3, ..., 1].copy()
    flash[1, :20] = 90  # dark in two stills of three
    assert stills.bars(flash)[0] == 0


def test_lost_shadows_and_lights_are_counted() -> None:
    frame = np.random.default_rng(0).integers(60, 200, (64, 96, 3), np.uint8)
    frame[10:26, :, :] = 2
    frame[40:48, :, :] = 255
    found = stills.still_scores([frame] * 3)
    assert (found["dark_share"], found["bright_share"]) == (16 / 64, 8 / 64)
    black = stills.still_scores([np.zeros((64, 96, 3), np.uint8)] * 3)
    assert black["dark_share"] == 1 and black["letterbox_share"] == 0 and "brisque" not in black


@pytest.mark.parametrize("turn", [0.0, 0.02])
def test_a_pan_is_the_cameras_and_what_crosses_it_is_not(turn: float) -> None:
    y, x = np.mgrid[0:90, 0:160].astype(np.float32)
    flow = np.stack([3 - turn * (y - 45), turn * (x - 80)], -1)  # a pan, and a roll about the middle
    expected = np.linalg.norm(flow, axis=-1).mean()
    assert split_motion(flow) == pytest.approx((expected, 0), abs=0.03)
    flow[30:60, 40:90] += (6, -8)  # a tenth of the picture moves by 10 pixels more
    camera, subject = split_motion(flow)
    assert camera == pytest.approx(expected, rel=0.02) and subject == pytest.approx(10 * 1500 / 14400, rel=0.1)
    assert split_motion(np.zeros((2, 2, 2), np.float32)) == (0, 0)


def test_voices_are_told_from_tones_and_noise(sample_media: SampleMedia) -> None:
    wave = media_omnihuman.read_audio(sample_media.videos / "jwpIntro.mp4", required=True, duration_s=4)
    assert wave is not None
    time = np.arange(2 * 16000) / 16000
    chord = sum(0.1 * np.sin(2 * np.pi * hz * time) for hz in (262, 330, 392)).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32)
    speech = voice_share(wave)
    assert 0.5 < speech < 0.9 and voice_share(chord) == voice_share(noise) == voice_share(wave[:0]) == 0
    assert voice_share(wave) == speech  # it forgets what it heard before
    # Half of the time silent: half of the share.
    assert voice_share(np.concatenate([wave, np.zeros_like(wave)])) == pytest.approx(speech / 2, abs=0.02)


def test_a_damaged_or_missing_network_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIHUMAN_CACHE", str(tmp_path))
    network_files.fetched.cache_clear()
    try:
        altered = tmp_path / "networks" / "brisque" / "svm.txt"
        altered.parent.mkdir(parents=True)
        altered.write_text("SV\n")
        with pytest.raises(ValueError, match=r"svm\.txt: altered .*; delete it and run again"):
            network_files.fetched("brisque/svm.txt")
        altered.unlink()
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        with pytest.raises(ConnectionError, match=r"pip could not fetch brisque==0\.2\.0.*; or copy .*networks from"):
            network_files.fetched("brisque/svm.txt")
    finally:
        network_files.fetched.cache_clear()
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ValueError, match=r"text\.onnx: not a network that onnxruntime can run"):
        open_network(tmp_path / "text.onnx")
    with pytest.raises(FileNotFoundError, match=r"gone\.onnx: no such network"):
        open_network(tmp_path / "gone.onnx")
