"""A part of the table, made: the unit of work, retry and recovery of every engine.

`work` makes the stages that a part lacks, in order. A stage that has more to do than `task_s` is handed back in slices,
which are tasks of their own (`part_slices.py`), and a part whose next stage needs another machine is handed back whole.
It is a function of its task alone, and a part that it is killed in is the same part when it is made again. Where
thresholds are looser than those by which the part's clips were chosen for landmarks, the clips that they let through
are made, and the other rows are copied (`reach.py`).

A row that kills the process that works on it would do so for ever: `work` notes which row it is at, and `blame`, called
by the engine that saw the process die, counts it (`row_deaths.py`). After `MAX_DEATHS` the row is a dead letter, and
the part goes on without it.
"""

import contextlib
import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.curate import clip_records, onnx_networks, part_slices, stage_parts, stage_rows
from data_pipelines.curate.part_slices import Slice
from data_pipelines.curate.part_task import Made, PartTask
from data_pipelines.curate.reach import Reach
from data_pipelines.curate.row_deaths import RowDeaths
from data_pipelines.curate.stage_parts import SCHEMAS, SLICED, Table, clip_id
from data_pipelines.curate.stage_rows import ASKED_AGAIN, Kept, chosen_by, followed, look_plan
from data_pipelines.needs import Needs
from omnihuman_jax.runtime import bucket_copies, files, folders
from omnihuman_jax.runtime.locations import Location
from omnihuman_jax.typing import FPS

_MAKERS = {
    "scan": stage_rows.scan,
    "preview": stage_rows.preview,
    "look": stage_rows.look,
    "listen": stage_rows.listen,
    "sync": stage_rows.sync,
    "embed": stage_rows.embed,
    "caption": stage_rows.caption,
}
# Stages that are made of landmarks -> what says in a row why there are none.
_OF_LANDMARKS = {"listen": "lip_sync_why", "sync": "sync_why"}
# Of processes that were killed: the row that they were at and the deaths of rows, and slices.
_NOTES = (".part-*.*", "part-*.slices-*")
# What the stages read that not every table has.
_READS = {"sync": "look", "embed": "preview", "caption": "scan"}
# Of these, those that `--retry-dead` makes again where they alone have what failed.
_ALONE = ("sync", "embed")
# Videos are not opened to see how long they are: ten minutes of 8 Mbit/s are 600 MB.
BYTES_A_SECOND = 1e6
# Processes that worked on clips of 2160 lines, or of twenty seconds, held 0.35, 0.7, 0.65 and 0.35 GiB; the rest
# is for the rows of a part, and for networks of a user's.
MEMORY_MIB = {"scan": 768, "preview": 1024, "look": 1024, "listen": 768, "sync": 1024, "embed": 1024, "caption": 768}


def work(task: PartTask) -> Made:
    """Makes what the part lacks, or the task's slice of it."""
    onnx_networks.use(task.given.device)
    try:
        return _make_slice(task, task.slice) if task.slice else _make_part(task)
    finally:
        bucket_copies.forget()


def _make_slice(task: PartTask, one: Slice) -> Made:
    """Nothing where it is there, or the part is: of a process that died right behind it, or another command's."""
    table, made = task.opened, Made(rows={})
    rows_of = part_slices.of_rows(_names(task, table, one.stage)[one.rows])
    if one.stage in to_make(task) and not part_slices.is_there(table, task.number, one, rows_of):
        with _unless_done(task, one.stage):
            rows, new = _make(task, table, one, one.file(table, task.number))
            _write(one.stage, one.file(table, task.number), rows, rows_of)
            made = Made(rows={one.stage: new}, videos=(one.end - one.begin) * (one.stage == "scan"))
    if one.stage not in to_make(task):
        part_slices.remove(one.folder(table, task.number))
    return made


@contextlib.contextmanager
def _unless_done(task: PartTask, stage: str) -> Iterator[None]:
    """Slices that are gone are no error where the part is there: another command in the same table has joined them."""
    try:
        yield
    except FileNotFoundError:
        if stage in to_make(task):
            raise


def _make_part(task: PartTask) -> Made:
    table, made, videos = task.opened, dict[str, int](), 0
    stages = to_make(task)
    for stage in stages:
        if stage not in _of_one_machine(stages, task):
            return Made(rows=made, videos=videos, then=(task,))
        part, slices = table.part(stage, task.number), slices_of(task, table, stage)
        if len(slices) == 1:
            rows, made[stage] = _make(task, table, slices[0], part)
            videos += len(task.sources) * (stage == "scan")
            _write(stage, part, rows, slices[0].chosen_by)
        elif lacking := _lacking(task, table, slices):
            if stage not in to_make(task):  # another command has joined them since
                continue
            then = tuple(dataclasses.replace(task, slice=one) for one in lacking)
            return Made(rows=made, videos=videos, then=then)
        else:
            _remove_stale(part)
            with _unless_done(task, stage):
                _write(stage, part, part_slices.join(table, task.number, slices), slices[0].chosen_by)
        part_slices.remove(slices[0].folder(table, task.number))
    return Made(rows=made, videos=videos)


def _make(task: PartTask, table: Table, one: Slice, file: Location) -> tuple[list[dict[str, Any]], int]:
    """(the rows of a slice, how many are new); records are written beside `file`."""
    _remove_stale(file)
    return _MAKERS[one.stage](task, table, _kept(task, table, one.stage), one, file)


def _remove_stale(part: Location) -> None:
    """What killed processes left half written of a part or slice."""
    for file in (part, part.with_suffix(clip_records.RECORDS_SUFFIX)):
        files.remove_stale(file.parent, file.name)


def _write(stage: str, file: Location, rows: Sequence[Mapping[str, Any]], says: str) -> None:
    stage_parts.write_part(file, rows, SCHEMAS[stage], says)
    RowDeaths(file).forget()


def _kept(task: PartTask, table: Table, stage: str) -> Kept:
    return table.read(stage, task.number).to_pylist() if files.is_there(table.part(stage, task.number)) else None


def needs_of(task: PartTask) -> Needs:
    """What a task asks a machine for: of its slice's stage, or of the stages that the part is made in one go."""
    stages = [task.slice.stage] if task.slice else _of_one_machine(to_make(task), task)
    each = [_needs(stage, task) for stage in stages]
    return Needs(
        cores=max((one.cores for one in each), default=1.0),
        gpus=max((one.gpus for one in each), default=0.0),
        memory_mib=max((one.memory_mib for one in each), default=0),
    )


def _needs(stage: str, task: PartTask) -> Needs:
    runs = {
        "scan": task.options.shots.network,
        "preview": True,  # the network that finds text
        "look": task.given.finder,
        "sync": True,
        "embed": True,
    }
    return Needs(gpus=task.given.gpus if runs.get(stage) else 0.0, memory_mib=MEMORY_MIB[stage])


def _of_one_machine(stages: Sequence[str], task: PartTask) -> list[str]:
    """The first of `stages`, and those after it that need a GPU as it does, or none as it does. One process makes them,
    as it has the videos at hand.
    """
    alike = itertools.takewhile(lambda stage: _needs(stage, task).gpus == _needs(stages[0], task).gpus, stages)
    return list(alike)


def slices_of(task: PartTask, table: Table, stage: str) -> list[Slice]:
    """Of a stage that is to be made, and whose predecessors are there."""
    whole = Slice(stage=stage, begin=0, end=len(task.sources), chosen_by=chosen_by(task, table, stage))
    if stage == "scan":
        sizes = task.sizes or (0,) * len(task.sources)
        return part_slices.cut(whole, [size / BYTES_A_SECOND for size in sizes], task.task_s)
    clips = stage_parts.clips_of(table.read("scan", task.number, ["kind", "start_frame", "end_frame"]))
    whole = dataclasses.replace(whole, end=len(clips))
    if stage not in SLICED:
        return [whole]
    seconds = (clips["end_frame"].to_numpy() - clips["start_frame"].to_numpy()) / FPS
    costs = np.where(_costs_nothing(task, table, whole), 0.0, seconds)
    return part_slices.cut(whole, costs.tolist(), task.task_s)


def _costs_nothing(task: PartTask, table: Table, whole: Slice) -> np.ndarray:
    """Bool [n]: clips whose row is there, or says that nothing is to be computed."""
    kept = _kept(task, table, whole.stage)
    nothing: list[bool] = [False] * whole.end
    if whole.stage == "look":
        whys, stays = look_plan(task, table, kept, whole.chosen_by)
        nothing = [bool(why) or stay for why, stay in zip(whys, stays, strict=True)]
    elif whole.stage in _OF_LANDMARKS and kept:
        nothing = followed(kept, table, task.number, _OF_LANDMARKS[whole.stage])
    if whole.stage == "sync":
        whys = table.read("look", task.number, ["landmarks_why"])["landmarks_why"].to_pylist()
        nothing = [why is not None or stay for why, stay in zip(whys, nothing, strict=True)]
    return np.array(nothing, bool)


def _lacking(task: PartTask, table: Table, slices: Sequence[Slice]) -> list[Slice]:
    """Those of a stage that are not there."""
    names = _names(task, table, slices[0].stage)

    def is_there(one: Slice) -> bool:
        return part_slices.is_there(table, task.number, one, part_slices.of_rows(names[one.rows]))

    return [one for one in slices if not is_there(one)]


def _names(task: PartTask, table: Table, stage: str) -> Sequence[str]:
    """What the rows of a stage are of: videos, or clips."""
    if stage == "scan":
        return task.sources
    columns = ("kind", "sha256", "start_frame", "end_frame")
    clips = stage_parts.clips_of(table.read("scan", task.number, columns))
    return [clip_id(*row) for row in zip(*(clips[name].to_pylist() for name in columns[1:]), strict=True)]


def to_make(task: PartTask) -> list[str]:
    """The stages that the part lacks, or in which clips are without landmarks that could now be of use, or without
    a caption that they had when they were passed over; in order.
    """
    table, number = task.opened, task.number
    stages = table.missing(number)
    chosen_by = task.reach.to_json()
    if "look" not in stages:
        chosen_by = stage_parts.stated_choice(table.part("look", number))
        if not chosen_by or not Reach.from_json(chosen_by).covers(task.reach):
            stages += ["look", *_OF_LANDMARKS]
    for stage in _OF_LANDMARKS:
        if stage in table.stages and stage not in stages:
            stages += [stage] if stage_parts.stated_choice(table.part(stage, number)) != chosen_by else []
    if "caption" in table.stages and "caption" not in stages:
        passed_over = json.loads(stage_parts.stated_choice(table.part("caption", number)) or "[]")
        stages += ["caption"] if task.uncaptioned.intersection(passed_over) else []
    return [stage for stage in table.stages if stage in stages]


def _ask_again(task: PartTask, table: Table) -> None:
    """Makes captions that failed, by no fault of their files, work."""
    part = table.part("caption", task.number)
    rows = table.read("caption", task.number).to_pylist()
    sources = [clip["source"] for clip in stage_parts.clip_rows(table.read("scan", task.number))]
    passed_over = set(json.loads(stage_parts.stated_choice(part)))
    for index, source in enumerate(sources):
        if rows[index]["reason"] and not rows[index]["is_lasting"]:
            rows[index] = {"clip_id": rows[index]["clip_id"], "caption_why": ASKED_AGAIN}
            passed_over.add(source)
    stage_parts.write_part(part, rows, SCHEMAS["caption"], json.dumps(sorted(passed_over)))


def blame(task: PartTask) -> bool:
    """Counts the death of the process that worked on the task against the row that it was at; whether there was one, or
    the task is done: it is worth another try. For the engine, which alone knows that the process died and nobody ended
    the run.
    """
    table, stages = task.opened, to_make(task)
    if task.slice:
        return task.slice.stage not in stages or RowDeaths(task.slice.file(table, task.number)).blame()
    return not stages or RowDeaths(table.part(stages[0], task.number)).blame()


def forget_notes(tasks: Sequence[PartTask]) -> None:
    """Removes the notes and slices of what is done: of a process that was killed after its part and before them. Slices
    by other thresholds may be those of a command that is at work.
    """
    by_number = {task.number: task for task in tasks}
    for stage in tasks[0].opened.stages if tasks else ():
        table = tasks[0].opened
        notes = [note for pattern in _NOTES for note in folders.matching(table.stage_folder(stage), pattern)]
        for note in notes:
            match = re.fullmatch(r"\.?part-(\d+)\.(at|deaths|slices-.*)", note.name)
            task = by_number.get(int(match[1])) if match else None
            if task is None or stage in to_make(task):
                continue
            RowDeaths(table.part(stage, task.number)).forget()
            joined = stage_parts.stated_choice(table.part(stage, task.number))
            part_slices.remove(Slice(stage=stage, begin=0, end=0, chosen_by=joined).folder(table, task.number))
            for folder in part_slices.folders_of(table, stage, task.number):
                part_slices.remove_dead(folder)


def forget_dead(task: PartTask) -> bool:
    """Takes away the stages of a part from the first on that has dead letters which are no fault of their files, so
    that they are made again; of captions, which may be dear, those rows alone. Whether there were any.
    """
    table = task.opened
    if table.missing(task.number):
        return False
    stages = {x["stage"] for x in stage_parts.letters_of(table, task.number) if not x["is_lasting"]}
    order = stage_parts.STAGES
    first = min((order.index(stage) for stage in stages if stage in order), default=len(order))
    # What reads no more than the first stages is not made again for the sake of the last.
    after = [stage for stage, reads in _READS.items() if order.index(reads) >= first]
    after += [stage for stage in _ALONE if stage in stages]
    if "caption" in stages and "caption" not in after:
        _ask_again(task, table)
    for stage in reversed([*order[first:], *(stage for stage in table.stages if stage in after)]):
        files.remove(table.part(stage, task.number))
        for folder in part_slices.folders_of(table, stage, task.number):
            part_slices.remove(folder)
    return bool(stages)
