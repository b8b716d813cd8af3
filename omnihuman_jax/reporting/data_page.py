"""The page of a data set: funnel, scores beside their thresholds, the clips nearest each, hours, repeats, sizes, dead
letters. One file that loads nothing from anywhere.
"""

import collections
import html
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.dataset_files import dataset_folder, generations_up_to
from omnihuman_jax.data.generations import Generation, numbered
from omnihuman_jax.reporting import charts
from omnihuman_jax.runtime import file_names, files

_LABELS = [condition.label for condition in Condition]
_LISTED = 50


def write_page(path: Path, facts: Mapping[str, Any]) -> None:
    """Writes the page of what `data_facts.read_facts` found, whole or not at all."""
    files.write_text(path, page(facts))


def page(facts: Mapping[str, Any]) -> str:
    """The whole document."""
    css = importlib.resources.files("omnihuman_jax.reporting").joinpath("style.css").read_text(encoding="utf-8")
    dataset = facts["dataset"]
    body = [
        "<h1>The data</h1>",
        '<p class="lead">What came in, what can be trained on, and why the rest cannot.</p>',
        _funnel(facts["funnel"]),
        _dataset(dataset) if dataset else "",
        _histograms(facts["histograms"]),
        _nearest(facts["nearest"]),
        _dead_letters(facts["funnel"], dataset),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>The data - OmniHuman-JAX</title><style>{css}</style></head><body><main>{''.join(body)}"
        "<footer>Made by <code>omnihuman data report</code>. This page loads nothing from anywhere.</footer>"
        "</main></body></html>\n"
    )


def _text(value: Any) -> str:
    """Somebody's text, such as a file's name: markup and control characters do nothing."""
    return html.escape(file_names.printable(str(value)))


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{''.join(parts)}</section>"


def _table(head: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    """`head` is (title, class); the cells are markup already."""
    top = "".join(f'<th class="{css}">{html.escape(title)}</th>' for title, css in head)
    cells = (
        "".join(f'<td class="{css}">{cell}</td>' for (_, css), cell in zip(head, row, strict=True)) for row in rows
    )
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h"


def _funnel(funnel: Mapping[str, Any] | None) -> str:
    if funnel is None:
        return _section("Funnel", '<p class="note">The sets that it was encoded from are not here.</p>')
    dead = sum(funnel["dead_letters"].values())
    rows = [
        ["videos", str(funnel["videos"]), ""],
        ["dead letters", str(dead), ""],
        ["shots too short", str(funnel["dropped_shots"]), _hours(funnel["dropped_seconds"])],
        ["clips", str(funnel["clips"]), _hours(funnel["seconds"])],
        ["clips that serve no condition", str(funnel["serves_none"]), ""],
    ]
    total = max(1, funnel["clips"])
    bars = [
        [
            label,
            charts.bar(funnel["eligible"][label] / total, f"var(--{label})"),
            str(funnel["eligible"][label]),
            _hours(funnel["eligible_seconds"][label]),
        ]
        for label in _LABELS
    ]
    reasons = [
        [label, _text(reason), str(count)]
        for label in _LABELS
        for reason, count in sorted(funnel["reasons"][label].items(), key=lambda item: -item[1])
    ]
    return _section(
        "Funnel",
        _table((("", ""), ("", "n"), ("", "n")), rows),
        _table((("condition", ""), ("of the clips", ""), ("clips", "n"), ("hours", "n")), bars),
        "<h3>Why not</h3>" + _table((("condition", ""), ("first check that failed", ""), ("clips", "n")), reasons),
    )


def _dataset(dataset: str) -> str:
    catalog = Catalog.load(dataset)
    pieces = zip(catalog.frames.tolist(), catalog.height.tolist(), catalog.width.tolist(), strict=True)
    sizes = collections.Counter(pieces)
    size_rows = [[f"{f} x {h} x {w}", str(count)] for (f, h, w), count in sizes.most_common(_LISTED)]
    by_set = []
    for bits, count in sorted(collections.Counter(catalog.eligible.tolist()).items()):
        seconds = float(catalog.duration_s[catalog.eligible == bits].sum())
        by_set.append([ConditionSet(int(bits)).label, str(count), _hours(seconds)])
    by_split = [[_text(name), str(n)] for name, n in sorted(collections.Counter(catalog.split.tolist()).items())]
    clips = len(set(catalog.clip_id))
    summary = _summary(dataset_folder(dataset))
    quality = summary.get("round_trip_psnr_db")
    notes = [f"{len(catalog)} windows of {clips} clips, {_hours(float(catalog.duration_s.sum()))} of windows"]
    there = generations_up_to(dataset)
    shards = [row for one in there for row in _summary(_folder(dataset, one))["shards"]]
    notes += [f"{len(shards)} shards, {sum(shard['bytes'] for shard in shards) / 2**20:.1f} MiB"]
    if {"dataset", "weight"} & summary.keys():
        notes += [f"in a mix: {summary.get('dataset') or 'no name'}, weight {summary.get('weight', 1):g}"]
    notes += [f"round trip of the codec: {quality:.1f} dB"] if quality else []
    return _section(
        "Windows",
        f"<p>{_text('; '.join(notes))}.</p>",
        _generations(dataset, there) if len(there) > 1 else "",
        "<h3>Hours by eligible set</h3>" + _table((("set", ""), ("windows", "n"), ("hours", "n")), by_set),
        "<h3>How often a window is drawn</h3>" + _repeats(catalog),
        "<h3>Sizes</h3>" + _table((("frames x height x width", ""), ("windows", "n")), size_rows),
        "<h3>Splits</h3>" + _table((("split", ""), ("windows", "n")), by_split),
    )


def _folder(dataset: str, one: Generation) -> Path:
    """The local folder of a generation of the data set."""
    return dataset_folder(numbered(dataset, one.number))


def _summary(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "encode.json").read_text())
    return summary


def _generations(dataset: str, there: Sequence[Generation]) -> str:
    """What each append has added, up to the generation that the page is of."""
    rows, before = [], 0
    for one in there:
        gone = before + one.records - one.windows
        rows.append([str(one.number), str(one.windows), str(one.records), str(gone)])
        before = one.windows
    head = (("generation", "n"), ("windows", "n"), ("encoded for it", "n"), ("left out of the one before", "n"))
    return "<h3>Generations</h3>" + _table(head, rows)


def _repeats(catalog: Catalog) -> str:
    """In an hour of training with a condition active, how often each second that serves it comes by."""
    train = catalog.split == "train"
    rows = []
    for condition in Condition:
        serves = train & (catalog.eligible >> condition & 1 > 0)
        hours = float(catalog.duration_s[serves].sum()) / 3600
        rows.append([condition.label, f"{hours:.2f}", f"{100 / hours:.1f}" if hours else "cannot be trained"])
    head = (("active condition", ""), ("hours that serve it", "n"), ("passes in 100 hours of training on it", "n"))
    return _table(head, rows)


def _histograms(histograms: Sequence[Mapping[str, Any]]) -> str:
    if not histograms:
        return ""
    figures = []
    for one in histograms:
        chart = charts.histogram(one["counts"], one["low"], one["high"], one["marks"], one["score"])
        limits = ", ".join(charts.number(value) for _, value in one["marks"])
        figures.append(
            f"<figure><figcaption><b>{_text(one['score'])}</b><span>{limits}</span></figcaption>{chart}</figure>"
        )
    note = "<p>The middle 99 % of the clips, and where the thresholds are (upright lines).</p>"
    return _section("Scores", note, f'<div class="grid-of">{"".join(figures)}</div>')


def _nearest(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    parts = []
    for row in rows:
        figures = "".join(_clip(clip) for clip in row["clips"])
        title = f"{_text(row['reason'])}: {_text(row['score'])}, threshold {charts.number(row['threshold'])}"
        parts.append(f'<h3>{title}</h3><div class="players">{figures}</div>')
    note = "<p>If these look wrong on either side, so is the threshold.</p>"
    return _section("The clips nearest each threshold", note, *parts)


def _clip(clip: Mapping[str, Any]) -> str:
    image = f'<img alt="" src="data:image/jpeg;base64,{clip["thumbnail"]}">' if clip["thumbnail"] else ""
    caption = f"{_text(clip['label'])}<br><b>{charts.number(clip['score'])}</b>"
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _dead_letters(funnel: Mapping[str, Any] | None, dataset: str | None) -> str:
    letters, total = list(funnel["quarantine"]) if funnel else [], sum(funnel["dead_letters"].values()) if funnel else 0
    if dataset:
        summary = _summary(dataset_folder(dataset))
        letters, total = letters + summary.get("quarantine", []), total + summary.get("dead_letters", 0)
    if not letters:
        return _section("Dead letters", "<p>None.</p>")
    rows = [[_text(row["video"]), _text(row["stage"]), _text(row["reason"])] for row in letters[:_LISTED]]
    more = f'<p class="note">and {total - len(rows):,} more</p>' if total > len(rows) else ""
    return _section("Dead letters", _table((("video", ""), ("stage", ""), ("why", "")), rows), more)
