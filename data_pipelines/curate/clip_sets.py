"""The SETS of a TABLE: for each of its clips the conditions that it is eligible for, and why not for the others.

    sets.json                the table they are of, its stages' keys, the thresholds and their hash, which parts
    sets.parquet             a row group a part: row i belongs to clip i of the table's part (`SETS_SCHEMA`)
    funnel.json              what became of everything, in sums

`selection.py` makes them (`sets_writer.py` the files); here they are read, and joined with what the table knows of each
clip.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.curate import captions, source_list
from data_pipelines.curate.clip_records import read_record
from data_pipelines.curate.clips import Clip, Landmarks
from data_pipelines.curate.file_stages import BY_PREVIEW
from data_pipelines.curate.stage_parts import CHECKED, GROUPS, Table, clip_rows
from omnihuman_jax.conditions import Condition
from omnihuman_jax.runtime import bucket_copies, file_names, files
from omnihuman_jax.runtime.locations import Location, StrPath, location, resolved
from omnihuman_jax.typing import FPS

SETS_FILE = "sets.json"
ROWS_FILE = "sets.parquet"
SETS_FORMAT = 2
# Where `curate` puts the sets that it makes itself, below the table.
OWN_SETS = "sets"
_WORD = pa.dictionary(pa.int8(), pa.string())

# eligible: bits of `ConditionSet`. left_out: why the clip is not in these sets at all; null for one that is.
# dedup_group: number of the group of clips with the same content; -1: there is no other.
SETS_SCHEMA = pa.schema(
    [
        pa.field("eligible", pa.uint8()),
        pa.field("left_out", _WORD),
        *(pa.field(f"{c.label}_reason", _WORD) for c in Condition),
        *(pa.field(f"{c.label}_score", pa.float32()) for c in Condition),
        pa.field("dedup_group", pa.int32()),
        pa.field("dataset", _WORD),
        pa.field("weight", pa.float32()),
    ]
)


def find_sets(folder: StrPath) -> Location:
    """The folder of the sets: `folder` itself, or the sets that `curate` made in its table.

    Raises:
        FileNotFoundError: neither.
    """
    path = location(folder)
    for candidate in (path, path / OWN_SETS):
        if files.is_there(candidate / SETS_FILE):
            return candidate
    raise FileNotFoundError(
        f"{path}: no {SETS_FILE} in it; make a table with `omnihuman curate --source DIR --out {path}`, or sets of a"
        " table with `omnihuman select TABLE --thresholds FILE --out SETS`"
    )


def read_head(sets: Location) -> dict[str, Any]:
    """`sets.json`; ValueError if it is none, or of another format."""
    try:
        head = json.loads(files.read_bytes(sets / SETS_FILE))
        version = head["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{sets / SETS_FILE}: not the head of sets ({error}); run `omnihuman select` again") from None
    if version != SETS_FORMAT:
        raise ValueError(f"{sets / SETS_FILE}: format {version}, this version reads {SETS_FORMAT}; select again")
    return head


def table_folder(folder: StrPath) -> Location:
    """The folder of the table that sets were selected from: what a clip's `path` is relative to."""
    sets = find_sets(folder)
    return _table_of(sets, read_head(sets))


def _table_of(sets: Location, head: Mapping[str, Any]) -> Location:
    return location(resolved(sets, file_names.raw(head["table"])))


def read_clips(folder: StrPath) -> list[Clip]:
    """All clips of the sets in `folder`, in their order; see `iter_clips`."""
    return [clip for clips in iter_clips(folder) for clip in clips]


def iter_clips(folder: StrPath) -> Iterator[list[Clip]]:
    """The clips of each part of the sets (or of the table that `curate` made sets in).

    Raises:
        FileNotFoundError: no sets, or a part of their table is gone.
        ValueError: a damaged part, or one that was made again since.
    """
    sets = find_sets(folder)
    for index in range(len(read_head(sets)["parts"])):
        yield read_clips_of(sets, index)


def read_clips_of(sets: Location, index: int) -> list[Clip]:
    """The clips of the part of sets that is the `index`-th; errors as `iter_clips` has them."""
    head = read_head(sets)
    table = Table(folder=_table_of(sets, head), keys=head["stages"])
    number = int(list(head["parts"])[index])
    listed = {row["source"]: row for row in source_list.listed_in(table, number)}
    chosen = _rows(sets, index)
    scanned = clip_rows(table.read("scan", number))
    scored = [table.read(stage, number).to_pylist() for stage in table.scored]
    told = _told(table, number, len(scanned))
    if any(len(rows) != len(chosen) for rows in (scanned, *scored, told)):
        raise ValueError(f"{sets}: part {number} of its table was made again; run `omnihuman select` again")
    rows = enumerate(zip(chosen, scanned, told, *scored, strict=True))
    return [
        _clip(number, record, mine, listed.get(scan["source"]), scan, _joined(own), head, said)
        for record, (mine, scan, said, *own) in rows
        if mine["left_out"] is None
    ]


def _told(table: Table, number: int, count: int) -> list[str | None]:
    """What a command said of each clip of a part; None where it was not asked."""
    if "caption" not in table.stages:
        return [None] * count
    return list(table.read("caption", number, ["caption"])["caption"].to_pylist())


def _joined(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for row in rows for name, value in row.items()}


def _rows(sets: Location, index: int) -> list[dict[str, Any]]:
    path = sets / ROWS_FILE
    local = bucket_copies.as_file(path)
    try:
        with pq.ParquetFile(local, **CHECKED) as file:
            return file.read_row_group(index).to_pylist() if file.metadata.row_group(index).num_rows else []
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: part {index} of it cannot be read ({error}); run `omnihuman select` again") from None


def _clip(
    part: int,
    record: int,
    mine: Mapping[str, Any],
    listed: Mapping[str, Any] | None,
    scan: Mapping[str, Any],
    scored: Mapping[str, Any],
    head: Mapping[str, Any],
    said: str | None,
) -> Clip:
    if listed is None:
        raise ValueError(
            f"clip {scored['clip_id']} is not in the table's source any more; run `omnihuman select` again"
        )
    caption, caption_source = listed["caption"], listed["caption_source"]
    if said is not None and caption_source == captions.BY_DEFAULT:
        caption, caption_source = said, captions.BY_COMMAND
    own = {**scan_scores(scan), "looked_at": float(scored["landmarks_why"] != BY_PREVIEW)}
    scores = own | {n: scored[n] for names in GROUPS.values() for n in names if scored.get(n) is not None}
    reasons = {
        c.label: {
            "reason": mine[f"{c.label}_reason"],
            "score": None if math.isnan(score := mine[f"{c.label}_score"]) else round(score, 6),
            "threshold": head["checks"].get(mine[f"{c.label}_reason"], 0.0),
        }
        for c in Condition
        if mine[f"{c.label}_reason"] is not None
    }
    return Clip(
        clip_id=scored["clip_id"],
        video=listed["name"],
        path=listed["path"],
        sha256=scan["sha256"],
        start_frame=scan["start_frame"],
        end_frame=scan["end_frame"],
        fps=FPS,
        height=scan["height"],
        width=scan["width"],
        has_audio=scan["has_audio"],
        caption=caption,
        caption_source=caption_source,
        scores=scores,
        eligible=tuple(c.label for c in Condition if mine["eligible"] >> c & 1),
        reasons=reasons,
        split=listed["split"],
        dataset=mine["dataset"],
        weight=mine["weight"],
        part=part,
        record=record,
    )


def scan_scores(scan: Mapping[str, Any]) -> dict[str, float]:
    """The scores that need no pixels."""
    return {
        "seconds": (scan["end_frame"] - scan["start_frame"]) / FPS,
        "short_side_px": float(min(scan["height"], scan["width"])),
        "source_fps": scan["source_fps"],
        "bits_per_pixel": scan["bits_per_pixel"],
        "audio_tracks": float(scan["has_audio"]),
    }


def load_landmarks(folder: StrPath, clip: Clip) -> Landmarks:
    """The landmarks of a clip of the sets in `folder`; ValueError unless they were computed, one row a frame."""
    sets = find_sets(folder)
    head = read_head(sets)
    path = Table(folder=_table_of(sets, head), keys=head["stages"]).landmarks(clip.part)
    where = f"{path}: record {clip.record}"
    if not clip.scores.get("looked_at", 1.0):
        raise ValueError(
            f"clip {clip.clip_id} ({clip.label}) has no landmarks, as its preview shows too little of a person; run"
            f" `omnihuman curate --source SOURCE --out {table_folder(sets)} --loosest FILE` with lower thresholds"
        )
    landmarks = Landmarks.from_arrays(read_record(path, clip.record), where)
    if (rows := landmarks.keypoints_TJ3.shape[0]) != clip.frames:
        raise ValueError(f"{where}: {rows} rows for a clip of {clip.frames} frames; run curate again")
    return landmarks
