"""A part of the table, made: the unit of work, retry and recovery of every engine.

`work` makes the stages that a part lacks, in order. It is a function of its task alone, and a part that it is killed in
is the same part when it is made again.

A row that kills the process that works on it (a decoder's crash, the kernel's answer to a full memory) would do so for
ever: `work` notes which row it is at, and `blame`, called by the engine that saw the process die, counts it. After
`MAX_DEATHS` the row is a dead letter, and the part goes on without it.
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.curate import file_stages, stage_parts, video_files
from data_pipelines.curate.file_stages import DeadLetter, ScanOptions
from data_pipelines.curate.stage_parts import CLIP, DEAD, SCHEMAS, SHORT, RecordWriter, Table, clip_id
from data_pipelines.curate.video_files import Address
from omnihuman_jax.runtime import files
from omnihuman_jax.serving.media_omnihuman import MediaError
from omnihuman_jax.serving.poses_omnihuman import wrong_keypoint

DIED = "the process that worked on it died (a crash in a decoder, or out of memory); re-encode it, or take it out"
MAX_DEATHS = 2
# Of an error that is not the file's own fault.
_TRIES = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartTask:
    """What `work` is given. paths: source -> where it lies (`video_files.Address`), of the part's videos that are
    there.
    """

    table: str
    number: int
    keys: Mapping[str, str]
    options: ScanOptions
    sources: tuple[str, ...]
    paths: Mapping[str, str]

    @property
    def opened(self) -> Table:
        return Table(folder=Path(self.table), keys=self.keys)


def work(task: PartTask) -> dict[str, int]:
    """Makes what the part lacks; stage -> rows that were made."""
    try:
        return _work(task)
    finally:
        video_files.forget()


def _work(task: PartTask) -> dict[str, int]:
    table, made = task.opened, dict[str, int]()
    make = {"scan": _scan, "look": _look, "listen": _listen}
    for stage in table.missing(task.number):
        stage_parts.sweep(table.part(stage, task.number))
        stage_parts.sweep(table.landmarks(task.number))
        rows = make[stage](task, table)
        stage_parts.write_part(table.part(stage, task.number), rows, SCHEMAS[stage])
        for file in _notes(table, stage, task.number):
            file.unlink(missing_ok=True)
        made[stage] = len(rows)
    return made


def _scan(task: PartTask, table: Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for source in task.sources:
        path = task.paths.get(source, "")
        found = _tried(task, table, "scan", source, path, lambda path: file_stages.scan(path, task.options))
        if isinstance(found, DeadLetter):
            rows.append({"source": source, "kind": DEAD, **dataclasses.asdict(found)})
            continue
        facts = {"source": source, **dataclasses.asdict(found.video)}
        facts |= {name: json.dumps(facts[name]) for name in ("tracks", "properties")}
        ranges = [(CLIP, *r) for r in found.ranges] + [(SHORT, *r) for r in found.too_short]
        # A video of which nothing is left says so with a shot of no frames.
        for kind, start, end in sorted(ranges, key=lambda r: r[1:]) or [(SHORT, 0, 0)]:
            rows.append({**facts, "kind": kind, "start_frame": start, "end_frame": end})
    return rows


def _look(task: PartTask, table: Table) -> list[dict[str, Any]]:
    rows = []
    with RecordWriter(table.landmarks(task.number)) as records:
        for clip in stage_parts.clip_rows(table.read("scan", task.number)):
            name = clip_id(clip["sha256"], clip["start_frame"], clip["end_frame"])
            path, frames = task.paths.get(clip["source"], ""), {k: clip[k] for k in ("start_frame", "end_frame")}
            found = _tried(task, table, "look", name, path, functools.partial(file_stages.look, **frames))
            if isinstance(found, DeadLetter):
                why = f"failed: {found.reason}"
                rows.append({"clip_id": name, "pictures_why": why, "landmarks_why": why, **dataclasses.asdict(found)})
                records.write({})
                continue
            scores, landmarks, thumbnail = found
            assert not wrong_keypoint(landmarks.keypoints_TJ3)
            records.write({**landmarks.arrays(), "thumbnail": np.frombuffer(thumbnail, np.uint8)})
            rows.append({"clip_id": name, **scores})
    return rows


def _listen(task: PartTask, table: Table) -> list[dict[str, Any]]:
    rows = []
    looked = table.read("look", task.number, ["clip_id", "landmarks_why"]).to_pylist()
    for index, clip in enumerate(stage_parts.clip_rows(table.read("scan", task.number))):
        name, path = looked[index]["clip_id"], task.paths.get(clip["source"], "")
        if looked[index]["landmarks_why"]:
            why = "not computed: its pictures cannot be read"
            rows.append({"clip_id": name, "sound_why": why, "lip_sync_why": why})
            continue
        aperture_T = stage_parts.read_record(table.landmarks(task.number), index)["aperture_T"]
        question = {name: clip[name] for name in ("start_frame", "end_frame", "has_audio")}
        listen = functools.partial(file_stages.listen, aperture_T=aperture_T, **question)
        found = _tried(task, table, "listen", name, path, listen)
        if isinstance(found, DeadLetter):
            why = f"failed: {found.reason}"
            found = {"sound_why": why, "lip_sync_why": why, **dataclasses.asdict(found)}
        rows.append({"clip_id": name, **found})
    return rows


def _tried(
    task: PartTask, table: Table, stage: str, row: str, path: str, make: Callable[[str], Any]
) -> Any | DeadLetter:
    """What `make` gives for a row's file; a dead letter where it gives nothing."""
    at, deaths = _notes(table, stage, task.number)
    if (died := _deaths(deaths).get(row, 0)) >= MAX_DEATHS:
        return DeadLetter(reason=DIED, exception="ProcessDied", tries=died, is_lasting=False)
    if not path:
        gone = "not in the source any more; put it back, or leave it"
        return DeadLetter(reason=gone, exception="FileNotFoundError", tries=1, is_lasting=False)
    at.parent.mkdir(parents=True, exist_ok=True)
    at.write_text(row)
    address = Address.parse(path, task.table)
    for tries in range(1, _TRIES + 1):
        file = address.place or path
        try:
            file = os.fspath(video_files.local_file(address))
            return make(file)
        except ImportError:  # of an extra that is not installed: no fault of any file
            raise
        except Exception as problem:
            if isinstance(problem, MediaError) or tries == _TRIES:
                return file_stages.dead_letter(problem, file, tries)
    raise AssertionError("the last try returns")


def blame(task: PartTask) -> bool:
    """Counts the death of the process that worked on the part against the row that it was at; whether the part is worth
    another try. For the engine, which alone knows that the process died and nobody ended the run.
    """
    table = task.opened
    for stage in table.missing(task.number)[:1]:
        at, deaths = _notes(table, stage, task.number)
        if at.is_file():
            counted = _deaths(deaths)
            row = at.read_text()
            counted[row] = counted.get(row, 0) + 1
            files.write_text(deaths, json.dumps(counted))
            return True
    return False


def forget_notes(table: Table) -> None:
    """Removes the notes of parts that are done: of a process that was killed after its part and before them."""
    for stage in stage_parts.STAGES:
        for note in table.stage_folder(stage).glob(".part-*.*"):
            match = re.fullmatch(r"\.part-(\d+)\.(at|deaths)", note.name)
            if match and table.part(stage, int(match[1])).is_file():
                note.unlink(missing_ok=True)


def _notes(table: Table, stage: str, number: int) -> tuple[Path, Path]:
    """(which row is worked on, deaths by row) while a part is being made."""
    folder = table.stage_folder(stage)
    return folder / f".part-{number:05d}.at", folder / f".part-{number:05d}.deaths"


def _deaths(path: Path) -> dict[str, int]:
    try:
        return dict(json.loads(path.read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def forget_dead(task: PartTask) -> bool:
    """Takes away the stages of a part from the first on that has dead letters which are no fault of their files, so
    that they are made again; whether there were any.
    """
    table = task.opened
    if table.missing(task.number):
        return False
    stages = [x["stage"] for x in stage_parts.letters_of(table, task.number) if not x["is_lasting"]]
    first = min(map(stage_parts.STAGES.index, stages), default=len(stage_parts.STAGES))
    for stage in reversed(stage_parts.STAGES[first:]):
        table.part(stage, task.number).unlink()
    return bool(stages)
