"""Where the person stands in the picture: framing, aspect, and a camera that may drift."""

import dataclasses

import numpy as np

from data_pipelines.puppet_theatre.randomness import generator, smooth_noise


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Framing:
    """The head's centre, in shares of the picture, and its height in picture heights; what of the body is drawn."""

    x: float
    y: float
    head: float
    arms: bool
    legs: bool = False
    # Heights of the figure that are in the picture, in head heights: what errors of its points are measured against.
    figure: float = 1.0


FRAMINGS: dict[str, Framing] = {
    "close": Framing(x=0.5, y=0.50, head=0.92, arms=False),
    "face": Framing(x=0.5, y=0.50, head=0.70, arms=False),
    "bust": Framing(x=0.5, y=0.34, head=0.42, arms=False, figure=2.0),
    "half": Framing(x=0.5, y=0.20, head=0.27, arms=True, figure=3.5),
    "full": Framing(x=0.5, y=0.11, head=0.138, arms=True, legs=True, figure=6.2),
}
# Of the sides of a picture: (width, height) in units of the shorter one.
ASPECTS: dict[str, tuple[float, float]] = {"square": (1, 1), "landscape": (1.5, 1), "portrait": (1, 1.25)}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Camera:
    """Of T frames: the head's place in the picture and its height, in pixels."""

    x_T: np.ndarray
    y_T: np.ndarray
    scale_T: np.ndarray


def picture_size(aspect: str, short_side: int) -> tuple[int, int]:
    """(height, width) in pixels, both multiples of 16."""
    width, height = ASPECTS[aspect]
    return 16 * round(short_side * height / 16), 16 * round(short_side * width / 16)


def camera(seed: int, clip: int, framing: Framing, size: tuple[int, int], frames: int, *, drift: float) -> Camera:
    """A camera on `framing`; `drift` 0 stands still, 1 pans and zooms by several per cent."""
    height, width = size
    random = generator(seed, "camera", clip)
    offset, zoom = random.normal(size=2) * 0.01, 1 + 0.03 * random.normal()
    pan_x, pan_y, zooming = (smooth_noise(random, frames, 0.15) for _ in range(3))
    scale_T = framing.head * height * np.clip(zoom + 0.025 * drift * zooming, 0.85, 1.12)
    return Camera(
        x_T=framing.x * width + scale_T * 0.10 * drift * pan_x + offset[0] * height,
        y_T=framing.y * height + scale_T * 0.06 * drift * pan_y + offset[1] * height,
        scale_T=scale_T,
    )
