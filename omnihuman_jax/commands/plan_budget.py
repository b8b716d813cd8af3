"""The plan in money and days: the whole schedule on every slice and machine that the user's price file names. See
`plan.py`.
"""

import argparse
import datetime
import json
import math
from collections.abc import Iterator
from typing import Any

from omnihuman_jax.commands import plan_scale
from omnihuman_jax.config import ExperimentConfig
from omnihuman_jax.runtime import files
from omnihuman_jax.runtime.locations import local
from omnihuman_jax.scale.hardware import ACCELERATORS, Topology, parse_topology, slices
from omnihuman_jax.scale.prices import Prices, read_prices
from omnihuman_jax.scale.schedule_cost import Offer, Run, Span, days_until, offer, rank, verdict

MARK = "the schedule in money and days"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `omnihuman plan`."""
    money = parser.add_argument_group(MARK)
    money.add_argument("--prices", metavar="FILE", help="your price file, with its date (docs/cost.md)")
    money.add_argument("--budget", type=float, metavar="AMOUNT", help="what the whole schedule may cost")
    money.add_argument("--by", type=_date, metavar="DATE", help="the day on which it must be done, like 2026-12-31")
    money.add_argument("--start", type=_date, metavar="DATE", help="the day on which it begins; default: today")
    money.add_argument("--shown", type=int, default=12, metavar="N", help="offers that are printed (%(default)s)")


def _date(text: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day; write it like 2026-12-31") from None


def check(options: argparse.Namespace) -> None:
    """ValueError on options that do not go together."""
    if options.prices is None:
        for name in ("budget", "by", "start"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name} needs --prices, the file with what you pay (docs/cost.md)")
        return
    if options.topology is not None or options.sweep:
        raise ValueError("--prices looks at every slice that it names: not with --topology or --sweep")
    if options.budget is not None and not (math.isfinite(options.budget) and options.budget > 0):
        raise ValueError(f"--budget {options.budget} must be a finite number above 0")
    if options.shown < 1:
        raise ValueError(f"--shown {options.shown}: at least 1")


def topologies(prices: Prices) -> Iterator[Topology]:
    """Of each priced accelerator the roundest slice of each size, or whole machines in sizes that divide a batch."""
    for name, price in prices.chips.items():
        accelerator = ACCELERATORS[name]
        if accelerator.platform == "gpu":
            host = accelerator.chips_per_host
            counts = [n for n in (1, 2, 4) if n < host]
            counts += [host * k * 2**i for k in (1, 3) for i in range(14)]
            shapes = {count: str(count) for count in sorted(counts)}
        else:
            roundest = sorted(slices(accelerator, price.most_chips), key=lambda dims: (math.prod(dims), max(dims)))
            shapes = {}
            for dims in roundest:
                shapes.setdefault(math.prod(dims), "x".join(map(str, dims)))
        for count, shape in shapes.items():
            if price.least_chips <= count <= price.most_chips:
                yield parse_topology(f"{name}:{shape}")


def offers(config: ExperimentConfig, prices: Prices) -> tuple[list[Offer], list[tuple[str, str]]]:
    """(an offer a slice that the step fits on, its quickest layout; (slice, why not) of the others)."""
    keep = config.checkpoint.keep
    if config.checkpoint.keep_every:
        keep += config.stages.total_steps // config.checkpoint.keep_every
    run = Run(
        steps=config.stages.total_steps,
        save_interval=config.checkpoint.interval,
        keep=keep,
        moment_bytes=2 if config.optimizer.moments_dtype == "bfloat16" else 4,
    )
    found, refused = [], []
    for topology in topologies(prices):
        try:
            best = plan_scale.candidates(config, topology, keep_batch=True)[0]
            if not best.estimate.costs.memory.fits:
                memory = best.estimate.costs.memory
                raise ValueError(f"does not fit: {memory.peak / 2**30:.0f} of {memory.limit / 2**30:.0f} GiB at least")
            found.append(offer(best.estimate, best.text, run, prices))
        except ValueError as error:
            refused.append((topology.name, str(error)))
    return found, refused


def span(value: Span, digits: int = 1) -> str:
    """`12.3 [10.0, 15.1]`."""
    return f"{value.value:,.{digits}f} [{value.low:,.{digits}f}, {value.high:,.{digits}f}]"


def run(config: ExperimentConfig, options: Any) -> int:
    """`omnihuman plan --prices`: prints, and writes `--json`."""
    prices = read_prices(local(options.prices, "--prices"))
    start = options.start or datetime.date.today()
    days = None if options.by is None else days_until(options.by, start)
    found, refused = offers(config, prices)
    if not found:
        why = (
            "; ".join(f"{name}: {reason}" for name, reason in refused[:3]) or "no slice is within least and most chips"
        )
        raise ValueError(f"nothing in {options.prices} can train {config.name}: {why}")
    found.sort(key=lambda one: rank(one, options.budget, days))
    print_offers(config, prices, found, refused, options, days)
    if options.json:
        rows = [one.to_json() | {"within_limits": verdict(one, options.budget, days)} for one in found]
        result = {
            "name": config.name, "steps": config.stages.total_steps, "as_of": str(prices.as_of),
            "currency": prices.currency, "source": prices.source, "budget": options.budget,
            "by": None if options.by is None else str(options.by), "start": str(start), "offers": rows,
            "refused": [{"topology": name, "why": why} for name, why in refused],
        }  # fmt: skip
        files.write_text(options.json, json.dumps(result, indent=1) + "\n")
    return 0


def print_offers(
    config: ExperimentConfig,
    prices: Prices,
    found: list[Offer],
    refused: list[tuple[str, str]],
    options: Any,
    days: float | None,
) -> None:
    """The table, and what its numbers rest on."""
    from rich.console import Console
    from rich.table import Table

    age = (datetime.date.today() - prices.as_of).days
    limits = [] if options.budget is None else [f"budget {options.budget:,.0f} {prices.currency}"]
    limits += [] if days is None else [f"by {options.by}, {days:.0f} days"]
    title = f"{config.name}: {config.stages.total_steps:,} steps; prices of {prices.as_of} ({age} days ago)"
    table = Table(title="; ".join([title, *limits]))
    for heading in (
        "slice",
        "chips",
        "within",
        prices.currency,
        "days",
        "s/step",
        "MFU",
        "goodput",
        "memory",
        "layout",
    ):
        table.add_column(heading, justify="left" if heading in ("slice", "within", "layout") else "right")
    for one in found[: options.shown]:
        table.add_row(
            one.topology, str(one.chips), verdict(one, options.budget, days), span(one.cost, 0), span(one.days),
            span(one.step_s, 2), f"{one.mfu:.0%}", f"{one.goodput:.1%}", f"{one.memory_share:.0%}", one.layout,
        )  # fmt: skip
    console = Console(width=200, highlight=False)
    console.print(table)
    more = len(found) - min(len(found), options.shown)
    console.print(f"{more} more offers, {len(refused)} slices on which nothing fits (--json has all)")
    console.print(
        "By formula, nothing of it measured: [ends] are kernels a quarter better or worse than assumed, and"
        " collectives hidden wholly or not at all."
    )
    if not prices.restarts_per_chip_month:
        console.print("The price file says nothing of restarts: goodput is 100 %, which no run has.")
