"""The TABLE: a row a clip, in parts. A stage owns its columns.

    table.json                                      the format, the stages' keys, the options
    listings/<source>.parquet                       what lay in a source at the last look: where, captions, splits
    sources/added-00000.parquet                     which videos each part has; a file for all that came together
    scan@3f2a9c11d0b4/part-00007.parquet            a row a clip, a row a shot that is too short, a row a dead video
    preview@.../part-00007.parquet, .array_record   a row a clip: scores; a record a clip: a thumbnail
    look@.../part-00007.parquet, .array_record      a row a clip: scores; a record a clip: landmarks, where computed
    listen@.../part-00007.parquet                   a row a clip: scores
    sync@.../part-00007.parquet                     a row a clip: scores, of a table with SyncNet
    embed@.../part-00007.parquet                    a row a clip: a vector, of a table with an embedding network
    caption@.../part-00007.parquet                  a row a clip: what a caption command said, of a table with one

A part that is there is whole, and done; one that is not is work. There is no other state, and no file a clip. Parts of
`look`, `listen` and `sync` say beside their rows by what those with landmarks were chosen (`reach.Reach`): by looser
thresholds they are work once more, for the rows that these let through. Parts of `caption` say which videos were passed
over, as they had captions of their own.
"""

import collections
import concurrent.futures
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipelines.curate import clip_hashes, clip_networks, file_stages
from data_pipelines.curate.clip_records import RECORDS_SUFFIX
from data_pipelines.curate.embeddings import SIGNATURE_BITS
from data_pipelines.curate.tagging import Thresholds
from omnihuman_jax.runtime import bucket_copies, files, folders
from omnihuman_jax.runtime.locations import Location, StrPath, is_remote, location

FORMAT = 1
TABLE_FILE = "table.json"
STAGES = ("scan", "preview", "look", "listen")
# Stages that a table has if it was curated with what they need; after the others.
OPTIONAL_STAGES = ("sync", "embed", "caption")
# Those whose rows have scores, those with a record beside each row, and those that are made in slices.
SCORED = ("preview", "look", "listen", "sync")
RECORDED = ("preview", "look")
SLICED = ("scan", "preview", "look", "listen", "sync")
CLIP, SHORT, DEAD = "clip", "short", "dead"

# Without a checksum a page with a flipped bit is read as other numbers.
WRITTEN: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
CHECKED: dict[str, Any] = {"page_checksum_verification": True}
_KEY_DIGITS = 12
_PARTS_AHEAD, _FETCHED_AT_ONCE = 8, 32
_CHOSEN_BY = b"reach"
_WORD = pa.dictionary(pa.int32(), pa.string())

_DEAD_LETTER = [
    pa.field("reason", pa.string()),
    pa.field("exception", pa.string()),
    pa.field("tries", pa.int32()),
    pa.field("is_lasting", pa.bool_()),
]
_SCAN = pa.schema(
    [
        pa.field("source", _WORD),
        pa.field("kind", _WORD),
        pa.field("sha256", _WORD),
        *(pa.field(name, pa.int32()) for name in ("start_frame", "end_frame", "height", "width")),
        *(pa.field(name, pa.float64()) for name in ("source_fps", "duration_s", "bits_per_pixel")),
        pa.field("has_audio", pa.bool_()),
        *(pa.field(name, _WORD) for name in ("tracks", "properties")),
        *_DEAD_LETTER,
    ]
)


def _scored(scores: Sequence[str], groups: Sequence[str], hashes: Sequence[str] = ()) -> list[pa.Field]:
    whys = [pa.field(f"{group}_why", _WORD) for group in groups]
    numbers = [pa.field(name, pa.float64()) for name in scores] + [pa.field(name, pa.uint64()) for name in hashes]
    return [pa.field("clip_id", pa.string()), *numbers, *whys, *_DEAD_LETTER]


PREVIEW_GROUPS = ("pictures", "brisque", *clip_networks.NAMES, "preview")
SCHEMAS = {
    "scan": _SCAN,
    "preview": pa.schema(
        _scored([*file_stages.KNOWN_SCORES, *file_stages.PREVIEW_SCORES], PREVIEW_GROUPS, clip_hashes.OF_PICTURES)
    ),
    "look": pa.schema(_scored(file_stages.LANDMARK_SCORES, ["landmarks"])),
    "listen": pa.schema(
        _scored([*file_stages.SOUND_SCORES, *file_stages.LIP_SYNC_SCORES], ["sound", "lip_sync"], clip_hashes.OF_SOUND)
    ),
    "sync": pa.schema(_scored(file_stages.SYNC_SCORES, ["sync"])),
    "embed": pa.schema(
        [
            pa.field("clip_id", pa.string()),
            pa.field("embedding", pa.binary()),
            pa.field("signature", pa.binary(SIGNATURE_BITS // 8)),
            pa.field("embedding_why", _WORD),
            *_DEAD_LETTER,
        ]
    ),
    "caption": pa.schema(
        [
            pa.field("clip_id", pa.string()),
            pa.field("caption", pa.string()),
            pa.field("caption_why", _WORD),
            *_DEAD_LETTER,
        ]
    ),
}
# Group of scores -> its scores: each has a value, or the group's `_why` says "not computed: why" or "failed: why".
GROUPS = {
    "pictures": file_stages.PICTURE_SCORES,
    "brisque": file_stages.BRISQUE_SCORES,
    **{name: (name,) for name in clip_networks.NAMES},
    "preview": file_stages.PREVIEW_SCORES,
    "landmarks": file_stages.LANDMARK_SCORES,
    "sound": file_stages.SOUND_SCORES,
    "lip_sync": file_stages.LIP_SYNC_SCORES,
    "sync": file_stages.SYNC_SCORES,
}


def clip_id(sha256: str, start_frame: int, end_frame: int) -> str:
    """Of content and geometry: the same clip has the same id in whatever folder, under whatever name."""
    return f"{sha256[:16]}-{start_frame:06d}-{end_frame:06d}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """The folder of a table, of a disk or a bucket, and the stages' keys that are read and written (stage -> key).

    loosest: thresholds by which the last `curate` chose the clips with landmarks; None where nobody chose.
    """

    folder: Location
    keys: Mapping[str, str]
    loosest: Thresholds | None = None

    @classmethod
    def open(cls, folder: StrPath) -> "Table":
        """The table in `folder` with the stages of the last `curate`.

        Raises:
            FileNotFoundError, ValueError: no table, or one of another format.
        """
        path = location(folder) / TABLE_FILE
        try:
            stored = json.loads(files.read_bytes(path))
            version, keys = stored["format"], dict(stored["stages"])
            loosest = Thresholds(**stored["loosest"]) if "loosest" in stored else None
        except FileNotFoundError:
            cure = f"make it with `omnihuman curate --source DIR --out {folder}`"
            raise FileNotFoundError(f"{path}: not there; {cure}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not the head of a table ({error}); run curate again") from None
        if version != FORMAT:
            raise ValueError(f"{path}: format {version}, this version reads {FORMAT}; curate into another folder")
        if lacking := [stage for stage in STAGES if stage not in keys]:
            raise ValueError(f"{path}: lacks the stages {', '.join(lacking)} of this version; run curate again")
        return cls(folder=location(folder), keys=keys, loosest=loosest)

    def save(self, **facts: Any) -> None:
        """Writes the head, which makes the folder a table."""
        folders.make_folder(self.folder)
        chosen = {"loosest": dataclasses.asdict(self.loosest)} if self.loosest else {}
        text = json.dumps({"format": FORMAT, "stages": dict(self.keys), **chosen, **facts}, indent=1)
        files.write_text(self.folder / TABLE_FILE, text + "\n")

    def part(self, stage: str, number: int) -> Location:
        return self.stage_folder(stage) / f"part-{number:05d}.parquet"

    def thumbnails(self, number: int) -> Location:
        return self.part("preview", number).with_suffix(RECORDS_SUFFIX)

    def landmarks(self, number: int) -> Location:
        return self.part("look", number).with_suffix(RECORDS_SUFFIX)

    def stage_folder(self, stage: str) -> Location:
        return self.folder / f"{stage}@{self.keys[stage][:_KEY_DIGITS]}"

    @property
    def stages(self) -> tuple[str, ...]:
        """Those that it has, in order."""
        return (*STAGES, *(stage for stage in OPTIONAL_STAGES if stage in self.keys))

    @property
    def scored(self) -> tuple[str, ...]:
        """Those of them that give scores, in order."""
        return tuple(stage for stage in self.stages if stage in SCORED)

    def missing(self, number: int) -> list[str]:
        """The stages that part `number` lacks, in order."""
        return [stage for stage in self.stages if not files.is_there(self.part(stage, number))]

    def finished(self, numbers: Sequence[int]) -> list[int]:
        """Of these parts those that lack no stage: as `missing` says it, by a look into each stage's folder."""
        made = [
            {_number_of(path.name) for path in folders.matching(self.stage_folder(stage), "part-*.parquet")}
            for stage in self.stages
        ]
        return [number for number in numbers if all(number in of_stage for of_stage in made)]

    def on_their_way(self, numbers: Sequence[int]) -> Iterator[int]:
        """The numbers, in order; of a bucket's table the parts that come next are fetched meanwhile."""
        if not is_remote(self.folder):
            yield from numbers
            return
        with concurrent.futures.ThreadPoolExecutor(_FETCHED_AT_ONCE) as pool:
            coming = collections.deque[list[concurrent.futures.Future[Path]]]()
            for place, number in enumerate(numbers):
                for later in numbers[place + len(coming) : place + _PARTS_AHEAD]:
                    coming.append(
                        [pool.submit(bucket_copies.as_file, self.part(stage, later)) for stage in self.stages]
                    )
                concurrent.futures.wait(coming.popleft())  # what failed, the reading of it will tell
                yield number

    def read(self, stage: str, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The columns of a part; an error names the file and the cure."""
        rows = read_part(self.part(stage, number), columns)
        wanted = SCHEMAS[stage].names if columns is None else columns
        if lacking := [name for name in wanted if name not in rows.column_names]:
            raise ValueError(
                f"{self.part(stage, number)}: lacks the columns {', '.join(lacking)}; delete it and run curate again"
            )
        return rows


def _number_of(name: str) -> int:
    """Of a part's file; -1 of another one."""
    match = re.fullmatch(r"part-(\d+)\.parquet", name)
    return int(match[1]) if match else -1


def read_part(path: Location, columns: Sequence[str] | None = None, filters: Any = None) -> pa.Table:
    """A whole Parquet file, those of its columns that it has; FileNotFoundError, or ValueError for a damaged one."""
    try:
        local = bucket_copies.as_file(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such part; run curate again") from None
    try:
        if filters is not None:
            return pq.read_table(local, columns=columns, partitioning=None, filters=filters, **CHECKED)
        with pq.ParquetFile(local, **CHECKED) as file:
            there = file.schema_arrow.names
            return file.read(None if columns is None else [name for name in columns if name in there])
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path}: not a readable part ({why}); delete it and run curate again") from None


def write_part(path: Location, rows: Sequence[Mapping[str, Any]], schema: pa.Schema, chosen_by: str = "") -> None:
    """Writes rows whole or not at all; what a row does not say is null. chosen_by: `stated_choice` of the part."""
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in schema]
    write_columns(
        path, pa.table(columns, schema=schema.with_metadata({_CHOSEN_BY: chosen_by}) if chosen_by else schema)
    )


def stated_choice(path: Location) -> str:
    """By what the rows of a part that something was computed for were chosen: of `look`, `listen` and `sync` as
    `reach.Reach.to_json` has it, of `caption` as `stage_rows.chosen_by`; of a slice, what its rows are of
    (`part_slices.of_rows`). "" if it does not say.
    """
    return (read_schema(path).metadata or {}).get(_CHOSEN_BY, b"").decode()


def read_schema(path: Location) -> pa.Schema:
    """What a Parquet file says of itself, without its rows; ValueError for a damaged one."""
    try:
        if is_remote(path):
            return bucket_copies.patiently(str(path), lambda: _schema_of_object(str(path)))
        return pq.read_schema(path)
    except bucket_copies.NoAnswer:  # no fault of the part
        raise
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path}: not a readable part ({why}); delete it and run curate again") from None


def _schema_of_object(uri: str) -> pa.Schema:
    fs, path = bucket_copies.open_storage(uri)
    # The end of it alone: rows are of no interest.
    with fs.open(path, "rb", cache_type="none") as file:
        return pq.read_schema(file)


def write_columns(path: Location, columns: pa.Table) -> None:
    folders.make_folder(path.parent)
    with files.locked_whole_file(path) as temporary:
        pq.write_table(columns, temporary, **WRITTEN)


def clips_of(scanned: pa.Table) -> pa.Table:
    """Of rows of `scan` those of clips."""
    return scanned.filter(pc.equal(scanned["kind"], CLIP))


def clip_rows(scanned: pa.Table) -> list[dict[str, Any]]:
    """The rows of clips of a part, in order: row i is row i of the stages after `scan`."""
    return list(clips_of(scanned).to_pylist())


def letters_of(table: Table, number: int) -> Iterator[dict[str, Any]]:
    """The dead letters of a part: stage, source, clip_id ("" of a video), reason, exception, tries, is_lasting."""
    scanned = table.read("scan", number, ["source", "kind", *(field.name for field in _DEAD_LETTER)]).to_pylist()
    clips = [row["source"] for row in scanned if row["kind"] == CLIP]
    for row in scanned:
        if row.pop("kind") == DEAD:
            yield {"stage": "scan", "clip_id": "", **row}
    for stage in table.stages[1:]:
        rows = table.read(stage, number, ["clip_id", *(field.name for field in _DEAD_LETTER)]).to_pylist()
        yield from ({"stage": stage, "source": s, **row} for s, row in zip(clips, rows, strict=True) if row["reason"])
