"""Faces too small for the mesh, real ones brought down; their lips beside those of the picture as it was."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from data_pipelines.curate import mtcnn, onnx_networks, small_faces
from data_pipelines.curate.file_stages import ScanOptions
from data_pipelines.curate.landmarks import extract_landmarks
from data_pipelines.curate.stage_keys import stage_keys
from data_pipelines.sample_media import SampleMedia
from omnihuman_jax.serving import media_omnihuman

_FRAMES = 5


def frames_of(media: SampleMedia, name: str) -> np.ndarray:
    """uint8 [T, 240, 320, 3]."""
    return media_omnihuman.read_video(media.videos / f"{name}.mp4", size=(240, 320), duration_s=0.4)[:_FRAMES]


def far_away(frames: np.ndarray, height: int, width: int, *places: tuple[int, int]) -> np.ndarray:
    """The frames, brought down, once at each place (left, top) of a grey picture of 360 x 640."""
    import cv2

    small = np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])
    pictures = np.full((len(frames), 360, 640, 3), 120, np.uint8)
    for x0, y0 in places:
        pictures[:, y0 : y0 + height, x0 : x0 + width] = small
    return pictures


def without_small_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_faces.SmallFaces, "find", lambda self, frame: [])


def test_a_small_face_is_where_the_mesh_alone_sees_none(
    sample_media: SampleMedia, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = frames_of(sample_media, "jwpIntro")
    whole = extract_landmarks(iter(near), hands=False)
    far = far_away(near, 75, 100, (300, 200))
    found = extract_landmarks(iter(far), hands=False)
    assert found.face_T.all() and (found.faces_T == 1).all()
    scale = 75 / 240
    expected_T4 = whole.face_box_T4 * scale + np.array([300, 200, 300, 200])
    side = float(np.median(expected_T4[:, 3] - expected_T4[:, 1]))
    assert side < 40
    np.testing.assert_allclose(found.face_box_T4, expected_T4, atol=0.15 * side)
    np.testing.assert_allclose(found.aperture_T, whole.aperture_T, atol=0.06)
    without_small_faces(monkeypatch)
    assert not extract_landmarks(iter(far), hands=False).face_T.any()


def test_two_small_faces_are_two(sample_media: SampleMedia) -> None:
    far = far_away(frames_of(sample_media, "jwpIntro"), 75, 100, (60, 200), (460, 120))
    found = extract_landmarks(iter(far), hands=False)
    assert (found.faces_T == 2).all() and found.track_aperture_TN.shape[1] == 2


def test_a_face_that_the_mesh_sees_is_left_alone(sample_media: SampleMedia, monkeypatch: pytest.MonkeyPatch) -> None:
    near = frames_of(sample_media, "jwpIntro")
    found = extract_landmarks(iter(near), hands=False)
    without_small_faces(monkeypatch)
    for name, values in extract_landmarks(iter(near), hands=False).arrays().items():
        np.testing.assert_array_equal(values, found.arrays()[name], err_msg=name)


@pytest.mark.parametrize("side", [2, 16, 40])
def test_tiny_pictures_have_no_face(side: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (2, side, side, 3)).astype(np.uint8)
    assert not extract_landmarks(iter(noise), hands=False).face_T.any()


def test_a_square_beyond_the_picture_repeats_its_edge() -> None:
    frame = np.arange(4 * 6, dtype=np.uint8).reshape(4, 6, 1).repeat(3, 2)
    square = mtcnn.cut(frame, -2, 2, 4)[..., 0]
    np.testing.assert_array_equal(square, [[12, 12, 12, 13], [18, 18, 18, 19], [18, 18, 18, 19], [18, 18, 18, 19]])


def test_what_the_mesh_does_not_confirm_is_no_face(sample_media: SampleMedia, monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector alone decides nothing."""
    far = far_away(frames_of(sample_media, "jwpIntro"), 75, 100, (300, 200))
    monkeypatch.setattr(small_faces.SmallFaces, "_meshes", lambda self, frame, squares: [])
    assert not extract_landmarks(iter(far), hands=False).face_T.any()


def test_the_detector_sees_faces_of_twelve_pixels(sample_media: SampleMedia) -> None:
    """Two of them, where they are and no third; the larger one first, and nothing in a street."""
    for name in ("jwpIntro", "testMovie"):
        near = frames_of(sample_media, name)[:1]
        (x0, y0, x1, y1, _), *others = mtcnn.find_faces(near[0])
        assert not others
        far = far_away(near, 45, 60, (60, 200), (460, 120))[0]
        found = mtcnn.find_faces(far)
        assert len(found) == 2 and (found[:, 4] > 0.9).all()
        for left, top in ((60, 200), (460, 120)):
            expected = np.array([x0, y0, x1, y1]) * 45 / 240 + [left, top, left, top]
            assert np.abs(found[:, :4] - expected).max(axis=1).min() < 3
    assert not len(mtcnn.find_faces(frames_of(sample_media, "bikes")[0]))


def test_a_face_is_followed_without_the_detector_and_nobody_is_looked_for_seldom(
    sample_media: SampleMedia, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    whole = mtcnn.find_faces

    def counted(frame: np.ndarray) -> np.ndarray:
        calls.append(1)
        return whole(frame)

    monkeypatch.setattr(small_faces.mtcnn, "find_faces", counted)
    far = far_away(frames_of(sample_media, "jwpIntro")[:1], 75, 100, (300, 200))[0]
    somebody, nobody = [far] * 27, [np.full_like(far, 120)] * 26
    for frames, looks in ((somebody, 2), (nobody, 3), ([*nobody[:13], far, far], 2), ([far, nobody[0], far], 2)):
        calls.clear()
        seen = extract_landmarks(iter(frames), hands=False).face_T
        assert len(calls) == looks
        if frames is somebody:
            assert seen.all()


def test_a_large_face_ends_what_nobody_was_remembered_for(
    sample_media: SampleMedia, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody, then a large face, then a small one: it is found at once, however seldom nobody is looked for."""
    near = frames_of(sample_media, "jwpIntro")[0]
    far, nobody = far_away(near[None], 75, 100, (300, 200))[0], np.full((360, 640, 3), 120, np.uint8)
    large = far_away(near[None], 240, 320, (160, 60))[0]
    seen = extract_landmarks(iter([nobody, large, far, far]), hands=False).face_T
    assert seen.tolist() == [False, True, True, True]


def test_frames_that_are_passed_over_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every fifth frame every third is looked through: 15 frames of the shot, where 12 are asked for."""
    calls: list[int] = []
    monkeypatch.setattr(small_faces.mtcnn, "find_faces", lambda frame: calls.append(1) or np.zeros((0, 5), np.float32))
    nobody = [np.full((90, 160, 3), 120, np.uint8)] * 9
    extract_landmarks(iter(nobody), hands=False, every=5)
    assert len(calls) == 3


def test_without_faces_nobody_looks_for_one(sample_media: SampleMedia, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pose that drives a video needs no network for faces, nor the package index where it comes from."""

    def refused(*given: object) -> None:
        raise AssertionError("looked for faces")

    monkeypatch.setattr(small_faces.SmallFaces, "__init__", refused)
    near = frames_of(sample_media, "jwpIntro")
    found = extract_landmarks(iter(near), faces=False)
    assert not found.face_T.any() and (found.keypoints_TJ3[..., 2] > 0.5).any()
    monkeypatch.undo()
    np.testing.assert_array_equal(found.keypoints_TJ3, extract_landmarks(iter(near)).keypoints_TJ3)


@pytest.mark.parametrize(
    ("module", "name"),
    [(mtcnn, "_MIN_SCORE"), (mtcnn, "_LINES"), (small_faces, "_REACH"), (small_faces, "_AGAIN_EMPTY")],
)
def test_stages_of_before_are_made_again_by_another_finder(
    module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stage_keys(ScanOptions())
    monkeypatch.setattr(module, name, 0.5)
    after = stage_keys(ScanOptions())
    assert [stage for stage in before if before[stage] != after[stage]] == ["preview", "look", "listen"]


def test_faces_are_found_on_the_cpu_whatever_networks_of_the_user_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    opened = mtcnn.open_network

    def noted(path: Path, device: str | None = None) -> Any:
        asked.append(device)
        return opened(path, device)

    monkeypatch.setattr(mtcnn, "open_network", noted)
    onnx_networks.use("cuda")
    try:
        assert not len(mtcnn.find_faces(np.zeros((90, 160, 3), np.uint8)))
    finally:
        onnx_networks.use("cpu")
    assert set(asked) == {"cpu"}
