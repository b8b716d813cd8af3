"""What is behind and before the person: background shapes that may move, and light over everything."""

import dataclasses

import numpy as np
import skia

from data_pipelines.puppet_theatre.brush import Brush, box, linear, oval
from data_pipelines.puppet_theatre.colours import WHITE, Colour, hsv, mix, times
from data_pipelines.puppet_theatre.randomness import generator
from omnihuman_jax.typing import FPS

_SHAPES = {"plain": 0, "calm": 5, "busy": 14}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Blot:
    """A patch of the background: x, y, size in picture heights; speed in picture heights a second."""

    x: float
    y: float
    size: float
    tall: float
    round: bool
    colour: Colour
    speed: tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scenery:
    """A background and its light: where it comes from (-1 left .. 1 right), how strong (0 none), its colour."""

    top: Colour
    bottom: Colour
    shapes: tuple[Blot, ...]
    light_from: float
    light_strength: float
    light: Colour

    @property
    def colours(self) -> dict[str, Colour]:
        return {"top": self.top, "bottom": self.bottom, "light": self.light}


def scenery(seed: int, number: int, *, kind: str, moving: bool) -> Scenery:
    """Background `number` of the world `seed`: `kind` plain, calm or busy."""
    random = generator(seed, "scenery", number)
    top, bottom = (hsv(random.uniform(), random.uniform(0.1, 0.5), random.uniform(0.35, 0.9)) for _ in range(2))
    shapes = tuple(
        Blot(
            x=random.uniform(-0.3, 1.8),
            y=random.uniform(0, 0.95),
            size=random.uniform(0.08, 0.28),
            tall=random.uniform(0.6, 2.0),
            round=bool(random.uniform() < 0.5),
            colour=times(mix(top, bottom, random.uniform()), random.uniform(0.7, 1.25)),
            speed=(random.normal() * 0.08 * moving, random.normal() * 0.04 * moving),
        )
        for _ in range(_SHAPES[kind])
    )
    return Scenery(
        top=top,
        bottom=bottom,
        shapes=shapes,
        light_from=random.uniform(-1, 1),
        light_strength=random.uniform(0.0, 0.45),
        light=mix(WHITE, hsv(random.uniform(), 0.6, 1.0), random.uniform(0, 0.35)),
    )


def draw_background(brush: Brush, scene: Scenery, frame: int, height: int, width: int) -> None:
    """In pixels; shapes that leave on one side come back on the other."""
    whole = box(0, 0, width, height)
    brush.canvas.drawPath(whole, skia.Paint(Shader=linear((0, 0), (width * 0.3, height), scene.top, scene.bottom)))
    seconds = frame / FPS
    for shape in scene.shapes:
        x = ((shape.x + shape.speed[0] * seconds + 0.3) % 2.1 - 0.3) * height
        y = ((shape.y + shape.speed[1] * seconds + 0.3) % 1.6 - 0.3) * height
        size, tall = shape.size * height, shape.size * shape.tall * height
        path = oval(x - size / 2, y - size / 2, size, size) if shape.round else box(x - size / 2, y - tall / 2, size, tall)  # fmt: skip  # noqa: E501
        brush.fill(path, shape.colour, outline=0.004 * height)


def cast_light(brush: Brush, scene: Scenery, height: int, width: int) -> None:
    """One side of the picture is darker, and all of it takes the light's colour."""
    dark = times(scene.light, 1 - scene.light_strength)
    ends = (scene.light, dark) if scene.light_from < 0 else (dark, scene.light)
    paint = skia.Paint(Shader=linear((0, 0), (width, 0.2 * height), *ends), BlendMode=skia.BlendMode.kMultiply)
    brush.canvas.drawPath(box(0, 0, width, height), paint)


def mean_colour(frames_THW3: np.ndarray, margin: float = 0.06) -> np.ndarray:
    """float64 [T, 3]: the mean colour of a strip along the upper edge and its corners, where the background shows."""
    strip = max(1, round(margin * frames_THW3.shape[1]))
    return frames_THW3[:, :strip].mean(axis=(1, 2), dtype=np.float64)
