"""The rows of a stage, made: a loop over videos or clips around what the stage does with one file (`file_stages.py`),
which turns errors and deaths into dead letters.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data_pipelines.curate import clip_records, embeddings, file_stages, network_files, stage_parts, video_files
from data_pipelines.curate.clip_records import RECORDS_SUFFIX, RecordWriter
from data_pipelines.curate.file_stages import BY_PREVIEW, OWN_CAPTION, DeadLetter
from data_pipelines.curate.part_slices import Slice
from data_pipelines.curate.part_task import PartTask
from data_pipelines.curate.reach import Reach, looser_of, within_reach
from data_pipelines.curate.row_deaths import RowDeaths
from data_pipelines.curate.score_columns import known_scores
from data_pipelines.curate.stage_parts import CLIP, DEAD, SHORT, Table, clip_id
from data_pipelines.curate.video_files import Address
from omnihuman_jax.runtime import bucket_copies, files
from omnihuman_jax.runtime.locations import Location
from omnihuman_jax.serving.media_omnihuman import MediaError
from omnihuman_jax.serving.poses_omnihuman import wrong_keypoint

GONE = "not computed: not in the source any more"
UNREADABLE = "not computed: its pictures cannot be read"
DIED = "the process that worked on it died (a crash in a decoder, or out of memory); re-encode it, or take it out"
MAX_DEATHS = 2
ASKED_AGAIN = "not computed: it failed, and is asked again"
# Of an error that is not the file's own fault.
_TRIES = 2

# What makes a stage: (task, table, the part's rows that are there and to be kept, which rows to make, the file that
# they are for) -> (rows, how many are new). Records are written beside the file.
Kept = list[dict[str, Any]] | None
Rows = tuple[list[dict[str, Any]], int]


def chosen_by(task: PartTask, table: Table, stage: str) -> str:
    """What a part that is made now says of its rows: also what it said before, as those rows stay."""
    if stage in ("listen", "sync"):
        return stage_parts.stated_choice(table.part("look", task.number))
    if stage == "caption":
        return json.dumps(sorted(set(task.sources) - task.uncaptioned))
    if stage != "look":
        return ""
    part = table.part("look", task.number)
    before = stage_parts.stated_choice(part) if files.is_there(part) else ""
    loosest = looser_of(Reach.from_json(before).loosest, task.loosest) if before else task.loosest
    return dataclasses.replace(task.reach, loosest=loosest).to_json()


def scan(task: PartTask, table: Table, kept: Kept, part: Slice, file: Location) -> Rows:
    rows: list[dict[str, Any]] = []
    for source in task.sources[part.rows]:
        path = task.paths.get(source, "")
        found = _tried(task, file, source, path, lambda path: file_stages.scan(path, task.options))
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


def preview(task: PartTask, table: Table, kept: Kept, part: Slice, file: Location) -> Rows:
    network_files.fetch_all()  # an index that does not answer is no fault of any clip
    rows = []
    with RecordWriter(file.with_suffix(RECORDS_SUFFIX)) as records:
        for _, clip in _clips(task, table, part):
            name, path = _name(clip), task.paths.get(clip["source"], "")
            given: dict[str, Any] = {"networks": task.given.scorers, "finder": task.given.finder}
            preview = functools.partial(file_stages.preview, **_place(clip), **given)
            found = _tried(task, file, name, path, preview)
            if isinstance(found, DeadLetter):
                whys = {f"{group}_why": f"failed: {found.reason}" for group in stage_parts.PREVIEW_GROUPS}
                rows.append({"clip_id": name, **whys, **dataclasses.asdict(found)})
                records.write({})
                continue
            scores, thumbnail = found
            records.write({"thumbnail": np.frombuffer(thumbnail, np.uint8)})
            rows.append({"clip_id": name, **scores})
    return rows, len(rows)


def look_plan(task: PartTask, table: Table, kept: Kept, chosen_by: str) -> tuple[list[str | None], list[bool]]:
    """Of each clip of a part: (why it gets no landmarks, None where it does; whether the row that is there stays)."""
    scanned, previewed = (table.read(stage, task.number) for stage in ("scan", "preview"))
    unreadable = previewed["preview_why"].to_pylist()
    loosest = Reach.from_json(chosen_by).loosest
    chosen = within_reach(known_scores(stage_parts.clips_of(scanned), previewed), loosest)
    whys = [UNREADABLE if bad else None if now else BY_PREVIEW for bad, now in zip(unreadable, chosen, strict=True)]
    stays = [_stays(row["landmarks_why"], why) for row, why in zip(kept, whys, strict=True)] if kept else []
    return whys, stays or [False] * len(whys)


def look(task: PartTask, table: Table, kept: Kept, part: Slice, file: Location) -> Rows:
    """Computes what is within reach, and keeps what was."""
    whys, stays = look_plan(task, table, kept, part.chosen_by)
    if kept and all(stays) and len(kept) == part.end - part.begin:
        return kept, 0  # the whole part, whose records stay as they are
    network_files.fetch_all()  # as `preview` does, which another machine may have made
    rows = []
    clips, landmarks = _clips(task, table, part), table.landmarks(task.number)
    with RecordWriter(file.with_suffix(RECORDS_SUFFIX)) as records:
        for index, clip in clips:
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
            found = _tried(task, file, name, path, look)
            if isinstance(found, DeadLetter):
                rows.append({"clip_id": name, "landmarks_why": f"failed: {found.reason}", **dataclasses.asdict(found)})
                records.write({})
                continue
            scores, points = found
            assert not wrong_keypoint(points.keypoints_TJ3)
            records.write(points.arrays())
            rows.append({"clip_id": name, **scores})
    return rows, len(rows) - sum(stays[part.rows])


def followed(kept: list[dict[str, Any]], table: Table, number: int, why: str) -> list[bool]:
    """Of each clip of a part, whether the row that is there, made of its landmarks, stays. why: the row's own."""
    whys = table.read("look", number, ["landmarks_why"])["landmarks_why"].to_pylist()
    return [_stays(row[why], now) for row, now in zip(kept, whys, strict=True)]


def listen(task: PartTask, table: Table, kept: Kept, part: Slice, file: Location) -> Rows:
    rows, new = [], 0
    looked = table.read("look", task.number, ["clip_id", "landmarks_why"]).to_pylist()
    stays = followed(kept, table, task.number, "lip_sync_why") if kept else [False] * len(looked)
    for index, clip in _clips(task, table, part):
        name, path = looked[index]["clip_id"], task.paths.get(clip["source"], "")
        without = looked[index]["landmarks_why"]
        if kept and stays[index]:
            rows.append(kept[index])
            continue
        new += 1
        if without and without != BY_PREVIEW:
            rows.append({"clip_id": name, "sound_why": UNREADABLE, "lip_sync_why": UNREADABLE})
            continue
        record = {} if without else clip_records.read_record(table.landmarks(task.number), index)
        question = {name: clip[name] for name in ("start_frame", "end_frame", "has_audio")}
        lips: dict[str, Any] = {name: record.get(name) for name in ("aperture_T", "track_aperture_TN")}
        listen = functools.partial(file_stages.listen, **lips, **question)
        found = _tried(task, file, name, path, listen)
        if isinstance(found, DeadLetter):
            why = f"failed: {found.reason}"
            found = {"sound_why": why, "lip_sync_why": why, **dataclasses.asdict(found)}
        rows.append({"clip_id": name, **found})
    return rows, new


def sync(task: PartTask, table: Table, kept: Kept, part: Slice, file: Location) -> Rows:
    network = task.given.sync
    assert network is not None
    rows: list[dict[str, Any]] = []
    new = 0
    looked = table.read("look", task.number, ["landmarks_why"])["landmarks_why"].to_pylist()
    stays = followed(kept, table, task.number, "sync_why") if kept else [False] * len(looked)
    for index, clip in _clips(task, table, part):
        name, path = _name(clip), task.paths.get(clip["source"], "")
        if kept and stays[index]:
            rows.append(kept[index])
            continue
        new += 1
        if without := looked[index]:
            rows.append({"clip_id": name, "sync_why": without if without == BY_PREVIEW else UNREADABLE})
            continue
        box_TN4 = clip_records.read_record(table.landmarks(task.number), index)["track_box_TN4"]
        question = {"track_box_TN4": box_TN4, "has_audio": clip["has_audio"], "network": network}
        found = _tried(task, file, name, path, functools.partial(file_stages.sync, **_place(clip), **question))
        if isinstance(found, DeadLetter):
            found = {"sync_why": f"failed: {found.reason}", **dataclasses.asdict(found)}
        rows.append({"clip_id": name, **found})
    return rows, new


def embed(task: PartTask, table: Table, kept: Kept, part: Slice, file: Location) -> Rows:
    network = task.given.embedding
    assert network is not None
    rows: list[dict[str, Any]] = []
    thumbnails = table.thumbnails(task.number)
    for index, name in enumerate(table.read("preview", task.number, ["clip_id"])["clip_id"].to_pylist()):
        thumbnail = clip_records.read_record(thumbnails, index).get("thumbnail")
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


def caption(task: PartTask, table: Table, kept: Kept, part: Slice, file: Location) -> Rows:
    """Asks the command about clips of videos without a caption, once for all of which it would be told the same."""
    command = task.given.captions
    assert command is not None
    rows: list[dict[str, Any]] = []
    told: dict[tuple[str, ...], str | DeadLetter] = {}
    new = 0
    for index, clip in _clips(task, table, part):
        name, source = _name(clip), clip["source"]
        if kept and kept[index]["caption_why"] not in (OWN_CAPTION, GONE, ASKED_AGAIN):
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
            told[asked] = _tried(task, file, name, path, functools.partial(command.caption, **place))
        found = told[asked]
        if isinstance(found, DeadLetter):
            rows.append({"clip_id": name, "caption_why": f"failed: {found.reason}", **dataclasses.asdict(found)})
        else:
            rows.append({"clip_id": name, "caption": found})
    return rows, new


def _stays(why: str | None, now: str | None) -> bool:
    """Whether a row that says `why` its landmarks, or what is made of them, are not there would be none other now."""
    return why not in (BY_PREVIEW, UNREADABLE) or why == now


def _clips(task: PartTask, table: Table, part: Slice) -> list[tuple[int, dict[str, Any]]]:
    """(its number in the part, its row of `scan`) of each clip of a slice."""
    clips = stage_parts.clips_of(table.read("scan", task.number)).slice(part.begin, part.end - part.begin)
    return list(enumerate(clips.to_pylist(), part.begin))


def _name(clip: Mapping[str, Any]) -> str:
    return clip_id(clip["sha256"], clip["start_frame"], clip["end_frame"])


def _place(clip: Mapping[str, Any]) -> dict[str, Any]:
    return {name: clip[name] for name in ("start_frame", "end_frame", "height", "width")}


def _tried(task: PartTask, part: Location, row: str, path: str, make: Callable[[str], Any]) -> Any | DeadLetter:
    """What `make` gives for a row's video; a dead letter where it gives nothing. part: the file that the row is for."""
    deaths = RowDeaths(part)
    if (died := deaths.count(row)) >= MAX_DEATHS:
        return DeadLetter(reason=DIED, exception="ProcessDied", tries=died, is_lasting=False)
    if not path:
        gone = "not in the source any more; put it back, or leave it"
        return DeadLetter(reason=gone, exception="FileNotFoundError", tries=1, is_lasting=False)
    deaths.begin(row)
    address = Address.parse(path, task.table)
    for tries in range(1, _TRIES + 1):
        file = address.place or path
        try:
            file = os.fspath(video_files.local_file(address))
            return make(file)
        except ImportError:  # of an extra that is not installed: no fault of any file
            raise
        except bucket_copies.NoAnswer as problem:
            # It would befall the next file too: the run ends, and goes on here; but for one object that alone does not.
            if not bucket_copies.answers(address.place):
                problem.add_note("run the same command again: it goes on where it was")
                raise
            return file_stages.dead_letter(problem, file, tries)
        except Exception as problem:
            if isinstance(problem, MediaError) or tries == _TRIES:
                return file_stages.dead_letter(problem, file, tries)
    raise AssertionError("the last try returns")
