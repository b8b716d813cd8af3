"""Hands: HKC (confidence) and HKV (variance). The papers that report them give no formula: these are ours, pinned here.

They are not comparable with published numbers, which come from another keypoint network.
"""

import numpy as np

from omnihuman_jax.data.keypoints import LEFT_HAND, RIGHT_HAND

_HANDS = (LEFT_HAND, RIGHT_HAND)


def hand_confidence(made_TJ3: np.ndarray, true_TJ3: np.ndarray) -> float:
    """HKC: mean confidence of the hands' keypoints over the hands and frames in which the truth shows a hand.

    A hand that the truth has and the made video has not counts 0: a hand too bad to be found does not raise the score.
    nan where the truth never shows one.
    """
    values = []
    for hand in _HANDS:
        shown_T = (true_TJ3[:, hand, 2] > 0).any(1)
        values.append(np.asarray(made_TJ3, np.float64)[shown_T, hand, 2].ravel())
    found = np.concatenate(values)
    return float(found.mean()) if len(found) else float("nan")


def hand_variance(keypoints_TJ3: np.ndarray, height: int) -> float:
    """HKV: variance over time of the hands' keypoints, in (percent of the picture's height)^2; nan without hands.

    The mean over hands that are seen in two frames or more, over their keypoints, and over x and y.
    """
    variances = []
    for hand in _HANDS:
        points = np.asarray(keypoints_TJ3, np.float64)[:, hand]
        seen = points[(points[..., 2] > 0).all(1)]
        if len(seen) > 1:
            variances.append(np.var(100 * seen[..., :2] / height, axis=0).mean())
    return float(np.mean(variances)) if variances else float("nan")
