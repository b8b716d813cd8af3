"""What is given to whoever makes a part of the table, or a slice of one, and what comes back."""

import dataclasses
from collections.abc import Mapping

from data_pipelines.curate.adapters import NO_ADAPTERS, Adapters
from data_pipelines.curate.file_stages import ScanOptions
from data_pipelines.curate.part_slices import TASK_S, Slice
from data_pipelines.curate.reach import Reach
from data_pipelines.curate.stage_parts import Table
from data_pipelines.curate.tagging import Thresholds
from omnihuman_jax.runtime.locations import location


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartTask:
    """What `part_work.work` is given.

    loosest: thresholds; clips that could reach what asks for landmarks by these get them.
    paths: source -> where it lies (`video_files.Address`), of the part's videos that are there.
    sizes: bytes of the videos in `sources`, in their order.
    uncaptioned: sources of videos that are there and have no caption of their own.
    task_s: seconds of video that one task works on, about; a stage of more is made in slices.
    slice: make this slice alone.
    """

    table: str
    number: int
    keys: Mapping[str, str]
    options: ScanOptions
    loosest: Thresholds
    sources: tuple[str, ...]
    paths: Mapping[str, str]
    sizes: tuple[int, ...] = ()
    given: Adapters = NO_ADAPTERS
    uncaptioned: frozenset[str] = frozenset()
    task_s: float = TASK_S
    slice: Slice | None = None

    @property
    def opened(self) -> Table:
        return Table(folder=location(self.table), keys=self.keys)

    @property
    def reach(self) -> Reach:
        return Reach(loosest=self.loosest, preview=self.keys["preview"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """What `part_work.work` made. rows: of each stage, that are new; videos: scanned; then: tasks that the part goes on
    with.
    """

    rows: Mapping[str, int]
    videos: int = 0
    then: tuple[PartTask, ...] = ()


class SlicesOut:
    """Which slices of which parts are still to be made: what an engine asks for the tasks that follow a result."""

    def __init__(self) -> None:
        self._left: dict[int, int] = {}

    @property
    def count(self) -> int:
        return sum(self._left.values())

    def follow(self, task: PartTask, made: Made) -> tuple[PartTask, ...]:
        """The slices that a part is handed back in; after the last of them the part, which is then joined."""
        if task.slice is None:
            self._left[task.number] = sum(one.slice is not None for one in made.then)
            return made.then
        self._left[task.number] -= 1
        return () if self._left[task.number] else (dataclasses.replace(task, slice=None),)
