"""Where the joints of drawn people are: the truth of a window, and a readout of it from pixels.

The readout is that of the mouth (`evaluation/mouth.py`) on whole pictures, fitted for every coordinate of every joint
on the codec's round trip of the same clip's other windows.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.puppet_theatre.truth import Truth
from omnihuman_jax.data.keypoints import BODY
from omnihuman_jax.evaluation import mouth


def joints_of(truth: Truth, frames: slice) -> np.ndarray:
    """float64 [T, 66]: x and y of the body's points, in heights of the figure; nan where one is not to be seen."""
    points_TJ3 = truth.keypoints_TJ3[frames][:, BODY].astype(np.float64)
    places = points_TJ3[..., :2] / truth.facts["figure_px"]
    return np.where(points_TJ3[..., 2:] > 0, places, np.nan).reshape(len(points_TJ3), -1)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class JointReadout:
    """Of one window: which coordinates of `joints_of` are seen in all frames, and the readout of these."""

    seen_K: np.ndarray
    readout: mouth.Readout

    def read(self, video_THW3: np.ndarray) -> np.ndarray:
        """float64 [T, seen coordinates]."""
        return self.readout(video_THW3)

    def true(self, joints_TK: np.ndarray) -> np.ndarray:
        """The same coordinates of the truth."""
        return joints_TK[:, self.seen_K]


def fit_joints(others: Sequence[tuple[np.ndarray, np.ndarray]], joints_TK: np.ndarray) -> JointReadout | None:
    """The readout for a window whose truth is `joints_TK`; None where no joint is to be seen in all frames.

    Args:
        others: (round trip [T, H, W, 3], joints [T, K]) of windows of the clip apart from the measured one.
    """
    if not others:
        return None
    true_TK = np.concatenate([joints for _, joints in others])
    seen_K = np.isfinite(joints_TK).all(axis=0) & np.isfinite(true_TK).all(axis=0)
    if not seen_K.any():
        return None
    pictures = np.concatenate([pictures for pictures, _ in others])
    return JointReadout(seen_K=seen_K, readout=mouth.fit_readout(pictures, true_TK[:, seen_K]))
