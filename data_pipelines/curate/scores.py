"""Scores of a clip's landmarks and of its sound: raw numbers, no thresholds.

Landmarks   pose_share         share of frames with at least `MIN_POINTS` keypoints of confidence >= 0.5
            body_confidence    mean confidence of the keypoints of head and shoulders
            face_share         share of frames with a face;  face_px its median width;  faces_share share with more than
            one
            face_tracks        how many faces are followed through a fifth of the frames or more; two at most are
            hand_share         share of frames with a hand;  left_hand_share, right_hand_share
            hand_confidence    mean confidence of the hand keypoints on the frames with a hand
Sound       loudness_dbfs      root mean square, -120 for digital silence or no track;  peak_dbfs
"""

import numpy as np

from data_pipelines.curate.clips import Landmarks
from omnihuman_jax.data.keypoints import INDEX, LEFT_HAND, RIGHT_HAND

# Changes of what is computed; part of the key under which results are kept.
VERSION = 2

SILENCE_DBFS = -120.0
MIN_POINTS = 8
MIN_CONFIDENCE = 0.5
_TRACK_SHARE = 0.2


def landmark_scores(landmarks: Landmarks) -> dict[str, float]:
    """Visibility of body, face and hands."""
    confidence_TJ = landmarks.keypoints_TJ3[..., 2]
    head_and_shoulders = [INDEX[n] for n in ("nose", "left_eye", "right_eye", "left_shoulder", "right_shoulder")]
    left_T = (confidence_TJ[:, LEFT_HAND] > 0).any(-1)
    right_T = (confidence_TJ[:, RIGHT_HAND] > 0).any(-1)
    hands = [confidence_TJ[left_T, LEFT_HAND].ravel(), confidence_TJ[right_T, RIGHT_HAND].ravel()]
    hand_confidence = np.concatenate(hands)
    followed = np.isfinite(landmarks.track_aperture_TN)
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
        "face_tracks": float((followed.mean(0) >= _TRACK_SHARE).sum()) if followed.size else 0.0,
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
