"""Scores of a clip's pictures: raw numbers, no thresholds.

sharpness      variance of the Laplacian of the luma, at most 360 lines high
brightness     mean luma, 0..255
motion         mean optical flow, in picture heights a second
camera_motion  mean of what of it the camera makes (`camera_motion.py`);  subject_motion mean of the rest
frozen_share   share of frames that repeat the one before
"""

from collections.abc import Iterator

import numpy as np

from data_pipelines.curate.camera_motion import split_motion
from omnihuman_jax.typing import FPS

# Changes of what is computed; part of the key under which results are kept.
VERSION = 2

_SHARPNESS_LINES = 360
_FLOW_LINES = 90
_SAMPLE_EVERY = 3
_FROZEN_CHANGE = 0.05


class PictureMeter:
    """Scores pictures that pass through it on their way to something else; holds no more than one thumbnail.

    frames: how many passed so far.
    """

    def __init__(self) -> None:
        self.frames = 0
        self._frozen = 0
        self._sharpness: list[float] = []
        self._brightness: list[float] = []
        self._flow: list[float] = []
        self._split: list[tuple[float, float]] = []
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
        if self.frames % _SAMPLE_EVERY == 0:
            self._sharpness.append(float(cv2.Laplacian(_at_most(luma, _SHARPNESS_LINES), cv2.CV_32F).var()))
            self._brightness.append(float(luma.mean()))
            if self._sampled is not None:
                flow = cv2.calcOpticalFlowFarneback(self._sampled, thumbnail, None, 0.5, 3, 15, 3, 5, 1.2, 0)
                self._flow.append(
                    float(np.linalg.norm(flow, axis=-1).mean()) / thumbnail.shape[0] * FPS / _SAMPLE_EVERY
                )
                camera, subject = split_motion(flow)
                per_s = FPS / _SAMPLE_EVERY / thumbnail.shape[0]
                self._split.append((camera * per_s, subject * per_s))
            self._sampled = thumbnail
        self.frames += 1

    def scores(self) -> dict[str, float]:
        camera, subject = (float(value) for value in np.mean(self._split or [(0.0, 0.0)], axis=0))
        return {
            "sharpness": float(np.median(self._sharpness)),
            "brightness": float(np.mean(self._brightness)),
            "motion": float(np.mean(self._flow)) if self._flow else 0.0,
            "camera_motion": camera,
            "subject_motion": subject,
            "frozen_share": self._frozen / max(1, self.frames - 1),
        }


def _at_most(luma: np.ndarray, lines: int) -> np.ndarray:
    import cv2

    if luma.shape[0] <= lines:
        return luma
    width = max(1, round(luma.shape[1] * lines / luma.shape[0]))
    return cv2.resize(luma, (width, lines), interpolation=cv2.INTER_AREA)
