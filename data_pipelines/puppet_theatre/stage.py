"""Draws one frame of a play: background, people, light; and gives the truth of it in pixels."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import skia

from data_pipelines.puppet_theatre import body
from data_pipelines.puppet_theatre.brush import Brush, Point
from data_pipelines.puppet_theatre.head import HeadState, draw_head
from data_pipelines.puppet_theatre.people import Person
from data_pipelines.puppet_theatre.scenery import Scenery, cast_light, draw_background
from data_pipelines.puppet_theatre.staging import Framing
from omnihuman_jax.data.keypoints import INDEX, LEFT_HAND, NUM_KEYPOINTS, RIGHT_HAND

_NECK: Point = (0.0, 0.45)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FigureState:
    """One frame of a person: the head, where it is beside its place (head heights), its tilt (degrees), the arms (none
    where they are hidden behind the back or out of the picture).
    """

    head: HeadState = dataclasses.field(default_factory=HeadState)
    x: float = 0.0
    y: float = 0.0
    roll: float = 0.0
    arms: Mapping[str, body.ArmState] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a head's centre is in the picture and its height, in pixels."""

    x: float
    y: float
    scale: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DrawnFigure:
    """Truth in pixels: keypoints_J3 [75, 3] with confidence 1 in the picture, else (0, 0, 0); boxes x0, y0, x1, y1."""

    keypoints_J3: np.ndarray
    mouth_box_4: np.ndarray
    face_box_4: np.ndarray
    mouth_width: float
    gap: float


class PuppetStage:
    """A surface of one size, drawn on again and again."""

    def __init__(self, height: int, width: int, style: str):
        self.height, self.width = height, width
        self._surface = skia.Surface(width, height)
        self._brush = Brush(self._surface.getCanvas(), style)

    def background(self, scene: Scenery, frame: int) -> None:
        draw_background(self._brush, scene, frame, self.height, self.width)

    def light(self, scene: Scenery) -> None:
        cast_light(self._brush, scene, self.height, self.width)

    def figure(self, who: Person, state: FigureState, framing: Framing, place: Place) -> DrawnFigure:
        """Draws a person over what is there."""
        canvas = self._brush.canvas
        canvas.save()
        canvas.translate(place.x, place.y)
        canvas.scale(place.scale, place.scale)
        points = body.draw_body(self._brush, who, legs=framing.legs)
        canvas.save()
        canvas.translate(state.x, state.y)
        canvas.rotate(state.roll, *_NECK)
        head = draw_head(self._brush, who, state.head)
        canvas.restore()
        for side, arm in state.arms.items():
            points |= body.draw_arm(self._brush, who, side, arm)
        canvas.restore()
        points |= {name: _tilted(point, state) for name, point in head.points.items() if _is_seen(name, state.head)}
        mouth = _tilted(head.mouth, state)
        # As wide as the lips can get, and as low as the jaw falls.
        half = who.mouth_width * 1.3
        mouth_box = (mouth[0] - half, mouth[1] - 0.07, mouth[0] + half, mouth[1] + 0.16)
        face = (state.x - who.face_width / 2, state.y - 0.5, state.x + who.face_width / 2, state.y + who.chin + 0.04)
        scale_box = np.array([place.x, place.y] * 2)
        return DrawnFigure(
            keypoints_J3=self._keypoints(points, place),
            mouth_box_4=(scale_box + place.scale * np.array(mouth_box)).astype(np.float32),
            face_box_4=(scale_box + place.scale * np.array(face)).astype(np.float32),
            mouth_width=head.mouth_width * place.scale,
            gap=head.gap * place.scale,
        )

    def picture(self, blur: float = 0.0) -> np.ndarray:
        """uint8 [H, W, 3] of what was drawn; `blur` in pixels."""
        image = self._surface.makeImageSnapshot()
        if blur:
            canvas = self._brush.canvas
            canvas.drawImage(image, 0, 0, paint=skia.Paint(ImageFilter=skia.ImageFilters.Blur(blur, blur)))
            image = self._surface.makeImageSnapshot()
        return _rgb(image)

    def _keypoints(self, points: Mapping[str, Point], place: Place) -> np.ndarray:
        keypoints_J3 = np.zeros((NUM_KEYPOINTS, 3), np.float32)
        starts = {"left_hand": LEFT_HAND.start, "right_hand": RIGHT_HAND.start}
        for name, (x, y) in points.items():
            group, _, joint = name.rpartition("_")
            index = starts[group] + int(joint) if group in starts else INDEX[name]
            x, y = place.x + place.scale * x, place.y + place.scale * y
            if 0 <= x < self.width and 0 <= y < self.height:
                keypoints_J3[index] = x, y, 1.0
        return keypoints_J3


def _is_seen(name: str, state: HeadState) -> bool:
    if state.turned_away:
        return name.endswith("_ear")
    return not (state.covered and name.startswith("mouth"))


def _tilted(point: Point, state: FigureState) -> Point:
    """A point of the upright head, where the tilted one has it."""
    cos, sin = math.cos(math.radians(state.roll)), math.sin(math.radians(state.roll))
    x, y = point[0] - _NECK[0], point[1] - _NECK[1]
    return state.x + _NECK[0] + x * cos - y * sin, state.y + _NECK[1] + x * sin + y * cos


def _rgb(image: Any) -> np.ndarray:
    return np.ascontiguousarray(image.toarray(colorType=skia.kRGBA_8888_ColorType)[..., :3])
