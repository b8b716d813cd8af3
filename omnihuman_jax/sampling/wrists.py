"""How far drawn people move their hands: a readout of the wrists from pixels, and its moments against the truth.

Fitted like that of the mouth (`evaluation/mouth.py`), for each coordinate of each wrist, on whole pictures of the
codec's round trip of the same clip's other windows.
"""

from collections.abc import Sequence

import numpy as np

from data_pipelines.puppet_theatre.gesture_law import SIGNALS
from data_pipelines.puppet_theatre.truth import Truth
from omnihuman_jax.data.keypoints import KEYPOINT_NAMES
from omnihuman_jax.evaluation import mouth

_ARMS = [number for number, name in enumerate(SIGNALS) if name != "nod"]
_WRISTS = [KEYPOINT_NAMES.index(name) for name in ("left_wrist", "right_wrist")]


def wrists_of(truth: Truth, frames: slice) -> np.ndarray:
    """float64 [T, 4]: x and y of both wrists, in shares of the picture's height; nan where one is not to be seen."""
    points_TJ3 = truth.keypoints_TJ3[frames][:, _WRISTS].astype(np.float64)
    places = points_TJ3[..., :2] / truth.facts["size_px"][0]
    return np.where(points_TJ3[..., 2:] > 0, places, np.nan).reshape(len(points_TJ3), -1)


def arms_of(truth: Truth, frames: slice) -> np.ndarray:
    """float64 [T, 4]: the gesture signals of the arms, of variance about 1; nan where that arm's wrist is not seen."""
    seen_T4 = np.isfinite(wrists_of(truth, frames))[:, [0, 0, 2, 2]]
    return np.where(seen_T4, truth.gestures_TG[frames][:, _ARMS].astype(np.float64), np.nan)


def moments_of(
    others: Sequence[tuple[np.ndarray, np.ndarray]], video_THW3: np.ndarray, wrists_T4: np.ndarray
) -> np.ndarray | None:
    """`mouth.moments` of a sample, summed over the coordinates that are known in all frames; None without any.

    Args:
        others: (round trip [T, H, W, 3], wrists [T, 4]) of windows of the clip apart from the measured one.
        video_THW3: the sample; wrists_T4: the truth of its window.
    """
    total = None
    for column in np.flatnonzero(np.isfinite(wrists_T4).all(axis=0)):
        known = [(pictures, wrists[:, column]) for pictures, wrists in others if np.isfinite(wrists[:, column]).all()]
        if not known:
            continue
        readout = mouth.fit_readout(np.concatenate([p for p, _ in known]), np.concatenate([w for _, w in known]))
        own = mouth.moments(readout(video_THW3), wrists_T4[:, column])
        total = own if total is None else total + own
    return total
