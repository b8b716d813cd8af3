"""The square around a face that SyncNet looks at, cut out of every frame.

A box is taken from the mesh of the face, smoothed over 13 frames, and enlarged as SyncNet's own pipeline does it: 1.4
half sizes to the left, right and 1.8 below the middle, 1 above. That pipeline finds faces with another network, so the
crops, and what is measured on them, are close to its own and not equal.
"""

import numpy as np

_SMOOTHED = 13
_ROOM = 0.4


def crop_faces(frames_THW3: np.ndarray, mesh_TKD: np.ndarray, size: int) -> np.ndarray | None:
    """uint8 [T, size, size, 3]; None where no frame shows a face. Frames without one take the nearest that has."""
    from PIL import Image

    points = np.asarray(mesh_TKD, np.float64)[..., :2]
    seen = np.flatnonzero(np.isfinite(points).all((1, 2)))
    if not len(seen):
        return None
    nearest = seen[np.abs(np.arange(len(points))[:, None] - seen).argmin(1)]
    low, high = points[nearest].min(1), points[nearest].max(1)
    boxes_T3 = _smoothed(np.concatenate([(low + high) / 2, (high - low).max(1, keepdims=True) / 2], 1))
    crops = []
    for frame, (x, y, half) in zip(frames_THW3, boxes_T3):
        side = (1 + _ROOM) * half
        left, top = round(x - side), round(y - half)
        right, bottom = round(x + side), round(y + half * (1 + 2 * _ROOM))
        # Pillow fills what lies outside the picture with black; the reference with grey: rare, and a border only.
        cut = Image.fromarray(frame).crop((left, top, max(right, left + 1), max(bottom, top + 1)))
        crops.append(np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR)))
    return np.stack(crops)


def _smoothed(values_TN: np.ndarray) -> np.ndarray:
    """Medians over 13 frames, with the ends held."""
    padded = np.pad(values_TN, ((_SMOOTHED // 2, _SMOOTHED // 2), (0, 0)), "edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, _SMOOTHED, 0), -1)
