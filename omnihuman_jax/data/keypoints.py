"""The keypoints that stand for a pose: 33 of the body, 21 of each hand, and a way to draw them.

An array of keypoints is [..., J, 3]: x, y and confidence in [0, 1]. The unit of x and y (pixels, tokens) is the
holder's; a keypoint that was not found is (0, 0, 0). No lip contour: what the lips do is left to the audio condition,
so that the two can be driven apart; only the mouth's two corners are among the body's points.
"""

import numpy as np

_BODY = (
    "nose", "left_eye_inner", "left_eye", "left_eye_outer", "right_eye_inner", "right_eye", "right_eye_outer",
    "left_ear", "right_ear", "mouth_left", "mouth_right", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow",
    "left_wrist", "right_wrist", "left_pinky", "right_pinky", "left_index", "right_index", "left_thumb", "right_thumb",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle", "left_heel", "right_heel",
    "left_foot_index", "right_foot_index",
)  # fmt: skip
_HAND = (
    "wrist",
    *(f"{finger}_{joint}" for finger in ("thumb", "index", "middle", "ring", "pinky") for joint in range(1, 5)),
)

KEYPOINT_NAMES: tuple[str, ...] = (
    *_BODY,
    *(f"left_hand_{name}" for name in _HAND),
    *(f"right_hand_{name}" for name in _HAND),
)
NUM_KEYPOINTS = len(KEYPOINT_NAMES)
BODY = slice(0, 33)
LEFT_HAND = slice(33, 54)
RIGHT_HAND = slice(54, 75)
INDEX: dict[str, int] = {name: i for i, name in enumerate(KEYPOINT_NAMES)}

_BODY_LIMBS = (
    ("left_ear", "left_eye"), ("left_eye", "nose"), ("nose", "right_eye"), ("right_eye", "right_ear"),
    ("mouth_left", "mouth_right"), ("left_shoulder", "right_shoulder"), ("left_shoulder", "left_elbow"),
    ("left_elbow", "left_wrist"), ("right_shoulder", "right_elbow"), ("right_elbow", "right_wrist"),
    ("left_shoulder", "left_hip"), ("right_shoulder", "right_hip"), ("left_hip", "right_hip"),
    ("left_hip", "left_knee"),
    ("left_knee", "left_ankle"), ("right_hip", "right_knee"), ("right_knee", "right_ankle"),
    ("left_ankle", "left_foot_index"), ("right_ankle", "right_foot_index"),
)  # fmt: skip
_HAND_LIMBS = tuple((0 if joint == 0 else 4 * f + joint, 4 * f + joint + 1) for f in range(5) for joint in range(4))

LIMBS: tuple[tuple[int, int], ...] = (
    *((INDEX[a], INDEX[b]) for a, b in _BODY_LIMBS),
    *((hand.start + a, hand.start + b) for hand in (LEFT_HAND, RIGHT_HAND) for a, b in _HAND_LIMBS),
)
# Left is warm, right is cold, what is neither is white: a swap of the sides shows at a glance.
_COLOURS = {"left": (255, 160, 40), "right": (60, 160, 255)}


def draw_keypoints(
    frame_HW3: np.ndarray, keypoints_J3: np.ndarray, min_confidence: float = 0.3, radius: int | None = None
) -> np.ndarray:
    """A copy of an RGB uint8 picture with the limbs and points drawn on it; x and y in its pixels.

    Points under `min_confidence` or outside the picture, and their limbs, are left out.
    """
    if keypoints_J3.shape != (NUM_KEYPOINTS, 3):
        raise ValueError(f"keypoints must be [{NUM_KEYPOINTS}, 3], not {list(keypoints_J3.shape)}")
    picture = frame_HW3.copy()
    height, width = picture.shape[:2]
    radius = max(1, min(height, width) // 160) if radius is None else radius
    x, y, confidence = np.nan_to_num(np.asarray(keypoints_J3, np.float64)).T
    shown = (confidence >= min_confidence) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    for a, b in LIMBS:
        if shown[a] and shown[b]:
            steps = int(max(abs(x[a] - x[b]), abs(y[a] - y[b]))) + 2
            _stamp(picture, np.linspace(x[a], x[b], steps), np.linspace(y[a], y[b], steps), radius // 2, _colour(a, b))
    for j in np.flatnonzero(shown).tolist():
        _stamp(picture, x[j : j + 1], y[j : j + 1], radius, _colour(j, j))
    return picture


def _colour(a: int, b: int) -> tuple[int, int, int]:
    sides = {KEYPOINT_NAMES[a].split("_")[0], KEYPOINT_NAMES[b].split("_")[0]}
    return _COLOURS.get(sides.pop(), (255, 255, 255)) if len(sides) == 1 else (255, 255, 255)


def _stamp(picture: np.ndarray, x: np.ndarray, y: np.ndarray, radius: int, colour: tuple[int, int, int]) -> None:
    """Fills a square of side 2 * radius + 1 around every (x, y)."""
    height, width = picture.shape[:2]
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            rows = np.clip(np.rint(y).astype(int) + dy, 0, height - 1)
            columns = np.clip(np.rint(x).astype(int) + dx, 0, width - 1)
            picture[rows, columns] = colour
