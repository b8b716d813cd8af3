"""One page of the field's scores: the table, and every pair of videos side by side. It loads the videos beside it."""

import html
import importlib.resources
import math
from collections.abc import Mapping, Sequence
from typing import Any

HEAD = ("measure", "made [95 %]", "true [95 %]", "closeness [95 %]", "n", "note")


def cells(row: Mapping[str, Any]) -> list[str]:
    """The texts of a row of `field.json`: what is missing is said in the note, and no number stands there."""
    name = row["name"] + (f", {row['unit']}" if row["unit"] else "")
    if row["missing"]:
        return [name, "-", "-", "-", "-", row["missing"]]
    made = row["made"]
    count = f"{made['windows']} / {made['people']}"
    return [name, _interval(made), _interval(row["true"]), _interval(row["closeness"]), count, row["note"]]


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def _interval(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"{_number(found['value'])} [{_number(found['low'])}, {_number(found['high'])}]"


def page(result: Mapping[str, Any], videos: Sequence[tuple[str, str, str, str]]) -> str:
    """The document. `videos`: name, person, and the places of the true and of the made video, relative to the page."""
    css = importlib.resources.files("omnihuman_jax.reporting").joinpath("style.css").read_text(encoding="utf-8")
    head = "".join(f"<th>{html.escape(title)}</th>" for title in HEAD)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(row)) + "</tr>" for row in result["rows"]
    )
    origin = ", ".join(f"{html.escape(str(k))}: {html.escape(str(v))}" for k, v in result.get("of", {}).items())
    players = "".join(
        f'<figure><div class="players">{_player(true, "true")}{_player(made, "made")}</div>'
        f"<figcaption><code>{html.escape(name)}</code>, {html.escape(person)}</figcaption></figure>"
        for name, person, true, made in videos
    )
    lead = f"{result['pairs']} pairs of {result['people']} people ({origin})"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>The field's scores</title><style>{css}</style></head><body><main><h1>The field's scores</h1>"
        f'<p class="lead">{lead}</p><section><h2>Table</h2><p>n: windows / people. The interval is a bootstrap over'
        " people, then over each one's windows. Closeness: 1 - |made - true| / |true| of the means.</p>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></section>'
        f"<section><h2>Pairs: true, made</h2>{players}</section></main></body></html>\n"
    )


def _player(place: str, label: str) -> str:
    return (
        f'<video controls muted loop playsinline preload="metadata" title="{label}" src="{html.escape(place)}"></video>'
    )
