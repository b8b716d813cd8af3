"""How a person moves while speaking: states of head, arms and eyes for every frame, by `gesture_law.py`."""

import dataclasses

import numpy as np

from data_pipelines.puppet_theatre.body import SIDES, ArmState
from data_pipelines.puppet_theatre.gesture_law import gesture_signals
from data_pipelines.puppet_theatre.head import HeadState
from data_pipelines.puppet_theatre.randomness import generator, smooth_noise
from data_pipelines.puppet_theatre.stage import FigureState

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
