"""Plan, before anything is trained: what training would see of its data, and what a step would cost on a pod.

    omnihuman plan --config configs/demo.py --config.data.dataset=runs/demo/dataset
    omnihuman plan --config configs/omnihuman_13b.py:720p --topology v5p:8x8x8 --micro-batch 1
    omnihuman plan --config configs/omnihuman_13b.py:720p --topology v6e:16x16 --slices 2 --sweep --json sweep.json
    omnihuman plan --config configs/omnihuman_13b.py --prices prices.yaml --budget 250000 --by 2027-03-31

The data plan: ratios, repeats, fill, skips; it refuses what the data cannot feed. The scale plan (`--topology`, no
dataset and no accelerator needed) compiles the real train step for that slice: memory, collectives, roofline, predicted
MFU (docs/scale.md). With `--prices`, the whole schedule in money and days on all that your price file names
(docs/cost.md).
"""

import argparse
import sys
from collections.abc import Sequence

from omnihuman_jax.commands import plan_budget, plan_scale
from omnihuman_jax.config import ExperimentConfig, data_rows, load_config, packed_shape
from omnihuman_jax.data.joined_records import load_spec
from omnihuman_jax.data.plan import Plan, StageReport, format_report
from omnihuman_jax.data.weighted_datasets import have_catalogs, load_catalog
from omnihuman_jax.scale import described_devices


def report(config: ExperimentConfig) -> tuple[Plan, tuple[StageReport, ...]]:
    """The plan of a config on its dataset, and what it makes of each stage; ValueError, with the numbers, if it cannot
    be met.
    """
    config.validate()
    rows = data_rows(config)
    packed_shape(config, load_spec(rows))
    plan = Plan(load_catalog(rows), config.stages, config.data.plan, config.seed)
    return plan, plan.report()


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options, and the `--config.*` overrides."""
    parser = argparse.ArgumentParser(
        prog="omnihuman plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="config file; fields are set with --config.FIELD=VALUE"
    )
    scale = parser.add_argument_group("the scale plan")
    scale.add_argument(
        "--topology", metavar="KIND:SHAPE", help="a slice, v5p:8x8x8, v6e:16x16, or GPUs, h100:64 (formula only)"
    )
    scale.add_argument(
        "--slices", type=int, default=1, metavar="N", help="number of such slices, joined by the data-centre network"
    )
    scale.add_argument(
        "--micro-batch",
        type=int,
        default=0,
        metavar="N",
        help="sequences that a data-parallel group computes at a time; sets the batch",
    )
    scale.add_argument("--sweep", action="store_true", help="search mesh x remat x micro-batch, rank what fits")
    scale.add_argument("--compile", type=int, metavar="N", help="layouts of a sweep that are compiled (default 3)")
    scale.add_argument("--estimate", action="store_true", help="do not compile; use the formulas alone, at once")
    scale.add_argument("--text", default="", metavar="FILE", help="file for the text of the compiled program")
    scale.add_argument("--json", metavar="FILE", help="file for everything as JSON")
    plan_budget.add_arguments(parser)
    options, overrides = parser.parse_known_args(list(argv))
    plan_budget.check(options)
    if options.prices is not None:
        return options, overrides
    given = [
        f"--{name.replace('_', '-')}"
        for name, value in vars(options).items()
        if name not in ("config", "shown") and value not in (None, "", 0, False)
    ]
    given = [name for name in given if name != "--slices" or options.slices != 1]
    if options.topology is None and given:
        raise ValueError(f"{given[0]} belongs to the scale plan: add --topology, e.g. v5p:8x8x8")
    if options.compile is not None and (not options.sweep or options.estimate):
        raise ValueError(
            "--compile says how many layouts of a --sweep are compiled"
            + ", and --estimate compiles none" * options.sweep
        )
    if options.text and (options.sweep or options.estimate):
        other = "--sweep" if options.sweep else "--estimate"
        raise ValueError(f"--text keeps the text of the one step that is compiled: not with {other}")
    for name in ("micro_batch", "compile"):
        if (getattr(options, name) or 0) < 0:
            raise ValueError(
                f"--{name.replace('_', '-')} {getattr(options, name)}: at least {0 if name == 'compile' else 1}"
            )
    options.compile = 3 if options.compile is None else options.compile
    return options, overrides


def main(argv: Sequence[str]) -> int:
    """`omnihuman plan`."""
    options, overrides = parse(argv)
    config = load_config(options.config, overrides)
    if options.prices is not None:
        described_devices.prepare()
        return plan_budget.run(config, options)
    if options.topology is not None:
        described_devices.prepare()
        status = plan_scale.run(config, options)
        if not have_catalogs(config.data.rows):
            return status
    plan, reports = report(config)
    print(format_report(reports))
    print(
        f"plan {plan.fingerprint()[:12]}: {plan.schedule.total_steps} steps of {plan.config.sequences_per_step}"
        " sequences"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
