"""Cuts a video into shots, and shots into clips."""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.curate import shot_network
from data_pipelines.curate.dissolves import Dissolve, DissolveFinder
from data_pipelines.curate.shot_network import ShotNetwork, cuts_of
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.serving.frames_omnihuman import Look
from omnihuman_jax.typing import FPS

# Small enough to be quick and to forget noise, big enough that a person's move is not a cut.
_THUMBNAIL = (48, 64)
_NEIGHBOURS = 2


@dataclasses.dataclass(kw_only=True, slots=True)
class ShotConfig:
    """Where shots end and which lengths are kept.

    min_change: mean absolute difference of two thumbnails, in grey levels of 255, that can be a cut, or the ends of a
        dissolve (`dissolves.py`).
    min_change_ratio: how much more that must be than the mean of the two changes before and after: a pan changes much
        too.
    trim_frames: frames left out on both sides of a cut, where the encoder still mends the picture.
    min_s, max_s: shorter shots are dropped, longer ones cut into equal parts.
    network: path of a network in ONNX that finds cuts and dissolves (`shot_network.py`); "": by the changes.
    """

    min_change: float = 15.0
    min_change_ratio: float = 3.0
    trim_frames: int = 1
    min_s: float = 1.0
    max_s: float = 20.0
    network: str = ""

    def validate(self) -> None:
        if not 0 < self.min_s <= self.max_s:
            raise ValueError(
                f"shots: min_s and max_s must satisfy 0 < min_s <= max_s, not {self.min_s} and {self.max_s}"
            )
        if self.trim_frames < 0 or self.min_change <= 0 or self.min_change_ratio < 1:
            raise ValueError(
                "shots: trim_frames must not be negative, min_change positive, min_change_ratio at least 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """A video seen from end to end on the 25 fps grid.

    changes   float32 [T - 1]: how much each frame differs from the one before, mean grey levels of 255
    reshaped  frames from which on the pictures have another size or orientation: each begins a shot
    looks     what the pictures say of themselves, each once
    dissolves where one shot goes over into another; () with a network, which knows them as cuts
    cuts      frames that begin a new shot, by a network; None without one
    """

    changes: np.ndarray
    reshaped: tuple[int, ...]
    looks: tuple[Look, ...]
    dissolves: tuple[Dissolve, ...] = ()
    cuts: list[int] | None = None


def watch(path: str | os.PathLike[str], config: ShotConfig, max_seconds: float | None = None) -> Watched:
    """Decodes the whole video once (or its first `max_seconds`), so that damage anywhere in it comes to light here.
    Holds a few seconds of thumbnails, whatever the length.
    """
    cutter = ShotNetwork(Path(config.network)) if config.network else None
    mixer = DissolveFinder(config.min_change)
    changes: list[float] = []
    reshaped: list[int] = []
    looks: dict[Look, None] = {}
    shape = None
    before: np.ndarray | None = None
    shown: list[Look] = []
    for frame in media_omnihuman.iter_video(
        path, size=_THUMBNAIL, duration_s=max_seconds, watch=lambda picture: shown.append(picture.look)
    ):
        picture = frame.astype(np.float32)
        if before is not None:
            changes.append(float(np.abs(picture - before).mean()))
        before = picture
        if cutter is not None:
            cutter.add(_resized(frame))
        else:
            mixer.add(frame)
        for look in shown:
            looks.setdefault(look)
            if shape is not None and look.shape != shape:
                reshaped.append(len(changes))
            shape = look.shape
        shown.clear()
    return Watched(
        changes=np.asarray(changes, np.float32),
        reshaped=tuple(reshaped),
        looks=tuple(looks),
        dissolves=tuple(mixer.dissolves()),
        cuts=None if cutter is None else cuts_of(cutter.probabilities()),
    )


def _resized(thumbnail: np.ndarray) -> np.ndarray:
    """The thumbnail in the size that the network knows."""
    import cv2  # comes with MediaPipe in the curation extra

    return cv2.resize(thumbnail, shot_network.THUMBNAIL[::-1], interpolation=cv2.INTER_AREA)


def find_cuts(changes: np.ndarray, config: ShotConfig) -> list[int]:
    """Frames that begin a new shot; `changes` as in `Watched`."""
    cuts = []
    for i, change in enumerate(changes):
        around = np.concatenate([changes[max(0, i - _NEIGHBOURS) : i], changes[i + 1 : i + 1 + _NEIGHBOURS]])
        usual = float(around.mean()) if around.size else 0.0
        if change >= config.min_change and change >= config.min_change_ratio * usual:
            cuts.append(i + 1)
    return cuts


def clip_ranges(
    frames: int, cuts: Sequence[int], config: ShotConfig, dissolves: Sequence[Dissolve] = ()
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(kept, too short): frame ranges [start, end) of the clips that `frames` frames with these cuts give.

    Of a dissolve no frame is in a clip; a cut within one is none.
    """
    kept: list[tuple[int, int]] = []
    short: list[tuple[int, int]] = []
    # (where a shot ends, where the next begins, how much of both is trimmed)
    between = [(one.start, one.end, 0) for one in dissolves]
    between += [
        (cut, cut, config.trim_frames) for cut in cuts if not any(one.start <= cut <= one.end for one in dissolves)
    ]
    edges = [(0, 0, 0), *sorted(between), (frames, frames, 0)]
    for (_, start, after), (end, _, before) in itertools.pairwise(edges):
        if end <= start:
            continue  # a film that begins or ends in a fade has no shot there
        start, end = start + after, end - before
        if end - start < config.min_s * FPS:
            short.append((start, max(start, end)))
            continue
        parts = -(-(end - start) // int(config.max_s * FPS))
        bounds = [start + (end - start) * i // parts for i in range(parts + 1)]
        kept += itertools.pairwise(bounds)
    return kept, short
