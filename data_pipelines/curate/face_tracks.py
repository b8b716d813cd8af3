"""Which of the faces that are found frame by frame are one face: tracks by the overlap of boxes.

A face continues the track whose last box overlaps its own most (intersection over union), if that was seen within the
last second; else it begins a new one. Within a shot faces move little from frame to frame, so that no look at what is
inside the boxes is needed; who leaves the picture and comes back later is another track.
"""

from collections.abc import Sequence

import numpy as np

from omnihuman_jax.typing import FPS

# Changes of what is computed; part of the key under which results are kept.
VERSION = 1

MAX_TRACKS = 2
_MIN_OVERLAP = 0.3
_MAX_GAP = FPS


def overlap(one_4: np.ndarray, other_4: np.ndarray) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    sides = np.minimum(one_4[2:], other_4[2:]) - np.maximum(one_4[:2], other_4[:2])
    both = float(np.prod(np.maximum(sides, 0)))
    union = float(np.prod(one_4[2:] - one_4[:2]) + np.prod(other_4[2:] - other_4[:2])) - both
    return both / union if union > 0 else 0.0


def number_faces(boxes_T: Sequence[np.ndarray]) -> list[list[int]]:
    """For each frame's faces, float32 [n, 4] each, the number of the track that each belongs to, from 0 on in order of
    appearance.
    """
    last: list[tuple[np.ndarray, int]] = []  # of each track its last box, and when
    numbers = []
    for frame, boxes in enumerate(boxes_T):
        mine = [-1] * len(boxes)
        pairs = [
            (overlap(box, known), track, face)
            for face, box in enumerate(boxes)
            for track, (known, seen) in enumerate(last)
            if frame - seen <= _MAX_GAP
        ]
        taken: set[int] = set()
        for share, track, face in sorted(pairs, key=lambda pair: (-pair[0], pair[1:])):
            if share >= _MIN_OVERLAP and mine[face] < 0 and track not in taken:
                mine[face] = track
                taken.add(track)
        for face, box in enumerate(boxes):
            if mine[face] < 0:
                mine[face] = len(last)
                last.append((box, frame))
            last[mine[face]] = (box, frame)
        numbers.append(mine)
    return numbers


def longest_tracks(
    boxes_T: Sequence[np.ndarray], apertures_T: Sequence[Sequence[float]]
) -> tuple[np.ndarray, np.ndarray]:
    """(boxes float32 [T, N, 4], 0 where not seen; apertures of the lips float32 [T, N], NaN where not seen) of the
    tracks with the most frames, two at most, the longest first.

    boxes_T, apertures_T: of each frame its faces.
    """
    numbers = number_faces(boxes_T)
    counts: dict[int, int] = {}
    for mine in numbers:
        for track in mine:
            counts[track] = counts.get(track, 0) + 1
    chosen = sorted(counts, key=lambda track: (-counts[track], track))[:MAX_TRACKS]
    box_TN4 = np.zeros((len(numbers), len(chosen), 4), np.float32)
    aperture_TN = np.full((len(numbers), len(chosen)), np.nan, np.float32)
    for t, mine in enumerate(numbers):
        for face, track in enumerate(mine):
            if track in chosen:
                box_TN4[t, chosen.index(track)] = boxes_T[t][face]
                aperture_TN[t, chosen.index(track)] = apertures_T[t][face]
    return box_TN4, aperture_TN
