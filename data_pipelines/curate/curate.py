"""What `omnihuman curate` does: from videos to a TABLE of clips with scores, and SETS: what each clip can train.

    scan      header, damage, shots -> frame ranges              a video at a time
    preview   pictures, a person on some of them -> raw scores   a clip at a time
    look      landmarks -> raw scores                            a clip whose preview could be of use, at a time
    listen    sound -> raw scores                                a clip at a time
    sync      lips and sound -> scores, by a user's network      a clip at a time
    embed     a thumbnail -> a vector, by a user's network       a clip at a time
    caption   what a user's program says of it                   a clip at a time, of a video without a caption
    select    scores -> eligible set and reasons                 always made again; opens no video

Nothing is thrown away without a reason written on it: a video, clip or caption that cannot be read is a dead letter
with its stage, a file that is no video is in the funnel's `passed_over`, a shot that is too short in `dropped`, and a
clip has a reason for each condition that it is not eligible for. No single file ends the run, not even one that kills
the process that reads it.

This file lists the work and hands it to an engine; the stages know of neither.
"""

import collections
import concurrent.futures
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from data_pipelines.curate import captions, network_files, part_work, source_list
from data_pipelines.curate.adapters import NO_ADAPTERS, AdapterOptions, Adapters
from data_pipelines.curate.clip_sets import OWN_SETS
from data_pipelines.curate.file_stages import SYNC_SCORES, ScanOptions
from data_pipelines.curate.found_videos import CaptionOptions
from data_pipelines.curate.part_slices import TASK_S, Slice
from data_pipelines.curate.part_task import Made, PartTask, SlicesOut
from data_pipelines.curate.reach import looser_fields, looser_of
from data_pipelines.curate.selection import select
from data_pipelines.curate.shot_network import ShotNetwork
from data_pipelines.curate.shots import ShotConfig
from data_pipelines.curate.source_list import ListedVideo
from data_pipelines.curate.stage_keys import stage_keys
from data_pipelines.curate.stage_parts import TABLE_FILE, Table
from data_pipelines.curate.stage_rows import MAX_DEATHS
from data_pipelines.curate.tagging import CHECKS, Thresholds
from data_pipelines.engines.local_pool import LocalPool
from omnihuman_jax.plain_values import check_finite, structure
from omnihuman_jax.runtime.locations import StrPath, is_remote, location
from omnihuman_jax.runtime.worker_share import WorkerShare

ENGINES = ("local", "ray")
_ASKED_AT_ONCE = 32


@dataclasses.dataclass(kw_only=True, slots=True)
class CurateConfig(AdapterOptions):
    """What curate does, and by what. `max_seconds_per_video` reads only the beginning of long videos; None reads all
    of them.

    loosest: the loosest thresholds that anybody means to select with: clips that could not be eligible by them for what
        asks for landmarks get none (`reach.py`); None: those of the table that is there, or the defaults, and
        `thresholds`.
    caption_encoding: of captions that are neither UTF-8 nor marked as UTF-16; "": there are none.
    strict: refuse a video of which something would have to be undone (docs/footage.md) instead of undoing it.
    part_videos: videos a part of the table, at most.
    task_minutes: of video that a task works on, about: what is lost when a process is killed.
    workers: processes of the local engine.
    """

    shots: ShotConfig = dataclasses.field(default_factory=ShotConfig)
    thresholds: Thresholds = dataclasses.field(default_factory=Thresholds)
    loosest: Thresholds | None = None
    default_caption: str = "A video."
    caption_encoding: str = ""
    max_seconds_per_video: float | None = None
    strict: bool = False
    part_videos: int = source_list.PART_VIDEOS
    task_minutes: float = TASK_S / 60
    workers: int = 2

    def validate(self) -> None:
        check_finite(self)
        self.shots.validate()
        self.thresholds.validate()
        if self.loosest is not None:
            self.loosest.validate()
            if looser := looser_fields(self.thresholds, self.loosest):
                name = looser[0]
                raise ValueError(
                    f"loosest: {name} {getattr(self.loosest, name)} must not be stricter than that of `thresholds`,"
                    f" {getattr(self.thresholds, name)}"
                )
        for name in ("workers", "part_videos"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("max_seconds_per_video", "task_minutes"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} must be greater than 0, not {value}")
        captions.check_encoding(self.caption_encoding)
        captions.check_text("default_caption", self.default_caption)

    @classmethod
    def from_json(cls, text: str) -> "CurateConfig":
        """The configuration whose JSON this is; what it does not name keeps its default, an unknown name or a value of
        another type is an error.
        """
        return structure(cls, json.loads(text), whole="a curate configuration")

    @property
    def scan_options(self) -> ScanOptions:
        return ScanOptions(shots=self.shots, max_seconds=self.max_seconds_per_video, strict=self.strict)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """What makes the parts. share: this worker's of all; retry_dead: dead letters that are no fault of their files are
    tried again; listed: the source is not looked into, but taken as it was listed last.
    """

    name: str = "local"
    address: str | None = None
    share: WorkerShare | None = None
    retry_dead: bool = False
    listed: bool = False


def curate(
    source: StrPath,
    table_dir: StrPath,
    config: CurateConfig | None = None,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Curates every video of `source` (`source_list.find`) into the table `table_dir`; returns the funnel of its sets
    (of a worker's share: how many parts are left), with what this run had to do in `funnel["computed"]`.

    Idempotent and resumable: a part that is there is done. What other sources gave the table stays.

    Raises:
        FileNotFoundError, ValueError, OSError: no such source, none that can be read, or no videos in it.
        ChildProcessError: no worker process starts, or parts are left that no process lives through.
    """
    config, engine = config or CurateConfig(), engine or Engine()
    config.validate()
    options = config.scan_options
    loosest = config.loosest or looser_of(_stored_loosest(table_dir), config.thresholds)
    given = config.load()
    if config.thresholds.max_similarity < 1 and given.embedding is None:
        raise ValueError(
            f"thresholds: max_similarity {config.thresholds.max_similarity} compares embeddings, and none are made;"
            " give --embedding-network, or leave max_similarity out"
        )
    if any(check.asks(config.thresholds) for check in CHECKS if check.score in SYNC_SCORES) and given.sync is None:
        raise ValueError(
            "thresholds: min_syncnet_confidence, max_syncnet_distance and max_syncnet_offset_s ask for scores of"
            " SyncNet, and none are made; give --sync-network, or leave them out"
        )
    if options.shots.network:
        ShotNetwork(Path(options.shots.network))  # or an error, before anything starts
    table = Table(folder=location(table_dir), keys=stage_keys(options, given), loosest=loosest)
    if engine.listed:
        videos = source_list.as_listed(table, source)
    else:
        videos = source_list.look_up(table, source, _captioning(config), config.part_videos)
    table.save(options=options.stated())
    everything = tasks = _tasks(table, videos, options, loosest, given, 60 * config.task_minutes)
    if engine.share is not None:
        tasks = engine.share.of(tasks)  # of all parts: what is missing differs from one worker's start to the next's
    part_work.forget_notes(everything)
    if engine.retry_dead:
        for task in tasks:
            part_work.forget_dead(task)
    to_make = _to_make(tasks)
    tasks = [task for task, stages in zip(tasks, to_make, strict=True) if stages]
    if any({"preview", "look"}.intersection(stages) for stages in to_make):
        network_files.fetch_all()  # once, before many processes do
    computed, left = _run(engine, config.workers, tasks, progress)
    part_work.forget_notes(tasks)  # of processes that died right behind a part
    if left:
        raise ChildProcessError(
            f"{len(left)} parts are not finished, the first is {left[0].number}: the processes that made them died;"
            " the same command goes on from here"
        )
    if engine.share is not None:
        unfinished = sum(map(bool, _to_make(everything)))
        return {"unfinished_parts": unfinished, "computed": computed}
    funnel = select(table_dir, config.thresholds, table.folder / OWN_SETS, progress=progress)
    return {**funnel, "computed": computed}


def list_source(source: StrPath, table_dir: StrPath, config: CurateConfig) -> tuple[int, int]:
    """(videos, parts) of a source, which is listed and of which nothing is made; errors as `curate` has them."""
    config.validate()
    table = Table(folder=location(table_dir), keys=stage_keys(config.scan_options, config.load()))
    videos = source_list.look_up(table, source, _captioning(config), config.part_videos)
    return len(videos), len({video.part for video in videos})


def _captioning(config: CurateConfig) -> CaptionOptions:
    return CaptionOptions(default=config.default_caption, encoding=config.caption_encoding)


def _to_make(tasks: Sequence[PartTask]) -> list[list[str]]:
    """The stages that each part lacks. Of a bucket's table many are asked for at once: each is a dozen requests."""
    if not tasks or not is_remote(tasks[0].table):
        return [part_work.to_make(task) for task in tasks]
    with concurrent.futures.ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        return list(pool.map(part_work.to_make, tasks))


def _stored_loosest(table_dir: StrPath) -> Thresholds:
    """Of the table that is there, if it says; the defaults."""
    path = location(table_dir) / TABLE_FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Thresholds(**stored["loosest"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return Thresholds()


def _tasks(
    table: Table,
    videos: Sequence[ListedVideo],
    options: ScanOptions,
    loosest: Thresholds,
    given: Adapters = NO_ADAPTERS,
    task_s: float = TASK_S,
) -> list[PartTask]:
    """A task a part that has videos of this source, whether it is done or not."""
    paths: dict[int, dict[str, str]] = collections.defaultdict(dict)
    uncaptioned: dict[int, set[str]] = collections.defaultdict(set)
    for video in videos:
        paths[video.part][video.source] = video.path
        if video.caption_source == captions.BY_DEFAULT:
            uncaptioned[video.part].add(video.source)
    sources: dict[int, dict[str, int]] = collections.defaultdict(dict)
    for row in source_list.read_sources(table):
        sources[row["part"]][row["source"]] = row["size"]
    return [
        PartTask(
            table=os.fspath(table.folder),
            number=number,
            keys=table.keys,
            options=options,
            loosest=loosest,
            sources=tuple(sources[number]),
            paths=paths[number],
            sizes=tuple(sources[number].values()),
            given=given,
            uncaptioned=frozenset(uncaptioned[number]),
            task_s=task_s,
        )
        for number in sorted(paths)
    ]


def _run(
    engine: Engine, workers: int, tasks: Sequence[PartTask], progress: Progress | None
) -> tuple[dict[str, int], list[PartTask]]:
    """(what was made: rows by stage, and videos; a task of each part that no process lived through)."""
    made: collections.Counter[str] = collections.Counter({"videos": 0, "clips": 0})
    total = sum(len(task.sources) for task in tasks)
    bar = progress.add_task("curate videos", total=total) if progress and tasks else None
    left: dict[int, PartTask] = {}
    out = SlicesOut()
    for task, one in _made(engine, workers, tasks, out):
        if one is None:
            left[task.number] = task
            continue
        made.update(one.rows)
        made["videos"] += one.videos
        made["clips"] += one.rows.get("look", 0)
        if progress and bar is not None:
            progress.advance(bar, len(task.sources) * (task.slice is None and not one.then))
            row = next(row for row in progress.tasks if row.id == bar)
            pace = f"{row.completed / row.elapsed:.2f} videos/s" if row.elapsed else ""
            progress.update(bar, text=f"{pace}, {out.count} slices to do" if out.count else pace)
    return dict(made), list(left.values())


def _made(
    engine: Engine, workers: int, tasks: Sequence[PartTask], out: SlicesOut
) -> Iterator[tuple[PartTask, Made | None]]:
    retries = Retries()
    if engine.name == "ray" and tasks:
        from data_pipelines.engines.ray_cluster import RayCluster

        with RayCluster[PartTask, Made](engine.address) as cluster:
            yield from cluster.run(work, tasks, retries.are_left, out.follow, part_work.needs_of)
    elif tasks:
        with LocalPool[PartTask, Made](workers) as pool:
            yield from pool.run(work, tasks, retries.are_left, out.follow)


class Retries:
    """Whether a task whose process died is tried again."""

    def __init__(self) -> None:
        self._outside = collections.Counter[tuple[int, Slice | None]]()

    def are_left(self, task: PartTask) -> bool:
        """Of a death at a row, always: the row is counted, and left out in the end. Of another one, such as while a
        part is put together, so often in a run.
        """
        if part_work.blame(task):
            return True
        self._outside[task.number, task.slice] += 1
        return self._outside[task.number, task.slice] < MAX_DEATHS


work: Callable[[PartTask], Made] = part_work.work
