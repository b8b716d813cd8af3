"""Scores of lips, brows, head, hands and keypoints on faces whose motion is known."""

import numpy as np
import pytest

from omnihuman_jax.data.keypoints import NUM_KEYPOINTS
from omnihuman_jax.evaluation import (
    closeness,
    eyebrow_dynamics,
    hands,
    head_motion,
    keypoint_distance,
    lip_dynamics,
    lip_loudness,
    lip_opening,
    loudness,
    silent_lips,
)

T = 50


def face(frames: int = T) -> np.ndarray:
    """A still face: 478 points in pixels, the outer corners of the eyes 100 apart."""
    mesh = np.random.default_rng(0).uniform(200, 300, (478, 3))
    mesh[33], mesh[263] = (200, 240, 0), (300, 240, 0)
    mesh[10], mesh[152] = (250, 180, 0), (250, 320, 0)
    for low, high in zip(lip_opening.LOWER, lip_opening.UPPER):
        mesh[low] = mesh[high]
    return np.repeat(mesh[None], frames, 0)


def opening(mesh: np.ndarray, gap_T: np.ndarray) -> np.ndarray:
    moved = mesh.copy()
    moved[:, list(lip_opening.LOWER), 1] = mesh[:, list(lip_opening.UPPER), 1] + gap_T[:, None]
    return moved


def scaled(mesh: np.ndarray, by: float) -> np.ndarray:
    """Nearer to the camera, elsewhere in the picture."""
    return by * mesh + 17


def test_a_still_face_scores_nothing_and_a_nearer_one_the_same():
    moving = opening(face(), 8 + 6 * np.sin(np.arange(T)))
    for score in (lip_dynamics.lip_dynamics, eyebrow_dynamics.eyebrow_dynamics, head_motion.head_motion):
        assert score(face()) == pytest.approx(0, abs=1e-12)
        assert score(scaled(moving, 2.5)) == pytest.approx(score(moving), rel=1e-9, abs=1e-12)
    assert lip_dynamics.lip_dynamics(moving) > 1e-5


def test_lip_dynamics_of_one_point_that_moves():
    """A lone point of the lips moves by known steps along one line: the mean over 780 distances, of 39 of them."""
    mesh = np.zeros((4, 478, 2))
    mesh[:, 33], mesh[:, 263] = (0, 0), (10, 0)
    mesh[:, lip_dynamics.LIPS[0], 0] = [10, 20, 10, 20]  # all others are at the origin
    assert lip_dynamics.lip_dynamics(mesh) == pytest.approx(39 * 0.25 / 780)


def test_eyebrow_dynamics_of_brows_that_rise():
    mesh = np.zeros((3, 478, 2))
    mesh[:, list(eyebrow_dynamics.LEFT_EYE)] = (60, 50)
    mesh[:, list(eyebrow_dynamics.RIGHT_EYE)] = (20, 50)
    mesh[:, list(eyebrow_dynamics.LEFT_BROW)] = (60, 40)
    mesh[:, list(eyebrow_dynamics.RIGHT_BROW)] = (20, 40)
    mesh[1, list(eyebrow_dynamics.LEFT_BROW), 1] -= 4
    # Up by 4 of 40 and down again on one side: changes of 0.1, 0.1, 0 and 0.
    assert eyebrow_dynamics.eyebrow_dynamics(mesh) == pytest.approx(0.05)


@pytest.mark.parametrize(("axes", "place"), [((0, 2), 0), ((1, 2), 1), ((0, 1), 2)])
def test_a_head_that_turns_has_the_angle_it_was_turned_by(axes, place):
    angles = 15 * np.sin(np.arange(T) / 5)
    mesh = np.repeat(face(1), T, 0)
    for t, angle in enumerate(np.radians(angles)):
        turn = np.eye(3)
        turn[np.ix_(axes, axes)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        mesh[t] = (mesh[t] - 250) @ turn.T + 250
    found = head_motion.head_angles(mesh)
    np.testing.assert_allclose(found[:, place] - found[0, place], angles - angles[0], atol=1e-9)
    assert head_motion.head_motion(mesh) >= angles.std() / 3 - 1e-9


def syllables(frames: int = T) -> tuple[np.ndarray, np.ndarray]:
    """(sound, its envelope at the frames): two pauses of 0.4 s."""
    envelope = np.abs(np.sin(np.arange(frames) / 3.0)) + 0.2
    envelope[10:20], envelope[40:] = 0, 0
    wave = np.repeat(envelope, 640) * np.sin(np.arange(640 * frames) * 0.7)
    return wave, envelope


def test_pauses_are_found_and_loudness_follows_the_sound():
    wave, envelope = syllables()
    silent = loudness.silent_frames(wave, T)
    np.testing.assert_array_equal(np.flatnonzero(silent)[[0, -1]], [11, 49])
    assert silent[11:19].all() and silent[41:].all() and not silent[:10].any() and not silent[21:39].any()
    assert np.corrcoef(loudness.loudness(wave, T), envelope)[0, 1] > 0.95
    assert loudness.silent_frames(np.zeros(640 * T), T).all()


def test_lips_that_rest_in_pauses_and_open_with_the_sound_score_best():
    wave, envelope = syllables()
    level, silent = loudness.loudness(wave, T), loudness.silent_frames(wave, T)
    own, other = opening(face(), 20 * envelope), opening(face(), 10 + 10 * np.sin(np.arange(T)))
    np.testing.assert_allclose(lip_opening.lip_opening(own), 0.2 * envelope, atol=1e-12)
    read = [lip_opening.lip_opening(mesh) for mesh in (own, other)]
    assert silent_lips.silent_lip_movement(read[0], silent) < 1e-9 < silent_lips.silent_lip_movement(read[1], silent)
    gaps = [lip_loudness.lip_loudness_gap(opened, level, silent) for opened in read]
    assert gaps[0] < 0.1 and gaps[1] > 0.25
    assert np.isnan(lip_loudness.lip_loudness_gap(read[0], level, np.ones(T, bool)))


def test_frames_without_a_face_are_left_out_and_none_at_all_has_no_score():
    mesh = opening(face(), 8 + 6 * np.sin(np.arange(T)))
    holes = mesh.copy()
    holes[1::7] = np.nan
    for score in (lip_dynamics.lip_dynamics, eyebrow_dynamics.eyebrow_dynamics, head_motion.head_motion):
        assert score(holes) == pytest.approx(score(np.delete(mesh, np.arange(1, T, 7), 0)), abs=1e-15)
        assert np.isnan(score(np.full((T, 478, 3), np.nan)))


def body(confidence: float = 0.9) -> np.ndarray:
    keypoints = np.random.default_rng(1).uniform(10, 90, (T, NUM_KEYPOINTS, 3))
    keypoints[..., 2] = confidence
    return keypoints


def test_average_keypoint_distance():
    true, made = body(), body()
    made[..., :2] += (3, 4)
    assert keypoint_distance.keypoint_distance(made, true, 200) == pytest.approx(2.5)
    made[:, 5, :], made[:, 6, 2] = 0, 0.1
    assert keypoint_distance.keypoint_distance(made, true, 200) == pytest.approx(2.5), "what is not seen is not far"
    assert keypoint_distance.missing_keypoints(made, true) == pytest.approx(2 / NUM_KEYPOINTS)
    assert np.isnan(keypoint_distance.keypoint_distance(made, 0 * true, 200))
    assert np.isnan(keypoint_distance.missing_keypoints(made, 0 * true))


def test_hands_that_are_not_found_lower_the_confidence():
    true, made = body(), body(0.8)
    true[:, hands.RIGHT_HAND] = 0  # only the left one is there
    assert hands.hand_confidence(made, true) == pytest.approx(0.8)
    made[: T // 2, hands.LEFT_HAND] = 0
    assert hands.hand_confidence(made, true) == pytest.approx(0.4)
    assert np.isnan(hands.hand_confidence(made, 0 * true))


def test_variance_of_hands_is_in_shares_of_the_picture():
    keypoints = np.zeros((4, NUM_KEYPOINTS, 3))
    keypoints[:, hands.LEFT_HAND] = (50, 50, 0.9)
    keypoints[:, hands.LEFT_HAND, 0] += np.array([0, 20, 0, 20])[:, None]
    # x varies by 100 pixels^2, which is 1 percent^2 of 1000 pixels' height; y does not.
    assert hands.hand_variance(keypoints, 1000) == pytest.approx(0.5)
    assert np.isnan(hands.hand_variance(0 * keypoints, 1000))


def test_closeness_to_the_truth_with_its_interval():
    assert closeness.closeness(3, 4) == closeness.closeness(5, 4) == 0.75
    assert np.isnan(closeness.closeness(1, 0))
    rng = np.random.default_rng(2)
    true = rng.uniform(1, 2, 24)
    found = closeness.closeness_interval(0.8 * true, true, [f"p{i % 6}" for i in range(24)])
    assert found.value == pytest.approx(0.8) and found.low == pytest.approx(0.8) and found.people == 6
    mean = closeness.mean_interval(true, [f"p{i % 6}" for i in range(24)])
    assert mean.value == pytest.approx(true.mean()) and mean.low < true.mean() < mean.high
