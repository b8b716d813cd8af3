"""`omnihuman evaluate --suite theatre`: mouths, joints, gestures and long videos of drawn people."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.evaluation import sheet
from omnihuman_jax.runtime import files
from omnihuman_jax.runtime.locations import local
from omnihuman_jax.runtime.progress import progress_bar
from omnihuman_jax.sampling import trained_range, trained_run
from omnihuman_jax.sampling.drift import measure_drift, summarise
from omnihuman_jax.sampling.gesture_spread import measure_spread
from omnihuman_jax.sampling.lip_sync import measure_lip_sync, subjects_of
from omnihuman_jax.sampling.pose_drive import measure_pose_drive
from omnihuman_jax.typing import FPS

RESULT_FILE = "lip_sync.json"
KEPT = "theatre_samples"
"""Folder of the samples: the same command goes on where it was broken off."""
SHOWN = 4  # examples in the moving picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--suite",
        choices=("psnr", "gain", "theatre", "field", "all"),
        default="psnr",
        help=(
            "what is measured: PSNR against the windows (default), what audio and pose take off the denoising loss,"
            " lip-sync on the theatre's held-out windows, the field's measures on held-out windows or pairs of videos,"
            " or all of them"
        ),
    )
    parser.add_argument(
        "--truth", type=local, metavar="DIR", help="suite theatre: folder `truth` of `omnihuman theatre`"
    )
    parser.add_argument(
        "--split",
        help="which windows (suite theatre: unseen_face_and_speech; others: held_out, all that are not train)",
    )
    parser.add_argument(
        "--chains", type=int, default=0, metavar="N",
        help="suite theatre: long videos of so many clips: drift of colours, and the mouth at the end (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--pose-windows", type=int, default=0, metavar="N",
        help="suite theatre: joints of so many windows driven by pose without sound, three times each (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--gesture-seeds", type=int, default=0, metavar="N",
        help="suite theatre: how much arms differ over so many seeds, each of --windows (%(default)s)",
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
    subjects = subjects_of(run, run.dataset, options.truth, split, options.windows)
    sampled: dict[str, Any] = {"batch": options.batch, "config": config, "seed": options.seed}
    sampled["keep"] = options.out / KEPT
    with progress_bar("share") as bar:

        def task(what: str) -> Callable[[float], None]:
            number = bar.add_task(what, total=1.0)
            return lambda share: bar.advance(number, share)

        result, examples = measure_lip_sync(run, subjects, on_progress=task("sampling"), **sampled)
        if options.pose_windows:
            result["joints"] = measure_pose_drive(
                run, run.dataset, options.truth, split=split, windows=options.pose_windows,
                on_progress=task("pose alone"), **sampled,
            )  # fmt: skip
        if options.gesture_seeds:
            result["gesture_spread"] = measure_spread(
                run, subjects, seeds=options.gesture_seeds, on_progress=task("other seeds"), **sampled
            )
        if options.chains:
            chains = measure_drift(
                run, subjects.clips, count=options.chains, seconds=options.chain_seconds,
                on_progress=task("long videos"), **sampled,
            )  # fmt: skip
            result["windows"] += chains
            result["chains"] = {"seconds": options.chain_seconds} | summarise(chains)
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
    table = Table(title=f"against the truth, split {result['split']}, step {result['step']}, {result['weights']}")
    for heading in ("what", "value", "95 %", "windows", "people"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for title, rows in _sections(result):
        table.add_section()
        table.add_row(f"[bold]{title}[/]")
        for name, e in rows.items():
            value, low, high = ("-" if e[k] is None else f"{e[k]:.2f}" for k in ("value", "low", "high"))
            table.add_row(name, value, f"{low} .. {high}", str(e["windows"]), str(e["people"]))
    console.print(table)
    console.print(f"  the mouth's correlation peaks at a lag of {result['peak_lag_frames']} frames (0: in sync)")


def _sections(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(title, name -> estimate) of what was measured."""
    yield "mouth, r within windows", result["correlation"]
    found = {name: e for name, e in result["gesture_range"].items() if e is not None}
    if found:
        yield "wrists, range as a share of the truth's", found
    joints = result.get("joints", {})
    if joints:
        yield (
            "joints by pose alone, error in % of the figure's height",
            {k: _percent(v["error"]) for k, v in joints.items()},
        )
        yield "joints by pose alone, r within windows", {k: v["correlation"] for k, v in joints.items()}
    spread = result.get("gesture_spread")
    if spread:
        yield f"arms over {spread['seeds']} seeds, spread as a share of the law's", {
            "own sound": spread["spread"], "the readout's range": spread["readout"],
        }  # fmt: skip
    chains = {name: e for name, e in result.get("chains", {}).items() if isinstance(e, dict)}
    if chains:
        yield f"chains of {result['chains']['seconds']:g} s", chains


def _percent(e: dict[str, Any]) -> dict[str, Any]:
    return e | {name: None if e[name] is None else 100 * e[name] for name in ("value", "low", "high")}
