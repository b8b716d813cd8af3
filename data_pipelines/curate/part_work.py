"""A part of the table, made: the unit of work, retry and recovery of every engine.

`work` makes the stages that a part lacks, in order. It is a function of its task alone, and a part that it is killed in
is the same part when it is made again. Where thresholds are looser than those by which the part's clips were chosen for
landmarks, the clips that they let through are made, and the other rows are copied (`reach.py`).

A row that kills the process that works on it (a decoder's crash, the kernel's answer to a full memory) would do so for
ever: `work` notes which row it is at, and `blame`, called by the engine that saw the process die, counts it. After
`MAX_DEATHS` the row is a dead letter, and the part goes on without it.
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.curate import embeddings, file_stages, network_files, stage_parts, video_files
from data_pipelines.curate.adapters import NO_ADAPTERS, Adapters
from data_pipelines.curate.file_stages import BY_PREVIEW, OWN_CAPTION, DeadLetter, ScanOptions
from data_pipelines.curate.reach import Reach, looser_of, within_reach
from data_pipelines.curate.score_columns import known_scores
from data_pipelines.curate.stage_parts import CLIP, DEAD, SCHEMAS, SHORT, RecordWriter, Table, clip_id
from data_pipelines.curate.tagging import Thresholds
from data_pipelines.curate.video_files import Address
from omnihuman_jax.runtime import files
from omnihuman_jax.serving.media_omnihuman import MediaError
from omnihuman_jax.serving.poses_omnihuman import wrong_keypoint

GONE = "not computed: not in the source any more"
UNREADABLE = "not computed: its pictures cannot be read"
DIED = "the process that worked on it died (a crash in a decoder, or out of memory); re-encode it, or take it out"
MAX_DEATHS = 2
_ASKED_AGAIN = "not computed: it failed, and is asked again"
# Of an error that is not the file's own fault.
_TRIES = 2
# What the stages read that not every table has.
_READS = {"embed": "preview", "caption": "scan"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartTask:
    """What `work` is given.

    loosest: thresholds; clips that could reach what asks for landmarks by these get them.
    paths: source -> where it lies (`video_files.Address`), of the part's videos that are there.
    uncaptioned: sources of videos that are there and have no caption of their own.
    """

    table: str
    number: int
    keys: Mapping[str, str]
    options: ScanOptions
    loosest: Thresholds
    sources: tuple[str, ...]
    paths: Mapping[str, str]
    given: Adapters = NO_ADAPTERS
    uncaptioned: frozenset[str] = frozenset()

    @property
    def opened(self) -> Table:
        return Table(folder=Path(self.table), keys=self.keys)

    @property
    def reach(self) -> Reach:
        return Reach(loosest=self.loosest, preview=self.keys["preview"])


def work(task: PartTask) -> dict[str, int]:
    """Makes what the part lacks; stage -> rows that were made."""
    try:
        return _work(task)
    finally:
        video_files.forget()


def _work(task: PartTask) -> dict[str, int]:
    table, made = task.opened, dict[str, int]()
    make = {"scan": _scan, "preview": _preview, "look": _look, "listen": _listen, "embed": _embed, "caption": _caption}
    for stage in to_make(task):
        part = table.part(stage, task.number)
        for file in (part, part.with_suffix(stage_parts.RECORDS_SUFFIX)):
            files.remove_stale(file.parent, file.name)
        kept = table.read(stage, task.number).to_pylist() if part.is_file() else None
        rows, count = make[stage](task, table, kept)
        stage_parts.write_part(part, rows, SCHEMAS[stage], _chosen_by(task, table, stage))
        for file in _notes(table, stage, task.number):
            file.unlink(missing_ok=True)
        made[stage] = count
    return made


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
            stages += ["look", "listen"]
    if "listen" not in stages and stage_parts.stated_choice(table.part("listen", number)) != chosen_by:
        stages += ["listen"]
    if "caption" in table.stages and "caption" not in stages:
        passed_over = json.loads(stage_parts.stated_choice(table.part("caption", number)) or "[]")
        stages += ["caption"] if task.uncaptioned.intersection(passed_over) else []
    return [stage for stage in table.stages if stage in stages]


def _chosen_by(task: PartTask, table: Table, stage: str) -> str:
    """What a part that is made now says of its rows: also what it said before, as those rows stay."""
    if stage == "listen":
        return stage_parts.stated_choice(table.part("look", task.number))
    if stage == "caption":
        return json.dumps(sorted(set(task.sources) - task.uncaptioned))
    if stage != "look":
        return ""
    part = table.part("look", task.number)
    before = stage_parts.stated_choice(part) if part.is_file() else ""
    loosest = looser_of(Reach.from_json(before).loosest, task.loosest) if before else task.loosest
    return dataclasses.replace(task.reach, loosest=loosest).to_json()


# What makes a stage: (task, table, the rows that are there and to be kept) -> (rows, how many are new).
_Kept = list[dict[str, Any]] | None
_Made = tuple[list[dict[str, Any]], int]


def _scan(task: PartTask, table: Table, kept: _Kept) -> _Made:
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
    return rows, len(rows)


def _preview(task: PartTask, table: Table, kept: _Kept) -> _Made:
    network_files.fetch_all()  # an index that does not answer is no fault of any clip
    rows = []
    with RecordWriter(table.thumbnails(task.number)) as records:
        for clip in stage_parts.clip_rows(table.read("scan", task.number)):
            name, path = _name(clip), task.paths.get(clip["source"], "")
            given: dict[str, Any] = {"networks": task.given.scorers, "finder": task.given.finder}
            preview = functools.partial(file_stages.preview, **_place(clip), **given)
            found = _tried(task, table, "preview", name, path, preview)
            if isinstance(found, DeadLetter):
                whys = {f"{group}_why": f"failed: {found.reason}" for group in stage_parts.PREVIEW_GROUPS}
                rows.append({"clip_id": name, **whys, **dataclasses.asdict(found)})
                records.write({})
                continue
            scores, thumbnail = found
            records.write({"thumbnail": np.frombuffer(thumbnail, np.uint8)})
            rows.append({"clip_id": name, **scores})
    return rows, len(rows)


def _look(task: PartTask, table: Table, kept: _Kept) -> _Made:
    """Computes what is within reach, and keeps what was."""
    scanned, previewed = (table.read(stage, task.number) for stage in ("scan", "preview"))
    unreadable = previewed["preview_why"].to_pylist()
    loosest = Reach.from_json(_chosen_by(task, table, "look")).loosest
    chosen = within_reach(known_scores(stage_parts.clips_of(scanned), previewed), loosest)
    whys = [UNREADABLE if bad else None if now else BY_PREVIEW for bad, now in zip(unreadable, chosen, strict=True)]
    stays = [_stays(row["landmarks_why"], why) for row, why in zip(kept or [], whys, strict=False)]
    if kept and all(stays):
        return kept, 0
    rows = []
    landmarks = table.landmarks(task.number)
    with RecordWriter(landmarks) as records:
        for index, clip in enumerate(stage_parts.clip_rows(scanned)):
            name, path = _name(clip), task.paths.get(clip["source"], "")
            if kept and stays[index]:
                records.copy(landmarks, index)
                rows.append(kept[index])
                continue
            if whys[index]:
                rows.append({"clip_id": name, "landmarks_why": whys[index]})
                records.write({})
                continue
            look = functools.partial(file_stages.look, **_place(clip), finder=task.given.finder)
            found = _tried(task, table, "look", name, path, look)
            if isinstance(found, DeadLetter):
                rows.append({"clip_id": name, "landmarks_why": f"failed: {found.reason}", **dataclasses.asdict(found)})
                records.write({})
                continue
            scores, points = found
            assert not wrong_keypoint(points.keypoints_TJ3)
            records.write(points.arrays())
            rows.append({"clip_id": name, **scores})
    return rows, len(rows) - sum(stays)


def _listen(task: PartTask, table: Table, kept: _Kept) -> _Made:
    rows, new = [], 0
    looked = table.read("look", task.number, ["clip_id", "landmarks_why"]).to_pylist()
    for index, clip in enumerate(stage_parts.clip_rows(table.read("scan", task.number))):
        name, path = looked[index]["clip_id"], task.paths.get(clip["source"], "")
        without = looked[index]["landmarks_why"]
        if kept and _stays(kept[index]["lip_sync_why"], without):
            rows.append(kept[index])
            continue
        new += 1
        if without and without != BY_PREVIEW:
            rows.append({"clip_id": name, "sound_why": UNREADABLE, "lip_sync_why": UNREADABLE})
            continue
        record = {} if without else stage_parts.read_record(table.landmarks(task.number), index)
        question = {name: clip[name] for name in ("start_frame", "end_frame", "has_audio")}
        lips: dict[str, Any] = {name: record.get(name) for name in ("aperture_T", "track_aperture_TN")}
        listen = functools.partial(file_stages.listen, **lips, **question)
        found = _tried(task, table, "listen", name, path, listen)
        if isinstance(found, DeadLetter):
            why = f"failed: {found.reason}"
            found = {"sound_why": why, "lip_sync_why": why, **dataclasses.asdict(found)}
        rows.append({"clip_id": name, **found})
    return rows, new


def _embed(task: PartTask, table: Table, kept: _Kept) -> _Made:
    network = task.given.embedding
    assert network is not None
    rows: list[dict[str, Any]] = []
    thumbnails = table.thumbnails(task.number)
    for index, name in enumerate(table.read("preview", task.number, ["clip_id"])["clip_id"].to_pylist()):
        thumbnail = stage_parts.read_record(thumbnails, index).get("thumbnail")
        if thumbnail is None:
            rows.append({"clip_id": name, "embedding_why": UNREADABLE})
            continue
        try:
            vector = network.embed(file_stages.picture_of(thumbnail))
        except ValueError as problem:
            letter = file_stages.dead_letter(problem, str(thumbnails), 1)
            rows.append({"clip_id": name, "embedding_why": f"failed: {letter.reason}", **dataclasses.asdict(letter)})
            continue
        rows.append({"clip_id": name, "embedding": vector.tobytes(), "signature": embeddings.signature(vector)})
    return rows, len(rows)


def _caption(task: PartTask, table: Table, kept: _Kept) -> _Made:
    """Asks the command about clips of videos without a caption, once for all of which it would be told the same."""
    command = task.given.captions
    assert command is not None
    rows: list[dict[str, Any]] = []
    told: dict[tuple[str, ...], str | DeadLetter] = {}
    new = 0
    for index, clip in enumerate(stage_parts.clip_rows(table.read("scan", task.number))):
        name, source = _name(clip), clip["source"]
        if kept and kept[index]["caption_why"] not in (OWN_CAPTION, GONE, _ASKED_AGAIN):
            rows.append(kept[index])
            continue
        if source not in task.uncaptioned:
            rows.append({"clip_id": name, "caption_why": OWN_CAPTION if task.paths.get(source) else GONE})
            continue
        new += 1
        place = {at: clip[at] for at in ("start_frame", "end_frame")}
        asked = (source, *command.filled("", **place))
        if asked not in told:
            path = task.paths[source]
            told[asked] = _tried(task, table, "caption", name, path, functools.partial(command.caption, **place))
        found = told[asked]
        if isinstance(found, DeadLetter):
            rows.append({"clip_id": name, "caption_why": f"failed: {found.reason}", **dataclasses.asdict(found)})
        else:
            rows.append({"clip_id": name, "caption": found})
    return rows, new


def _ask_again(task: PartTask, table: Table) -> None:
    """Makes captions that failed, by no fault of their files, work."""
    part = table.part("caption", task.number)
    rows = table.read("caption", task.number).to_pylist()
    sources = [clip["source"] for clip in stage_parts.clip_rows(table.read("scan", task.number))]
    passed_over = set(json.loads(stage_parts.stated_choice(part)))
    for index, source in enumerate(sources):
        if rows[index]["reason"] and not rows[index]["is_lasting"]:
            rows[index] = {"clip_id": rows[index]["clip_id"], "caption_why": _ASKED_AGAIN}
            passed_over.add(source)
    stage_parts.write_part(part, rows, SCHEMAS["caption"], json.dumps(sorted(passed_over)))


def _stays(why: str | None, now: str | None) -> bool:
    """Whether a row that says `why` its landmarks, or what is made of them, are not there would be none other now."""
    return why not in (BY_PREVIEW, UNREADABLE) or why == now


def _name(clip: Mapping[str, Any]) -> str:
    return clip_id(clip["sha256"], clip["start_frame"], clip["end_frame"])


def _place(clip: Mapping[str, Any]) -> dict[str, Any]:
    return {name: clip[name] for name in ("start_frame", "end_frame", "height", "width")}


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
        except video_files.NoAnswer as problem:
            # It would befall the next file too: the run ends, and goes on here; but for one object that alone does not.
            if not video_files.answers(address.place):
                problem.add_note("run the same command again: it goes on where it was")
                raise
            return file_stages.dead_letter(problem, file, tries)
        except Exception as problem:
            if isinstance(problem, MediaError) or tries == _TRIES:
                return file_stages.dead_letter(problem, file, tries)
    raise AssertionError("the last try returns")


def blame(task: PartTask) -> bool:
    """Counts the death of the process that worked on the part against the row that it was at; whether the part is worth
    another try. For the engine, which alone knows that the process died and nobody ended the run.
    """
    table = task.opened
    for stage in to_make(task)[:1]:
        at, deaths = _notes(table, stage, task.number)
        if at.is_file():
            counted = _deaths(deaths)
            row = at.read_text()
            counted[row] = counted.get(row, 0) + 1
            files.write_text(deaths, json.dumps(counted))
            return True
    return False


def forget_notes(tasks: Sequence[PartTask]) -> None:
    """Removes the notes of what is done: of a process that was killed after its part and before them."""
    by_number = {task.number: task for task in tasks}
    for stage in tasks[0].opened.stages if tasks else ():
        for note in tasks[0].opened.stage_folder(stage).glob(".part-*.*"):
            match = re.fullmatch(r"\.part-(\d+)\.(at|deaths)", note.name)
            task = by_number.get(int(match[1])) if match else None
            if task and stage not in to_make(task):
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
    after += ["embed"] if "embed" in stages else []
    if "caption" in stages and "caption" not in after:
        _ask_again(task, table)
    for stage in reversed([*order[first:], *(stage for stage in table.stages if stage in after)]):
        table.part(stage, task.number).unlink()
    return bool(stages)
