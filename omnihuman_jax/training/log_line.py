"""What a step says about itself: one record of metrics.jsonl, made from the counters in the train state."""

import math
from typing import Any

import numpy as np

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.stages import Stage, StageSchedule
from omnihuman_jax.telemetry.metrics import Speed
from omnihuman_jax.training.train_state import Counters


def is_logged(schedule: StageSchedule, interval: int, step: int) -> bool:
    """Whether `step` (from 0) gets a line: the interval, or the stage, ends with it."""
    index, stage = schedule.stage_at(step)
    done = step + 1
    return done % interval == 0 or done == schedule.starts[index] + stage.steps


def steps_of_line(schedule: StageSchedule, interval: int, step: int) -> range:
    """The steps (from 0) whose line is written after `step`: back to the interval's beginning, or the stage's."""
    index, _ = schedule.stage_at(step)
    return range(max(step - step % interval, schedule.starts[index]), step + 1)


def log_line(schedule: StageSchedule, step: int, metrics: dict[str, Any], speed: Speed) -> dict[str, Any]:
    """The record of `step` (from 0) from its metrics on the host: see `summarise` and `Speed`."""
    _, stage = schedule.stage_at(step)
    line: dict[str, Any] = {"step": step + 1, "stage": stage.name}
    line |= summarise(metrics["counters"], stage)
    line["grad_norm"] = float(metrics["grad_norm"])
    line |= {
        "learning_rate" if group == "base" else f"learning_rate/{group}": float(rate)
        for group, rate in metrics["rates"].items()
    }
    return line | speed.measure(
        step + 1, float(metrics["counters"].interval_tokens), int(metrics["counters"].interval_steps)
    )


def summarise(counters: Counters, stage: Stage) -> dict[str, float]:
    """Means over the logging interval, and the stage's realised ratios beside the configured ones.

    `counters` are those of the interval's last step, on the host.
    """
    health = counters.health
    counted = int(counters.interval_steps) - int(health.interval_nonfinite)
    record: dict[str, float] = {"loss": _mean(counters.interval_loss, counted) if counted else math.nan}
    for active in ConditionSet.every():
        if windows := int(counters.interval_windows[active.bits]):
            record[f"loss/{active.label}"] = _mean(counters.interval_losses[active.bits], windows)
    total = int(np.sum(counters.stage_windows))
    for condition in Condition:
        with_it = sum(
            int(counters.stage_windows[active.bits]) for active in ConditionSet.every() if condition in active
        )
        record[f"ratio/{condition.label}"] = with_it / max(total, 1)
        record[f"ratio_target/{condition.label}"] = float(stage.ratios[condition])
    # Of the whole run so far.
    record |= {
        "skipped_updates": int(health.skipped),
        "spikes": int(health.spikes),
        "placeholders": int(counters.placeholders),
    }
    return record


def _mean(total: Any, count: Any) -> float:
    """A float64 quotient: the sums are exact float32 values, so equal sums give equal lines."""
    return float(total) / max(int(count), 1)
