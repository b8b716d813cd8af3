"""What of an optical flow the camera makes, and what the things before it: the affine field that most of the flow
agrees with (a pan, a zoom, a roll, a hand that shakes), and what is left of it.
"""

import numpy as np

# Changes of what is computed; part of the key under which results are kept.
VERSION = 1

# Every how many pixels the flow is looked at, how often the fit is repeated, and from how far off (in pixels) a vector
# no longer counts much: what moves by itself shall not pull the camera along.
_STEP = 4
_ROUNDS = 6
_SCALE = 0.1


def split_motion(flow_HW2: np.ndarray) -> tuple[float, float]:
    """(mean length of the camera's field, mean length of what is left) of a flow in pixels, float32 [H, W, 2].

    An iterated weighted least-squares fit, which begins at the median flow and forgets outliers (Cauchy's weights).
    """
    step = _STEP if min(flow_HW2.shape[:2]) >= 2 * _STEP else 1
    flow = flow_HW2[step // 2 :: step, step // 2 :: step].astype(np.float64)
    height, width = flow.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    places = np.stack([np.ones(height * width), x.ravel() - width / 2, y.ravel() - height / 2], axis=1)
    vectors = flow.reshape(-1, 2)
    camera = np.broadcast_to(np.median(vectors, axis=0), vectors.shape)
    for _ in range(_ROUNDS):
        weights = 1 / (1 + (np.linalg.norm(vectors - camera, axis=1) / _SCALE) ** 2)
        weighted = places * weights[:, None]
        camera = places @ np.linalg.lstsq(weighted.T @ places, weighted.T @ vectors, rcond=None)[0]
    return float(np.linalg.norm(camera, axis=1).mean()), float(np.linalg.norm(vectors - camera, axis=1).mean())
