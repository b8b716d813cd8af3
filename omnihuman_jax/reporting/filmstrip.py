"""What a run showed of itself while it trained: its samples as a filmstrip, and how its evaluations emerged."""

import html
import math
from pathlib import Path

import numpy as np

from omnihuman_jax.evaluation import sheet
from omnihuman_jax.reporting import charts
from omnihuman_jax.reporting.run_folder import RunFolder
from omnihuman_jax.reporting.sections import data_uri, player, section, text
from omnihuman_jax.serving import media_omnihuman

# Pictures of a strip: the first and the last round, and some between.
COLUMNS = 8

CURVES = (
    ("gain/audio", "gain of audio", "share of the denoising loss that a window's own sound takes off"),
    ("harm/audio", "harm of another's audio", "share that another window's sound puts on"),
    ("gain/pose", "gain of pose", "share of the denoising loss that a window's own pose takes off"),
    ("harm/pose", "harm of another's pose", "share that another window's pose puts on"),
    ("mouth/correlation", "mouth against the truth", "correlation within windows; 0 is no lip-sync"),
)


def chosen(rounds: list[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """At most `COLUMNS` of them, evenly, the first and the last among them."""
    count = min(COLUMNS, len(rounds))
    return [rounds[round(i * (len(rounds) - 1) / max(count - 1, 1))] for i in range(count)]


def filmstrip_section(folder: RunFolder) -> str:
    """Rows of the same window or signal, a column a round; the last round plays. Empty without any."""
    rounds = [(step, path) for step, path in folder.rounds if any(path.glob("*.png"))]
    if not rounds:
        return ""
    shown = chosen(rounds)
    names = sorted(path.stem for path in shown[-1][1].glob("*.png"))
    head = "".join(f"<th>step {step:,}</th>" for step, _ in shown)
    rows = []
    for name in names:
        files = [path / f"{name}.png" for _, path in shown]
        cells = "".join(
            f'<td><img alt="{text(name)}, step {step}" src="{data_uri(file, "image/png")}"></td>'
            if file.is_file()
            else "<td></td>"
            for (step, _), file in zip(shown, files, strict=True)
        )
        rows.append(f"<tr><th>{text(name)}</th>{cells}</tr>")
    videos = sorted(shown[-1][1].glob("*.mp4"))
    players = "".join(player(path, f"<b>{text(path.stem)}</b>, step {shown[-1][0]:,}") for path in videos)
    return section(
        "While it trained",
        "<p>The same windows and signals, from the same noise, with the averaged weights of each step: the middle frame"
        " of each sample.</p>",
        f'<div class="scroll"><table class="film"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>",
        f'<div class="players">{players}</div>',
        emergence(folder),
    )


def write_filmstrip(path: Path, folder: RunFolder) -> None:
    """The samples over time as one picture, a row a window or signal and a column a round: PNG of the middle frames, or
    GIF, in which they play.

    Raises:
        FileNotFoundError: the run has no samples.
        ValueError: `path` is neither .png nor .gif, or the windows and signals are not of one size and length.
    """
    if path.suffix not in (".png", ".gif"):
        raise ValueError(f"{path}: a filmstrip is written as .png (middle frames) or .gif (it plays)")
    moves = path.suffix == ".gif"
    kind = ".mp4" if moves else ".png"
    shown = chosen([(step, found) for step, found in folder.rounds if any(found.glob(f"*{kind}"))])
    if not shown:
        raise FileNotFoundError(
            f"{folder.root}: no samples of training in it; train with --config.samples.interval=STEPS"
        )
    in_all = set.intersection(*({file.stem for file in found.glob(f"*{kind}")} for _, found in shown))
    rows = [
        {f"step {step:,}": _frames(found / f"{name}{kind}", moves=moves) for step, found in shown}
        for name in sorted(in_all)
    ]
    if moves:
        sheet.write_gif(path, rows, media_omnihuman.FPS)
    else:
        sheet.write_png(path, sheet.side_by_side(rows)[0])


def _frames(path: Path, *, moves: bool) -> np.ndarray:
    """uint8 [T, H, W, 3]."""
    return media_omnihuman.read_video(path) if moves else media_omnihuman.read_image(path)[None]


def emergence(folder: RunFolder) -> str:
    """A chart for each evaluation that was made while it trained, with its 95 % interval; empty without any."""
    figures = []
    for key, name, what in CURVES:
        lines = [line for line in folder.metrics if key in line]
        if not lines:
            continue
        x = [line["step"] for line in lines]
        bounds = {end: [float(line.get(f"{key}_{end}", math.nan)) for line in lines] for end in ("low", "high")}
        ends = [
            charts.Series(label=f"{name}, {end} end", x=x, y=values, color="var(--faint)", style="thin")
            for end, values in bounds.items()
        ]
        y = [float(line[key]) for line in lines]
        chart = charts.line_chart(
            [*ends, charts.Series(label=name, x=x, y=y)], width=300, height=120, compact=True, label=name
        )
        title = f"<b>{html.escape(name)}</b><span>{y[-1]:.3f}</span>"
        figures.append(f"<figure><figcaption>{title}</figcaption>{chart}<small>{html.escape(what)}</small></figure>")
    return f'<h3>What each condition is worth, over time</h3><div class="grid-of">{"".join(figures)}</div>' * bool(
        figures
    )
