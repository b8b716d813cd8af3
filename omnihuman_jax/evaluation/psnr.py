"""Peak signal-to-noise ratio of pictures, whole or inside a region."""

import math

import numpy as np

PEAK = 2.0  # of pictures in [-1, 1]


def squared_error(pictures: np.ndarray, truth: np.ndarray, mask_THW: np.ndarray | None = None) -> tuple[float, int]:
    """Sum of squared differences and the number of values it is over, so that windows of unlike sizes add up.

    Args:
        pictures: [T, H, W, 3] float in [-1, 1].
        truth: same shape.
        mask_THW: pixels that count, bool; None for all.

    Raises:
        ValueError: the shapes differ.
    """
    pictures, truth = np.asarray(pictures, np.float64), np.asarray(truth, np.float64)
    if pictures.shape != truth.shape:
        raise ValueError(f"PSNR compares pictures of one shape, not {pictures.shape} with {truth.shape}")
    error = (pictures - truth) ** 2
    if mask_THW is not None:
        if mask_THW.shape != error.shape[:-1]:
            raise ValueError(f"a mask of {mask_THW.shape} does not fit pictures of {error.shape}")
        error = error[mask_THW]
    return float(error.sum()), error.size


def psnr_of(error: float, count: int) -> float:
    """dB of a summed squared error over `count` values: inf when there is no error, nan when nothing was compared, or
    what is no number.
    """
    if count == 0 or math.isnan(error):
        return math.nan
    return 10 * math.log10(PEAK**2 * count / error) if error > 0 else math.inf


def psnr(pictures: np.ndarray, truth: np.ndarray, mask_THW: np.ndarray | None = None) -> float:
    """dB of `pictures` against `truth`, both [T, H, W, 3] in [-1, 1]; `mask_THW` picks the pixels that count."""
    return psnr_of(*squared_error(pictures, truth, mask_THW))


def box_mask(boxes_T4: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bool [T, height, width]: inside of (left, top, right, bottom) in pixels, each cut to the picture; a row of nan is
    empty.
    """
    boxes = np.asarray(boxes_T4, np.float64)[:, :, None, None]
    rows, columns = np.arange(height)[None, :, None] + 0.5, np.arange(width)[None, None, :] + 0.5
    left, top, right, bottom = (boxes[:, i] for i in range(4))
    return (columns >= left) & (columns <= right) & (rows >= top) & (rows <= bottom)
