"""Faces become tracks by the overlap of their boxes."""

import numpy as np
import pytest

from data_pipelines.curate import scores
from data_pipelines.curate.face_tracks import longest_tracks, number_faces, overlap
from data_pipelines.curate.landmarks import extract_landmarks
from data_pipelines.sample_media import SampleMedia
from omnihuman_jax.serving import media_omnihuman


def box(x: float, y: float = 0.0, side: float = 20.0) -> np.ndarray:
    return np.array([x, y, x + side, y + side], np.float32)


def test_overlap_is_intersection_over_union() -> None:
    assert overlap(box(0), box(0)) == 1 and overlap(box(0), box(20)) == 0 == overlap(box(0), box(50))
    assert overlap(box(0), box(10)) == pytest.approx(200 / 600) and overlap(box(3, side=0), box(3, side=0)) == 0


def test_two_faces_keep_their_numbers_in_whatever_order_they_are_found() -> None:
    frames = [[box(2 * t), box(100 - t)] for t in range(12)]
    swapped = [pair[::-1] if t % 3 else pair for t, pair in enumerate(frames)]
    assert number_faces([np.stack(pair) for pair in swapped]) == [[1, 0] if t % 3 else [0, 1] for t in range(12)]


def test_a_face_that_is_lost_for_a_moment_goes_on_and_after_a_second_begins_anew() -> None:
    none = np.zeros((0, 4), np.float32)
    blink = [box(0)[None], *[none] * 24, box(2)[None]]
    assert number_faces(blink)[-1] == [0]
    assert number_faces([box(0)[None], *[none] * 25, box(2)[None]])[-1] == [1]
    assert number_faces([box(0)[None], box(60)[None]]) == [[0], [1]]  # too far to be the same


def test_the_longest_two_are_kept_with_their_lips() -> None:
    visitor, left, right = box(300), box(0), box(100)
    boxes = [np.stack([visitor, left])] + [np.stack([right, left])] * 5 + [right[None]] * 2
    apertures = [[0.9, 0.1]] + [[0.2, 0.1]] * 5 + [[0.2]] * 2
    box_TN4, aperture_TN = longest_tracks(boxes, apertures)
    assert box_TN4.shape == (8, 2, 4) and box_TN4.dtype == aperture_TN.dtype == np.float32
    assert np.array_equal(np.isfinite(aperture_TN).sum(0), [7, 6]) and np.isnan(aperture_TN[0, 0])
    assert (box_TN4[1:, 0] == right).all() and (box_TN4[:6, 1] == left).all() and not box_TN4[6:, 1].any()
    assert np.allclose(aperture_TN[1:, 0], 0.2) and np.allclose(aperture_TN[:6, 1], 0.1)
    none = longest_tracks([np.zeros((0, 4), np.float32)] * 3, [[]] * 3)
    assert none[0].shape == (3, 0, 4) and none[1].shape == (3, 0)


def test_both_faces_of_a_picture_are_followed(sample_media: SampleMedia) -> None:
    sides = [
        media_omnihuman.read_video(sample_media.videos / f"{name}.mp4", size=(240, 320), duration_s=0.4)[:9]
        for name in ("jwpIntro", "testMovie")
    ]
    found = extract_landmarks(iter(np.concatenate(sides, axis=2)), hands=False)
    x = found.track_box_TN4[..., 0]
    assert found.track_aperture_TN.shape == (9, 2) and np.isfinite(found.track_aperture_TN).all()
    assert sorted((x > 320).all(0).tolist()) == [False, True] and sorted((x < 320).all(0).tolist()) == [False, True]
    followed = int(np.abs(found.track_box_TN4[0] - found.face_box_T4[0]).sum(-1).argmin())
    assert np.array_equal(found.track_aperture_TN[:, followed], found.aperture_T)  # the face of the other landmarks
    assert scores.landmark_scores(found)["face_tracks"] == 2
