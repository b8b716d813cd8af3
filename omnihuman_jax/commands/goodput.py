"""Goodput: where a run's time went, over all its attempts: new steps, repeated ones, compiling, restoring, saving,
waiting, idle.

omnihuman goodput runs/mine/run
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence

from omnihuman_jax.runtime import bucket_folder, files
from omnihuman_jax.runtime.locations import local, location
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
    options = parser.parse_args(argv)
    run = options.run or options.named
    goodput = read_goodput(bucket_folder.copy_of(run))
    print_table(goodput)
    if goodput.host_ratio and goodput.host_ratio[1] > 1.2:
        name, ratio = goodput.host_ratio
        print(
            f"process {name} takes {ratio:.1f} times the median host's own time a step: look at its disk, network and"
            " neighbours"
        )
    out = options.out or bucket_folder.output_of(run, "goodput.svg")
    files.write_text(out, picture(goodput))
    if options.json:
        files.write_text(options.json, json.dumps(to_json(goodput), indent=2) + "\n")
    print(f"{out}: the same as a picture; it opens in a browser")
    return 0
