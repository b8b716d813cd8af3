"""Submit: one run spec, checked, then sent to a cluster or run here.

    omnihuman submit launch/examples/v5p.yaml --target jobset --dry-run

Targets: jobset (GKE, through kubectl), compute-engine (TPU VMs of Compute Engine, gcloud), queued-resource (TPU VMs of
the older Cloud TPU API, gcloud), slurm (sbatch), local (processes of this machine; runs until the job has ended).
--dry-run prints what would be sent: manifest, commands or script.
"""

import argparse
import sys
from collections.abc import Sequence

from launch import checks
from launch.spec import load_spec
from launch.targets import TARGETS


def main(argv: Sequence[str]) -> int:
    """`omnihuman submit`."""
    parser = argparse.ArgumentParser(
        prog="omnihuman submit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("spec", metavar="SPEC", help="YAML file; examples are in launch/examples/")
    parser.add_argument("--target", required=True, choices=tuple(TARGETS))
    parser.add_argument("--dry-run", action="store_true", help="check, and print what would be sent")
    parser.add_argument("--allow-tag", action="store_true", help="accept an image given by tag instead of digest")
    parser.add_argument(
        "--preflight",
        action="store_true",
        help="run `omnihuman plan` first, and refuse a run that does not fit the accelerators' memory",
    )
    options = parser.parse_args(list(argv))
    spec, target = load_spec(options.spec), TARGETS[options.target]
    checks.check(spec, target, checks.Options(allow_tag=options.allow_tag, preflight=options.preflight))
    print(f"{spec.name}: {target.describe(spec)}", file=sys.stderr, flush=True)
    for line in checks.warnings(spec, target):
        print(f"{spec.name}: warning: {line}", file=sys.stderr, flush=True)
    if options.dry_run:
        print(target.render(spec), end="")
        return 0
    return target.submit(spec)
