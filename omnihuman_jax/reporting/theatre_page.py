"""One page of the theatre's scores: the table, and held-out windows side by side. It loads the videos beside it."""

import html
import importlib.resources
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

HEAD = ("", "value", "95 %", "windows", "people")


def sections(result: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    """(what was measured, its rows of texts, as `HEAD` has them) of a `lip_sync.json` or `pose_drive.json`."""
    for title, rows in _sections(result):
        yield title, [_cells(name, e) for name, e in rows.items()]


def _sections(result: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if "correlation" in result:
        yield "mouth, r within windows", result["correlation"]
    found = {name: e for name, e in result.get("gesture_range", {}).items() if e is not None}
    if found:
        yield "wrists, range as a share of the truth's", found
    joints = result.get("joints", {})
    if joints:
        errors = {name: _percent(e["error"]) for name, e in joints.items()}
        yield "joints by pose alone, error in % of the figure's height", errors
        yield "joints by pose alone, r within windows", {name: e["correlation"] for name, e in joints.items()}
    spread = result.get("gesture_spread")
    if spread:
        found = {"own sound": spread["spread"], "the readout's range": spread["readout"]}
        yield f"arms over {spread['seeds']} seeds, spread as a share of the law's", found
    chains = {name: e for name, e in result.get("chains", {}).items() if isinstance(e, Mapping)}
    if chains:
        yield f"chains of {result['chains']['seconds']:g} s", chains
    against = {name: e for name, e in result.get("against", {}).items() if isinstance(e, Mapping)}
    if against:
        yield f"less {result['against']['file']}, window by window", against


def _percent(e: Mapping[str, Any]) -> dict[str, Any]:
    return {**e} | {name: None if e[name] is None else 100 * e[name] for name in ("value", "low", "high")}


def _cells(name: str, e: Mapping[str, Any]) -> list[str]:
    value, low, high = ("-" if e[k] is None else f"{e[k]:.2f}" for k in ("value", "low", "high"))
    return [name, value, f"{low} .. {high}", str(e["windows"]), str(e["people"])]


def lag(result: Mapping[str, Any]) -> str:
    if result["peak_lag_frames"] is None:
        return "the mouth never moves: there is no lag"
    lags = {name: frames for name, frames in result.get("lags", {}).items() if frames is not None}
    others = [f"{name} {frames}" for name, frames in lags.items() if name != "own sound"]
    told = f"; others: {', '.join(others)}" if others else ""
    return f"the mouth's correlation peaks at a lag of {result['peak_lag_frames']} frames (0: in sync){told}"


def page(result: Mapping[str, Any], videos: Sequence[tuple[str, str]], labels: Sequence[str]) -> str:
    """The document. `videos`: window and place, relative to the page, of `labels` side by side."""
    css = importlib.resources.files("omnihuman_jax.reporting").joinpath("style.css").read_text(encoding="utf-8")
    head = "".join(f"<th>{html.escape(title)}</th>" for title in HEAD)
    body = "".join(
        f'<tr><td colspan="{len(HEAD)}"><b>{html.escape(title)}</b></td></tr>'
        + "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        for title, rows in sections(result)
    )
    players = "".join(
        f'<figure><video controls loop playsinline preload="metadata" src="{html.escape(place)}"></video>'
        f"<figcaption><code>{html.escape(window)}</code></figcaption></figure>"
        for window, place in videos
    )
    lead = f"split {result['split']}, step {result['step']}, {result['weights']} weights; {lag(result)}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Against the truth</title><style>{css}</style></head><body><main><h1>Against the truth</h1>"
        f'<p class="lead">{html.escape(lead)}</p><section><h2>Table</h2><p>The interval is a bootstrap over people,'
        f' then over each one\'s windows.</p><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
        f"<section><h2>{html.escape(', '.join(labels))}</h2>{players}</section></main></body>"
        "</html>\n"
    )
