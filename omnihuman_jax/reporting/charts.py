"""Line charts and bars as inline SVG: pure functions from numbers to markup, styled by the page's own CSS variables.

No script and no fonts of their own: an element's colour is `var(--NAME)`, so that one drawing serves the light and the
dark page; exact values are in `<title>` elements, which browsers show on hover.
"""

import dataclasses
import html
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A line: its name, x and y of one length (gaps where y is not finite), the CSS colour, and how it is drawn.

    style: "line", "thin" (behind the others) or "dashed" (a target).
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: str = "var(--accent)"
    style: str = "line"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """A named stretch of the x axis, e.g. a training stage."""

    label: str
    start: float
    stop: float


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) inside [low, high]."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """A number as a reader wants it: `12.3k`, `340`, `0.25`, `3.4M`, `5e-4`."""
    if not math.isfinite(value):
        return str(value)
    for scale, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= scale:
            divisor = 1e3 if suffix == "k" else scale
            return f"{value / divisor:.3g}{suffix}"
    if 0 < abs(value) < 0.01:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def smooth(values: Sequence[float], span: int) -> list[float]:
    """Centred running mean over `span` values, narrower at the ends; not finite values are left out."""
    y = np.asarray(values, np.float64)
    good = np.isfinite(y)
    total = np.concatenate([[0.0], np.cumsum(np.where(good, y, 0.0))])
    count = np.concatenate([[0], np.cumsum(good)])
    half = max(span // 2, 0)
    reach = np.minimum(half, np.minimum(np.arange(len(y)), np.arange(len(y))[::-1]))
    low, high = np.arange(len(y)) - reach, np.arange(len(y)) + reach + 1
    n = count[high] - count[low]
    return list(np.where(n > 0, (total[high] - total[low]) / np.maximum(n, 1), np.nan))


def _limits(series: Sequence[Series], y_range: tuple[float, float] | None) -> tuple[float, float]:
    if y_range is not None:
        return y_range
    values = np.concatenate([np.asarray(s.y, np.float64) for s in series]) if series else np.zeros(0)
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < 0.4 * high else low - pad), high + pad


def line_chart(
    series: Sequence[Series],
    *,
    width: int = 720,
    height: int = 260,
    y_range: tuple[float, float] | None = None,
    x_range: tuple[float, float] | None = None,
    bands: Sequence[Band] = (),
    x_label: str = "step",
    compact: bool = False,
    label: str = "",
) -> str:
    """An SVG of the series over one x axis, with stage bands behind; `compact` leaves out the x axis's words."""
    left, right, top, bottom = (38, 8, 8, 16) if compact else (48, 12, 22 if bands else 10, 34)
    y_low, y_high = _limits(series, y_range)
    xs = [float(x) for s in series for x in s.x] or [0.0, 1.0]
    x_low, x_high = x_range if x_range is not None else (min(xs), max(xs))
    x_high = x_high if x_high > x_low else x_low + 1

    def px(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * (width - left - right)

    def py(y: float) -> float:
        return height - bottom - (y - y_low) / ((y_high - y_low) or 1.0) * (height - top - bottom)

    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(label, quote=True)}">']
    for index, band in enumerate(bands):
        begin, end = px(max(band.start, x_low)), px(min(band.stop, x_high))
        if end > begin:
            shade = "band" if index % 2 == 0 else "band odd"
            out.append(
                f'<rect class="{shade}" x="{begin:.1f}" y="{top}" width="{end - begin:.1f}"'
                f' height="{height - top - bottom}"/>'
            )
            if (end - begin) > 6.2 * len(band.label):
                out.append(f'<text class="tick" x="{begin + 4:.1f}" y="{top - 6}">{html.escape(band.label)}</text>')
    for value in ticks(y_low, y_high, 3 if compact else 5):
        y = py(value)
        out.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text class="tick" text-anchor="end" x="{left - 6}" y="{y + 3.5:.1f}">{number(value)}</text>')
    for value in ticks(x_low, x_high, 3 if compact else 7):
        anchor = "middle" if px(value) < width - 24 else "end"
        out.append(
            f'<text class="tick" text-anchor="{anchor}" x="{px(value):.1f}"'
            f' y="{height - bottom + 14}">{number(value)}</text>'
        )
    if not compact:
        out.append(
            f'<text class="tick" text-anchor="end" x="{width - right}" y="{height - 4}">{html.escape(x_label)}</text>'
        )
    for s in sorted(series, key=lambda s: s.style != "thin"):
        out.append(_polyline(s, px, py))
    return "".join(out) + "</svg>"


def _polyline(series: Series, px: Callable[[float], float], py: Callable[[float], float]) -> str:
    runs: list[list[str]] = [[]]
    for x, y in zip(series.x, series.y, strict=True):
        if math.isfinite(y):
            runs[-1].append(f"{px(x):.1f},{py(y):.1f}")
        elif runs[-1]:
            runs.append([])
    title = f"<title>{html.escape(series.label)}</title>"
    drawn = []
    for points in runs:
        if len(points) == 1:
            cx, cy = points[0].split(",")
            drawn.append(f'<circle cx="{cx}" cy="{cy}" r="2" fill="{series.color}">{title}</circle>')
        elif points:
            drawn.append(
                f'<polyline class="{series.style}" stroke="{series.color}"'
                f' points="{" ".join(points)}">{title}</polyline>'
            )
    return "".join(drawn)


def legend(series: Sequence[Series]) -> str:
    """Names of the series beside their colours."""
    items = "".join(
        f'<span><i class="{s.style}" style="background:{s.color}"></i>{html.escape(s.label)}</span>'
        for s in series
        if s.style != "thin"
    )
    return f'<p class="legend">{items}</p>'


def ratio_dots(rows: Sequence[tuple[str, str, float, float]], *, width: int = 720, label: str = "") -> str:
    """One line a (name, colour, target, realised) on a scale of 0 to 1: a tick for the target, a dot for what came
    out.
    """
    left, right, top, line = 150, 90, 6, 24
    height = top + line * len(rows) + 22

    def px(value: float) -> float:
        return left + value * (width - left - right)

    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(label, quote=True)}">']
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = px(value)
        out.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - 20}"/>')
        out.append(f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{height - 6}">{value:.0%}</text>')
    for index, (name, color, target, realised) in enumerate(rows):
        y = top + line * index + line / 2
        out.append(f'<text class="name" text-anchor="end" x="{left - 12}" y="{y + 4:.1f}">{html.escape(name)}</text>')
        title = f"<title>{html.escape(name)}: target {target:.4f}, realised {realised:.4f}</title>"
        out.append(f'<circle cx="{px(realised):.1f}" cy="{y:.1f}" r="5" fill="{color}">{title}</circle>')
        out.append(
            f'<line class="target" x1="{px(target):.1f}" x2="{px(target):.1f}" y1="{y - 9:.1f}"'
            f' y2="{y + 9:.1f}">{title}</line>'
        )
        off = (realised - target) * 100
        out.append(f'<text class="tick" x="{width - right + 14}" y="{y + 4:.1f}">{off:+.2f} pp</text>')
    return "".join(out) + "</svg>"


def bar(share: float, color: str = "var(--accent)") -> str:
    """A table cell's bar: `share` of its width in [0, 1]."""
    return f'<span class="bar"><i style="width:{max(0.0, min(1.0, share)):.1%};background:{color}"></i></span>'


def histogram(counts: Sequence[int], low: float, high: float, marks: Sequence[tuple[str, float]], label: str) -> str:
    """Bars of equal width from `low` to `high`; an upright line at each mark (name, value) that lies between."""
    width, height, bottom = 300, 110, 18
    top, step = max([1, *counts]), width / max(1, len(counts))
    span = (high - low) or 1.0
    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(label, quote=True)}">']
    for index, count in enumerate(counts):
        tall = (height - bottom - 4) * count / top
        begin = low + span * index / len(counts)
        title = f"<title>{count} from {number(begin)} to {number(begin + span / len(counts))}</title>"
        place = f'x="{index * step:.2f}" y="{height - bottom - tall:.2f}" width="{step * 0.9:.2f}" height="{tall:.2f}"'
        out.append(f'<rect {place} fill="var(--accent)">{title}</rect>')
    for name, value in marks:
        if low <= value <= high:
            x = width * (value - low) / span
            title = f"<title>{html.escape(name)}: {number(value)}</title>"
            out.append(f'<line class="target" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - bottom}">{title}</line>')
    for value, x, anchor in ((low, 0, "start"), (high, width, "end")):
        out.append(f'<text class="tick" text-anchor="{anchor}" x="{x}" y="{height - 4}">{number(value)}</text>')
    return "".join(out) + "</svg>"


def standalone(svg: str, series: Sequence[Series] = ()) -> str:
    """A drawing of this module as a file of its own, in the light page's colours: for pages that cannot style it.

    `series`: named above it, each in its colour.
    """
    css = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    colors = dict(re.findall(r"(--[\w-]+): (#\w+);", css.split("@media")[0]))
    rules = "\n".join(line.removeprefix("svg ") for line in css.splitlines() if line.startswith("svg "))
    found = re.fullmatch(r'<svg viewBox="0 0 (\d+) (\d+)"([^>]*)>(.*)</svg>', svg, re.DOTALL)
    assert found is not None
    width, height, rest, drawn = int(found[1]), int(found[2]), found[3], found[4]
    top, x, names = 24 * bool(series), 48.0, []
    for one in series:
        names.append(
            f'<rect x="{x:.0f}" y="10" width="16" height="3" fill="{one.color}"/>'
            f'<text x="{x + 21:.0f}" y="15">{html.escape(one.label)}</text>'
        )
        x += 40 + 6.2 * len(one.label)
    whole = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + top}"{rest}><style>{rules}</style>'
        f'<rect width="{width}" height="{height + top}" fill="var(--card)"/>{"".join(names)}'
        f'<g transform="translate(0 {top})">{drawn}</g></svg>\n'
    )
    return re.sub(r"var\((--[\w-]+)\)", lambda color: colors[color[1]], whole)
