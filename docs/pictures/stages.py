"""Draws docs/pictures/stages.gif: the three stages, each with one more signal, and what the signals drive.

    python docs/pictures/stages.py

A drawing of how training is staged, not the output of a model. The ratios are those of `stages.paper_stages`.
"""

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from omnihuman_jax.conditions import Condition  # noqa: E402
from omnihuman_jax.stages import Stage, paper_stages  # noqa: E402

WIDTH, HEIGHT = 840, 300
FINE = 3  # drawn this much larger, then scaled down: Pillow does not smooth edges
FRAMES, FRAME_MS = 30, 100  # of a stage
INK, FAINT, PAPER = "#22303c", "#c9d0d6", "#ffffff"
CARD, ON, OFF = "#f4f5f3", "#3f7d4f", "#dfe3e0"
SKIN, HAIR, SHIRT, LIPS, INSIDE = "#e2ad84", "#4a3226", "#5a7fa8", "#b4554f", "#5c1f22"
NOTES = {
    Condition.TEXT: "a man waves",
    Condition.REFERENCE: "who",
    Condition.AUDIO: "what is said",
    Condition.POSE: "how they move",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Motion:
    """Of the figure in one frame: gap of the lips in [0, 1], tilt of the head and lift of the arm in radians, blink."""

    lips: float
    tilt: float
    arm: float
    blink: bool


class Pen:
    """Draws in the picture's own coordinates."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def _at(self, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x * FINE, y * FINE) for x, y in points]

    def line(self, points: list[tuple[float, float]], colour: str, width: float) -> None:
        points = self._at(points)
        self._draw.line(points, colour, round(width * FINE), joint="curve")
        half = width * FINE / 2
        for x, y in (points[0], points[-1]):
            self._draw.ellipse((x - half, y - half, x + half, y + half), colour)

    def shape(self, points: list[tuple[float, float]], colour: str) -> None:
        self._draw.polygon(self._at(points), colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: str) -> None:
        self._draw.ellipse([value * FINE for value in (x - rx, y - ry, x + rx, y + ry)], colour)

    def card(self, x: float, y: float, width: float, height: float, fill: str, edge: str = "") -> None:
        box = [value * FINE for value in (x, y, x + width, y + height)]
        self._draw.rounded_rectangle(box, 8 * FINE, fill, edge or None, round(1.5 * FINE) if edge else 0)

    def within(self, x: float, y: float, width: float, height: float, draw: Callable[["Pen"], None]) -> None:
        """Draws, and keeps what is inside the box."""
        box = tuple(round(value * FINE) for value in (x, y, x + width, y + height))
        inner = Pen()
        inner.image.paste(self.image)
        draw(inner)
        self.image.paste(inner.image.crop(box), box)

    def text(self, x: float, y: float, words: str, size: float, colour: str = INK, anchor: str = "lm") -> None:
        font = ImageFont.load_default(size * FINE)
        self._draw.text((x * FINE, y * FINE), words, colour, font, anchor)


def envelope(t: float) -> float:
    """Loudness of a voice that is not there, in [0, 1]: syllables in two phrases."""
    phrase = 1.0 if 0.05 < t < 0.42 or 0.52 < t < 0.95 else 0.0
    return phrase * abs(math.sin(9.0 * math.pi * t)) * (0.6 + 0.4 * math.sin(5.0 * math.pi * t + 1.0))


def motion(stage: Stage, t: float) -> Motion:
    """What the stage's signals make of the figure at `t` in [0, 1) of its time."""
    wave = math.sin(math.pi * min(1.0, max(0.0, (t - 0.15) / 0.7)))
    moves = stage.pose > 0
    return Motion(
        lips=envelope(t) if stage.audio else 0.0,
        tilt=0.16 * math.sin(2 * math.pi * t) if moves else 0.02 * math.sin(2 * math.pi * t),
        arm=wave * (1.6 + 0.2 * math.sin(8 * math.pi * t)) if moves else 0.0,
        blink=0.30 < t < 0.36 or 0.78 < t < 0.84,
    )


def turned(x: float, y: float, angle: float, at: tuple[float, float]) -> tuple[float, float]:
    """(x, y) off `at`, turned about it."""
    c, s = math.cos(angle), math.sin(angle)
    return at[0] + c * x - s * y, at[1] + s * x + c * y


def arm_of(x: float, y: float, scale: float, m: Motion) -> list[tuple[float, float]]:
    """Shoulder, elbow and hand of the arm that waves."""
    shoulder = (x + 44 * scale, y + 70 * scale)
    elbow = turned(0, 42 * scale, -0.25 - 0.35 * m.arm, shoulder)
    return [shoulder, elbow, turned(0, 40 * scale, -0.15 - 1.55 * m.arm, elbow)]


def draw_person(pen: Pen, x: float, y: float, scale: float, m: Motion) -> None:
    """A figure whose head is centred on (x, y)."""
    s, neck = scale, (x, y + 38 * scale)

    def head(dx: float, dy: float) -> tuple[float, float]:
        return turned(dx * s, (dy - 38) * s, m.tilt, neck)

    def oval(dx: float, dy: float, rx: float, ry: float, colour: str) -> None:
        around = [(dx + rx * math.cos(a / 12 * math.pi), dy + ry * math.sin(a / 12 * math.pi)) for a in range(24)]
        pen.shape([head(*point) for point in around], colour)

    body = [(-50, 130), (-46, 72), (-30, 56), (30, 56), (46, 72), (50, 130)]
    pen.shape([(x + dx * s, y + dy * s) for dx, dy in body], SHIRT)
    arm = arm_of(x, y, s, m)
    pen.line(arm[:2], "#4d6f95", 17 * s)
    pen.line(arm[1:], "#4d6f95", 15 * s)
    pen.ellipse(*arm[2], 9 * s, 9 * s, SKIN)
    pen.line([(x, y + 34 * s), (x, y + 58 * s)], "#cf9a72", 22 * s)
    oval(0, -9, 38, 42, HAIR)
    oval(0, 2, 33, 40, SKIN)
    oval(0, -33, 30, 14, HAIR)
    for side in (-1, 1):
        oval(side * 13, -4, 5.5, 0.8 if m.blink else 4, "#ffffff" if not m.blink else INK)
        if not m.blink:
            oval(side * 13, -4, 2.6, 3, INK)
        oval(side * 13, -13, 7.5, 1.6, HAIR)
    oval(0, 8, 3, 5, "#cf9a72")
    gap = 1.0 + 8.0 * m.lips
    oval(0, 22 + gap / 2, 11 - 2 * m.lips, gap + 2.5, LIPS)
    oval(0, 22 + gap / 2, 8.5 - 2 * m.lips, gap * 0.8, INSIDE)


def draw_skeleton(pen: Pen, x: float, y: float, scale: float, m: Motion) -> None:
    """The pose that drives the figure."""
    top = turned(0, -42 * scale, m.tilt, (x, y + 38 * scale))
    arm = arm_of(x, y, scale, m)
    left = (2 * x - arm[0][0], arm[0][1])
    for a, b in ((top, (x, y + 62 * scale)), (left, arm[0]), (arm[0], arm[1]), (arm[1], arm[2])):
        pen.line([a, b], "#f0a63c" if a is not top else "#8896a3", 2.5)
    for point in (top, left, *arm):
        pen.ellipse(*point, 3.2, 3.2, INK)


def draw_signal(pen: Pen, condition: Condition, x: float, y: float, stage: Stage, t: float) -> None:
    """What the card of a condition shows, centred on (x, y)."""
    if condition is Condition.TEXT:
        words = NOTES[condition]
        pen.text(x, y, f'"{words[: 1 + int(t * 2.2 * len(words))]}"', 11, INK, "mm")
    elif condition is Condition.REFERENCE:
        still = Motion(lips=0.0, tilt=0.0, arm=0.0, blink=False)
        pen.within(x - 25, y - 22, 50, 44, lambda pen: draw_person(pen, x, y - 4, 0.34, still))
    elif condition is Condition.AUDIO:
        for i in range(19):
            high = 1.5 + 15 * (envelope((t + (i - 9) * 0.018) % 1.0) if stage.audio else 0.1)
            pen.line([(x + (i - 9) * 4, y - high), (x + (i - 9) * 4, y + high)], INK if i == 9 else "#7b8894", 2)
    else:
        m = motion(stage, t) if stage.pose else Motion(lips=0.0, tilt=0.0, arm=0.0, blink=False)
        pen.within(x - 40, y - 22, 80, 44, lambda pen: draw_skeleton(pen, x, y - 12, 0.26, m))


def draw_frame(stages: tuple[Stage, ...], index: int, t: float) -> Image.Image:
    """The picture of stage `index` at `t` in [0, 1) of its time."""
    pen, stage = Pen(), stages[index]
    for i, row in enumerate(stages):
        x, chosen = 24 + i * 268, i == index
        pen.card(x, 14, 256, 34, "#e4f1e6" if chosen else CARD, ON if chosen else FAINT)
        strongest = max(c for c in Condition if row.ratios[c] > 0)
        words = "text + reference" if strongest == Condition.REFERENCE else f"+ {strongest.label}"
        pen.text(x + 128, 31, f"stage {i + 1}: {words}", 14, INK if chosen else "#8a949c", "mm")
    for i, condition in enumerate(Condition):
        y, ratio = 62 + i * 57, float(stage.ratios[condition])
        pen.card(24, y, 330, 50, CARD, ON if ratio else FAINT)
        pen.text(36, y + 17, condition.label, 14, INK if ratio else "#9aa3aa")
        pen.text(36, y + 35, NOTES[condition] if condition else "what happens", 10, "#67727b")
        if ratio:
            draw_signal(pen, condition, 178, y + 25, stage, t)
        pen.card(244, y + 19, 62, 12, OFF)
        if ratio:
            pen.card(244, y + 19, max(12, 62 * ratio), 12, ON)
        pen.text(342, y + 25, f"{ratio:g}" if ratio else "-", 13, INK if ratio else "#9aa3aa", "rm")
        if ratio:
            for step in range(4):
                along = (t * 3 + step / 4 + i * 0.11) % 1.0
                start, end = (358, y + 25), (428, 176)
                pen.ellipse(*(a + (b - a) * along for a, b in zip(start, end)), 3.5, 3.5, ON)
    pen.card(430, 116, 150, 120, "#dceaf7", INK)
    for line, words in enumerate(("one diffusion", "transformer", "same program", "in every stage")):
        pen.text(505, 144 + line * 21, words, 15 if line < 2 else 11, INK if line < 2 else "#56636e", "mm")
    for step in range(3):
        pen.ellipse(584 + ((t * 3 + step / 3) % 1.0) * 34, 176, 3.5, 3.5, "#3d6d9e")
    pen.card(624, 62, 192, 221, "#eef2f5", FAINT)
    pen.within(626, 64, 188, 217, lambda pen: draw_person(pen, 692, 150, 1.05, motion(stage, t)))
    for line, words in enumerate(("bars: the share of windows on", "which a condition is active")):
        pen.text(505, 254 + line * 15, words, 10, "#67727b", "mm")
    return pen.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def main() -> None:
    stages = paper_stages(steps=1).rows
    frames = [draw_frame(stages, i, n / FRAMES) for i in range(len(stages)) for n in range(FRAMES)]
    # One palette for all: the last stage has every colour, and an open mouth somewhere.
    sheet = Image.new("RGB", (WIDTH, HEIGHT * FRAMES))
    for n, frame in enumerate(frames[-FRAMES:]):
        sheet.paste(frame, (0, n * HEIGHT))
    palette = sheet.quantize(128, dither=Image.Dither.NONE)
    small = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    path = HERE / "stages.gif"
    small[0].save(path, save_all=True, append_images=small[1:], duration=FRAME_MS, loop=0, optimize=True)
    print(f"{path.name}: {len(frames)} frames, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
