"""This machine as a target of `submit`: the commands that would run, and a run with its story on the terminal."""

import shlex
import sys
from collections.abc import Iterator

from launch import local, local_state
from launch.spec import RunSpec
from launch.target import OPTIONAL_FIELDS, Target


def describe(spec: RunSpec) -> str:
    """Processes and devices."""
    processes = local.processes_of(spec)
    return f"{processes.count} processes of this machine, {processes.devices or 'its own'} devices each"


def render(spec: RunSpec) -> str:
    """The commands of the first attempt."""
    job, processes = local.LocalJob(spec), local.processes_of(spec)
    return "".join(f"{shlex.join(job.command_of(0, rank, processes, 0))}\n" for rank in range(processes.count))


def submit(spec: RunSpec) -> int:
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


def _no_images(_spec: RunSpec) -> Iterator[tuple[str, str]]:
    yield from ()


TARGET = Target(
    name="local",
    check=local.check,
    describe=describe,
    render=render,
    submit=submit,
    status=local_state.status,
    logs=local_state.logs,
    cancel=local_state.cancel,
    homes=lambda spec: None,
    homes_field="",
    # It stands for the cluster: whatever the spec says there is right here.
    takes=OPTIONAL_FIELDS,
    instead={},
    images=_no_images,
    secrets="local",
    here=True,
    warnings=lambda spec: [],
)
