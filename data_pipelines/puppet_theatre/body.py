"""Draws neck, torso, legs, arms and hands, and says where their points are. Units and origin as in `head.py`."""

import dataclasses
import math

import numpy as np

from data_pipelines.puppet_theatre.brush import Brush, Point, curve, linear, oval, polygon, radial
from data_pipelines.puppet_theatre.colours import WHITE, Colour, mix, times
from data_pipelines.puppet_theatre.people import Person

_SHOULDER_Y, _HIP, _KNEE, _ANKLE = 0.98, (0.42, 2.75), (0.44, 4.15), (0.46, 5.5)
_FOREARM = 0.94  # of the upper arm's length
_HAND_SIZE = 0.36
# Of each finger: its place on the knuckles, the knuckle's height, its length.
_FINGERS = ((-0.62, 0.55, 0.75), (-0.28, 0.95, 0.92), (-0.02, 1.0, 1.0), (0.22, 0.97, 0.93), (0.45, 0.88, 0.75))
SIDES = ("left", "right")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ArmState:
    """Angles in radians: of the upper arm (0 hangs down, positive outwards), of the forearm in the same sense; how far
    each finger is bent, 0..1.
    """

    upper: float
    fore: float
    curl: tuple[float, float, float, float, float] = (0.2, 0.2, 0.2, 0.2, 0.2)


Points = dict[str, Point]


def draw_body(brush: Brush, who: Person, *, legs: bool) -> Points:
    """Everything that the arms may pass before; the points of shoulders, hips and legs."""
    points: Points = {}
    brush.fill(polygon([(-0.2, 0.3), (-0.22, 0.7), (0.22, 0.7), (0.2, 0.3)]), times(who.skin, 0.8), outline=0.0)
    for side, sign in zip(SIDES, (1, -1)):
        points[f"{side}_shoulder"] = (sign * (who.shoulder - 0.06), _SHOULDER_Y)
        points[f"{side}_hip"] = (sign * _HIP[0], _HIP[1])
        if legs:
            points |= _leg(brush, who, side, sign)
    edge = who.shoulder + 0.06
    torso = curve(
        ("M", -0.2, 0.62), ("C", -0.5, 0.72, -edge + 0.05, 0.75, -edge, 1.05), ("L", -0.58, 2.0), ("L", -0.6, 2.95),
        ("L", 0.6, 2.95), ("L", 0.58, 2.0), ("L", edge, 1.05), ("C", edge - 0.05, 0.75, 0.5, 0.72, 0.2, 0.62),
        ("Q", 0, 0.8, -0.2, 0.62), ("Z",),
    )  # fmt: skip
    brush.fill(torso, who.shirt, linear((-edge, 0.7), (edge, 2.6), times(who.shirt, 1.15), times(who.shirt, 0.7)))
    brush.soft(curve(("M", -0.24, 0.6), ("Q", 0, 0.88, 0.24, 0.6)), times(who.shirt, 0.5), 0.63, 0.012, 0.03)
    return points


def _leg(brush: Brush, who: Person, side: str, sign: int) -> Points:
    hip, knee, ankle = ((sign * x, y) for x, y in (_HIP, _KNEE, _ANKLE))
    _limb(brush, hip, knee, 0.27, 0.21, who.trousers)
    _limb(brush, knee, ankle, 0.2, 0.14, who.trousers)
    brush.fill(oval(ankle[0] - 0.12 + sign * 0.08, ankle[1] + 0.02, 0.32, 0.2), (35, 30, 30))
    return {
        f"{side}_knee": knee,
        f"{side}_ankle": ankle,
        f"{side}_heel": (ankle[0], ankle[1] + 0.15),
        f"{side}_foot_index": (ankle[0] + sign * 0.15, ankle[1] + 0.2),
    }


def draw_arm(brush: Brush, who: Person, side: str, state: ArmState) -> Points:
    """An arm before the body with its hand: elbow, wrist, three knuckles, and the hand's 21 points."""
    sign = 1 if side == "left" else -1
    shoulder = (sign * (who.shoulder - 0.06), _SHOULDER_Y)
    elbow = _along(shoulder, sign, state.upper, who.arm)
    wrist = _along(elbow, sign, state.fore, who.arm * _FOREARM)
    _limb(brush, shoulder, elbow, 0.2, 0.16, who.shirt)
    _limb(brush, elbow, wrist, 0.155, 0.12, who.shirt)
    brush.fill(oval(wrist[0] - 0.1, wrist[1] - 0.1, 0.2, 0.2), who.skin, outline=0.0)
    angle = math.atan2(sign * math.sin(state.fore), -math.cos(state.fore))
    hand = _hand(brush, who, wrist, angle, state.curl, -sign)
    named = {f"{side}_{name}": hand[i] for name, i in (("pinky", 17), ("index", 5), ("thumb", 2))}
    return {
        f"{side}_elbow": elbow,
        f"{side}_wrist": wrist,
        **named,
        **{f"{side}_hand_{i}": point for i, point in enumerate(hand)},
    }


def _along(start: Point, sign: int, angle: float, length: float) -> Point:
    return start[0] + sign * length * math.sin(angle), start[1] + length * math.cos(angle)


def _limb(brush: Brush, a: Point, b: Point, width_a: float, width_b: float, colour: Colour) -> None:
    """A tapered limb with round ends."""
    start, end = np.array(a), np.array(b)
    along = end - start
    across = np.array([-along[1], along[0]]) / max(1e-6, float(np.hypot(*along)))
    corners = [start + across * width_a, end + across * width_b, end - across * width_b, start - across * width_a]
    quad = [(float(x), float(y)) for x, y in corners]
    shade = linear(quad[0], quad[3], times(colour, 1.12), times(colour, 0.68))
    for (x, y), width in ((a, width_a), (b, width_b)):
        brush.fill(oval(x - width, y - width, 2 * width, 2 * width), colour, shade)
    brush.fill(polygon(quad), colour, shade, outline=0.0)
    if brush.style == "line":
        for first, last in ((quad[0], quad[1]), (quad[3], quad[2])):
            brush.stroke(curve(("M", *first), ("L", *last)), (30, 24, 28), 0.014)


def _hand(brush: Brush, who: Person, wrist: Point, angle: float, curl: tuple[float, ...], side: int) -> list[Point]:
    """21 points in MediaPipe's order; `angle` is the direction of the fingers, 0 is up; `side` mirrors."""
    cos, sin = math.cos(angle), math.sin(angle)

    def place(x: float, y: float) -> Point:
        """(across, along) in hand lengths from the wrist -> the canvas."""
        across, along = x * side * _HAND_SIZE, y * _HAND_SIZE
        return wrist[0] + across * cos + along * sin, wrist[1] + across * sin - along * cos

    palm = [place(*p) for p in ((-0.28, 0.05), (-0.42, 0.45), (-0.38, 0.95), (-0.05, 1.02), (0.4, 0.9), (0.34, 0.1))]
    shade = radial(place(0, 0.5), _HAND_SIZE * 0.9, mix(who.skin, WHITE, 0.18), times(who.skin, 0.82))
    brush.stroke(polygon(palm), times(who.skin, 0.62), _HAND_SIZE * 0.26)
    brush.stroke(polygon(palm), who.skin, _HAND_SIZE * 0.22, inked=False)
    brush.fill(polygon(palm), who.skin, shade, outline=0.0)
    points = [wrist]
    for finger in range(5):
        joints = [place(*joint) for joint in _finger(finger, curl[finger])]
        points += joints
        _draw_finger(brush, who, joints, _HAND_SIZE * (0.125 if finger else 0.14))
    return points


def _finger(finger: int, curl: float) -> list[Point]:
    """The four joints, (across, along) in hand lengths."""
    across, base, length = _FINGERS[finger]
    if finger == 0:
        return [(-0.28, 0.22), (-0.55, 0.5), (-0.78, 0.78 - 0.1 * curl), (-0.88 + 0.35 * curl, 1.02 - 0.15 * curl)]
    reach, lean, foot = 0.92 * length * (1 - 0.62 * curl), across * 0.28, (across * 0.92, base * 0.98)
    tips = [(foot[0] + math.sin(lean) * reach * share, foot[1] + math.cos(lean) * reach * share) for share in (0.45, 0.75, 1.0)]  # fmt: skip  # noqa: E501
    return [foot, *tips]


def _draw_finger(brush: Brush, who: Person, joints: list[Point], width: float) -> None:
    line = curve(("M", *joints[0]), *(("L", *joint) for joint in joints[1:]))
    brush.stroke(line, times(who.skin, 0.62), width * 2.15)
    brush.stroke(line, who.skin, width * 1.8, inked=False)
    brush.soft(line, mix(who.skin, WHITE, 0.22), 0.6, width * 0.4, width * 0.7)
