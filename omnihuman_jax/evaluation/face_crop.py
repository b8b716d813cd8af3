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
    squares_T3 = face_squares(mesh_TKD)
    if squares_T3 is None:
        return None
    return np.stack([crop(frame, square, size) for frame, square in zip(frames_THW3, squares_T3)])


def face_squares(mesh_TKD: np.ndarray) -> np.ndarray | None:
    """float64 [T, 3], x and y of the middle and half a side, of the points of a face (or of two corners of its box),
    NaN where there is none; None where no frame has them.
    """
    points = np.asarray(mesh_TKD, np.float64)[..., :2]
    seen = np.flatnonzero(np.isfinite(points).all((1, 2)))
    if not len(seen):
        return None
    nearest = seen[np.abs(np.arange(len(points))[:, None] - seen).argmin(1)]
    low, high = points[nearest].min(1), points[nearest].max(1)
    return _smoothed(np.concatenate([(low + high) / 2, (high - low).max(1, keepdims=True) / 2], 1))


def crop(frame_HW3: np.ndarray, square_3: np.ndarray, size: int) -> np.ndarray:
    """uint8 [size, size, 3]: a square of `face_squares`, with room around it."""
    from PIL import Image

    x, y, half = square_3
    side = (1 + _ROOM) * half
    left, top = round(x - side), round(y - half)
    right, bottom = round(x + side), round(y + half * (1 + 2 * _ROOM))
    # Pillow fills what lies outside the picture with black; the reference with grey: rare, and a border only.
    cut = Image.fromarray(frame_HW3).crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    return np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR))


def _smoothed(values_TN: np.ndarray) -> np.ndarray:
    """Medians over 13 frames, with the ends held."""
    padded = np.pad(values_TN, ((_SMOOTHED // 2, _SMOOTHED // 2), (0, 0)), "edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, _SMOOTHED, 0), -1)
