"""`omnihuman evaluate`: what a run has learnt. Each suite has a file of its own; here are the options."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from omnihuman_jax.commands import evaluate_field, evaluate_gain, evaluate_psnr, evaluate_theatre
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.runtime.locations import local
from omnihuman_jax.sampling import trained_run


def main(argv: Sequence[str]) -> int:
    """`omnihuman evaluate`."""
    parser = argparse.ArgumentParser(
        prog="omnihuman evaluate",
        description=(
            "Measures a run on held-out windows, where there are any: PSNR under their own and another clip's pose and"
            " audio, what a condition takes off the loss, the theatre's truth, or the field's scores."
        ),
        epilog="example: omnihuman evaluate --run runs/mine/run --clips runs/mine/clips --out runs/mine",
    )
    trained_run.add_run_arguments(parser, required=False)
    parser.add_argument(
        "--clips",
        type=local,
        help=(
            "folder of `omnihuman curate`, which says where the mouths are (suite psnr; without it, whole frames"
            " only) and has the sound (suite field; without it, nothing of lips and sound)"
        ),
    )
    evaluate_theatre.add_arguments(parser)
    evaluate_field.add_arguments(parser)
    parser.add_argument(
        "--windows", type=int, default=6, help="number of windows to sample, three times each (%(default)s)"
    )
    parser.add_argument("--batch", type=int, default=6, help="windows sampled at once (%(default)s)")
    parser.add_argument(
        "--out", required=True, type=local, help="folder for what is found: JSON, pictures and videos, a page"
    )
    # Guidance trades closeness to the truth for expression, at twice the cost: off unless it is asked for.
    parser.set_defaults(guidance_scale=1.0)
    options = parser.parse_args(argv)
    pose_alone = options.suite == "theatre" and options.pose_windows > 0
    for name, least in (("windows", 0 if pose_alone else 1), ("batch", 1), ("pose_windows", 0)):
        if (value := getattr(options, name)) < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    if options.pairs is not None and options.suite == "field":
        return evaluate_field.run_suite(None, None, options)
    if options.run is None:
        raise ValueError("give --run, or pairs of videos with --suite field --pairs DIR")
    run = trained_run.open_run(
        options.run, weights=options.weights, step=options.step, dataset=options.dataset, codec=options.codec
    )
    if len(run.drawn_from) > 1:
        print(
            f"windows of {run.dataset}, the first of the {len(run.drawn_from)} data sets of the run, are evaluated;"
            " --dataset names another of them",
            file=sys.stderr,
        )
    config = trained_run.sampling_config(run.config.sampling, options)
    suites: dict[str, Suite] = {
        "psnr": evaluate_psnr.run_suite,
        "gain": evaluate_gain.run_suite,
        "theatre": evaluate_theatre.run_suite,
        "field": evaluate_field.run_suite,
    }
    if options.suite != "all":
        return suites[options.suite](run, config, options)
    return _all_suites(suites, run, config, options)


Suite: TypeAlias = Callable[[trained_run.TrainedRun, SamplingConfig, argparse.Namespace], int]


def _all_suites(
    suites: Mapping[str, Suite], run: trained_run.TrainedRun, config: SamplingConfig, options: argparse.Namespace
) -> int:
    """Every suite that this run's data allow; the others say why not. ValueError if that is none."""
    refused = []
    for name, suite in suites.items():
        try:
            suite(run, config, options)
        except (ValueError, FileNotFoundError) as error:
            refused.append(f"suite {name}: {error}")
            print(f"not measured, {refused[-1]}", file=sys.stderr)
    if len(refused) == len(suites):
        raise ValueError(f"nothing could be measured: {'; '.join(refused)}")
    return 0
