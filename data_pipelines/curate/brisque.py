"""BRISQUE [Mittal et al. 2012, "No-Reference Image Quality Assessment in the Spatial Domain"]: how unlike a clean
photograph a picture is, without another to compare it with. About 0 (clean) to 100 (blurred, noisy, blocky).

Local mean and contrast are taken out of the luma; what is left, and its products with its neighbours, is described by
36 numbers at two scales, and a support vector regression says what people thought of such pictures. The features are
those of the package `brisque` 0.2.0, whose regression (`svm.txt`) is fetched: on ten frames of the sample media, as
they are, blurred and noisy, the two differ by 0.11 at most. Compressed hard they differ by up to 0.8 of 50 to 80: in
the flat blocks, the package counts the signs of rounding errors, and here they are zero.
"""

import functools
from pathlib import Path

import numpy as np

from data_pipelines.curate import network_files

# Changes of what is computed; part of the key under which results are kept.
VERSION = 1

NETWORK = "brisque/svm.txt"
_FEATURES = 36
# The range of each feature over the pictures that the regression was trained on.
_LOWEST = (
    0.336999, 0.019667, 0.23, -0.125959, 0.000167, 0.000616, 0.231, -0.125873, 0.000165, 0.0006, 0.241, -0.128814,
    0.000179, 0.000386, 0.243, -0.13308, 0.000182, 0.000421, 0.436998, 0.016929, 0.247, -0.200231, 0.000104, 0.000834,
    0.257, -0.200017, 0.000112, 0.000876, 0.257, -0.155072, 0.000112, 0.000356, 0.258, -0.154374, 0.000117, 0.000351,
)  # fmt: skip
_HIGHEST = (
    9.999411, 0.807472, 1.644021, 0.202917, 0.712384, 0.468672, 1.644021, 0.169548, 0.713132, 0.467896, 1.553016,
    0.101368, 0.687324, 0.533087, 1.554016, 0.101, 0.689177, 0.533133, 3.639918, 0.800955, 1.096995, 0.175286,
    0.755547, 0.39927, 1.095995, 0.155928, 0.751488, 0.402398, 1.041992, 0.093209, 0.623516, 0.532925, 1.042992,
    0.093714, 0.621958, 0.534484,
)  # fmt: skip
_LUMA = (0.2125, 0.7154, 0.0721)
_TAPS, _SIGMA = 7, 7 / 6
_CONTRAST_FLOOR = 1 / 255
_ROUNDING = 1e-10
_SHAPES = np.linspace(0.1, 10, 9901)


def brisque(frame: np.ndarray) -> float | None:
    """The score of an RGB uint8 frame [H, W, 3]; None for a picture of one colour, or of fewer than 16 pixels a side.

    Raises:
        ConnectionError, ValueError: the regression cannot be fetched, or is damaged.
    """
    if min(frame.shape[:2]) < 16:
        return None
    found = features(frame)
    return None if found is None else _regression(network_files.fetched(NETWORK)).predict(found)


def features(frame: np.ndarray) -> np.ndarray | None:
    """float64 [36] of an RGB uint8 frame [H, W, 3]; None for a picture of one colour."""
    import cv2  # comes with MediaPipe in the curation extra

    red, green, blue = np.moveaxis(frame, -1, 0)
    luma = (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue) / 255
    found: list[float] = []
    for scale in (1.0, 0.5):
        scaled = luma if scale == 1 else cv2.resize(luma, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        mscn = _contrast_normalised(scaled)
        alpha, _, left, right = _fit(mscn)
        found += [alpha, (left + right) / 2]
        for pairs in (
            mscn[:, :-1] * mscn[:, 1:],
            mscn[:-1] * mscn[1:],
            mscn[:-1, :-1] * mscn[1:, 1:],
            mscn[1:, :-1] * mscn[:-1, 1:],
        ):
            found += _fit(pairs)
    return np.array(found) if np.isfinite(found).all() else None


def _contrast_normalised(luma: np.ndarray) -> np.ndarray:
    """Luma less its local mean, over its local deviation."""
    import cv2

    kernel = np.exp(-((np.arange(_TAPS) - _TAPS // 2) ** 2) / (2 * _SIGMA**2))
    kernel /= kernel.sum()

    def local_mean(values: np.ndarray) -> np.ndarray:
        return cv2.sepFilter2D(values, cv2.CV_64F, kernel, kernel, borderType=cv2.BORDER_CONSTANT)

    mean = local_mean(luma)
    deviation = np.sqrt(np.abs(mean**2 - local_mean(luma**2)))
    normalised = (luma - mean) / (deviation + _CONTRAST_FLOOR)
    # In a flat region nothing is left but the rounding of sums, whose sign says nothing.
    return np.where(np.abs(normalised) < _ROUNDING, 0.0, normalised)


def _fit(values: np.ndarray) -> tuple[float, float, float, float]:
    """The asymmetric generalised Gaussian of values, by moments: shape, mean, variances of its left and right side; nan
    without a spread.
    """
    squares = values**2
    negative = values < 0
    lefts = int(np.count_nonzero(negative))
    if not lefts or not (values > 0).any():
        return (np.nan,) * 4
    total, left_sum = float(squares.sum()), float(squares[negative].sum())
    left, right = left_sum / lefts, (total - left_sum) / (values.size - lefts)
    ratio = np.sqrt(left / right)
    moments = float(np.abs(values).mean()) ** 2 / (total / values.size)
    target = moments * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    alpha = float(np.interp(target, _moments_by_shape(), _SHAPES))
    one, two, three = _gamma(np.array([1, 2, 3]) / alpha)
    mean = (np.sqrt(right) - np.sqrt(left)) * np.sqrt(one / three) * two / one
    return alpha, float(mean), left, right


@functools.cache
def _moments_by_shape() -> np.ndarray:
    """E|x|^2 / E x^2 of generalised Gaussians of the shapes `_SHAPES`; rises with the shape."""
    return _gamma(2 / _SHAPES) ** 2 / (_gamma(1 / _SHAPES) * _gamma(3 / _SHAPES))


def _gamma(values: np.ndarray) -> np.ndarray:
    from scipy.special import gamma

    return np.asarray(gamma(values))


class _Regression:
    """A support vector regression with a radial kernel, out of libsvm's text."""

    def __init__(self, text: str) -> None:
        head, _, body = text.partition("SV\n")
        facts = dict(line.split(" ", 1) for line in head.splitlines())
        self._gamma, self._offset = float(facts["gamma"]), float(facts["rho"])
        rows = [line.split() for line in body.splitlines()]
        self._weights = np.array([float(row[0]) for row in rows])
        self._vectors = np.zeros((len(rows), _FEATURES))
        for vector, row in zip(self._vectors, rows, strict=True):
            for entry in row[1:]:
                index, value = entry.split(":")
                vector[int(index) - 1] = float(value)

    def predict(self, found: np.ndarray) -> float:
        low, high = np.array(_LOWEST), np.array(_HIGHEST)
        scaled = -1 + 2 * (found - low) / (high - low)
        distances = ((self._vectors - scaled) ** 2).sum(-1)
        return float((self._weights * np.exp(-self._gamma * distances)).sum() - self._offset)


@functools.cache
def _regression(path: Path) -> _Regression:
    return _Regression(path.read_text())
