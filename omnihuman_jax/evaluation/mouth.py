"""Does the mouth follow the sound? A readout of the mouth's opening from pixels, and its correlation with the truth.

The readout is fitted for one person on pictures whose opening is known (the codec's round trip of that person's *other*
windows), and read on samples. Correlations are within windows: each window's mean is taken away, so that a person who
keeps the mouth half open all the time scores nothing.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from omnihuman_jax.evaluation.bootstrap import Estimate, estimate


@dataclasses.dataclass(frozen=True, slots=True)
class Readout:
    """Opening as a linear function of the pixels of one person's mouth; or K other things, each such a function of the
    same pixels: then weights are [P, K] and offsets [K].
    """

    mean_P: np.ndarray
    weights_P: np.ndarray
    offset: np.ndarray

    def __call__(self, crops_THW3: np.ndarray) -> np.ndarray:
        """float64 [T] or [T, K] of crops as they were given to `fit_readout`."""
        return (_flat(crops_THW3) - self.mean_P) @ self.weights_P + self.offset


def fit_readout(crops_THW3: np.ndarray, opening_T: np.ndarray, ridge: float = 30.0) -> Readout:
    """The ridge regression from pixels to opening.

    Args:
        crops_THW3: the mouth and the room that it moves in, in [-1, 1], all of one size.
        opening_T: the truth of each; [T, K] for K things that are read off the same pixels.
        ridge: weight of the penalty, in the unit of summed squared pixels.

    Raises:
        ValueError: lengths differ, or fewer than two frames.
    """
    pixels = _flat(crops_THW3)
    opening_T = np.asarray(opening_T, np.float64)
    if len(pixels) != len(opening_T) or len(pixels) < 2:
        raise ValueError(f"a readout needs two frames or more, each with its opening: {len(pixels)}, {len(opening_T)}")
    mean_P, offset = pixels.mean(0), opening_T.mean(0)
    centred_TP, target_T = pixels - mean_P, opening_T - offset
    # The dual form: as many unknowns as frames, whatever the size of the crop.
    gram_TT = centred_TP @ centred_TP.T + ridge * np.eye(len(pixels))
    return Readout(mean_P=mean_P, weights_P=centred_TP.T @ np.linalg.solve(gram_TT, target_T), offset=offset)


def _flat(crops_THW3: np.ndarray) -> np.ndarray:
    return np.asarray(crops_THW3, np.float64).reshape(len(crops_THW3), -1)


def crop(pictures_THW3: np.ndarray, box_4: np.ndarray) -> np.ndarray:
    """[T, h, w, 3]: the pixels that x0, y0, x1, y1 touches, cut to the picture; ValueError if there are none."""
    height, width = pictures_THW3.shape[1:3]
    x0, y0 = (int(np.clip(np.floor(v), 0, limit)) for v, limit in zip(box_4[:2], (width, height)))
    x1, y1 = (int(np.clip(np.ceil(v), 0, limit)) for v, limit in zip(box_4[2:], (width, height)))
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"the mouth's box {np.asarray(box_4).tolist()} is outside of {width} x {height} pixels")
    return pictures_THW3[:, y0:y1, x0:x1]


def correlation(read: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> float:
    """Pearson's r over all frames of all windows, each window's mean removed; nan where either does not vary."""
    return correlation_of(sum((moments(a, b) for a, b in zip(read, truth, strict=True)), start=np.zeros(3)))


def moments(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(sum ab, sum aa, sum bb), float64 [3], of a window's readout [T] and its truth [T], means removed."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"a window's readout {a.shape} and its truth {b.shape} must be rows of one length")
    a, b = a - a.mean(), b - b.mean()
    return np.array([a @ b, a @ a, b @ b])


def moments_of_all(a_TK: np.ndarray, b_TK: np.ndarray) -> np.ndarray:
    """`moments` of K things that were read in a window, summed."""
    return np.sum([moments(a, b) for a, b in zip(np.transpose(a_TK), np.transpose(b_TK), strict=True)], axis=0)


def correlation_of(sums_3: np.ndarray) -> float:
    """Pearson's r out of summed `moments`; nan where either does not vary."""
    covariance, of_a, of_b = sums_3
    return float(covariance / np.sqrt(of_a * of_b)) if of_a > 0 and of_b > 0 else float("nan")


def range_of(sums_3: np.ndarray) -> float:
    """Standard deviation of what was read over that of the truth, out of summed `moments`; nan where the truth is
    still.
    """
    _, of_a, of_b = sums_3
    return float(np.sqrt(of_a / of_b)) if of_b > 0 else float("nan")


def correlation_interval(
    read: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    people: Sequence[str],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """`correlation`, with a bootstrap over people and then over each one's windows; ValueError where there are none."""
    moments_N3 = np.array([moments(a, b) for a, b in zip(read, truth, strict=True)]).reshape(-1, 3)
    return estimate(moments_N3, people, correlation_of, draws=draws, seed=seed)


def lag_curve(read: Sequence[np.ndarray], truth: Sequence[np.ndarray], max_lag: int = 6) -> dict[int, float]:
    """`correlation` at every lag in frames: positive where the picture is late. The peak of a mouth in sync is at 0."""
    curve = {}
    for lag in range(-max_lag, max_lag + 1):
        moved = [a[max(0, lag) : len(a) + min(0, lag)] for a in read]
        kept = [b[max(0, -lag) : len(b) - max(0, lag)] for b in truth]
        curve[lag] = correlation(moved, kept)
    return curve


def peak_lag(curve: dict[int, float]) -> int | None:
    """The lag of the highest correlation; None where there is none at all: of a mouth that never moves."""
    if np.isnan(list(curve.values())).all():
        return None
    return max(curve, key=lambda lag: (np.nan_to_num(curve[lag], nan=-1.0), -abs(lag)))
