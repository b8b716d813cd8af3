"""The sound of a clip and the mouth that belongs to it: lines one after the other, and what a fault makes of them."""

import dataclasses

import numpy as np

from data_pipelines.puppet_theatre.gestures import Mouth
from data_pipelines.puppet_theatre.mouth_shapes import loudness, mouth_of_phones
from data_pipelines.puppet_theatre.programme import ClipPlan
from data_pipelines.puppet_theatre.randomness import generator
from data_pipelines.puppet_theatre.voices import Cast, Line, Speech
from omnihuman_jax.typing import FPS, SAMPLE_RATE_HZ

_SAMPLES = SAMPLE_RATE_HZ // FPS
_MUSIC_PEAK = 0.25
_NOTES = (0, 3, 5, 7, 10, 12)
# Numbers of the lines of a second speaker begin here.
_OTHER_LINES = 1000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Spoken:
    """Speech of T frames: float32 [T * 640] at 16 kHz, and the mouth that speaks it."""

    wave: np.ndarray
    mouth: Mouth
    lines: tuple[Line, ...]


def speak(seed: int, plan: ClipPlan, cast: Cast, speech: Speech, *, other: bool = False) -> Spoken:
    """Enough lines to fill the clip; `other` ones for a sound that does not belong to the picture."""
    random = generator(seed, "pauses of another" if other else "pauses", plan.clip)
    length = plan.frames * _SAMPLES
    waves = [_pause(random, 0.05, 0.4)]
    spans: list[tuple[str, float, float]] = []
    lines: list[Line] = []
    at = len(waves[0])
    while at < length:
        number = len(lines) + _OTHER_LINES * other
        lines.append(cast.line(seed, plan.voice, clip=plan.clip, number=number, held_out=plan.held_out_speech))
        said, begin_s = speech.say(lines[-1]), at / SAMPLE_RATE_HZ
        spans += [(phone, begin_s + start, begin_s + end) for phone, start, end in said.spans]
        waves += [said.wave, _pause(random, 0.1, 0.5)]
        at += len(waves[-2]) + len(waves[-1])
    wave = np.concatenate(waves)[:length]
    return Spoken(wave=wave, mouth=mouth_of(wave, spans, plan.frames), lines=tuple(lines))


def _pause(random: np.random.Generator, shortest_s: float, longest_s: float) -> np.ndarray:
    return np.zeros(int(random.uniform(shortest_s, longest_s) * SAMPLE_RATE_HZ), np.float32)


def mouth_of(wave: np.ndarray, spans: list[tuple[str, float, float]], frames: int) -> Mouth:
    """Phones say how far the mouth opens, and loudness how much of that: nobody opens it in silence."""
    opening_T, spread_T = mouth_of_phones(spans, frames)
    loudness_T = loudness(wave, frames)
    return Mouth(opening_T=opening_T * np.clip(1.2 * loudness_T, 0, 1), spread_T=spread_T, loudness_T=loudness_T)


def closed(mouth: Mouth) -> Mouth:
    """The same person, listening."""
    still = np.zeros_like(mouth.opening_T)
    return Mouth(opening_T=still, spread_T=still, loudness_T=0.3 * mouth.loudness_T)


def moved(values: np.ndarray, delay: int) -> np.ndarray:
    """Later by `delay` samples, earlier if negative; silence comes in."""
    result = np.zeros_like(values)
    if delay >= 0:
        result[delay:] = values[: len(values) - delay]
    else:
        result[:delay] = values[-delay:]
    return result


def music(seed: int, clip: int, frames: int) -> np.ndarray:
    """float32 [frames * 640]: chords of plucked harmonics over a beat, at 16 kHz."""
    random = generator(seed, "music", clip)
    length = frames * _SAMPLES
    wave, beat = np.zeros(length), int(random.uniform(0.25, 0.45) * SAMPLE_RATE_HZ)
    base = 110 * 2 ** (random.integers(12) / 12)
    for start in range(0, length, beat):
        seconds = np.arange(min(2 * beat, length - start)) / SAMPLE_RATE_HZ
        for _ in range(3):
            hz = base * 2 ** ((_NOTES[random.integers(len(_NOTES))] + 12 * random.integers(2)) / 12)
            tone = sum(np.sin(2 * np.pi * hz * k * seconds) / k for k in range(1, 6))
            wave[start : start + len(seconds)] += tone * np.exp(-4 * seconds)
    return (_MUSIC_PEAK * wave / np.abs(wave).max()).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Soundtrack:
    """What the file gets (None for no track), the mouth that is drawn, and the opening that is heard [T]."""

    wave: np.ndarray | None
    mouth: Mouth
    heard_T: np.ndarray
    lines: tuple[Line, ...]


def soundtrack(seed: int, plan: ClipPlan, cast: Cast, speech: Speech) -> Soundtrack:
    """Speech, its mouth, and the plan's fault of the sound."""
    spoken = speak(seed, plan, cast, speech)
    wave: np.ndarray | None = spoken.wave
    mouth, heard_T = spoken.mouth, spoken.mouth.opening_T
    delay = round(plan.delay_s * FPS)
    if plan.fault in ("dubbed", "partly_dubbed"):
        other = speak(seed, plan, cast, speech, other=True)
        begin = plan.frames // 2 if plan.fault == "partly_dubbed" else 0
        wave = np.concatenate([spoken.wave[: begin * _SAMPLES], other.wave[begin * _SAMPLES :]])
        heard_T = np.concatenate([heard_T[:begin], other.mouth.opening_T[begin:]])
    elif delay:
        wave, heard_T = moved(spoken.wave, delay * _SAMPLES), moved(heard_T, delay)
    elif plan.fault == "off_screen":
        mouth = closed(mouth)
    elif plan.fault == "music":
        wave, heard_T = music(seed, plan.clip, plan.frames), np.zeros(plan.frames)
    elif plan.fault in ("silent", "no_track"):
        wave = np.zeros_like(spoken.wave) if plan.fault == "silent" else None
        heard_T = np.zeros(plan.frames)
    return Soundtrack(wave=wave, mouth=mouth, heard_T=heard_T, lines=spoken.lines)
