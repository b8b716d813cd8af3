"""How much the eyebrows move: THEval's "eyebrow dynamics", the same formula on the same landmarks (2511.04520).

The distance from a brow's middle to its eye's, in distances between the eyes' middles; the mean absolute change from a
frame to the next one with a face, over both sides.
"""

import numpy as np

LEFT_BROW = (276, 282, 283, 285, 293, 295, 296, 300, 334, 336)
RIGHT_BROW = (46, 52, 53, 55, 63, 65, 66, 70, 105, 107)
LEFT_EYE = (249, 263, 362, 373, 374, 380, 381, 382, 384, 385, 386, 387, 388, 390, 398, 466)
RIGHT_EYE = (7, 33, 133, 144, 145, 153, 154, 155, 157, 158, 159, 160, 161, 163, 173, 246)


def eyebrow_dynamics(mesh_TKD: np.ndarray) -> float:
    """Of MediaPipe's mesh [T, 478, 2 or 3] in pixels, rows of nan where no face was found; nan with fewer than two."""
    points = np.asarray(mesh_TKD, np.float64)[..., :2]

    def middle(indices: tuple[int, ...]) -> np.ndarray:
        return points[:, list(indices)].mean(1)

    left, right = middle(LEFT_EYE), middle(RIGHT_EYE)
    scale = np.linalg.norm(left - right, axis=-1)
    raised_T2 = np.stack(
        [np.linalg.norm(middle(brow) - eye, axis=-1) for brow, eye in ((LEFT_BROW, left), (RIGHT_BROW, right))], 1
    )
    seen = np.isfinite(scale) & (scale > 1e-3)
    raised_T2 = raised_T2[seen] / scale[seen, None]
    return float(np.abs(np.diff(raised_T2, axis=0)).mean()) if len(raised_T2) > 1 else float("nan")
