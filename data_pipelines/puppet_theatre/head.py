"""Draws a head, and says where its points are. Unit: the height of the head; origin: its centre; y downwards."""

import dataclasses

from data_pipelines.puppet_theatre.brush import Brush, Point, box, curve, linear, oval, radial
from data_pipelines.puppet_theatre.colours import WHITE, Colour, mix, times
from data_pipelines.puppet_theatre.people import Person

_MOUTH_INSIDE: Colour = (58, 16, 20)
_TEETH: Colour = (238, 234, 226)
_TONGUE: Colour = (170, 70, 76)
# The gap between the inner lips of a mouth that is closed, and what it gains when it is wide open.
_CLOSED_GAP, _OPENING = 0.004, 0.095


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HeadState:
    """One frame. opening 0..1; spread -1 (round) .. 1 (wide); yaw and pitch about -1..1, to the picture's right and
    down; blink 0..1.
    """

    opening: float = 0.0
    spread: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.0
    blink: float = 0.0
    brow: float = 0.0
    turned_away: bool = False
    covered: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DrawnHead:
    """Where things are: `points` by keypoint name, and the mouth (width from corner to corner, gap of inner lips)."""

    points: dict[str, Point]
    mouth: Point
    mouth_width: float
    gap: float


def gap_of(opening: float) -> float:
    """Between the inner lips, in head heights, of an opening in 0..1."""
    return _CLOSED_GAP + _OPENING * opening


def draw_head(brush: Brush, who: Person, state: HeadState) -> DrawnHead:
    """Draws the head upright about the origin."""
    shift = (0.10 * state.yaw, 0.07 * state.pitch)
    _back_hair(brush, who)
    if state.turned_away:
        _back_of_head(brush, who)
        return _drawn(who, state, shift)
    _ears(brush, who, shift)
    _face(brush, who, state, shift)
    for side in (-1, 1):
        _eye(brush, who, state, shift, side)
    if who.glasses:
        _glasses(brush, who, shift)
    nose = _nose(brush, who, shift)
    _mouth(brush, who, state, shift, nose[1])
    _front_hair(brush, who)
    if state.covered:
        _cover(brush, who, shift)
    return _drawn(who, state, shift)


def _drawn(who: Person, state: HeadState, shift: Point) -> DrawnHead:
    dx, dy = shift
    mouth = (dx * 1.05, who.mouth_y + dy)
    width, gap = _mouth_half_width(who, state), gap_of(state.opening)
    points = {"nose": (dx * 1.25, 0.11 + dy * 1.2)}
    # A person's left is the picture's right.
    for side, sign in (("left", 1), ("right", -1)):
        eye_x, eye_y = sign * who.eye_x + dx, who.eye_y + dy
        half = sign * 0.078 * who.eye_size
        points |= {
            f"{side}_eye": (eye_x, eye_y),
            f"{side}_eye_inner": (eye_x - half, eye_y + 0.004),
            f"{side}_eye_outer": (eye_x + half, eye_y),
            f"{side}_ear": (sign * who.face_width / 2 - dx * 0.4, 0.0),
            f"mouth_{side}": (mouth[0] + sign * width, mouth[1] + 0.15 * gap),
        }
    return DrawnHead(points=points, mouth=mouth, mouth_width=2 * width, gap=gap)


def _face_path(who: Person, drop: float = 0.0) -> object:
    """The outline of the face; the chin falls by `drop`."""
    half, jaw, chin = who.face_width / 2, who.jaw * who.face_width / 2, who.chin + drop
    low = 0.36 + 0.6 * drop
    return curve(
        ("M", 0, -0.5), ("C", half * 0.75, -0.5, half, -0.28, half, -0.05),
        ("C", half, 0.18, half * 0.92, 0.27, jaw * 0.86, low), ("C", jaw * 0.6, chin * 0.98, 0.08, chin, 0, chin),
        ("C", -0.08, chin, -jaw * 0.6, chin * 0.98, -jaw * 0.86, low),
        ("C", -half * 0.92, 0.27, -half, 0.18, -half, -0.05),
        ("C", -half, -0.28, -half * 0.75, -0.5, 0, -0.5), ("Z",),
    )  # fmt: skip


def _back_hair(brush: Brush, who: Person) -> None:
    if who.haircut not in ("long", "bob"):
        return
    end = 0.55 if who.haircut == "long" else 0.25
    path = curve(
        ("M", -0.5, 0.05), ("C", -0.58, -0.75, 0.58, -0.75, 0.5, 0.05), ("L", 0.47, end), ("L", -0.47, end), ("Z",)
    )
    brush.fill(path, times(who.hair, 0.8))


def _back_of_head(brush: Brush, who: Person) -> None:
    half = who.face_width / 2 + 0.03
    shade = radial((-0.1, -0.2), 0.7, times(who.hair, 1.4), times(who.hair, 0.7))
    brush.fill(oval(-half, -0.56, 2 * half, 1.0), who.hair, shade)
    for x in (-0.2, -0.07, 0.08, 0.21):
        strand = curve(("M", x * 0.3, -0.5), ("Q", x * 1.6, -0.1, x, 0.38))
        brush.stroke(strand, times(who.hair, 0.7), 0.012, alpha=0.6)


def _ears(brush: Brush, who: Person, shift: Point) -> None:
    for side in (-1, 1):
        centre = side * who.face_width / 2 - shift[0] * 0.4
        brush.fill(oval(centre - 0.05, -0.08, 0.10, 0.2), times(who.skin, 0.88))
        brush.soft(oval(centre - 0.02, -0.04, 0.05, 0.11), times(who.skin, 0.62), 0.47, 0.01)


def _face(brush: Brush, who: Person, state: HeadState, shift: Point) -> None:
    dark, light = times(who.skin, 0.62), mix(who.skin, WHITE, 0.25)
    drop = 0.06 * state.opening  # the jaw falls with the mouth
    dx, dy = shift
    path = _face_path(who, drop)
    brush.fill(path, who.skin, radial((-0.12 + dx, -0.12 + dy), 0.75, light, times(who.skin, 0.72)))
    with brush.clipped(path):
        for side in (-1, 1):
            brush.soft(oval(side * 0.23 - 0.11 + dx, 0.06 + dy, 0.22, 0.16), (225, 110, 100), 0.15, 0.04)
            brush.soft(oval(side * who.face_width / 2 - 0.09, -0.35, 0.18, 0.8), dark, 0.27, 0.06)
            brush.soft(oval(side * who.eye_x - 0.105 + dx, who.eye_y - 0.075 + dy, 0.21, 0.13), dark, 0.37, 0.03)
        brush.soft(oval(-0.16, 0.42 + drop, 0.32, 0.12), dark, 0.25, 0.04)
    if who.beard:
        _beard(brush, who, drop)


def _beard(brush: Brush, who: Person, drop: float) -> None:
    side = who.jaw * who.face_width * 0.46
    path = curve(
        ("M", -side, 0.2), ("C", -0.3, 0.62 + drop, 0.3, 0.62 + drop, side, 0.2),
        ("C", 0.2, 0.42 + drop, -0.2, 0.42 + drop, -side, 0.2), ("Z",),
    )  # fmt: skip
    brush.fill(path, who.hair, alpha=0.8, outline=0.0)


def _eye(brush: Brush, who: Person, state: HeadState, shift: Point, side: int) -> None:
    x, y = side * who.eye_x + shift[0], who.eye_y + shift[1]
    half, lid = 0.078 * who.eye_size, 0.036 * who.eye_size * (1 - state.blink)
    dark = times(who.skin, 0.62)
    white = curve(
        ("M", x - half, y + 0.004), ("Q", x, y - lid * 2, x + half, y - 0.002),
        ("Q", x, y + lid * 1.7, x - half, y + 0.004), ("Z",),
    )  # fmt: skip
    brush.fill(white, (248, 246, 244), outline=0.006)
    with brush.clipped(white):
        gaze_x, gaze_y = x + 0.006 * state.yaw, y - 0.004
        for radius, colour in ((0.034, times(who.eye, 0.55)), (0.028, who.eye), (0.014, (8, 8, 10))):
            size = radius * who.eye_size
            brush.fill(oval(gaze_x - size, gaze_y - size, 2 * size, 2 * size), colour, outline=0.0, tinted=False)
        brush.fill(oval(gaze_x - 0.016, gaze_y - 0.016, 0.012, 0.012), WHITE, outline=0.0)
        brush.soft(box(x - half, y - lid * 2, 2 * half, 0.02), (40, 25, 25), 0.43, 0.008)
    lash = curve(("M", x - half * 1.03, y + 0.004), ("Q", x, y - lid * 2 - 0.004, x + half * 1.03, y - 0.002))
    brush.stroke(lash, (35, 24, 22), 0.013)
    brush.soft(curve(("M", x - half, y - 0.03), ("Q", x, y - 0.085, x + half, y - 0.03)), dark, 0.5, 0.003, 0.009)
    brush.soft(curve(("M", x - half * 0.9, y + 0.018), ("Q", x, y + lid * 1.9 + 0.01, x + half * 0.9, y + 0.012)), dark, 0.43, 0.003, 0.007)  # fmt: skip  # noqa: E501
    top = y - 0.105 - 0.02 * state.brow
    brow = curve(("M", x - side * 0.075, top + 0.018), ("Q", x, top - 0.022, x + side * 0.095, top + 0.012))
    brush.stroke(brow, times(who.hair, 0.8), who.brow + 0.012, alpha=0.92, blur=0.004)


def _glasses(brush: Brush, who: Person, shift: Point) -> None:
    frame = (25, 25, 28)
    for side in (-1, 1):
        lens = box(side * who.eye_x - 0.1 + shift[0], who.eye_y - 0.06 + shift[1], 0.2, 0.125, 0.04)
        brush.stroke(lens, frame, 0.012)
    y = who.eye_y + shift[1]
    brush.stroke(curve(("M", -0.06 + shift[0], y), ("L", 0.06 + shift[0], y)), frame, 0.012)


def _nose(brush: Brush, who: Person, shift: Point) -> Point:
    x, y, size = shift[0] * 1.25, 0.13 + shift[1] * 1.2, who.nose
    dark, light = times(who.skin, 0.62), mix(who.skin, WHITE, 0.25)
    if not brush.shaded:
        line = curve(("M", x - 0.04 * size, y - 0.01), ("Q", x, y + 0.035, x + 0.04 * size, y - 0.01))
        brush.stroke(line, dark, 0.014)
        return x, y
    top = who.eye_y + 0.02
    bridge = [(x * 0.7 - 0.03, top), (x - 0.055 * size, y), (x + 0.055 * size, y), (x * 0.7 + 0.03, top)]
    brush.soft(curve(("M", *bridge[0]), *(("L", *point) for point in bridge[1:]), ("Z",)), dark, 0.18, 0.02)
    brush.soft(curve(("M", x * 0.7 + 0.012, who.eye_y), ("L", x + 0.018, y - 0.02)), light, 0.6, 0.012, 0.028)
    brush.soft(oval(x - 0.042 * size, y - 0.05, 0.084 * size, 0.07), light, 0.43, 0.015)
    for side in (-1, 1):
        brush.soft(oval(x + side * 0.038 * size - 0.02, y - 0.012, 0.04, 0.02), times(dark, 0.45), 0.82, 0.004)
        wing = curve(
            ("M", x + side * 0.058 * size, y - 0.045),
            ("Q", x + side * 0.08 * size, y, x + side * 0.05 * size, y + 0.012),
        )
        brush.soft(wing, dark, 0.6, 0.004, 0.009)
    below = curve(("M", x - 0.05 * size, y + 0.015), ("Q", x, y + 0.03, x + 0.05 * size, y + 0.015))
    brush.soft(below, dark, 0.43, 0.006, 0.012)
    return x, y


def _mouth_half_width(who: Person, state: HeadState) -> float:
    return who.mouth_width * (1 + 0.18 * state.spread - 0.10 * state.opening)


def _lips(x: float, y: float, half: float, upper: float, lower: float, gap: float) -> object:
    """A contour with its cupid's bow: from corner to corner over `upper`, back under `lower`."""
    corner = y + gap * 0.15
    bow = 0.35 * (y - upper)
    return curve(
        ("M", x - half, corner), ("C", x - half * 0.55, upper, x - half * 0.2, upper - bow, x, upper),
        ("C", x + half * 0.2, upper - bow, x + half * 0.55, upper, x + half, corner),
        ("C", x + half * 0.6, lower, x + half * 0.25, lower, x, lower),
        ("C", x - half * 0.25, lower, x - half * 0.6, lower, x - half, corner), ("Z",),
    )  # fmt: skip


def _mouth(brush: Brush, who: Person, state: HeadState, shift: Point, nose_y: float) -> None:
    """The upper lip stays, the lower one falls with the jaw."""
    x, y = shift[0] * 1.05, who.mouth_y + shift[1]
    half, gap, lip = _mouth_half_width(who, state), gap_of(state.opening), who.lip_height
    upper, lower = y - gap * 0.25, y + gap * 0.75
    dark = times(who.skin, 0.62)
    brush.soft(oval(x - half * 0.6, lower + lip * 1.7, half * 1.2, 0.03), dark, 0.43, 0.012)
    brush.soft(curve(("M", x - 0.014, nose_y + 0.035), ("L", x - 0.014, upper - lip * 1.3)), dark, 0.22, 0.006, 0.014)
    brush.fill(_lips(x, y, half, upper - lip, lower + lip * 1.7, gap), who.lip, outline=0.008)
    brush.soft(oval(x - half * 0.35, lower + lip * 0.55, half * 0.7, lip * 0.6), mix(who.lip, WHITE, 0.5), 0.43, 0.008)
    inside, inner = _lips(x, y, half * 0.86, upper, lower + 0.004, gap), half * 0.86
    brush.fill(inside, _MOUTH_INSIDE, outline=0.0, tinted=False)
    if state.opening > 0.12:
        with brush.clipped(inside):
            brush.fill(box(x - inner * 0.62, upper - 0.012, inner * 1.24, 0.036, 0.01), _TEETH, outline=0.0)
            brush.fill(oval(x - inner * 0.5, lower - 0.02, inner, 0.04), _TONGUE, outline=0.0)


def _front_hair(brush: Brush, who: Person) -> None:
    half = who.face_width / 2
    path = {
        "short": curve(
            ("M", -half - 0.02, -0.1), ("C", -0.5, -0.72, 0.5, -0.72, half + 0.02, -0.1),
            ("C", 0.38, -0.3, 0.2, -0.36, 0, -0.34), ("C", -0.2, -0.36, -0.38, -0.3, -half - 0.02, -0.1), ("Z",),
        ),
        "long": curve(
            ("M", -half - 0.04, 0.05), ("C", -0.55, -0.75, 0.55, -0.75, half + 0.04, 0.05),
            ("C", 0.36, -0.25, 0.1, -0.42, -0.05, -0.38), ("C", -0.2, -0.3, -0.36, -0.15, -half - 0.04, 0.05), ("Z",),
        ),
        "bob": curve(
            ("M", -half - 0.03, 0), ("C", -0.52, -0.72, 0.52, -0.72, half + 0.03, 0),
            ("C", 0.36, -0.32, 0.28, -0.28, 0.1, -0.27), ("C", -0.1, -0.26, -0.3, -0.28, -half - 0.03, 0), ("Z",),
        ),
        "cropped": curve(
            ("M", -half, -0.22), ("C", -0.42, -0.64, 0.42, -0.64, half, -0.22),
            ("C", 0.3, -0.42, 0.15, -0.43, 0, -0.43), ("C", -0.15, -0.43, -0.3, -0.42, -half, -0.22), ("Z",),
        ),
    }[who.haircut]  # fmt: skip
    brush.fill(path, who.hair, linear((-0.3, -0.6), (0.3, 0), times(who.hair, 1.5), who.hair))


def _cover(brush: Brush, who: Person, shift: Point) -> None:
    """A mask over mouth and chin: what the mouth does is not seen."""
    half, (dx, dy) = who.face_width / 2, shift
    path = curve(
        ("M", -half * 0.98, 0.06), ("Q", dx, 0.09 + dy, half * 0.98, 0.06), ("L", half * 0.8, 0.36),
        ("Q", dx, 0.68, -half * 0.8, 0.36), ("Z",),
    )  # fmt: skip
    cloth: Colour = (196, 214, 222)
    brush.fill(path, cloth, linear((-half, 0), (half, 0.4), WHITE, times(cloth, 0.75)))
    for y in (0.2, 0.3, 0.4):
        fold = curve(("M", -half * 0.8, y), ("Q", dx, y + 0.07, half * 0.8, y))
        brush.stroke(fold, times(cloth, 0.8), 0.008, alpha=0.7)
