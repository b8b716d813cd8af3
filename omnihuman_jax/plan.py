"""Plan: what training would see, before anything is trained: ratios, repeats, fill, skips; refuses what the data cannot feed.

omnihuman plan --config configs/demo.py --config.data.dataset=runs/demo/dataset
"""

import argparse
import sys
from collections.abc import Sequence

from omnihuman_jax.config import ExperimentConfig, dataset_dir, load_config, packed_shape
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.plan import Plan, StageReport, format_report
from omnihuman_jax.data.records import DatasetSpec


def report(config: ExperimentConfig) -> tuple[Plan, tuple[StageReport, ...]]:
    """The plan of a config on its dataset, and what it makes of each stage; ValueError, with the numbers, if it cannot be met."""
    config.validate()
    packed_shape(config, DatasetSpec.load(dataset_dir(config)))
    plan = Plan(Catalog.load(config.data.dataset), config.stages, config.data.plan, config.seed)
    return plan, plan.report()


def main(argv: Sequence[str]) -> int:
    """`omnihuman plan`."""
    parser = argparse.ArgumentParser(
        prog="omnihuman plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="config file; fields are set with --config.FIELD=VALUE")
    options, overrides = parser.parse_known_args(list(argv))
    plan, reports = report(load_config(options.config, overrides))
    print(format_report(reports))
    print(f"plan {plan.fingerprint()[:12]}: {plan.schedule.total_steps} steps of {plan.config.sequences_per_step} sequences")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
