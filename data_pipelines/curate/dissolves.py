"""Dissolves and fades: two shots that go over into one another, found on thumbnails that pass by.

While one shot is mixed into another, every frame lies on the straight line from the last picture of the one to the
first of the other, at a share that rises from 0 to 1. Whatever moves does not: half-way it shows a third picture. So a
stretch of frames is a dissolve if its ends are far apart and unlike, and what lies between them is a mixture of both.
"""

import dataclasses

import numpy as np

# Changes of what is computed; part of the key under which results are kept.
VERSION = 1

# Frames from one end to the other that are tried: a quarter of a second to 2.7 seconds.
_SPANS = (6, 9, 13, 19, 27, 38, 50, 67)
_HELD = _SPANS[-1] + 1
# Of a mixture's distance from the straight line, in shares of the line's length: root mean square over its middle.
_MAX_OFF_LINE = 0.25
_MIDDLE = (0.2, 0.8)
_MIN_MIDDLE = 3
# A cut is one step from 0 to 1; light that flickers goes back.
_MAX_STEP, _MAX_BACK = 0.36, 0.1
# The same scene in another light is like itself.
_MAX_LIKENESS = 0.7
# Frames of both shots, together, that a stretch shows beside the dissolve.
_BESIDE = 4
_BLOCK = 2  # pixels of a thumbnail's side that become one


@dataclasses.dataclass(frozen=True, slots=True)
class Dissolve:
    """start: the first frame that is mixed. end: the first that is not any more."""

    start: int
    end: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Ramp:
    """From which frame to which the share rises, as fitted on a stretch of `span` frames."""

    start: float
    end: float
    span: int

    @property
    def length(self) -> float:
        return self.end - self.start


class DissolveFinder:
    """Takes thumbnails in order; holds those of 2.7 seconds.

    min_change: mean absolute difference of the ends, in grey levels of 255.
    """

    def __init__(self, min_change: float) -> None:
        self._min_change = min_change
        # Twice as long as what is looked at, so that this always lies in one piece.
        self._held_TP = np.zeros((0, 0), np.float32)
        self._end = 0
        self._count = 0
        self._ramps: list[_Ramp] = []

    def add(self, thumbnail: np.ndarray) -> None:
        """A thumbnail uint8 [H, W, 3], H and W even."""
        height, width, _ = thumbnail.shape
        blocks = thumbnail.reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK, 3).mean((1, 3), dtype=np.float32)
        self._hold(blocks.ravel())
        held_TP = self._held_TP[: self._end]
        for span in _SPANS:
            if span < len(held_TP) and np.abs(held_TP[-1] - held_TP[-1 - span]).mean() >= self._min_change:
                ramp = _ramp(held_TP[-1 - span :], self._count - 1 - span)
                if ramp is not None:
                    self._ramps.append(ramp)

    def _hold(self, blocks_P: np.ndarray) -> None:
        if not self._count:
            self._held_TP = np.zeros((2 * _HELD, blocks_P.size), np.float32)
        if self._end == len(self._held_TP):
            self._held_TP[: _HELD - 1] = self._held_TP[-(_HELD - 1) :]
            self._end = _HELD - 1
        self._held_TP[self._end] = blocks_P
        self._end += 1
        self._count += 1

    def dissolves(self) -> list[Dissolve]:
        """Those found so far, in order, none over another."""
        groups: list[list[_Ramp]] = []
        reach = -1.0
        for ramp in sorted(self._ramps, key=lambda ramp: ramp.start):
            if ramp.start > reach:
                groups.append([])
            groups[-1].append(ramp)
            reach = max(reach, ramp.end)
        return [_of(ramps, self._count) for ramps in groups]


def _ramp(frames_TP: np.ndarray, begin: int) -> _Ramp | None:
    """Where among these frames, of which the first is number `begin`, that one goes over into the last; None if it does
    not by mixing.
    """
    first_P, last_P = frames_TP[0], frames_TP[-1]
    if _likeness(first_P, last_P) > _MAX_LIKENESS:
        return None
    line_P = last_P - first_P
    length = float(np.linalg.norm(line_P))
    share_T = (frames_TP @ line_P - first_P @ line_P) / length**2
    steps = np.diff(share_T)
    if steps.max() > _MAX_STEP or steps.min() < -_MAX_BACK:
        return None
    middle = np.flatnonzero((share_T > _MIDDLE[0]) & (share_T < _MIDDLE[1]))
    if middle.size < _MIN_MIDDLE or middle[-1] - middle[0] != middle.size - 1:
        return None
    off_TP = frames_TP[middle] - first_P - share_T[middle, None] * line_P
    off_T = np.linalg.norm(off_TP, axis=1) / length
    if np.sqrt(np.mean(np.square(off_T))) > _MAX_OFF_LINE:
        return None
    slope, at_zero = np.polyfit(middle, share_T[middle], 1)
    if slope <= 0:
        return None
    return _Ramp(float(begin - at_zero / slope), float(begin + (1 - at_zero) / slope), len(frames_TP) - 1)


def _likeness(one_P: np.ndarray, other_P: np.ndarray) -> float:
    """Correlation of two pictures; 0 where one is of one colour."""
    one_P, other_P = one_P - one_P.mean(), other_P - other_P.mean()
    norms = float(np.linalg.norm(one_P) * np.linalg.norm(other_P))
    return float(one_P @ other_P) / norms if norms > 1.0 else 0.0


def _of(ramps: list[_Ramp], frames: int) -> Dissolve:
    """What stretches that overlap say together, in a film of so many frames.

    A stretch within the dissolve takes its own ends for those of the dissolve, and in a much longer one the shots
    themselves move: the shortest that is longer than what the longest ones see knows best.
    """
    longest = max(ramp.span for ramp in ramps)
    length = float(np.median([ramp.length for ramp in ramps if ramp.span == longest]))
    spans = {ramp.span for ramp in ramps if ramp.span >= length + _BESIDE} or {longest}
    best = [(ramp.start, ramp.end) for ramp in ramps if ramp.span == min(spans)]
    start, end = np.median(best, axis=0)
    # The frame at which the share is still 0 is not mixed.
    begin = max(0, int(np.floor(start + 0.25)) + 1)
    return Dissolve(begin, min(frames, max(begin, int(np.ceil(end - 0.25)))))
