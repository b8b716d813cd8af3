"""Does a long video keep its face? Chains of segments of the theatre's held-out clips, and how far the face's colours
move away from the reference.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data import packing
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.sampling import trained_run, window_inputs
from omnihuman_jax.sampling.lip_sync import TruthWindow
from omnihuman_jax.sampling.sampler import sampler_for
from omnihuman_jax.serving.windows_omnihuman import MOTION_FRAMES
from omnihuman_jax.typing import FPS, MOTION_LATENTS

_CELLS = 4  # a side of the grid of mean colours
EARLY_S, LATE_S = (2.0, 4.0), 2.0
"""When a chain is looked at: from second 2 to 4, and over its last 2 seconds."""


def measure_drift(
    run: trained_run.TrainedRun,
    clips: Mapping[str, Sequence[TruthWindow]],
    *,
    count: int,
    seconds: float,
    batch: int = 8,
    config: SamplingConfig | None = None,
    seed: int = 0,
    on_progress: Callable[[float], None] = lambda share: None,
) -> list[dict[str, object]]:
    """A row a chain: {window, person, drift: (distance late, distance early)}.

    Each chain shows the first window's reference, speaks with the sound of its clip's windows over and over, and hands
    its last 5 frames to the next segment. ValueError for a chain that is too short to be looked at.

    Args:
        clips: of `lip_sync.load_windows`; `count` of them are taken.
        seconds: how long a chain is.
        batch: chains sampled at once.
    """
    if seconds < EARLY_S[1] + LATE_S:
        raise ValueError(f"a chain of {seconds:g} s is too short: {EARLY_S[1] + LATE_S:g} s or more")
    chosen = [list(windows) for _, windows in sorted(clips.items())][:count]
    firsts = [windows[0] for windows in chosen]
    # One program for all segments: where nothing was before, no latent is given.
    shape_of = [_segment(run, windows, 0, slot, None) for slot, windows in enumerate(chosen)]
    sampler = sampler_for(run, config or run.config.sampling, shape_of, batch)
    frames = len(firsts[0].opening_T)
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
    return [
        {"window": window.record.window_id, "person": window.person, "drift": _distances(run, window, video)}
        for window, video in zip(firsts, videos, strict=True)
    ]


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


def _distances(run: trained_run.TrainedRun, window: TruthWindow, video: Sequence[np.ndarray]) -> list[float]:
    """Mean distance of the face's colours from the reference's: late, early."""
    frames = np.concatenate([video[0], *(part[MOTION_FRAMES:] for part in video[1:])])
    reference = trained_run.decode_pictures(run, window.record.references_RHWC[0][None])[:1]
    far_T = np.sqrt(np.mean((colours(frames, window.face_4) - colours(reference, window.face_4)) ** 2, axis=1))
    early = far_T[round(EARLY_S[0] * FPS) : round(EARLY_S[1] * FPS)]
    return [float(far_T[-round(LATE_S * FPS) :].mean()), float(early.mean())]


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
