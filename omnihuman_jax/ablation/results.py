"""What came out: a row for each comparison of a suite, out of what `omnihuman evaluate` wrote of its arms."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnihuman_jax.ablation.arm_commands import Places
from omnihuman_jax.ablation.suite import METRICS, Comparison, Suite, rows_of
from omnihuman_jax.evaluation.paired import chance_of_agreement, paired_effect, verdict

NOT_RUN = "not run"
LIP_SYNC = "lip_sync.json"
"""What `omnihuman evaluate --suite theatre` writes."""


def read(places: Places, part: str, seeds: Sequence[int], arm: str) -> list[Mapping[str, Any]]:
    """What was measured of an arm, by seed; FileNotFoundError where a seed was not."""
    return [json.loads(Path(places.evaluation(part, seed, arm) / LIP_SYNC).read_text("utf-8")) for seed in seeds]


def compare(
    comparison: Comparison, more: Sequence[Mapping[str, Any]], less: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The row of a comparison out of both arms' results, seed by seed: plain values, None for what is no number."""
    metric = METRICS[comparison.metric]
    measured = [rows_of(result, comparison.metric) for result in (*more, *less)]
    common = sorted(set.intersection(*map(set, measured)))
    row: dict[str, Any] = {"comparison": comparison.name, "seeds": len(more)}
    if not common:
        return row | {"verdict": NOT_RUN, "why": f"no window has what is asked: {metric.what}"}
    rows = np.array([[own[window] for window in common] for own in measured])
    both = rows[: len(more)], rows[len(more) :]
    effect = paired_effect(*both, [person for _, person in common], metric.of_sums)
    found, why = verdict(effect, comparison.smallest)
    values = [[metric.of_sums(own.sum(0)) for own in arm] for arm in both]
    return row | {
        "verdict": found,
        "why": why,
        "more": _plain(values[0]),
        "less": _plain(values[1]),
        "by_seed": _plain(effect.by_seed),
        "effect": _plain([effect.value])[0],
        "interval": _plain([effect.low, effect.high]),
        "windows": effect.windows,
        "people": effect.people,
        "chance": chance_of_agreement(len(more)),
    }


def _plain(values: Sequence[float]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def summarise(suite: Suite, places: Places, not_run: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row for each comparison; `not_run`: arm -> why there is nothing of it."""
    rows = []
    for one in suite.comparisons:
        if reasons := [not_run[arm] for arm in (one.more, one.less) if arm in not_run]:
            rows.append({"comparison": one.name, "seeds": 0, "verdict": NOT_RUN, "why": reasons[0]})
            continue
        arms = [read(places, one.part, suite.seeds, arm) for arm in (one.more, one.less)]
        rows.append(compare(one, *arms))
    return rows


def told(row: Mapping[str, Any]) -> str:
    """A row in one line."""
    if row["verdict"] == NOT_RUN:
        return f"{row['comparison']}: {NOT_RUN} ({row['why']})"
    low, high = row["interval"]
    return (
        f"{row['comparison']}: {row['verdict']} ({row['why']});"
        f" {number(row['effect'])} [{number(low)}, {number(high)}],"
        f" by seed {', '.join(map(number, row['by_seed']))}; {row['windows']} windows of {row['people']} people"
    )


def number(value: float | None) -> str:
    """With its sign and two decimals; - for None."""
    return "-" if value is None else f"{value:+.2f}"
