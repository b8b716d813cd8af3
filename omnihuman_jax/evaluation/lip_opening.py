"""How far the mouth is open in each frame, from MediaPipe's mesh: what the scores of lips and sound look at."""

import numpy as np

from omnihuman_jax.evaluation.lip_dynamics import eye_distance

UPPER = (191, 80, 81, 82, 13, 312, 311, 310)
LOWER = (95, 88, 178, 87, 14, 317, 402, 318)


def lip_opening(mesh_TKD: np.ndarray) -> np.ndarray:
    """[T]: mean gap of eight pairs of points of the inner lips, in outer-eye distances; nan without a face."""
    points = np.asarray(mesh_TKD, np.float64)[..., :2]
    gaps_T8 = np.linalg.norm(points[:, list(UPPER)] - points[:, list(LOWER)], axis=-1)
    return gaps_T8.mean(1) / eye_distance(mesh_TKD)
