"""`--worker I/N`: every N-th part, shard or line. For arrays of SLURM, Jobs of Kubernetes, and whatever else can start
N commands that differ by a number.

Nobody talks to anybody. A worker that is lost is started again, alone, with the same numbers.
"""

import argparse
import re
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class ShareError(argparse.ArgumentTypeError, ValueError):
    """Text that is no share: one line, for the command line as well."""


class WorkerShare:
    """Share `index` (0 .. count - 1) of `count`; ShareError for text that is none.

    `parse("3/64")` is the fourth of 64: numbers begin with 0, as SLURM_ARRAY_TASK_ID and JOB_COMPLETION_INDEX do.
    """

    def __init__(self, index: int, count: int) -> None:
        if not 0 <= index < count:
            raise ShareError(f"--worker {index}/{count}: I/N with I from 0 to N - 1, such as 0/{max(1, count)}")
        self.index, self.count = index, count

    @classmethod
    def parse(cls, text: str) -> "WorkerShare":
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None:
            raise ShareError(f"--worker {text}: I/N with I from 0 to N - 1, such as 0/4")
        return cls(int(match[1]), int(match[2]))

    def of(self, parts: Sequence[T]) -> list[T]:
        """The parts that are this worker's."""
        return list(parts[self.index :: self.count])

    def first(self, parts: Sequence[T]) -> list[T]:
        """All parts, this worker's share of them first: for work that is leased."""
        return [
            *self.of(parts),
            *(part for i in range(1, self.count) for part in parts[(self.index + i) % self.count :: self.count]),
        ]
