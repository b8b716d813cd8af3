"""Goodput: where a run's time went, over all its attempts: new steps, repeated ones, compiling, restoring, saving,
waiting, idle.

omnihuman goodput runs/mine/run
omnihuman goodput runs/mine/run --plan plan.json --topology v5p:4x4x8      # beside what `omnihuman plan --prices` said
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omnihuman_jax.runtime import bucket_folder, files
from omnihuman_jax.runtime.locations import local, location
from omnihuman_jax.scale.schedule_cost import compared
from omnihuman_jax.telemetry.goodput import KINDS, Goodput, picture, read_goodput


def to_json(goodput: Goodput) -> dict[str, object]:
    """What `--json` writes: shares, seconds by kind, and a row an attempt."""
    attempts = [
        {field.name: getattr(attempt, field.name) for field in dataclasses.fields(attempt) if field.name != "stretches"}
        for attempt in goodput.attempts
    ]
    straggler = {"process": goodput.host_ratio[0], "ratio": goodput.host_ratio[1]} if goodput.host_ratio else None
    return {
        "goodput": goodput.share, "wall_s": goodput.wall, "seconds": goodput.seconds, "straggler": straggler,
        "attempts": attempts,
    }  # fmt: skip


def print_table(goodput: Goodput) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"goodput {goodput.share:.1%} of {goodput.wall:,.1f} s in {len(goodput.attempts)} attempts; seconds"
    )
    for column in ("attempt", "end", "steps", "new", *(kind.replace("_", " ") for kind in KINDS)):
        table.add_column(column, justify="left" if column in ("attempt", "end") else "right")
    for attempt in goodput.attempts:
        ended = "killed" if attempt.code is None else f"exit {attempt.code}"
        steps = f"{attempt.first}-{attempt.last}" if attempt.last else "-"
        numbers = (f"{attempt.seconds[kind]:,.1f}" for kind in KINDS)
        table.add_row(str(attempt.number), ended, steps, str(attempt.new), *numbers)
    table.add_section()
    new = sum(attempt.new for attempt in goodput.attempts)
    table.add_row("all", "", "", str(new), *(f"{goodput.seconds[kind]:,.1f}" for kind in KINDS))
    table.add_row("share", "", "", "", *(f"{goodput.seconds[kind] / max(goodput.wall, 1e-9):.1%}" for kind in KINDS))
    Console(width=140).print(table)


def read_plan(path: Path, topology: str | None) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(a plan of `omnihuman plan --prices --json`, its offer for `topology`, or the best).

    Raises:
        FileNotFoundError, ValueError: no such file, no plan, or no such offer in it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--plan {path} does not exist; `omnihuman plan --prices FILE --json {path}` writes it")
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        offers = plan["offers"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"--plan {path} was not written by `omnihuman plan --prices FILE --json`") from None
    found = next((one for one in offers if topology in (None, one["topology"])), None)
    if found is None:
        known = ", ".join(one["topology"] for one in offers[:8])
        raise ValueError(f"--topology {topology}: no offer for it in {path}, which has {known}")
    return plan, found


def print_comparison(goodput: Goodput, plan: Mapping[str, Any], planned: Mapping[str, Any]) -> None:
    """Measured beside planned; ValueError where no new step was finished yet."""
    new = sum(attempt.new for attempt in goodput.attempts)
    if not new:
        raise ValueError("--plan: the run has finished no step yet; there is nothing to compare")
    step_s = (goodput.seconds["productive"] + goodput.seconds["data_wait"]) / new
    found = compared(planned, step_s=step_s, goodput=goodput.share, steps_left=max(0, plan["steps"] - new))
    bar, money = planned["step_s"], planned["cost"]["value"] / planned["days"]["value"]
    spent_days = goodput.wall / 86_400
    print(f"beside the plan for {planned['topology']} (prices of {plan['as_of']}):")
    print(
        f"  a step {step_s:.3g} s, planned {bar['value']:.3g} [{bar['low']:.3g}, {bar['high']:.3g}]:"
        f" {found['step_ratio']:.2f} times it, {'within' if found['within_bar'] else 'OUTSIDE'} the bar"
    )
    print(f"  goodput {goodput.share:.1%}, planned {planned['goodput']:.1%}")
    total = spent_days + found["days_left"]
    print(
        f"  {new} of {plan['steps']} steps in {spent_days:.2f} days, {found['days_left']:.2f} to go at this pace:"
        f" {total:.2f} days and {total * money:,.0f} {plan['currency']} in all, planned {planned['days']['value']:.2f}"
        f" and {planned['cost']['value']:,.0f}"
    )


def main(argv: Sequence[str]) -> int:
    """`omnihuman goodput`."""
    parser = argparse.ArgumentParser(
        prog="omnihuman goodput", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("run", nargs="?", type=location, metavar="RUN", help="run directory of `omnihuman train`")
    where.add_argument(
        "--run", dest="named", type=location, metavar="RUN", help="the same, as the other commands have it"
    )
    parser.add_argument("--json", type=local, metavar="FILE", help="write the numbers there too")
    parser.add_argument("--out", type=local, metavar="FILE", help="the picture; goodput.svg in RUN, or here")
    parser.add_argument("--plan", type=local, metavar="FILE", help="compare with `omnihuman plan --prices --json FILE`")
    parser.add_argument("--topology", metavar="KIND:SHAPE", help="which offer of the plan; default: its best")
    options = parser.parse_args(argv)
    if options.topology and not options.plan:
        raise ValueError("--topology names an offer of --plan; give both")
    planned = read_plan(options.plan, options.topology) if options.plan else None
    run = options.run or options.named
    goodput = read_goodput(bucket_folder.copy_of(run))
    print_table(goodput)
    if goodput.host_ratio and goodput.host_ratio[1] > 1.2:
        name, ratio = goodput.host_ratio
        print(
            f"process {name} takes {ratio:.1f} times the median host's own time a step: look at its disk, network and"
            " neighbours"
        )
    if planned is not None:
        print_comparison(goodput, *planned)
    out = options.out or bucket_folder.output_of(run, "goodput.svg")
    files.write_text(out, picture(goodput))
    if options.json:
        files.write_text(options.json, json.dumps(to_json(goodput), indent=2) + "\n")
    print(f"{out}: the same as a picture; it opens in a browser")
    return 0
