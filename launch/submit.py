"""Submit: one run spec, checked, then sent to a cluster or run here.

    omnihuman submit launch/examples/v5p.yaml --target jobset --dry-run

Targets: jobset (GKE, through kubectl), queued-resource (TPU VMs, gcloud), slurm (sbatch), local (processes of this
machine; runs until the job has ended). --dry-run prints what would be sent: manifest, commands or script.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence

from launch import checks, local
from launch.accelerators import GPU_MACHINES, TPU_NAMES
from launch.spec import RunSpec, load_spec


def main(argv: Sequence[str]) -> int:
    """`omnihuman submit`."""
    parser = argparse.ArgumentParser(
        prog="omnihuman submit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("spec", metavar="SPEC", help="YAML file; examples are in launch/examples/")
    parser.add_argument("--target", required=True, choices=tuple(checks.TARGETS))
    parser.add_argument("--dry-run", action="store_true", help="check, and print what would be sent")
    parser.add_argument("--allow-tag", action="store_true", help="accept an image given by tag instead of digest")
    parser.add_argument(
        "--preflight",
        action="store_true",
        help="run `omnihuman plan` first, and refuse a run that does not fit the accelerators' memory",
    )
    options = parser.parse_args(list(argv))
    spec = load_spec(options.spec)
    checks.check(spec, options.target, checks.Options(allow_tag=options.allow_tag, preflight=options.preflight))
    print(f"{spec.name}: {describe(spec, options.target)}", file=sys.stderr, flush=True)
    if options.target == "local":
        return show_local(spec) if options.dry_run else run_here(spec)
    module = checks.TARGETS[options.target]
    if options.dry_run:
        print(module.render(spec), end="")
        return 0
    return module.submit(spec)


def describe(spec: RunSpec, target: str) -> str:
    """The machines in words, with the cloud's own names where it is one."""
    machines = spec.machines
    if target == "local":
        processes = local.processes_of(spec)
        return f"{processes.count} processes of this machine, {processes.devices or 'its own'} devices each"
    if target == "slurm":
        return str(machines)
    if machines.kind == "gpu":
        return f"{machines} ({GPU_MACHINES[machines.type].machine})"
    if machines.kind == "tpu":
        names = TPU_NAMES[machines.type]
        return f"{machines} ({names.machine_of_one if machines.chips == 1 else names.machine})"
    return str(machines)


def show_local(spec: RunSpec) -> int:
    """Prints the commands of the first attempt."""
    job, processes = local.LocalJob(spec), local.processes_of(spec)
    for rank in range(processes.count):
        print(shlex.join(job.command_of(0, rank, processes, 0)))
    return 0


def run_here(spec: RunSpec) -> int:
    """Runs the job to its end with rank 0's output and the launcher's decisions on the terminal."""

    def tell(event: local.Event) -> None:
        if event.kind == "exited" and not event.code:
            return
        who = "" if event.rank is None else f" rank {event.rank}"
        code = "" if event.code is None else f" code {event.code}"
        print(
            f"[launch] attempt {event.attempt}: {event.kind}{who}{code}{': ' if event.text else ''}{event.text}",
            file=sys.stderr,
        )

    outcome = local.run_local(spec, on_event=tell, echo=sys.stdout)
    print(f"[launch] logs: {local.state_dir(spec) / 'logs'}", file=sys.stderr)
    return outcome.code
