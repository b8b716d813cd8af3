"""What docs/any_clip_trains.md says of the experiment, out of `any_clip.json`: tables and two pictures.

python -m tests.any_clip.page runs/any_clip/any_clip.json    # into docs/, as `--write` of the experiment does
"""

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.reporting import charts
from omnihuman_jax.runtime import files
from tests.chaos import page as regions

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "any_clip_trains.md"
PICTURES = ROOT / "docs" / "pictures"
REGION = "any-clip"
_COLORS = ("var(--soft)", "var(--audio)", "var(--pose)", "var(--accent)")
# The loss of these is drawn: the commonest sets, with and without each strong condition.
_DRAWN = tuple(
    ConditionSet.of(Condition.TEXT, Condition.REFERENCE, *more).label
    for more in ((), (Condition.AUDIO,), (Condition.POSE,), (Condition.AUDIO, Condition.POSE))
)


def tables(result: Mapping[str, Any]) -> str:
    """Everything between the page's markers."""
    parts = (_the_set, _corrupt, _ratios, _active_sets, _held_out)
    return "\n".join(line for part in parts for line in part(result))


def write(result: Mapping[str, Any]) -> None:
    """The tables into the page, the pictures beside it."""
    regions.write(REGION, tables(result), PAGE)
    write_pictures(result, PICTURES)


def write_pictures(result: Mapping[str, Any], folder: Path) -> None:
    for name, svg in (("loss", _loss_chart(result)), ("held_out", _held_out_chart(result))):
        files.write_text(folder / f"any_clip_{name}.svg", svg)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines]


def _the_set(result: Mapping[str, Any]) -> list[str]:
    clips, windows = result["clips"], result["windows"]
    seeds = ", ".join(map(str, result["seeds"]))
    of_all = clips["trained on"]
    shares = ", ".join(f"{clips[n]} {n} ({clips[n] / of_all:.0%})" for n in ("silent", "without a pose", "corrupt"))
    return [
        f"{result['hours']} hours; {result['steps']} steps an arm, seeds {seeds}; {result['cpu_minutes']} CPU minutes"
        " for everything.",
        "",
        f"{of_all} clips to train on: {shares}; {clips['complete']} are whole. {clips['held out']} more are"
        f" held out, all of them complete. `all` trains on {windows['all']} windows, `complete` on"
        f" {windows['complete']}.",
        "",
    ]


def _corrupt(result: Mapping[str, Any]) -> list[str]:
    rows = [(row["done"], row["stage"], row["reason"]) for row in result["became"]]
    found = ", ".join(f"{kind} x {times}" for kind, times in result["found_by_check"].items())
    return [
        "### What became of each corrupt clip",
        "",
        *_table(("what was done to it", "who noticed", "reason, as written down"), rows),
        "",
        f"`omnihuman data check` on the same data set: {found}.",
        "",
    ]


def _ratios(result: Mapping[str, Any]) -> list[str]:
    lines = ["### Ratios, window by window", ""]
    rows = []
    for arm, seen in result["ratios"].items():
        for condition in Condition:
            asked, placed, read = (seen[name][condition.label] for name in ("asked", "placed", "read"))
            ratio = asked / seen["windows"]
            rows.append(
                (
                    arm, condition.label, f"{ratio:.0%}", f"{asked:.1f} of {seen['windows']}", placed,
                    f"{100 * (placed / seen['windows'] - ratio):+.3f}", f"{read} of {seen['readable']}",
                    f"{100 * (read / seen['readable'] - ratio):+.2f}",
                )
            )  # fmt: skip
    head = ("arm", "condition", "configured", "asks for", "planned", "points off", "of them readable", "points off")
    return [*lines, *_table(head, rows), ""]


def _active_sets(result: Mapping[str, Any]) -> list[str]:
    losses, windows = result["losses"]["all"], result["ratios"]["all"]["by_set"]
    quarter = max(1, len(losses["step"]) // 4)
    rows = []
    for active in ConditionSet.every():
        name, found = active.label, result["gradients"].get(active.label)
        if not windows.get(name):
            continue
        begin, end = (_mean(losses.get(f"loss/{name}", ())[part]) for part in (slice(quarter), slice(-quarter, None)))
        cells = ["-"] * 4
        if found:
            largest = [found["largest"][group] for group in ("audio", "pose")]
            cells = [str(found["windows"]), f"{found['norm']:.3f}"]
            cells += [f"{value:.3g}" if value else "exactly 0" for value in largest]
        rows.append((name, windows[name], begin, end, *cells))
    head = ("active set", "windows", "loss, first quarter", "last quarter", "looked at", "gradient norm, median",
            "largest of the audio branch", "of the pose branch")  # fmt: skip
    steps = ", ".join(map(str, result["looked_at"]))
    return [
        "### Loss and gradient norm by active set",
        "",
        *_table(head, rows),
        "",
        f"Arm `all`, seed {result['seeds'][0]}. Gradients are those of one window alone, at steps {steps}"
        " (`omnihuman replay`), each with the parameters that the step had.",
        "",
    ]


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if known else "-"


def _held_out(result: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, one in result["held_out"]["measures"].items():
        arms = [_interval(*values) for values in one["arms"]]
        by_seed = ", ".join(f"{value:+.4f}" for value in one["by_seed"])
        rows.append((name, *arms, _interval(*one["difference"], sign="+"), by_seed,
                     f"{one['windows']} of {one['people']}"))  # fmt: skip
    head = ("held-out clips", "`all`", "`complete`", "difference", "of each seed", "windows of people")
    return ["### Held-out clips, at the last step", "", *_table(head, rows)]


def _interval(value: float, low: float, high: float, sign: str = "") -> str:
    return f"{value:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def _loss_chart(result: Mapping[str, Any]) -> str:
    losses = result["losses"]["all"]
    series = [
        charts.Series(
            label=name,
            x=losses["step"],
            y=charts.smooth([float("nan") if v is None else v for v in losses[f"loss/{name}"]], 5),
            color=color,
        )
        for name, color in zip(_DRAWN, _COLORS, strict=True)
        if f"loss/{name}" in losses
    ]
    return charts.standalone(charts.line_chart(series, label="loss by active set over steps"), series)


def _held_out_chart(result: Mapping[str, Any]) -> str:
    found, name = result["held_out"], "loss, with their sound"
    named, thin = [], []
    for arm, curves, color in zip(result["ratios"], found["measures"][name]["curves"], _COLORS[3:0:-2], strict=True):
        means = [sum(values) / len(values) for values in zip(*curves, strict=True)]
        named.append(charts.Series(label=f"{arm}, mean of the seeds", x=found["steps"], y=means, color=color))
        thin += [charts.Series(label=arm, x=found["steps"], y=y, color=color, style="thin") for y in curves]
    drawn = list(itertools.chain(named, thin))
    return charts.standalone(charts.line_chart(drawn, label="loss of held-out clips over steps"), named)


if __name__ == "__main__":
    write(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
