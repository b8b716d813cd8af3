"""Body, hands and face of the person in a clip (MediaPipe's small networks; CPU). Or body and hands by networks of the
user's (`whole_body_network.py`), and the face by MediaPipe, whose lips have the contour that is kept.

Pose, face mesh and hands are run side by side rather than as MediaPipe's `holistic`: on this project's clips that is as
fast, finds hands on more frames (it has a palm detector of its own) and sees when there is a second face.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from data_pipelines.curate.clips import Landmarks
from data_pipelines.curate.face_tracks import longest_tracks
from data_pipelines.curate.small_faces import SmallFaces
from data_pipelines.curate.whole_body_network import FollowedPerson, PersonFinder
from omnihuman_jax.data.keypoints import BODY, INDEX, LEFT_HAND, NUM_KEYPOINTS, RIGHT_HAND

# Changes of what is computed; part of the key under which results are kept.
VERSION = 3

# The 40 points of the lips in MediaPipe's 478-point face mesh: outer upper, outer lower, inner upper, inner lower.
LIPS = (
    61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 146, 91, 181, 84, 17, 314, 405, 321, 375,
    78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 95, 88, 178, 87, 14, 317, 402, 318, 324,
)  # fmt: skip
_INNER_UPPER, _INNER_LOWER, _FOREHEAD, _CHIN = 13, 14, 10, 152
_MAX_FACES = 2
# A hand this many shoulder widths from a wrist of the body is not that body's hand.
_MAX_WRIST_DISTANCE = 0.75


@dataclasses.dataclass(slots=True)
class _Face:
    points_K2: np.ndarray

    @property
    def box(self) -> np.ndarray:
        return np.concatenate([self.points_K2.min(0), self.points_K2.max(0)])

    @property
    def aperture(self) -> float:
        """The gap between the inner lips over the height of the face."""
        points = self.points_K2
        gap = np.linalg.norm(points[_INNER_UPPER] - points[_INNER_LOWER])
        return float(gap / max(1e-6, float(np.linalg.norm(points[_FOREHEAD] - points[_CHIN]))))


def extract_landmarks(
    frames: Iterable[np.ndarray],
    size: tuple[int, int] | None = None,
    *,
    hands: bool = True,
    faces: bool = True,
    finder: PersonFinder | None = None,
    every: int = 1,
) -> Landmarks:
    """The landmarks of consecutive RGB uint8 frames [H, W, 3] of one shot (the networks track from frame to frame).

    Args:
        size: (height, width) in whose pixels points are given; None: the frames' own.
        hands, faces: without, none are looked for.
        every: frames of the shot from one of these to the next.
        finder: finds body and hands; None: MediaPipe does.

    Raises:
        ValueError: there are no frames.
        ImportError: MediaPipe is not installed; names the extra that brings it.
    """
    keypoints: list[np.ndarray] = []
    followed: list[_Face | None] = []
    everybody: list[list[_Face]] = []
    with quiet_stderr(), _Networks(hands=hands, faces=faces, finder=finder, every=every) as networks:
        previous: np.ndarray | None = None
        for frame in frames:
            height, width = size or frame.shape[:2]
            scale = np.array([width, height], np.float32)
            keypoints.append(networks.keypoints(frame, scale))
            found = [_Face(points_K2 * scale) for points_K2 in networks.faces(frame)]
            everybody.append(found)
            face = _same_face(found, previous)
            previous = face.box if face else previous
            followed.append(face)
    if not keypoints:
        raise ValueError("no frames to find landmarks in")
    return _assemble(np.stack(keypoints), followed, everybody)


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """The networks' C++ code writes a page of notices to the process's stderr for each graph; Python's errors come
    after.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


class _Networks:
    """The networks, open for one shot: each keeps track of what it saw on the frame before."""

    def __init__(self, *, hands: bool, faces: bool, finder: PersonFinder | None, every: int) -> None:
        self._with_hands, self._with_faces, self._every = hands, faces, every
        self._person = FollowedPerson(finder) if finder else None

    def __enter__(self) -> "_Networks":
        try:
            from mediapipe.python.solutions import face_mesh, hands, pose
        except ImportError as error:
            raise ImportError(
                f"finding landmarks needs MediaPipe, which cannot be imported ({error}); pip install "
                "'omnihuman-jax[curation]'"
            ) from error
        mine = self._person is None
        self.pose: Any = pose.Pose(model_complexity=1) if mine else None
        seen = self._with_faces
        self.mesh: Any = face_mesh.FaceMesh(max_num_faces=_MAX_FACES, refine_landmarks=True) if seen else None
        self._small_faces = SmallFaces(_MAX_FACES, self._every) if seen else None
        self.hands: Any = hands.Hands(max_num_hands=2, model_complexity=1) if mine and self._with_hands else None
        return self

    def keypoints(self, frame: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """float32 [J, 3] of body and hands; scale: width and height of the picture in whose pixels they are."""
        if self._person is None:
            body_J3 = _body(self.pose.process(frame), scale)
            return _with_hands(body_J3, self.hands.process(frame), scale) if self.hands else body_J3
        found_J3 = self._person.keypoints(frame, hands=self._with_hands)
        found_J3[:, :2] *= scale / np.array([frame.shape[1], frame.shape[0]], np.float32)
        return found_J3

    def faces(self, frame: np.ndarray) -> list[np.ndarray]:
        """float32 [478, 2] of each face, in shares of the picture."""
        if self._small_faces is None:
            return []
        faces = self.mesh.process(frame).multi_face_landmarks or ()
        found = [np.array([(p.x, p.y) for p in face.landmark], np.float32) for face in faces]
        if not found:
            return self._small_faces.find(frame)
        self._small_faces.rest()
        return found

    def __exit__(self, *exception: object) -> None:
        for network in (self.pose, self.mesh, self.hands, self._small_faces):
            if network is not None:
                network.close()


def _inside(points: np.ndarray) -> np.ndarray:
    """Bool [J, 1]: the networks also guess points beyond the picture's edges; x and y in shares of the picture."""
    return np.all((points[:, :2] >= 0) & (points[:, :2] < 1), axis=-1)[:, None]


def _body(result: Any, scale: np.ndarray) -> np.ndarray:
    """[J, 3] with the body's points; their confidence is the network's visibility, 0 outside the picture."""
    keypoints_J3 = np.zeros((NUM_KEYPOINTS, 3), np.float32)
    if result.pose_landmarks:
        points = np.array([(p.x, p.y, p.visibility) for p in result.pose_landmarks.landmark], np.float32)
        inside = _inside(points)
        points[:, :2] *= scale
        keypoints_J3[BODY] = np.where(inside, points, 0)
    return keypoints_J3


def _with_hands(body_J3: np.ndarray, result: Any, scale: np.ndarray) -> np.ndarray:
    """The hands put at the left or right of the body: by the nearer wrist, or by the network's word where no wrist is
    seen.

    The network gives no confidence by point: a hand's is its score, 0 outside the picture.
    """
    keypoints_J3 = body_J3.copy()
    sides = {"left": LEFT_HAND, "right": RIGHT_HAND}
    for points, label in sorted(
        zip(result.multi_hand_landmarks or (), result.multi_handedness or ()),
        key=lambda hand: -hand[1].classification[0].score,
    ):
        hand = np.array([(p.x, p.y) for p in points.landmark], np.float32)
        inside = _inside(hand)
        hand *= scale
        side = _side(body_J3, hand[0], label.classification[0].label)
        if side is None or keypoints_J3[sides[side], 2].any():
            continue
        confidence = np.full((len(hand), 1), label.classification[0].score, np.float32)
        keypoints_J3[sides[side]] = np.where(inside, np.concatenate([hand, confidence], 1), 0)
    return keypoints_J3


def _side(body_J3: np.ndarray, wrist_2: np.ndarray, label: str) -> str | None:
    """left, right, or None for a hand that is not this body's."""
    # The network takes the picture for a mirror's, so its word is the other side.
    said = "right" if label == "Left" else "left"
    shoulders = body_J3[[INDEX["left_shoulder"], INDEX["right_shoulder"]]]
    if not shoulders[:, 2].all():
        return said
    reach = _MAX_WRIST_DISTANCE * float(np.linalg.norm(shoulders[0, :2] - shoulders[1, :2]))
    distance = {}
    for side in ("left", "right"):
        wrist = body_J3[INDEX[f"{side}_wrist"]]
        if wrist[2] > 0.3:
            distance[side] = float(np.linalg.norm(wrist[:2] - wrist_2))
    if len(distance) < 2:
        return said if not distance or min(distance.values()) > reach else next(iter(distance))
    nearest = min(distance, key=distance.__getitem__)
    return nearest if distance[nearest] <= reach else None


def _same_face(found: list[_Face], previous: np.ndarray | None) -> _Face | None:
    """The face that was followed so far, else the largest."""
    if not found:
        return None
    if previous is None:
        return max(found, key=lambda face: float(np.prod(face.box[2:] - face.box[:2])))
    return min(found, key=lambda face: float(np.abs(face.box - previous).sum()))


def _assemble(keypoints_TJ3: np.ndarray, faces: list[_Face | None], everybody: list[list[_Face]]) -> Landmarks:
    frames = len(faces)
    lips_TK2 = np.zeros((frames, len(LIPS), 2), np.float32)
    mouth_T4, face_T4 = np.zeros((frames, 4), np.float32), np.zeros((frames, 4), np.float32)
    aperture_T = np.full(frames, np.nan, np.float32)
    for t, face in enumerate(faces):
        if face is None:
            continue
        points = face.points_K2
        lips_TK2[t] = points[list(LIPS)]
        low, high = lips_TK2[t].min(0), lips_TK2[t].max(0)
        margin = 0.5 * max(float(high[1] - low[1]), 0.25 * float(high[0] - low[0]))
        mouth_T4[t] = np.concatenate([low - margin, high + margin])
        face_T4[t] = face.box
        aperture_T[t] = face.aperture
    boxes = [np.array([face.box for face in found], np.float32).reshape(-1, 4) for found in everybody]
    box_TN4, aperture_TN = longest_tracks(boxes, [[face.aperture for face in found] for found in everybody])
    return Landmarks(
        keypoints_TJ3=keypoints_TJ3.astype(np.float32),
        lips_TK2=lips_TK2,
        mouth_box_T4=mouth_T4,
        face_box_T4=face_T4,
        aperture_T=aperture_T,
        face_T=np.array([face is not None for face in faces]),
        faces_T=np.array([len(found) for found in everybody], np.int32),
        track_box_TN4=box_TN4,
        track_aperture_TN=aperture_TN,
    )
