"""The page of an experiment: what was asked, what came out, curves, clips. It loads videos and pictures beside it."""

import html
import importlib.resources
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omnihuman_jax.reporting import charts

_COLORS = ("#1f5fbf", "#b5540c", "#1b7f4b", "#7440c4", "#c23b78", "#0e7c74", "#c9a227", "#8a8f98")
_HEAD = ("claim", "verdict", "difference [95 %]", "each seed", "smallest that counts", "n", "why")


def page(found: Mapping[str, Any], folder: Path, runs: Mapping[str, Path]) -> str:
    """The document.

    Args:
        found: `ablations.json`: suite, rows, curves.
        folder: where the page lies; runs: arm -> run of the first seed, whose pictures and videos are shown.
    """
    css = importlib.resources.files("omnihuman_jax.reporting").joinpath("style.css").read_text(encoding="utf-8")
    seeds = len(found["suite"]["seeds"])
    body = [
        "<h1>Do the ratios do what the paper says?</h1>",
        f'<p class="lead">{html.escape(_size(found["suite"]))}</p>',
        f"<section><h2>Verdicts</h2><p>{html.escape(rule(seeds))}</p>{_table(found)}</section>",
        _curves(found["curves"]),
        _clips(folder, runs),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>Ablations - OmniHuman-JAX</title><style>{css}</style></head><body><main>{''.join(body)}"
        "<footer>Made by <code>omnihuman ablate</code>.</footer></main></body></html>\n"
    )


def rule(seeds: int) -> str:
    """What a verdict means, and what it is worth with so many seeds."""
    return (
        "Reproduced: every seed agrees in sign, the 95 % interval (a bootstrap over seeds, people and windows, the same"
        " windows and noise in both arms) excludes zero, and the mean is at least the smallest effect that counts."
        " Opposite: the same with the other sign. All else is not shown. Three seeds that agree with a claim happen by"
        f" chance once in eight; {seeds} seeds, once in {2**seeds}. All that was asked is in the table."
    )


def _size(suite: Mapping[str, Any]) -> str:
    parts = [
        f"{part['name']}: {sum(row['steps'] for row in part['shared'])} shared steps, then"
        f" {', '.join(str(n) for n in sorted({arm['stage']['steps'] for arm in part['arms']}))} an arm"
        for part in suite["parts"]
    ]
    return f"{'; '.join(parts)}; seeds {', '.join(map(str, suite['seeds']))}; split {suite['split']}."


def _table(found: Mapping[str, Any]) -> str:
    asked = {one["name"]: one for one in found["suite"]["comparisons"]}
    lines = [_cells(row, asked[row["comparison"]]) for row in found["rows"]]
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    head = "".join(f"<th>{html.escape(title)}</th>" for title in _HEAD)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(row: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    claim = f"{asked['claim']} ({asked['metric']}: {asked['more']} above {asked['less']})"
    why = row["why"] + (f"; doubtful from the start: {asked['doubtful']}" if asked["doubtful"] else "")
    if "effect" not in row:
        return [claim, row["verdict"], "-", "-", f"{asked['smallest']:g}", "-", why]
    each = "; ".join(
        f"{_number(more)} against {_number(less)}" for more, less in zip(row["more"], row["less"], strict=True)
    )
    low, high = row["interval"]
    difference = f"{_number(row['effect'])} [{_number(low)}, {_number(high)}]"
    count = f"{row['windows']} / {row['people']}"
    return [claim, row["verdict"], difference, each, f"{asked['smallest']:g}", count, why]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _curves(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Mouth correlation over steps, and over the windows with audio that an arm has seen: fewer of them is a cause of
    its own.
    """
    measured = {name: one for name, one in curves.items() if one["step"]}
    if not measured:
        return "<section><h2>Curves</h2><p>Nothing was measured while the arms trained.</p></section>"
    arms = list(dict.fromkeys(name.split(",")[0] for name in measured))
    drawn = []
    for axis, label in (("step", "step"), ("audio_windows", "windows with audio seen")):
        series = [
            charts.Series(
                label=name, x=one[axis], y=one["mouth"], color=_COLORS[arms.index(name.split(",")[0]) % len(_COLORS)]
            )
            for name, one in measured.items()
        ]
        drawn.append(charts.line_chart(series, x_label=label, label=f"mouth correlation over {label}"))
        drawn.append(charts.legend(series))
    return f"<section><h2>Mouth correlation while the arms trained</h2>{''.join(drawn)}</section>"


def _clips(folder: Path, runs: Mapping[str, Path]) -> str:
    """The last samples of each arm's training, of the same windows and noise, and its contact sheet."""
    figures = []
    for arm, run in runs.items():
        rounds = sorted(run.glob("training_samples/step_*"), key=lambda path: int(path.name.split("_")[1]))
        videos = sorted(rounds[-1].glob("*.mp4")) if rounds else []
        shown = "".join(
            f'<video controls muted loop playsinline preload="metadata" src="{_place(video, folder)}"></video>'
            for video in videos
        )
        sheet = run / "evaluation" / "lip_sync.png"
        picture = f'<img alt="samples of {html.escape(arm)}" src="{_place(sheet, folder)}">' if sheet.is_file() else ""
        figures.append(
            f'<figure><div class="players">{shown}</div>{picture}<figcaption>{html.escape(arm)}</figcaption></figure>'
        )
    return f"<section><h2>Clips of the first seed</h2>{''.join(figures)}</section>"


def _place(path: Path, folder: Path) -> str:
    return html.escape(Path(os.path.relpath(path, folder)).as_posix(), quote=True)
