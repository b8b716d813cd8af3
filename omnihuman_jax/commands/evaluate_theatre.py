"""`omnihuman evaluate --suite theatre`: lip-sync on drawn people, against what is true of them."""

import argparse
import json
import sys
from typing import Any

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.evaluation import sheet
from omnihuman_jax.runtime import files
from omnihuman_jax.runtime.locations import local
from omnihuman_jax.runtime.progress import progress_bar
from omnihuman_jax.sampling import trained_range, trained_run
from omnihuman_jax.sampling.drift import measure_drift
from omnihuman_jax.sampling.lip_sync import load_windows, measure_lip_sync
from omnihuman_jax.typing import FPS

RESULT_FILE = "lip_sync.json"
SHOWN = 4  # examples in the moving picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--suite",
        choices=("training", "theatre", "field", "all"),
        default="training",
        help=(
            "what is measured: PSNR on training windows (default), lip-sync on the theatre's held-out windows, the"
            " field's measures on held-out windows or pairs of videos, or all of them"
        ),
    )
    parser.add_argument(
        "--truth", type=local, metavar="DIR", help="suite theatre: folder `truth` of `omnihuman theatre`"
    )
    parser.add_argument(
        "--split",
        help="which windows (suite theatre: unseen_face_and_speech; suite field: held_out, all that are not train)",
    )
    parser.add_argument(
        "--chains", type=int, default=0, metavar="N",
        help="suite theatre: long videos of so many clips, whose faces are compared with the reference (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--chain-seconds", type=float, default=30.0, metavar="S", help="how long they are (%(default)s)"
    )


def run_suite(run: trained_run.TrainedRun, config: SamplingConfig, options: argparse.Namespace) -> int:
    """Measures, prints a table, writes lip_sync.json, lip_sync.png and lip_sync.gif into --out."""
    if options.truth is None:
        raise ValueError("--suite theatre needs --truth, the folder `truth` that `omnihuman theatre` wrote")
    split = options.split or "unseen_face_and_speech"
    for warning in trained_range.check_model(run, ConditionSet.of(Condition.REFERENCE, Condition.AUDIO)):
        print(f"warning: {warning}", file=sys.stderr)
    with progress_bar("share") as bar:
        task = bar.add_task("sampling", total=1.0)
        result, examples = measure_lip_sync(
            run,
            run.dataset,
            options.truth,
            split=split,
            windows=options.windows,
            batch=options.batch,
            config=config,
            seed=options.seed,
            on_progress=lambda share: bar.advance(task, share),
        )
        if options.chains:
            task = bar.add_task("long videos", total=1.0)
            chains = measure_drift(
                run,
                load_windows(run.dataset, options.truth, split),
                count=options.chains,
                seconds=options.chain_seconds,
                batch=options.batch,
                config=config,
                seed=options.seed,
                on_progress=lambda share: bar.advance(task, share),
            )
            result["windows"] += chains
    options.out.mkdir(parents=True, exist_ok=True)
    drawn = [sheet.draw_rows(rows, title=window, columns=10) for window, rows in examples.items()]
    sheet.write_png(options.out / "lip_sync.png", sheet.stack_sheets(drawn))
    shapes = {window: rows["truth"].shape for window, rows in examples.items()}
    alike = [rows for window, rows in examples.items() if shapes[window] == next(iter(shapes.values()))]
    sheet.write_gif(options.out / "lip_sync.gif", alike[:SHOWN], FPS)
    files.write_text(options.out / RESULT_FILE, json.dumps(result, indent=2) + "\n")
    print_table(result)
    return 0


def print_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=f"mouth against the truth, split {result['split']}, step {result['step']}, {result['weights']}")
    for heading in ("driven by", "r within windows", "95 %", "windows", "people"):
        table.add_column(heading, justify="left" if heading == "driven by" else "right")
    for name, e in result["correlation"].items():
        value, low, high = ("-" if e[k] is None else f"{e[k]:.2f}" for k in ("value", "low", "high"))
        table.add_row(name, value, f"{low} .. {high}", str(e["windows"]), str(e["people"]))
    console.print(table)
    console.print(f"  the correlation peaks at a lag of {result['peak_lag_frames']} frames (0: in sync)")
