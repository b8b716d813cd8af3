"""What a whole schedule takes on a slice: days and money, with an error bar, from the seconds of one step.

Formulas alone. The bar is no confidence interval: its ends are stated assumptions (`docs/cost.md`), because no step of
ours has been measured on these chips.
"""

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

from omnihuman_jax.scale.cost_report import CostReport
from omnihuman_jax.scale.hardware import Efficiencies
from omnihuman_jax.scale.prices import Prices
from omnihuman_jax.scale.roofline import roofline

DAY_S = 86_400.0
MONTH_S = 30.4 * DAY_S
# Kernels' efficiencies are inputs that others measured on other models [D]: the bar's ends are a quarter off, beside
# collectives that hide wholly (short end) or not at all (long end).
EFFICIENCY_ERROR = 0.25
_BEST = 0.95
# Of a parameter in a checkpoint: itself and its average in float32, beside two moments.
_MASTER_AND_EMA = 8


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A predicted number, and its error bar."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> "Span":
        """Scaled, with the same relative bar."""
        return Span(value=self.value * factor, low=self.low * factor, high=self.high * factor)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What does not depend on the chips: steps of the schedule, steps between checkpoints, how many are kept."""

    steps: int
    save_interval: int
    keep: int
    moment_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Offer:
    """A slice, the best layout on it, and what the schedule takes there.

    step_s, days, cost: with their bars; goodput: share of the time in new steps; restarts: in all.
    chips_cost, storage_cost: the two parts of the cost.
    """

    topology: str
    chips: int
    layout: str
    step_s: Span
    days: Span
    cost: Span
    goodput: float
    restarts: float
    chips_cost: float
    storage_cost: float
    mfu: float
    memory_share: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def step_seconds(report: CostReport) -> Span:
    """Seconds of a step: as laid out, and the ends of the bar."""
    middle, accelerator = report.roofline, report.topology.accelerator
    assert middle is not None, "a formula always has works"

    def at(factor: float) -> Any:
        own = accelerator.efficiencies
        shares = {
            name: min(_BEST, getattr(own, name) * factor)
            for name in ("matmul", "attention_forward", "attention_backward")
        }
        return roofline(
            accelerator, report.costs.works, report.costs.communications, useful_flops=report.useful_flops,
            devices_per_chip=report.devices // report.topology.chips,
            efficiencies=Efficiencies(**shares, source="the bar's end"),
        )  # fmt: skip

    return Span(
        value=middle.as_compiled_s, low=at(1 + EFFICIENCY_ERROR).overlapped_s, high=at(1 - EFFICIENCY_ERROR).serial_s
    )


def lost_share(step_s: float, chips: int, run: Run, prices: Prices) -> tuple[float, float]:
    """(restarts a second of training, seconds that each loses): the goodput model.

    A restart costs the way to the first new step, and on average half the steps since the last checkpoint, made again.
    """
    rate = prices.restarts_per_chip_month * chips / MONTH_S
    return rate, prices.restart_s + run.save_interval * step_s / 2


def offer(report: CostReport, layout: str, run: Run, prices: Prices) -> Offer:
    """The schedule on this slice, at these prices; `layout` in words.

    Raises:
        ValueError: restarts are so frequent that no step is ever new.
    """
    step, chips = step_seconds(report), report.topology.chips
    goodput, seconds = {}, {}
    for end in ("value", "low", "high"):
        rate, lost = lost_share(getattr(step, end), chips, run, prices)
        # Of a second, `rate x lost` goes into restarts.
        goodput[end] = 1 - rate * lost
        if goodput[end] <= 0:
            raise ValueError(
                f"{report.topology.name}: a restart every {1 / rate / 60:.0f} minutes that loses {lost / 60:.0f} "
                "leaves no time for new steps; save more often, or lower restarts in the price file"
            )
        seconds[end] = run.steps * getattr(step, end) / goodput[end]
    hour = prices.chips[report.topology.accelerator.name].chip_hour
    bytes_kept = report.parameters * (_MASTER_AND_EMA + 2 * run.moment_bytes) * run.keep
    month = bytes_kept / 1e9 * prices.storage_gb_month
    days = Span(**{end: value / DAY_S for end, value in seconds.items()})
    cost = Span(**{end: value / 3600 * chips * hour + value / MONTH_S * month for end, value in seconds.items()})
    memory = report.costs.memory
    assert report.roofline is not None
    return Offer(
        topology=report.topology.name,
        chips=chips,
        layout=layout,
        step_s=step,
        days=days,
        cost=cost,
        goodput=goodput["value"],
        restarts=seconds["value"] * rate_of(chips, prices),
        chips_cost=seconds["value"] / 3600 * chips * hour,
        storage_cost=seconds["value"] / MONTH_S * month,
        mfu=report.roofline.mfu,
        memory_share=memory.peak / memory.limit,
    )


def rate_of(chips: int, prices: Prices) -> float:
    """Restarts a second on so many chips."""
    return prices.restarts_per_chip_month * chips / MONTH_S


def verdict(found: Offer, budget: float | None, days: float | None) -> str:
    """`yes`, `perhaps` where only a part of the bar is within the limits, or what is in the way."""
    wrong = []
    for name, span, limit in (("budget", found.cost, budget), ("date", found.days, days)):
        if limit is not None and span.value > limit:
            wrong.append(f"over the {name}" if span.low > limit else f"perhaps over the {name}")
    if wrong:
        return ", ".join(wrong)
    sure = all(limit is None or span.high <= limit for span, limit in ((found.cost, budget), (found.days, days)))
    return "yes" if sure else "perhaps"


def rank(found: Offer, budget: float | None, days: float | None) -> tuple[bool, float, float]:
    """Those within the limits first, the cheapest of them first, then the quickest."""
    within = verdict(found, budget, days) in ("yes", "perhaps")
    return (not within, found.cost.value, found.days.value)


def days_until(by: datetime.date, start: datetime.date) -> float:
    """Whole days from the morning of `start` to the end of `by`; ValueError where that is none."""
    days = (by - start).days + 1
    if days < 1:
        raise ValueError(f"--by {by} is before the start, {start}")
    return float(days)


def compared(planned: Mapping[str, Any], *, step_s: float, goodput: float, steps_left: int) -> dict[str, float]:
    """A plan's offer (`Offer.to_json`) beside what a run measured: ratios, and the days that are still to come.

    step_s: measured seconds of a new step; goodput: measured share; steps_left: of the schedule.
    """
    return {
        "step_ratio": step_s / planned["step_s"]["value"],
        "within_bar": float(planned["step_s"]["low"] <= step_s <= planned["step_s"]["high"]),
        "goodput_difference": goodput - planned["goodput"],
        "days_left": steps_left * step_s / max(goodput, 1e-9) / DAY_S,
    }
