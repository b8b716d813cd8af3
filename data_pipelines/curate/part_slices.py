"""A stage of a part in slices of about ten minutes of video: processes share a film or a large part, and one that is
killed loses minutes.

    look@.../part-00007.slices/000120-000180.parquet, .array_record

A slice that is there is whole, and done. It says what its rows are of and by what they were chosen: one that other
thresholds were meant for is made again. When all are there, the part is written from them, to the bit as if it had been
made at once, and they go.
"""

import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.curate import stage_parts
from data_pipelines.curate.stage_parts import RECORDS_SUFFIX, RecordWriter, Table

SUFFIX = ".slices"
# Seconds of video of a task, about.
TASK_S = 600.0
WITH_RECORDS = ("preview", "look")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Rows `begin` to `end` of a stage of a part: videos of `scan`, clips of the others."""

    stage: str
    begin: int
    end: int

    @property
    def rows(self) -> slice:
        return slice(self.begin, self.end)

    def file(self, table: Table, number: int) -> Path:
        """Where its rows are; its records are beside them."""
        return folder(table, self.stage, number) / f"{self.begin:06d}-{self.end:06d}.parquet"


def folder(table: Table, stage: str, number: int) -> Path:
    return table.part(stage, number).with_suffix(SUFFIX)


def cut(stage: str, costs: Sequence[float], most: float) -> list[Slice]:
    """Consecutive rows whose costs come to `most` together, or one row that costs more; at least one slice."""
    ends, total = [0], 0.0
    for row, cost in enumerate(costs):
        if total and total + cost > most:
            ends.append(row)
            total = 0.0
        total += cost
    ends.append(len(costs))
    return [Slice(stage=stage, begin=begin, end=end) for begin, end in itertools.pairwise(ends)]


def made_of(names: Iterable[str], chosen_by: str) -> str:
    """What a slice says that it is: of which rows, chosen by what."""
    return hashlib.sha256(json.dumps([list(names), chosen_by]).encode()).hexdigest()


def is_there(file: Path, made_of: str) -> bool:
    """Whether a slice is done, and this one."""
    try:
        return stage_parts.stated_choice(file) == made_of
    except (FileNotFoundError, ValueError):
        return False


def join(table: Table, number: int, slices: Sequence[Slice]) -> list[dict[str, Any]]:
    """The rows of the whole part, and its records written; the slices stay until `remove`."""
    stage = slices[0].stage
    if stage in WITH_RECORDS:
        with RecordWriter(table.part(stage, number).with_suffix(RECORDS_SUFFIX)) as records:
            for one in slices:
                records.copy_all(one.file(table, number).with_suffix(RECORDS_SUFFIX))
    return [row for one in slices for row in stage_parts.read_part(one.file(table, number)).to_pylist()]


def remove(table: Table, stage: str, number: int) -> None:
    shutil.rmtree(folder(table, stage, number), ignore_errors=True)
