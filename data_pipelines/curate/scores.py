"""Scores of a clip's pictures, of its landmarks and of its sound: raw numbers, no thresholds.

Pictures    sharpness          variance of the Laplacian of the luma, at most 360 lines high
            brightness         mean luma, 0..255
            motion             mean optical flow, in picture heights a second
            frozen_share       share of frames that repeat the one before
Landmarks   pose_share         share of frames with at least `MIN_POINTS` keypoints of confidence >= 0.5
            body_confidence    mean confidence of the keypoints of head and shoulders
            face_share         share of frames with a face;  face_px its median width;  faces_share share with more than
            one
            hand_share         share of frames with a hand;  left_hand_share, right_hand_share
            hand_confidence    mean confidence of the hand keypoints on the frames with a hand
Sound       loudness_dbfs      root mean square, -120 for digital silence or no track;  peak_dbfs
"""

from collections.abc import Iterator

import numpy as np

from data_pipelines.curate.clips import Landmarks
from omnihuman_jax.data.keypoints import INDEX, LEFT_HAND, RIGHT_HAND
from omnihuman_jax.typing import FPS

# Changes of what is computed; part of the key under which results are kept.
VERSION = 1

SILENCE_DBFS = -120.0
MIN_POINTS = 8
MIN_CONFIDENCE = 0.5
_SHARPNESS_LINES = 360
_FLOW_LINES = 90
_SAMPLE_EVERY = 3
_FROZEN_CHANGE = 0.05


class PictureMeter:
    """Scores pictures that pass through it on their way to something else; holds no more than one thumbnail."""

    def __init__(self) -> None:
        self._count = 0
        self._frozen = 0
        self._sharpness: list[float] = []
        self._brightness: list[float] = []
        self._flow: list[float] = []
        self._before: np.ndarray | None = None
        self._sampled: np.ndarray | None = None

    def watch(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the RGB uint8 frames unchanged, and scores them."""
        for frame in frames:
            self._add(frame)
            yield frame

    def _add(self, frame: np.ndarray) -> None:
        import cv2  # comes with MediaPipe in the curation extra

        luma = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        thumbnail = _at_most(luma, _FLOW_LINES)
        if self._before is not None:
            self._frozen += float(cv2.absdiff(thumbnail, self._before).mean()) < _FROZEN_CHANGE
        self._before = thumbnail
        if self._count % _SAMPLE_EVERY == 0:
            self._sharpness.append(float(cv2.Laplacian(_at_most(luma, _SHARPNESS_LINES), cv2.CV_32F).var()))
            self._brightness.append(float(luma.mean()))
            if self._sampled is not None:
                flow = cv2.calcOpticalFlowFarneback(self._sampled, thumbnail, None, 0.5, 3, 15, 3, 5, 1.2, 0)
                self._flow.append(
                    float(np.linalg.norm(flow, axis=-1).mean()) / thumbnail.shape[0] * FPS / _SAMPLE_EVERY
                )
            self._sampled = thumbnail
        self._count += 1

    def scores(self) -> dict[str, float]:
        return {
            "sharpness": float(np.median(self._sharpness)),
            "brightness": float(np.mean(self._brightness)),
            "motion": float(np.mean(self._flow)) if self._flow else 0.0,
            "frozen_share": self._frozen / max(1, self._count - 1),
        }


def _at_most(luma: np.ndarray, lines: int) -> np.ndarray:
    import cv2

    if luma.shape[0] <= lines:
        return luma
    width = max(1, round(luma.shape[1] * lines / luma.shape[0]))
    return cv2.resize(luma, (width, lines), interpolation=cv2.INTER_AREA)


def landmark_scores(landmarks: Landmarks) -> dict[str, float]:
    """Visibility of body, face and hands."""
    confidence_TJ = landmarks.keypoints_TJ3[..., 2]
    head_and_shoulders = [INDEX[n] for n in ("nose", "left_eye", "right_eye", "left_shoulder", "right_shoulder")]
    left_T = (confidence_TJ[:, LEFT_HAND] > 0).any(-1)
    right_T = (confidence_TJ[:, RIGHT_HAND] > 0).any(-1)
    hands = [confidence_TJ[left_T, LEFT_HAND].ravel(), confidence_TJ[right_T, RIGHT_HAND].ravel()]
    hand_confidence = np.concatenate(hands)
    widths = (landmarks.face_box_T4[:, 2] - landmarks.face_box_T4[:, 0])[landmarks.face_T]
    return {
        "pose_share": float(((confidence_TJ >= MIN_CONFIDENCE).sum(-1) >= MIN_POINTS).mean()),
        "body_confidence": float(confidence_TJ[:, head_and_shoulders].mean()),
        "face_share": float(landmarks.face_T.mean()),
        "face_px": float(np.median(widths)) if widths.size else 0.0,
        "faces_share": float((landmarks.faces_T > 1).mean()),
        "hand_share": float((left_T | right_T).mean()),
        "left_hand_share": float(left_T.mean()),
        "right_hand_share": float(right_T.mean()),
        "hand_confidence": float(hand_confidence.mean()) if hand_confidence.size else 0.0,
    }


def sound_scores(wave: np.ndarray | None) -> dict[str, float]:
    """Loudness of mono float32 in [-1, 1]; None, for no track, scores as silence."""
    if wave is None or not wave.size:
        return {"loudness_dbfs": SILENCE_DBFS, "peak_dbfs": SILENCE_DBFS}
    return {
        "loudness_dbfs": _dbfs(float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))),
        "peak_dbfs": _dbfs(float(np.abs(wave).max())),
    }


def _dbfs(amplitude: float) -> float:
    return max(SILENCE_DBFS, 20 * float(np.log10(max(amplitude, 1e-6))))
