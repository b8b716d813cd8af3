"""How much the lips change their shape: THEval's "lip dynamics", the same formula on the same landmarks (2511.04520).

All distances between the 40 points of the lips, in outer-eye distances; their variance over time; the mean of those.
"""

import numpy as np

LIPS = (
    0, 13, 14, 17, 37, 39, 40, 61, 78, 80, 81, 82, 84, 87, 88, 91, 95, 146, 178, 181, 185, 191, 267, 269, 270, 291, 308,
    310, 311, 312, 314, 317, 318, 321, 324, 375, 402, 405, 409, 415,
)  # fmt: skip
OUTER_EYES = (33, 263)


def eye_distance(mesh_TKD: np.ndarray) -> np.ndarray:
    """[T]: between the outer corners of the eyes, in the picture's plane; the unit of a face, nan where there is
    none.
    """
    points = np.asarray(mesh_TKD, np.float64)[..., :2]
    distance = np.linalg.norm(points[:, OUTER_EYES[0]] - points[:, OUTER_EYES[1]], axis=-1)
    return np.where(distance > 0, distance, np.nan)


def lip_dynamics(mesh_TKD: np.ndarray) -> float:
    """Of MediaPipe's mesh [T, 478, 2 or 3] in pixels, rows of nan where no face was found; nan without a face."""
    points = np.asarray(mesh_TKD, np.float64)[:, list(LIPS), :2]
    first, second = np.triu_indices(len(LIPS), 1)
    shape_TP = np.linalg.norm(points[:, first] - points[:, second], axis=-1) / eye_distance(mesh_TKD)[:, None]
    shape_TP = shape_TP[np.isfinite(shape_TP).all(1)]
    return float(shape_TP.var(0).mean()) if len(shape_TP) else float("nan")
