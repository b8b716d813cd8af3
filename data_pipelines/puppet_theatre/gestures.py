"""How a person moves while speaking: states of head, arms and eyes for every frame.

The law of a gesture: each of its signals is sqrt(p) * prosody + sqrt(1 - p) * noise, both of variance about 1, with
p = `PROSODY_SHARE`: prosody, the smoothed loudness of the speech, explains the share p of it and the rest cannot be
known from the sound. So with the same speech two performances differ by a variance of 2 (1 - p) a signal.
"""

import dataclasses

import numpy as np

from data_pipelines.puppet_theatre.body import SIDES, ArmState
from data_pipelines.puppet_theatre.head import HeadState
from data_pipelines.puppet_theatre.randomness import generator, smooth_noise
from data_pipelines.puppet_theatre.stage import FigureState

PROSODY_SHARE = 0.4
SIGNALS = ("nod", "left_upper", "left_fore", "right_upper", "right_fore")
# Of loudness in 0..1 while someone speaks, after smoothing.
_LOUDNESS_MEAN, _LOUDNESS_STD = 0.55, 0.25
_BEAT_FRAMES = 17
# Rest and reach of the arms' angles, radians: the upper arm, the forearm.
_REST, _REACH = (0.35, -2.45), (0.10, 0.28)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Manner:
    """How someone moves: 1 is everyday speech. `facing` turns the head for good, -1 .. 1."""

    liveliness: float = 1.0
    facing: float = 0.0
    arms: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Mouth:
    """Of T frames: opening 0..1, spread -1..1, and the loudness of the speech that they belong to, 0..1."""

    opening_T: np.ndarray
    spread_T: np.ndarray
    loudness_T: np.ndarray


def prosody(loudness_T: np.ndarray) -> np.ndarray:
    """Float64 [T], about mean 0 and variance 1 during speech: what a gesture can follow."""
    window = np.hanning(_BEAT_FRAMES + 2)
    half = len(window) // 2
    smooth = np.convolve(np.pad(loudness_T, half, "edge"), window / window.sum(), "valid")[: len(loudness_T)]
    return (smooth - _LOUDNESS_MEAN) / _LOUDNESS_STD


def gesture_signals(seed: int, clip: int, loudness_T: np.ndarray) -> np.ndarray:
    """Float64 [T, 5]: `SIGNALS`, by the law above."""
    random = generator(seed, "gesture", clip)
    follows = prosody(loudness_T)
    noise = [smooth_noise(random, len(loudness_T), 0.8) for _ in SIGNALS]
    return np.stack([np.sqrt(PROSODY_SHARE) * follows + np.sqrt(1 - PROSODY_SHARE) * n for n in noise], 1)


def act(seed: int, clip: int, mouth: Mouth, manner: Manner) -> tuple[list[FigureState], np.ndarray]:
    """(a state a frame, the gesture signals [T, 5] behind them)."""
    frames = len(mouth.opening_T)
    signals = gesture_signals(seed, clip, mouth.loudness_T)
    random = generator(seed, "idling", clip)
    lively = manner.liveliness
    x, y, yaw, pitch, roll, brow = (smooth_noise(random, frames, 0.5) for _ in range(6))
    blink = _blinks(random, frames)
    curls = {side: _curls(random, frames) for side in SIDES}
    states = [
        FigureState(
            head=HeadState(
                opening=float(mouth.opening_T[t]),
                spread=float(mouth.spread_T[t]),
                yaw=float(np.clip(manner.facing + 0.30 * lively * yaw[t], -1.3, 1.3)),
                pitch=float(np.clip(0.2 * lively * pitch[t] + 0.15 * lively * signals[t, 0], -1.2, 1.2)),
                blink=float(blink[t]),
                brow=float(0.5 * lively * brow[t]),
            ),
            x=float(0.02 * lively * x[t]),
            y=float(0.015 * lively * y[t] - 0.008 * lively * signals[t, 0]),
            roll=float(2.0 * lively * roll[t]),
            arms=_arms(signals[t], lively, {side: curls[side][t] for side in SIDES}) if manner.arms else {},
        )
        for t in range(frames)
    ]
    return states, signals


def _arms(signals_5: np.ndarray, lively: float, curls: dict[str, np.ndarray]) -> dict[str, ArmState]:
    scale = 0.5 + 0.5 * lively
    return {
        side: ArmState(
            upper=float(_REST[0] + scale * _REACH[0] * signals_5[1 + 2 * i]),
            fore=float(_REST[1] - scale * _REACH[1] * signals_5[2 + 2 * i]),
            curl=tuple(curls[side].tolist()),
        )
        for i, side in enumerate(SIDES)
    }


def _blinks(random: np.random.Generator, frames: int) -> np.ndarray:
    """How far the lids are closed, 0..1: a blink of four frames every two to five seconds."""
    closed = np.zeros(frames + 4)
    at = int(random.integers(10, 80))
    while at < frames:
        closed[at : at + 4] = (0.6, 1.0, 1.0, 0.5)
        at += int(random.integers(50, 130))
    return closed[:frames]


def _curls(random: np.random.Generator, frames: int) -> np.ndarray:
    """[T, 5] how far each finger is bent, 0..1."""
    together = np.abs(smooth_noise(random, frames, 0.4))[:, None]
    apart = 0.08 * np.stack([smooth_noise(random, frames, 0.4) for _ in range(5)], 1)
    return np.clip(0.12 + 0.22 * together + apart, 0, 0.8)
