"""`omnihuman evaluate --suite gain`: what each condition takes off the denoising loss of held-out windows.

No sampling and no truth but the data: minutes where the other suites take hours, and for any footage.
"""

import argparse
import dataclasses
import json
import math
import sys
from typing import Any

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.evaluation import condition_gain
from omnihuman_jax.runtime import files
from omnihuman_jax.sampling import trained_range, trained_run, window_inputs
from omnihuman_jax.sampling.evaluators import ConditionGain, gain_subjects
from omnihuman_jax.training.sample_budget import SamplesConfig

RESULT_FILE = "gain.json"


def run_suite(run: trained_run.TrainedRun, config: SamplingConfig, options: argparse.Namespace) -> int:
    """Measures, prints a table, writes gain.json into --out. ValueError where no condition can be measured."""
    result = measure(run, windows=options.windows, batch=options.batch, split=options.split or "", seed=options.seed)
    if not result["gain"]:
        raise ValueError(f"{run.dataset}: {'; '.join(result['not_measured'].values())}")
    options.out.mkdir(parents=True, exist_ok=True)
    files.write_text(options.out / RESULT_FILE, json.dumps(result, indent=2, allow_nan=False) + "\n")
    print_table(result)
    return 0


def measure(run: trained_run.TrainedRun, *, windows: int, batch: int, split: str = "", seed: int = 0) -> dict[str, Any]:
    """Plain values: `gain` by condition, of `evaluation/condition_gain.py`, and `not_measured`, why not.

    Args:
        split: of the windows; "": held-out ones where there are any, else those trained on.
    """
    catalog, source = Catalog.load(run.dataset), open_records(run.dataset)
    asked = SamplesConfig(gain_windows=windows, batch=batch, split=split, seed=seed)
    asked.validate()
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    of_windows = {}
    branches = {Condition.AUDIO: run.config.model.audio, Condition.POSE: run.config.model.pose}
    for condition in Condition:
        label = condition.label
        if condition in branches and branches[condition] is None:
            missing[label] = f"the model has no {label} input"
            continue
        needed = ConditionSet.of(condition, Condition.REFERENCE)
        of_windows[label], _ = window_inputs.held_out(catalog, split, needed)
        subjects = gain_subjects(catalog, source, condition, split, windows)
        if len(subjects) < 2:
            alike = " and have one size" if condition is Condition.REFERENCE else ""
            missing[label] = (
                f"no windows of two clips of split {of_windows[label]} are eligible for {needed.label}{alike}"
            )
            continue
        for warning in trained_range.check_model(run, needed):
            print(f"warning: {warning}", file=sys.stderr)
        evaluator = ConditionGain(run, condition, subjects, asked)
        gain = condition_gain.gain(evaluator.losses(run.params), evaluator.people)
        found[label] = {"own": _plain(gain.own), "harm_of_other": _plain(gain.harm_of_other)}
    return {
        "step": run.step,
        "weights": run.weights,
        "times": list(condition_gain.TIMES),
        "split": of_windows,
        "gain": found,
        "not_measured": missing,
    }


def _plain(found: Any) -> dict[str, Any]:
    """None for numbers that JSON does not have."""
    values = dataclasses.asdict(found)
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def print_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(
        title=f"share of the denoising loss without the condition, step {result['step']}, {result['weights']}"
    )
    for heading in ("condition", "its own takes off", "another clip's puts on", "windows", "clips", "split"):
        table.add_column(heading, justify="left" if heading in ("condition", "split") else "right")
    for label, gain in result["gain"].items():
        cells = [
            "-" if e["value"] is None else f"{e['value']:.1%} [{e['low']:.1%}, {e['high']:.1%}]"
            for e in (gain["own"], gain["harm_of_other"])
        ]
        table.add_row(label, *cells, str(gain["own"]["windows"]), str(gain["own"]["people"]), result["split"][label])
    console.print(table)
    for reason in result["not_measured"].values():
        console.print(f"  not measured: {reason}")
