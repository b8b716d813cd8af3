"""One way to draw in three styles: flat colours, soft shading, or ink lines on paper tints."""

from typing import Any

import skia

from data_pipelines.puppet_theatre.colours import WHITE, Colour, mix, times

STYLES = ("flat", "shaded", "line")
Point = tuple[float, float]
_INK: Colour = (30, 24, 28)


def curve(*commands: tuple[Any, ...]) -> Any:
    """A path of ("M", x, y), ("L", x, y), ("Q", 4 numbers), ("C", 6 numbers) and ("Z",), as in SVG."""
    path = skia.Path()
    for name, *numbers in commands:
        {"M": path.moveTo, "L": path.lineTo, "Q": path.quadTo, "C": path.cubicTo, "Z": path.close}[name](*numbers)
    return path


def oval(x: float, y: float, width: float, height: float) -> Any:
    """The ellipse in the box whose upper left corner is (x, y)."""
    path = skia.Path()
    path.addOval(skia.Rect.MakeXYWH(x, y, width, height))
    return path


def box(x: float, y: float, width: float, height: float, radius: float = 0.0) -> Any:
    path = skia.Path()
    path.addRoundRect(skia.Rect.MakeXYWH(x, y, width, height), radius, radius)
    return path


def polygon(points: list[Point]) -> Any:
    return curve(("M", *points[0]), *(("L", *point) for point in points[1:]), ("Z",))


def radial(centre: Point, radius: float, inner: Colour, outer: Colour) -> Any:
    """A shade: `inner` at the centre, `outer` from `radius` on."""
    return skia.GradientShader.MakeRadial(center=centre, radius=radius, colors=[_colour(inner), _colour(outer)])


def linear(start: Point, end: Point, first: Colour, last: Colour) -> Any:
    return skia.GradientShader.MakeLinear(points=[start, end], colors=[_colour(first), _colour(last)])


def _colour(rgb: Colour, alpha: float = 1.0) -> int:
    return int(skia.Color(*(int(max(0, min(255, channel))) for channel in rgb), int(255 * alpha)))


class Brush:
    """Draws on a canvas of skia in one style; coordinates are the canvas's own."""

    def __init__(self, canvas: Any, style: str):
        if style not in STYLES:
            raise ValueError(f"style {style!r}: one of {', '.join(STYLES)}")
        self.canvas, self.style = canvas, style
        self.shaded = style == "shaded"

    def fill(
        self,
        path: Any,
        colour: Colour,
        shade: Any = None,
        alpha: float = 1.0,
        outline: float = 0.014,
        tinted: bool = True,
    ) -> None:
        """A surface: with `shade` where the style is shaded; where it is line, with an ink outline of that width and
        paler, unless it is not `tinted`.
        """
        if self.style == "line":
            self.canvas.drawPath(path, self._paint(mix(colour, WHITE, 0.55) if tinted else colour, alpha))
            if outline:
                self.canvas.drawPath(path, self._paint(_INK, 1.0, stroke=outline))
            return
        self.canvas.drawPath(path, self._paint(colour, alpha, shade=shade if self.shaded else None))

    def soft(self, path: Any, colour: Colour, alpha: float, blur: float, stroke: float = 0.0) -> None:
        """A soft patch (or line) of light or shadow: only in the shaded style."""
        if self.shaded:
            self.canvas.drawPath(path, self._paint(colour, alpha, blur=blur, stroke=stroke))

    def stroke(
        self, path: Any, colour: Colour, width: float, alpha: float = 1.0, blur: float = 0.0, inked: bool = True
    ) -> None:
        """A line, in every style; darker where the style is line, unless it is not `inked`."""
        ink = colour
        if self.style == "line":
            ink = times(colour, 0.6) if inked else mix(colour, WHITE, 0.55)
        self.canvas.drawPath(path, self._paint(ink, alpha, stroke=width, blur=blur if self.shaded else 0.0))

    def clipped(self, path: Any) -> "_Clipped":
        """A `with` in which nothing is drawn outside `path`."""
        return _Clipped(self.canvas, path)

    def _paint(self, colour: Colour, alpha: float, blur: float = 0.0, stroke: float = 0.0, shade: Any = None) -> Any:
        paint = skia.Paint(AntiAlias=True, Color=_colour(colour, alpha))
        if blur:
            paint.setMaskFilter(skia.MaskFilter.MakeBlur(skia.kNormal_BlurStyle, blur))
        if stroke:
            paint.setStyle(skia.Paint.kStroke_Style)
            paint.setStrokeWidth(stroke)
            paint.setStrokeCap(skia.Paint.kRound_Cap)
            paint.setStrokeJoin(skia.Paint.kRound_Join)
        if shade is not None:
            paint.setShader(shade)
        return paint


class _Clipped:
    def __init__(self, canvas: Any, path: Any):
        self._canvas, self._path = canvas, path

    def __enter__(self) -> None:
        self._canvas.save()
        self._canvas.clipPath(self._path, True)

    def __exit__(self, *exception: object) -> None:
        self._canvas.restore()
