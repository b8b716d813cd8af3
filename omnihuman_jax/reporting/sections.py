"""The sections of the report: each a function from a `RunFolder` to markup; empty where there is nothing to show."""

import base64
import collections
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omnihuman_jax.reporting import charts
from omnihuman_jax.reporting.run_folder import LABELS, RunFolder, stages_of
from omnihuman_jax.runtime import file_names

MAX_VIDEO_BYTES = 12 * 2**20
SMOOTH_SHARE = 0.05
DATA_PAGE = "data.html"
"""What `omnihuman data report` makes of the data, where it lies beside the report."""


def section(title: str, *parts: str) -> str:
    """A section of the page; `parts` are markup already."""
    return f"<section><h2>{html.escape(title)}</h2>{''.join(parts)}</section>"


def _figure(svg: str, caption: str = "", legend: str = "") -> str:
    return (
        f"<figure>{svg}{legend}<figcaption>{caption}</figcaption></figure>"
        if caption or legend
        else f"<figure>{svg}</figure>"
    )


def _table(head: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    """A table; `head` is (title, class) and the cells are markup already."""
    top = "".join(f'<th class="{css}">{html.escape(title)}</th>' for title, css in head)
    body = "".join(
        "<tr>" + "".join(f'<td class="{css}">{cell}</td>' for (_, css), cell in zip(head, row)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _missing(what: str, command: str) -> str:
    return f'<p class="note">No {what} here yet: {_command(command)}</p>'


def _command(command: str) -> str:
    """A command as code in which no option is torn apart at its hyphens."""
    words = (
        f"<span>{html.escape(word)}</span>" if word.startswith("-") else html.escape(word) for word in command.split()
    )
    return f'<code class="command">{" ".join(words)}</code>'


def funnel_section(folder: RunFolder) -> str:
    """Which clips can train which conditions, and why the others cannot."""
    funnel = folder.funnel
    if funnel is None:
        return section("The data", _missing("funnel", f"omnihuman curate --source DIR --out {folder.root}/clips"))
    total = max(funnel["clips"], 1)
    bars = [
        [label, charts.bar(count / total, f"var(--{label})"), f"{count} of {funnel['clips']}"]
        for label in LABELS
        for count in [funnel["eligible"].get(label, 0)]
    ]
    clips = []
    for row in funnel["rows"]:
        cells = []
        for label in LABELS:
            if label in row["eligible"]:
                cells.append('<span class="yes">yes</span>')
            else:
                cells.append(f'<span class="no">no</span><small>{_reason(row.get("reasons", {}).get(label))}</small>')
        clips.append([text(row["label"]), f"{row['seconds']:.1f}", *cells])
    left_out = [
        [text(row["video"]), text(row.get("stage", "cut")), text(row["reason"])]
        for row in (*funnel.get("quarantine", ()), *funnel.get("dropped", ()))
    ]
    parts = [
        (
            "<p>A clip that fails the filter of a stronger condition still trains the weaker ones. What it fails is"
            " written on it.</p>"
        ),
        _table((("condition", ""), ("eligible clips", ""), ("", "n")), bars),
        _table((("clip", ""), ("s", "n"), *((label, "") for label in LABELS)), clips),
    ]
    if (folder.root / DATA_PAGE).is_file():
        parts.append(
            f'<p><a href="{DATA_PAGE}">{DATA_PAGE}</a>, beside this page: scores beside their thresholds, the clips'
            " nearest each, hours, sizes, repeats.</p>"
        )
    if left_out:
        parts.append("<h3>Left out</h3>" + _table((("what", ""), ("stage", ""), ("why", "")), left_out))
    if lines := [[text(kind), str(len(names)), _listed(names)] for kind, names in _passed_over(funnel)]:
        parts.append("<h3>Passed over</h3>" + _table((("what", ""), ("", "n"), ("which", "")), lines))
    if folder.catalog:
        sizes = ", ".join(f"{size} ({count})" for size, count in folder.catalog["sizes"])
        parts.append(
            f'<p class="note">Encoded into {folder.catalog["windows"]} windows of 1 + 4n frames; the commonest latent'
            f" sizes (frames x height x width): {html.escape(sizes)}.</p>"
        )
    return section("The data", *parts)


def text(value: Any) -> str:
    """Somebody's text, such as a file's name: markup, control characters and marks that turn its direction do
    nothing.
    """
    return html.escape(file_names.printable(str(value)))


def _passed_over(funnel: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    return sorted(funnel.get("passed_over", {}).items())


def _listed(names: Sequence[str], limit: int = 20) -> str:
    return text(", ".join(names[:limit])) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _reason(reason: Any) -> str:
    if not isinstance(reason, Mapping):
        return html.escape(str(reason or ""))
    text = html.escape(str(reason.get("reason", "")))
    score, threshold = reason.get("score"), reason.get("threshold")
    if isinstance(score, int | float) and isinstance(threshold, int | float):
        text += f" ({score:.3g}, asked {threshold:.3g})"
    return text


def training_section(folder: RunFolder) -> str:
    """Loss over all windows and by active set, gradient norm and speed."""
    metrics = folder.metrics
    if not metrics:
        return section("Training", _missing("training", f"omnihuman train --config CONFIG --run {folder.run}"))
    x = [record["step"] for record in metrics]
    stops = [records[-1]["step"] for _, records in stages_of(metrics)]
    bands = [
        charts.Band(label=name, start=start, stop=stop)
        for (name, _), start, stop in zip(stages_of(metrics), [0, *stops[:-1]], stops, strict=True)
    ]
    loss = [record["loss"] for record in metrics]
    span = max(3, round(len(loss) * SMOOTH_SHARE))
    series = [
        charts.Series(label=f"running mean of {span} lines", x=x, y=charts.smooth(loss, span)),
        charts.Series(label="as logged", x=x, y=loss, color="var(--faint)", style="thin"),
    ]
    chart = charts.line_chart(series, bands=bands, label="loss over steps")
    caption = (
        "Squared velocity error, mean over all noisy video tokens. The pale line is what was logged, the strong one"
        f" its running mean over {span} lines. Shaded: the stages. A flow-matching loss levels off where the noise is"
        " unpredictable: its level says less than the samples do."
    )
    return section(
        "Training",
        _figure(chart, caption),
        f"<h3>Loss by active set</h3>{_set_charts(metrics, x, span)}",
        f"<h3>Gradient norm, learning rate and speed</h3>{_small_charts(metrics, x, bands)}",
    )


def _set_charts(metrics: Sequence[Mapping[str, Any]], x: Sequence[float], span: int) -> str:
    """Small multiples on one scale: each set of active conditions against the loss of all windows."""
    seen: dict[str, int] = collections.Counter(
        key[5:] for record in metrics for key in record if key.startswith("loss/")
    )
    overall = charts.smooth([record["loss"] for record in metrics], span)
    lines = {name: [float(record.get(f"loss/{name}", math.nan)) for record in metrics] for name in seen}
    smoothed = {name: charts.smooth(values, span) for name, values in lines.items()}
    finite = [v for values in (*smoothed.values(), overall) for v in values if math.isfinite(v)]
    if not finite:
        return ""
    y_range = (min(0.0, min(finite)), max(finite) * 1.05)
    figures = []
    for name in sorted(seen, key=lambda n: (n.count("+") + (n != "none"), n)):
        color = f"var(--{name.split('+')[-1]})" if name != "none" else "var(--soft)"
        series = [
            charts.Series(label="all windows", x=x, y=overall, color="var(--faint)", style="thin"),
            charts.Series(label=name, x=x, y=smoothed[name], color=color),
        ]
        chart = charts.line_chart(
            series, width=300, height=120, y_range=y_range, x_range=(x[0], x[-1]), compact=True, label=f"loss of {name}"
        )
        last = next((v for v in reversed(smoothed[name]) if math.isfinite(v)), math.nan)
        figures.append(
            f"<figure><figcaption><b>{html.escape(name)}</b><span>{last:.3f}</span></figcaption>{chart}</figure>"
        )
    note = (
        '<p class="note">One panel for each set of conditions that was active, on one scale; pale: all windows. '
        "The number is the last value of the running mean.</p>"
    )
    return f'<div class="grid-of">{"".join(figures)}</div>{note}'


def _small_charts(metrics: Sequence[Mapping[str, Any]], x: Sequence[float], bands: Sequence[charts.Band]) -> str:
    figures = []
    for key, name in (
        ("grad_norm", "gradient norm"),
        ("learning_rate", "learning rate"),
        ("tokens_per_s", "tokens/s"),
        ("step_time_s", "seconds a step"),
        ("flops_per_s", "FLOP/s of the model"),
        ("matmul_peak_share", "share of the measured peak"),
    ):
        values = [float(record.get(key, math.nan)) for record in metrics]
        if not any(math.isfinite(v) for v in values):
            continue
        last = next(v for v in reversed(values) if math.isfinite(v))
        series = [charts.Series(label=name, x=x, y=values)]
        chart = charts.line_chart(series, width=300, height=110, bands=(), compact=True, label=name)
        figures.append(
            f"<figure><figcaption><b>{name}</b><span>{charts.number(last)}</span></figcaption>{chart}</figure>"
        )
    return f'<div class="grid-of">{"".join(figures)}</div>'


def ratio_section(folder: RunFolder) -> str:
    """Realised beside target, stage by stage."""
    parts = []
    for name, records in stages_of(folder.metrics):
        last = records[-1]
        rows = [
            (label, f"var(--{label})", float(last[f"ratio_target/{label}"]), float(last[f"ratio/{label}"]))
            for label in LABELS
            if f"ratio_target/{label}" in last
        ]
        if rows:
            parts.append(
                f"<h3>{html.escape(name)}</h3>" + _figure(charts.ratio_dots(rows, label=f"ratios of stage {name}"))
            )
    if not parts:
        return ""
    note = (
        "<p>The share of a stage's windows on which each condition was active. Dot: realised, counted in the train step"
        " itself; upright mark: the target; right: the difference in percentage points.</p>"
    )
    return section("Condition ratios", note, *parts)


def data_uri(path: Path, kind: str) -> str:
    """A file inside the page."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def player(path: Path, caption: str, *, silent: bool = False) -> str:
    """A video inside the page; a silent one, too small for controls over it, plays by itself in a loop."""
    if path.stat().st_size > MAX_VIDEO_BYTES:
        name = text(path)
        return f"<figure><figcaption>{caption}<br><code>{name}</code> is too large to carry along</figcaption></figure>"
    how = "autoplay muted" if silent else 'controls preload="auto"'
    video = f'<video {how} loop playsinline src="{data_uri(path, "video/mp4")}"></video>'
    return f"<figure>{video}<figcaption>{caption}</figcaption></figure>"


def samples_section(folder: RunFolder) -> str:
    """The samples, playing, each with the command that made it where that is known."""
    if not folder.samples:
        return section(
            "Samples",
            _missing("samples", f"omnihuman generate --run {folder.run} --image IMAGE --audio SOUND --out x.mp4"),
        )
    players = []
    for path in folder.samples:
        made_by = next((s["command"] for s in folder.steps.values() if str(path) in s.get("command", "").split()), "")
        caption = f"<b>{text(path.stem.replace('_', ' '))}</b>" + (f"<br>{_command(made_by)}" if made_by else "")
        players.append(player(path, caption))
    return section("Samples", f'<div class="players">{"".join(players)}</div>')


KINDS = (
    ("sample", "own pose + audio"),
    ("still", "still reference"),
    ("other_pose", "another's pose"),
    ("other_audio", "another's audio"),
)


def psnr_interval_cells(result: Mapping[str, Any]) -> list[str]:
    """The ends of the means' 95 % intervals, in the order of the table's columns; of an evaluation of before, none."""
    found = result.get("mean_intervals", {"psnr": {}, "psnr_mouth": {}})
    of = [found["psnr"].get(kind) for kind, _ in KINDS]
    of += [found["psnr_mouth"].get(kind) for kind in ("sample", "other_audio")]
    # The PSNR of equal pictures is infinite, for which JSON has no number.
    ends = [(one["low"], one["high"]) if one else () for one in of]
    return [
        f"{p[0]:.2f} to {p[1]:.2f}" if p and all(e is not None and math.isfinite(e) for e in p) else "-" for p in ends
    ]


def evaluation_section(folder: RunFolder) -> str:
    """Do the conditions drive the output: table, contact sheet, and the comparisons playing."""
    result = folder.evaluation
    if result is None:
        return section(
            "Evaluation", _missing("evaluation", f"omnihuman evaluate --run {folder.run} --out {folder.root}")
        )

    def cells(whole: Mapping[str, float | None], mouth: Mapping[str, float | None] | None) -> list[str]:
        values = [whole[kind] for kind, _ in KINDS] + [mouth and mouth[kind] for kind in ("sample", "other_audio")]
        return ["-" if value is None else f"{value:.2f}" for value in values]

    rows = [
        [f'<code class="id">{html.escape(row["window_id"])}</code>', *cells(row["psnr"], row["psnr_mouth"])]
        for row in result["windows"]
    ]
    means = ["<b>mean</b>", *(f"<b>{cell}</b>" for cell in cells(result["mean_psnr"], result["mean_psnr_mouth"]))]
    head = [("window", ""), *((title, "n") for _, title in KINDS), ("mouth: own", "n"), ("mouth: another's audio", "n")]
    parts = [
        (
            f"<p>Windows of split {html.escape(result.get('split', 'train'))}, sampled with their own pose and audio,"
            " with another clip's pose, and with another clip's audio, all from the same noise. PSNR in dB against the"
            " truth: the codec's own round trip of the frames. Of windows that were trained on, it shows that the"
            " conditions drive what was learnt, and says nothing about people or voices that were not.</p>"
        ),
        _table(head, [*rows, means, ["95 %", *psnr_interval_cells(result)]]),
        '<p class="note">The interval is a bootstrap over videos, then over the windows of each. '
        f"Step {result['step']}, {html.escape(result['weights'])} weights, {result['sampling_steps']}"
        " steps of the "
        f"sampler, guidance scale {result['guidance']['scale']:g}, seed {result['seed']}.</p>",
    ]
    if folder.contact_sheet:
        parts.append(
            '<figure class="sheet"><img alt="contact sheet"'
            f' src="{data_uri(folder.contact_sheet, "image/png")}"><figcaption>Contact sheet: frames of each window,'
            " truth above, then its samples. Enlarged without smoothing.</figcaption></figure>"
        )
    if folder.comparisons:
        titles = " | ".join(("truth", *(title for _, title in KINDS[:3])))
        players = "".join(player(path, f"<code>{text(path.stem)}</code>", silent=True) for path in folder.comparisons)
        parts.append(f'<h3>The same, moving: {titles}</h3><div class="players wide">{players}</div>')
    return section("Evaluation", *parts)


def demo_section(folder: RunFolder) -> str:
    """The commands of `omnihuman demo`, their time and memory."""
    done = [(name, stamp) for name, stamp in folder.steps.items() if "command" in stamp]
    if not done:
        return ""
    rows = [
        [_command(stamp["command"]), f"{stamp['seconds']:.0f}", f"{stamp['peak_bytes'] / 2**30:.1f}"]
        for _, stamp in done
    ]
    return section("Every command", _table((("command", ""), ("seconds", "n"), ("largest process, GiB", "n")), rows))
