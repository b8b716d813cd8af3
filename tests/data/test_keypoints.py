"""The order of the keypoints, and their picture."""

import numpy as np
import pytest

from omnihuman_jax.data.keypoints import (
    BODY,
    INDEX,
    KEYPOINT_NAMES,
    LEFT_HAND,
    LIMBS,
    NUM_KEYPOINTS,
    RIGHT_HAND,
    draw_keypoints,
)


def test_names_are_distinct_and_cover_body_and_hands() -> None:
    assert len(set(KEYPOINT_NAMES)) == NUM_KEYPOINTS == 75
    assert KEYPOINT_NAMES[BODY][0] == "nose" and KEYPOINT_NAMES[BODY][-1] == "right_foot_index"
    assert KEYPOINT_NAMES[LEFT_HAND][0] == "left_hand_wrist" and KEYPOINT_NAMES[RIGHT_HAND][-1] == "right_hand_pinky_4"
    assert {index for limb in LIMBS[-40:] for index in limb} == set(range(33, 75))
    assert not any("lip" in name for name in KEYPOINT_NAMES)


def test_body_order_is_that_of_the_network() -> None:
    from mediapipe.python.solutions.hands import HandLandmark
    from mediapipe.python.solutions.pose import PoseLandmark

    for point in PoseLandmark:
        assert INDEX[point.name.lower()] == point.value
    joints = [name.removeprefix("left_hand_").split("_")[0] for name in KEYPOINT_NAMES[LEFT_HAND]]
    assert joints == [point.name.lower().split("_")[0] for point in HandLandmark]


def test_drawing_marks_confident_points_inside_the_picture_only() -> None:
    picture = np.zeros((60, 80, 3), np.uint8)
    keypoints = np.zeros((NUM_KEYPOINTS, 3), np.float32)
    keypoints[INDEX["left_wrist"]] = (20, 30, 0.9)
    keypoints[INDEX["left_elbow"]] = (40, 30, 0.9)
    keypoints[INDEX["right_wrist"]] = (60, 30, 0.1)
    keypoints[INDEX["nose"]] = (200, 30, 0.9)
    drawn = draw_keypoints(picture, keypoints)
    assert not picture.any()
    assert drawn[30, 20].any() and drawn[30, 30].any() and drawn[30, 40].any()
    assert not drawn[:, 45:].any()
    with pytest.raises(ValueError, match=r"\[75, 3\]"):
        draw_keypoints(picture, keypoints[:33])
