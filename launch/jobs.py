"""What the three commands about a submitted job share: a spec names the job, a target says where it is."""

import argparse
import dataclasses
from collections.abc import Sequence

from launch.spec import RunSpec, load_spec
from launch.target import Target
from launch.targets import TARGETS


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A spec, and where it was sent."""

    spec: RunSpec
    target: Target


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """With SPEC and --target."""
    made = argparse.ArgumentParser(
        prog=f"omnihuman {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("spec", metavar="SPEC", help="the spec that was submitted")
    made.add_argument("--target", required=True, choices=tuple(TARGETS))
    return made


def parse(made: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[Job, argparse.Namespace]:
    """The job that the arguments name, and the arguments."""
    options = made.parse_args(list(argv))
    return Job(spec=load_spec(options.spec), target=TARGETS[options.target]), options
