"""Scores of a few still pictures of a clip, too dear for every frame: bars, exposure, BRISQUE and text.

letterbox_share    share of the picture's lines that are a black bar at the top or bottom
pillarbox_share    share of its columns that are one at the left or right
dark_share         share of the pixels between the bars that are black (luma of 4 at most, of 255), and bright_share of
bright_share       those that are white (251 at least): what is lost there is lost
brisque            `brisque.py`, of what is between the bars; median over the pictures
text_area_share    `text_overlay.py`, of the whole picture; mean over the pictures
"""

from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines.curate.brisque import brisque
from data_pipelines.curate.text_overlay import text_area_share

# Changes of what is computed; part of the key under which results are kept.
VERSION = 1

STILLS = 3
# A bar is dark and of one colour: nearly all pixels of a line, in every still. Codecs leave a little noise on it.
_BAR_LUMA = 24
_BAR_PERCENTILE = 97
_BAR_DEVIATION = 3.0
_BLACK, _WHITE = 4, 251


class Stills:
    """Keeps some frames of a clip that passes through, evenly spaced (three of 90: the 15th, 45th and 75th)."""

    def __init__(self, frames: int, count: int = STILLS) -> None:
        self._wanted = {(2 * n + 1) * frames // (2 * count) for n in range(count)}
        self.kept: list[np.ndarray] = []

    def watch(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the frames unchanged."""
        for number, frame in enumerate(frames):
            if number in self._wanted:
                self.kept.append(frame)
            yield frame


def still_scores(frames: Sequence[np.ndarray]) -> dict[str, float]:
    """The scores of RGB uint8 frames [H, W, 3] of one clip and size; no `brisque` where all is of one colour.

    Raises:
        ConnectionError, ValueError, ImportError: a network cannot be fetched, is damaged, or lacks its package.
    """
    import cv2  # comes with MediaPipe in the curation extra

    lumas = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    top, bottom, left, right = bars(lumas)
    height, width = lumas.shape[1:]
    inner = lumas[:, top : height - bottom, left : width - right]
    found = {
        "letterbox_share": (top + bottom) / height,
        "pillarbox_share": (left + right) / width,
        "dark_share": float((inner <= _BLACK).mean()),
        "bright_share": float((inner >= _WHITE).mean()),
        "text_area_share": text_area_share(frames),
    }
    seen = [brisque(frame[top : height - bottom, left : width - right]) for frame in frames]
    if known := [score for score in seen if score is not None]:
        found["brisque"] = float(np.median(known))
    return found


def bars(lumas_NHW: np.ndarray) -> tuple[int, int, int, int]:
    """How many lines at the top and bottom and columns at the left and right of uint8 pictures are black bars in all of
    them; none where all is black.
    """
    top, bottom = _edges(_are_bars(lumas_NHW))
    if top + bottom == lumas_NHW.shape[1]:
        return 0, 0, 0, 0
    inner = lumas_NHW[:, top : lumas_NHW.shape[1] - bottom]
    return top, bottom, *_edges(_are_bars(inner.swapaxes(1, 2)))


def _are_bars(lumas_NHW: np.ndarray) -> np.ndarray:
    """Bool [H]: lines that look like a part of a bar in every picture."""
    bright = np.percentile(lumas_NHW, _BAR_PERCENTILE, axis=2, method="nearest")
    flat = lumas_NHW.std(axis=2) <= _BAR_DEVIATION
    return ((bright <= _BAR_LUMA) & flat).all(0)


def _edges(is_bar: np.ndarray) -> tuple[int, int]:
    """How many are true from the beginning, and from the end."""
    if is_bar.all():
        return len(is_bar), 0
    return int(is_bar.argmin()), int(is_bar[::-1].argmin())
