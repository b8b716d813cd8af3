"""A stage of a part in slices of about ten minutes of video: processes share a film or a large part, and one that is
killed loses minutes.

    look@.../part-00007.slices-3f2a9c11/000120-000180.parquet, .array_record

A slice that is there is whole, and done. The folder's name is a hash of what its rows were chosen by, so that commands
with other thresholds have slices of their own; a slice says what its rows are of. When all are there, the part is
written from them, to the bit as if it had been made at once, and they go.
"""

import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

from data_pipelines.curate import stage_parts
from data_pipelines.curate.clip_records import RECORDS_SUFFIX, RecordWriter
from data_pipelines.curate.stage_parts import RECORDED, Table
from omnihuman_jax.runtime import files, folders
from omnihuman_jax.runtime.locations import Location

# Seconds of video of a task, about.
TASK_S = 600.0
_DIGITS = 8


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Rows `begin` to `end` of a stage of a part: videos of `scan`, clips of the others. chosen_by: what the part will
    say that its rows were chosen by (`stage_parts.stated_choice`).
    """

    stage: str
    begin: int
    end: int
    chosen_by: str = ""

    @property
    def rows(self) -> slice:
        return slice(self.begin, self.end)

    def folder(self, table: Table, number: int) -> Location:
        digest = hashlib.sha256(self.chosen_by.encode()).hexdigest()[:_DIGITS]
        return table.part(self.stage, number).with_suffix(f".slices-{digest}")

    def file(self, table: Table, number: int) -> Location:
        """Where its rows are; its records are beside them."""
        return self.folder(table, number) / f"{self.begin:06d}-{self.end:06d}.parquet"


def cut(whole: Slice, costs: Sequence[float], most: float) -> list[Slice]:
    """Consecutive rows whose costs come to `most` together, or one row that costs more; at least one slice."""
    ends, total = [whole.begin], 0.0
    for row, cost in enumerate(costs, whole.begin):
        if total and total + cost > most:
            ends.append(row)
            total = 0.0
        total += cost
    ends.append(whole.end)
    return [dataclasses.replace(whole, begin=begin, end=end) for begin, end in itertools.pairwise(ends)]


def of_rows(names: Iterable[str]) -> str:
    """What a slice says that its rows are of."""
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()


def is_there(table: Table, number: int, one: Slice, rows: str) -> bool:
    """Whether a slice is done, and of these rows."""
    file = one.file(table, number)
    if one.stage in RECORDED and not files.is_there(file.with_suffix(RECORDS_SUFFIX)):
        return False
    try:
        return stage_parts.stated_choice(file) == rows
    except (FileNotFoundError, ValueError):
        return False


def join(table: Table, number: int, slices: Sequence[Slice]) -> list[dict[str, Any]]:
    """The rows of the whole part, and its records written; the slices stay until `remove`."""
    stage = slices[0].stage
    if stage in RECORDED:
        with RecordWriter(table.part(stage, number).with_suffix(RECORDS_SUFFIX)) as records:
            for one in slices:
                records.copy_all(one.file(table, number).with_suffix(RECORDS_SUFFIX))
    return [row for one in slices for row in stage_parts.read_part(one.file(table, number)).to_pylist()]


def remove(folder: Location) -> None:
    """Rows first: records without rows are no slice."""
    for path in folders.matching(folder, "*.parquet"):
        files.remove(path)
    folders.remove_folder(folder)


def folders_of(table: Table, stage: str, number: int) -> list[Location]:
    """Those of a part, whatever their slices were chosen by."""
    part = table.part(stage, number)
    return folders.matching(part.parent, f"{part.stem}.slices-*")


def remove_dead(folder: Location) -> None:
    """Removes slices that nobody has added to for an hour."""
    written = folders.last_written(folder)
    if written and time.time() - written > files.DEAD_S:
        remove(folder)
