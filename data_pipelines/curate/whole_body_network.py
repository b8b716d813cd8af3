"""Points of body, feet, face and hands of a person by a network of COCO-WholeBody's 133 points [Jin et al. 2020]:
RTMPose [Jiang et al. 2023] or DWPose [Yang et al. 2023] in ONNX, from a path (`--pose-network`).

It sees a person's box, grown to 1.25 of its sides and to the network's aspect (384 x 288, or what its input says), as
RGB less ImageNet's mean, over its deviation. It has one input [1, 3, H, W] and two outputs, `simcc_x` [1, 133, 2 W] and
`simcc_y` [1, 133, 2 H]: where along each axis a point is, in halves of a pixel, and how likely.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.curate.face_tracks import overlap
from data_pipelines.curate.onnx_networks import open_network
from data_pipelines.curate.person_network import PersonNetwork, picture_size
from omnihuman_jax.data.keypoints import INDEX, LEFT_HAND, NUM_KEYPOINTS, RIGHT_HAND
from omnihuman_jax.runtime.files import file_sha256

# Changes of what is computed; part of the key under which results are kept.
VERSION = 1

POINTS = 133
_SIZE = (384, 288)
_GROWN = 1.25
_MEAN, _DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_OUTPUTS = ("simcc_x", "simcc_y")
# A point that is less sure was not found; DWPose draws from here on. A hand is one with half of its points.
_MIN_CONFIDENCE = 0.3
_MIN_HAND_POINTS = 11
_SAME_PERSON = 0.3

# Among the 133: 17 of the body, 6 of the feet, 68 of the face, 21 of each hand.
_FACE, _LEFT, _RIGHT = 23, 91, 112
# Ours -> theirs. The eyes' and mouth's corners are the face's; the fingers of the body are those of the hands, at the
# knuckles, as MediaPipe has them.
_BODY = {
    "nose": 0, "left_eye": 1, "right_eye": 2, "left_ear": 3, "right_ear": 4, "left_shoulder": 5, "right_shoulder": 6,
    "left_elbow": 7, "right_elbow": 8, "left_wrist": 9, "right_wrist": 10, "left_hip": 11, "right_hip": 12,
    "left_knee": 13, "right_knee": 14, "left_ankle": 15, "right_ankle": 16, "left_foot_index": 17, "left_heel": 19,
    "right_foot_index": 20, "right_heel": 22,
    "right_eye_outer": _FACE + 36, "right_eye_inner": _FACE + 39, "left_eye_inner": _FACE + 42,
    "left_eye_outer": _FACE + 45, "mouth_right": _FACE + 48, "mouth_left": _FACE + 54,
    "left_thumb": _LEFT + 2, "left_index": _LEFT + 5, "left_pinky": _LEFT + 17,
    "right_thumb": _RIGHT + 2, "right_index": _RIGHT + 5, "right_pinky": _RIGHT + 17,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WholeBodyNetwork:
    """A network on a disk that every worker sees. size: (height, width) of its input; digest: of its bytes."""

    path: str
    size: tuple[int, int]
    digest: str

    @classmethod
    def load(cls, path: str) -> "WholeBodyNetwork":
        """Raises:
        FileNotFoundError, ValueError, ImportError: no such file, or it is no such network.
        """
        file = Path(path).resolve()
        session = open_network(file)
        size = picture_size(file, session, _SIZE, "a pose network")
        outputs = session.get_outputs()
        if len(outputs) != 2:
            names = ", ".join(one.name for one in outputs)
            raise ValueError(f"{file}: has the outputs {names}; a pose network has two, simcc_x and simcc_y")
        _check_shapes(file, size, [output.shape for output in _ordered(outputs)])
        return cls(path=str(file), size=size, digest=file_sha256(file))

    def points(self, frame: np.ndarray, box_4: np.ndarray) -> np.ndarray:
        """float32 [133, 3]: x and y in pixels of an RGB uint8 frame [H, W, 3], and confidence in [0, 1], of the person
        in a box x0, y0, x1, y1.
        """
        picture, scale, corner = cut_out(frame, box_4, self.size)
        session = open_network(Path(self.path))
        names = [output.name for output in _ordered(session.get_outputs())]
        along_x, along_y = session.run(names, {session.get_inputs()[0].name: picture[None]})
        _check_shapes(Path(self.path), self.size, [list(along_x.shape), list(along_y.shape)])
        places, confidence = decoded_axes(along_x[0], along_y[0], self.size)
        return np.concatenate([places / scale + corner, confidence[:, None]], axis=1).astype(np.float32)


def cut_out(frame: np.ndarray, box_4: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, float, np.ndarray]:
    """(what the network sees, float32 [3, H, W]; its pixels a pixel of the frame; where in the frame its corner is)."""
    import cv2  # comes with MediaPipe in the curation extra

    height, width = size
    centre = (box_4[:2] + box_4[2:4]).astype(np.float64) / 2
    sides = np.maximum(box_4[2:4] - box_4[:2], 1).astype(np.float64) * _GROWN
    scale = float(min(width / sides[0], height / sides[1]))
    corner = centre - np.array([width, height]) / (2 * scale)
    to_picture = np.array([[scale, 0, -scale * corner[0]], [0, scale, -scale * corner[1]]])
    seen = cv2.warpAffine(frame, to_picture, (width, height), flags=cv2.INTER_LINEAR)
    normalised = (seen.astype(np.float32) - np.array(_MEAN, np.float32)) / np.array(_DEVIATION, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)), scale, corner


def decoded_axes(along_x: np.ndarray, along_y: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [133, 2] pixels of the network's picture, float64 [133] in [0, 1]): where each axis is most likely; the
    less sure axis says how sure.
    """
    each = [(along_x, size[1]), (along_y, size[0])]
    places = np.stack([axis.argmax(axis=1) * (side / axis.shape[1]) for axis, side in each], axis=1)
    confidence = np.minimum(along_x.max(axis=1), along_y.max(axis=1)).astype(np.float64)
    return places, np.clip(np.nan_to_num(confidence), 0, 1)


def keypoints_of(points_P3: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 [J, 3]: this package's keypoints of the 133 of a picture of `size` (height, width); (0, 0, 0) for what is
    not sure, or outside the picture.
    """
    inside = ((points_P3[:, :2] >= 0) & (points_P3[:, :2] < [size[1], size[0]])).all(axis=1)
    seen = np.where((inside & (points_P3[:, 2] >= _MIN_CONFIDENCE))[:, None], points_P3, 0).astype(np.float32)
    keypoints = np.zeros((NUM_KEYPOINTS, 3), np.float32)
    for name, theirs in _BODY.items():
        keypoints[INDEX[name]] = seen[theirs]
    for hand, first in ((LEFT_HAND, _LEFT), (RIGHT_HAND, _RIGHT)):
        mine = seen[first : first + 21]
        if np.count_nonzero(mine[:, 2]) >= _MIN_HAND_POINTS:
            keypoints[hand] = mine
    return keypoints


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PersonFinder:
    """Finds people, and the points of one."""

    person: PersonNetwork
    pose: WholeBodyNetwork

    @property
    def digests(self) -> dict[str, str]:
        return {"person": self.person.digest, "pose": self.pose.digest}


class FollowedPerson:
    """The keypoints of one person, frame after frame of a shot: of whom was followed so far, else of the largest."""

    def __init__(self, finder: PersonFinder) -> None:
        self._finder = finder
        self._box: np.ndarray | None = None

    def keypoints(self, frame: np.ndarray, *, hands: bool) -> np.ndarray:
        """float32 [J, 3] in pixels of an RGB uint8 frame [H, W, 3]; zeros where nobody is."""
        boxes = self._finder.person.boxes(frame)[:, :4]
        if not len(boxes):
            return np.zeros((NUM_KEYPOINTS, 3), np.float32)
        self._box = self._same(boxes)
        keypoints = keypoints_of(self._finder.pose.points(frame, self._box), frame.shape[:2])
        if not hands:
            keypoints[LEFT_HAND] = keypoints[RIGHT_HAND] = 0
        return keypoints

    def _same(self, boxes: np.ndarray) -> np.ndarray:
        if self._box is not None:
            shares = [overlap(box, self._box) for box in boxes]
            if max(shares) >= _SAME_PERSON:
                return np.asarray(boxes[int(np.argmax(shares))])
        return np.asarray(max(boxes, key=lambda box: float(np.prod(box[2:] - box[:2]))))


def _ordered(outputs: list[Any]) -> list[Any]:
    """x before y, by their names where they have these."""
    by_name = {output.name: output for output in outputs}
    return [by_name[name] for name in _OUTPUTS] if set(_OUTPUTS) <= set(by_name) else list(outputs)


def _check_shapes(path: Path, size: tuple[int, int], shapes: list[list[Any]]) -> None:
    """ValueError unless the outputs can be what the file's head says; names and None stand for any number."""
    for shape, name, side in zip(shapes, _OUTPUTS, size[::-1], strict=True):
        known = [one if isinstance(one, int) else None for one in shape]
        fits = len(known) == 3 and known[1] in (POINTS, None) and known[2] in (2 * side, None)
        if shape and not fits:
            raise ValueError(
                f"{path}: puts out {name} {list(shape)}; a pose network of {POINTS} points and pictures of"
                f" {size[0]} x {size[1]} puts out [1, {POINTS}, {2 * side}]"
            )
