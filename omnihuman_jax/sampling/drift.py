"""What becomes of a long video? Chains of segments of the theatre's held-out clips: how far the colours of the
face, and those beside the head, move away from the reference, and whether the mouth still follows the sound at the end.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data import packing
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.evaluation import mouth
from omnihuman_jax.evaluation.bootstrap import estimate
from omnihuman_jax.sampling import lip_sync, trained_run, window_inputs
from omnihuman_jax.sampling.kept_samples import KeptSampler
from omnihuman_jax.sampling.lip_sync import TruthWindow, plain
from omnihuman_jax.serving.windows_omnihuman import MOTION_FRAMES
from omnihuman_jax.typing import FPS, MOTION_LATENTS, SPATIAL_STRIDE

_CELLS = 4  # a side of the grid of mean colours
EARLY_S, LATE_S = (2.0, 4.0), 2.0
"""When a chain's colours are looked at: from second 2 to 4, and over its last 2 seconds."""
MOUTH_S = 10.0
"""Its mouth: over the first and the last so many seconds, but a third of it at most."""
_HAIR = 0.3  # of the face's width: so far from it nothing of the head is left
_NARROWEST = 2  # pixels; less beside the head tells nothing


def measure_drift(
    run: trained_run.TrainedRun,
    clips: Mapping[str, Sequence[TruthWindow]],
    *,
    count: int,
    seconds: float,
    batch: int = 8,
    config: SamplingConfig | None = None,
    seed: int = 0,
    keep: Path | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
    on_chain: Callable[[Sequence[TruthWindow], np.ndarray], None] = lambda windows, video: None,
) -> list[dict[str, object]]:
    """A row a chain: {window, person, drift and background: (distance late, distance early), mouth_early, mouth_late
    and mouth_ceiling, that of the codec's round trip: `mouth.moments`}; background is None where the head fills the
    picture.

    Each chain shows the first window's reference, speaks with the sound of its clip's windows over and over, and hands
    its last 5 frames to the next segment. ValueError for a chain that is too short to be looked at.

    Args:
        clips: of `lip_sync.load_windows`; `count` of them are taken.
        seconds: how long a chain is.
        batch: chains sampled at once.
        on_chain: is given each chain, [T, H, W, 3] in [-1, 1], with the windows whose sound it speaks one after the
            other.
    """
    if seconds < EARLY_S[1] + LATE_S:
        raise ValueError(f"a chain of {seconds:g} s is too short: {EARLY_S[1] + LATE_S:g} s or more")
    chosen = [list(windows) for _, windows in sorted(clips.items())][:count]
    # One program for all segments: where nothing was before, no latent is given.
    shape_of = [_segment(run, windows, 0, slot, None) for slot, windows in enumerate(chosen)]
    sampler = KeptSampler(run, config or run.config.sampling, shape_of, batch, keep)
    frames = len(chosen[0][0].opening_T)
    segments = -(-round(seconds * FPS) // (frames - MOTION_FRAMES))
    videos: list[list[np.ndarray]] = [[] for _ in chosen]
    for index in range(segments):
        inputs = [
            _segment(run, windows, index, slot + index * len(chosen), videos[slot][-1] if index else None)
            for slot, windows in enumerate(chosen)
        ]
        latents = sampler.all_of(inputs, seed, lambda share: on_progress(share / segments))
        for video, latent in zip(videos, latents, strict=True):
            video.append(trained_run.decode_pictures(run, latent))
    for windows, video in zip(chosen, videos, strict=True):
        on_chain([windows[i % len(windows)] for i in range(segments)], _joined(video))
    return [_row(run, windows, video) for windows, video in zip(chosen, videos, strict=True)]


def _segment(
    run: trained_run.TrainedRun, windows: Sequence[TruthWindow], index: int, slot: int, before: np.ndarray | None
) -> packing.PackInput:
    active = ConditionSet.of(Condition.TEXT, Condition.REFERENCE, Condition.AUDIO)
    sound = windows[index % len(windows)].record
    window = window_inputs.driven_window(run.spec, windows[0].record, active, slot, sound=sound)
    if before is None:
        return window
    latents = window.latents_FHWC.copy()
    latents[:MOTION_LATENTS] = trained_run.encode_pictures(run, before[-MOTION_FRAMES:])
    return dataclasses.replace(window, latents_FHWC=latents, motion=True)


def _joined(video: Sequence[np.ndarray]) -> np.ndarray:
    """The frames of a chain's segments, each of those that two have once."""
    return np.concatenate([video[0], *(part[MOTION_FRAMES:] for part in video[1:])])


def _row(run: trained_run.TrainedRun, windows: Sequence[TruthWindow], video: Sequence[np.ndarray]) -> dict[str, object]:
    first = windows[0]
    beside = beside_head(first)
    early, late, ceiling = _mouth(run, windows, video)
    return {
        "window": first.record.window_id,
        "person": first.person,
        "drift": _distances(run, first, video, [first.face_4]),
        "background": _distances(run, first, video, beside) if beside else None,
        "mouth_early": early.tolist(),
        "mouth_late": late.tolist(),
        "mouth_ceiling": ceiling.tolist(),
    }


def _distances(
    run: trained_run.TrainedRun, window: TruthWindow, video: Sequence[np.ndarray], boxes: Sequence[np.ndarray]
) -> list[float]:
    """Mean distance of the boxes' colours from the reference's: late, early."""
    frames = _joined(video)
    reference = trained_run.decode_pictures(run, window.record.references_RHWC[0][None])[:1]
    apart = [colours(frames, box) - colours(reference, box) for box in boxes]
    far_T = np.sqrt(np.mean(np.concatenate(apart, axis=1) ** 2, axis=1))
    early = far_T[round(EARLY_S[0] * FPS) : round(EARLY_S[1] * FPS)]
    return [float(far_T[-round(LATE_S * FPS) :].mean()), float(early.mean())]


def beside_head(window: TruthWindow) -> list[np.ndarray]:
    """The boxes left and right of the head, from the picture's top to the chin; those of some width."""
    width = SPATIAL_STRIDE * window.record.latents_FHWC.shape[2]
    x0, _, x1, chin = window.face_4
    hair = _HAIR * (x1 - x0)
    boxes = (np.array([0.0, 0.0, x0 - hair, chin]), np.array([x1 + hair, 0.0, width, chin]))
    return [box for box in boxes if box[2] - box[0] >= _NARROWEST]


def _mouth(
    run: trained_run.TrainedRun, windows: Sequence[TruthWindow], video: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Summed `mouth.moments` of the segments of the first and of the last seconds, of each the frames that it has to
    itself; and those of the codec's round trip under the same readouts, of all windows.
    """
    box = windows[0].box_4
    trips = {w.row: trained_run.decode_pictures(run, w.record.latents_FHWC) for w in windows}
    # A segment is read by what was fitted on windows that its sound is not from; one that has none is not read.
    known = [w for w in windows if lip_sync.apart_from(w, windows)]
    readouts = {w.row: lip_sync.readout_of(windows, w, trips) for w in known}

    def moments(own: TruthWindow, pictures: np.ndarray) -> np.ndarray:
        read = readouts[own.row](mouth.crop(pictures, box))
        return mouth.moments(read[MOTION_FRAMES:], own.opening_T[MOTION_FRAMES:])

    nothing = np.zeros(3)
    found = [
        moments(own, part) if own.row in readouts else nothing for part, own in zip(video, itertools.cycle(windows))
    ]
    ceiling = [nothing, *(moments(own, trips[own.row]) for own in known)]
    seconds_each = (len(windows[0].opening_T) - MOTION_FRAMES) / FPS
    looked_at = max(1, min(round(MOUTH_S / seconds_each), len(found) // 3))
    return np.sum(found[:looked_at], axis=0), np.sum(found[-looked_at:], axis=0), np.sum(ceiling, axis=0)


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the rows of `measure_drift`, plain values with their intervals: late over early distance of the face and of
    what is beside it, and the mouth's correlation in the first and the last seconds, the former less the latter, and
    the codec's round trip.
    """
    people = [str(row["person"]) for row in rows]
    both = np.array([[*row["mouth_early"], *row["mouth_late"]] for row in rows])
    beside = [row for row in rows if row["background"] is not None]
    ceiling = np.array([row["mouth_ceiling"] for row in rows])
    return {
        "face, late over early": plain(estimate(np.array([row["drift"] for row in rows]), people, _ratio)),
        "beside the head, late over early": (
            plain(estimate(np.array([row["background"] for row in beside]), [str(r["person"]) for r in beside], _ratio))
            if beside
            else None
        ),
        "mouth, first seconds": plain(estimate(both[:, :3], people, mouth.correlation_of)),
        "mouth, last seconds": plain(estimate(both[:, 3:], people, mouth.correlation_of)),
        "mouth, lost": plain(
            estimate(both, people, lambda sums: mouth.correlation_of(sums[:3]) - mouth.correlation_of(sums[3:]))
        ),
        "mouth, ceiling: the codec's round trip": plain(estimate(ceiling, people, mouth.correlation_of)),
    }


def _ratio(sums_2: np.ndarray) -> float:
    return float(sums_2[0] / sums_2[1]) if sums_2[1] > 0 else float("nan")


def colours(pictures_THW3: np.ndarray, box_4: np.ndarray) -> np.ndarray:
    """float64 [T, 48]: mean colours of a grid of 4 x 4 cells over the box x0, y0, x1, y1 in pixels."""
    height, width = pictures_THW3.shape[1:3]
    xs, ys = (np.linspace(box_4[i], box_4[i + 2], _CELLS + 1) for i in (0, 1))
    cells = []
    for y0, y1 in itertools.pairwise(ys):
        for x0, x1 in itertools.pairwise(xs):
            rows, columns = _touched(y0, y1, height), _touched(x0, x1, width)
            cells.append(pictures_THW3[:, rows, columns].astype(np.float64).mean(axis=(1, 2)))
    return np.concatenate(cells, axis=1)


def _touched(low: float, high: float, size: int) -> slice:
    first = int(np.clip(np.floor(low), 0, size - 1))
    return slice(first, max(first + 1, int(np.clip(np.ceil(high), 0, size))))
