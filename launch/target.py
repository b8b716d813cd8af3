"""What a target of `submit` is: one record of functions, so that mypy and the constructor ask for every one of them.

A target is a module that ends in `TARGET = Target(...)`, and a row in `launch/targets.py`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, Protocol

from launch.spec import RunSpec

# Fields of a spec that only some targets have a use for; elsewhere they are refused, not dropped.
OPTIONAL_FIELDS = (
    "namespace",
    "queue",
    "priority",
    "placement_policy",
    "ttl_s",
    "security",
    "host_network",
    "volumes",
    "pod_patch",
    "gpu_network",
    "service_account",
    "spot",
)


class Logs(Protocol):
    """What one process prints; its exit code."""

    def __call__(self, spec: RunSpec, *, rank: int, follow: bool, lines: int) -> int: ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where a run is sent. No field has a default.

    name: of `--target`
    check: ValueError on what the target cannot do, with the field, the value, and what to take instead
    describe: the machines in words, with the cloud's own names
    render: the text that would be sent, which `--dry-run` prints
    submit, status, logs, cancel: the commands, through the scheduler's own tool (`launch.external`)
    homes: the folders that the trainer sees from outside its container, each with the reason why what is written there
        would not last ("": it does); None: all of the machine's
    homes_field: the spec's field that names them
    takes: of OPTIONAL_FIELDS those that it acts on
    instead: what to say of fields that it does not take; others are to be left out
    images: where, and which image, of all that it runs; refused by tag, and where empty
    secrets: `kubernetes` (secret and key), `files` on the machines, or `local`: whatever `check` lets pass
    here: it runs on the submitting machine: relative paths are right, and nothing is looked up on another
    warnings: what is allowed and may hurt
    """

    name: str
    check: Callable[[RunSpec], None]
    describe: Callable[[RunSpec], str]
    render: Callable[[RunSpec], str]
    submit: Callable[[RunSpec], int]
    status: Callable[[RunSpec], int]
    logs: Logs
    cancel: Callable[[RunSpec], int]
    homes: Callable[[RunSpec], Mapping[str, str] | None]
    homes_field: str
    takes: Sequence[str]
    instead: Mapping[str, str]
    images: Callable[[RunSpec], Iterator[tuple[str, str]]]
    secrets: Literal["kubernetes", "files", "local"]
    here: bool
    warnings: Callable[[RunSpec], list[str]]
