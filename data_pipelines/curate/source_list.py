"""What lies in a source now, and which part of the table each of its videos is in.

Parts only ever get added: videos that no part has yet become new parts, in the order of a hash of their names, so that
a part is a fair sample of what came with it. A video is known by its name, size and time of change; one that was
touched and has the same bytes as before is the video that it was.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipelines.curate import captions, footage, held_out, stage_parts
from data_pipelines.curate.stage_parts import Table
from omnihuman_jax.runtime import file_names, files

PART_VIDEOS = 1000
# A small folder becomes so many parts, that processes share it.
_LEAST_PARTS = 32
_SOURCES = pa.schema([
    pa.field("part", pa.int32()), pa.field("source", pa.string()), pa.field("name", pa.string()),
    pa.field("size", pa.int64()), pa.field("mtime_ns", pa.int64()),
])  # fmt: skip
_LISTING = pa.schema([
    pa.field("part", pa.int32()), pa.field("source", pa.string()), pa.field("name", pa.string()),
    pa.field("path", pa.string()), pa.field("caption", pa.string()), pa.field("caption_source", pa.string()),
    pa.field("caption_error", pa.string()), pa.field("split", pa.string()),
])  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ListedVideo:
    """A video of a source. `path` is relative to the table's folder, and text (`file_names.plain`)."""

    part: int
    source: str
    name: str
    path: str
    caption: str
    caption_source: str
    caption_error: str
    split: str

    def file(self, table: Path) -> str:
        return os.path.normpath(table / file_names.raw(self.path))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CaptionOptions:
    """default: of videos without a sidecar; encoding: of sidecars that are neither UTF-8 nor marked as UTF-16."""

    default: str = "A video."
    encoding: str = ""


def look_up(
    table: Table, folder: str | os.PathLike[str], options: CaptionOptions, part_videos: int = PART_VIDEOS
) -> list[ListedVideo]:
    """The videos of a folder; writes the listing, and parts for what is new.

    Raises:
        FileNotFoundError, ValueError: no folder, no videos in it, or a `splits.json` that is none.
    """
    found = footage.look_into(folder, besides=table.folder)
    footage.check_any(folder, found)
    splits = held_out.read_splits(folder)
    stats = {name: os.stat(path) for name, path in found.videos.items()}
    now = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}
    while True:
        known = read_sources(table)
        ids = _ids(table, known, now, found.videos)
        added = _added(known, ids, now, part_videos)
        # Another worker may list the same source at the same time: what is written first is what counts.
        if not added or write_sources(table, added):
            break
    parts = {row["source"]: row["part"] for row in [*known, *added]}
    videos = []
    for name, path in found.videos.items():
        text, kind, error = _caption(path, options)
        videos.append(
            ListedVideo(
                part=parts[ids[name]],
                source=ids[name],
                name=name,
                path=file_names.plain(os.path.relpath(path, table.folder)),
                caption=text,
                caption_source=kind,
                caption_error=error,
                split=splits.get(name, "train"),
            )
        )
    write_listing(table, os.path.relpath(folder, table.folder), videos, found.passed_over)
    return videos


def source_id(name: str, size: int, mtime_ns: int) -> str:
    return hashlib.sha256(f"{name}\0{size}\0{mtime_ns}".encode("utf-8", "surrogatepass")).hexdigest()[:24]


def write_listing(
    table: Table, source: str, videos: Sequence[ListedVideo], passed_over: Mapping[str, Sequence[str]]
) -> None:
    """Writes what lies in `source` (its path relative to the table), over what lay there before. passed_over: reason ->
    names of what is no video.
    """
    rows = [dataclasses.asdict(video) for video in sorted(videos, key=lambda v: (v.part, v.source))]
    name = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    folder = table.folder / "listings"
    stage_parts.write_part(folder / f"{name}.parquet", rows, _LISTING)
    files.write_text(folder / f"{name}.json", json.dumps({"passed_over": passed_over}))


def read_passed_over(table: Table) -> dict[str, list[str]]:
    """Reason -> names, of all sources."""
    found: dict[str, list[str]] = {}
    for path in sorted((table.folder / "listings").glob("*.json")):
        for reason, names in json.loads(path.read_text())["passed_over"].items():
            found.setdefault(reason, []).extend(names)
    return found


def read_listings(table: Table) -> pa.Table:
    """All listings of a table, by part and source; a video that two have is in it once."""
    listings = [stage_parts.read_part(path) for path in sorted((table.folder / "listings").glob("*.parquet"))]
    if not listings:
        raise FileNotFoundError(f"{table.folder / 'listings'}: nothing is listed; run curate again")
    if len(listings) == 1:
        return listings[0]
    together = pa.concat_tables(listings).sort_by([("part", "ascending"), ("source", "ascending")])
    sources = together["source"].to_pylist()
    first = [index for index, source in enumerate(sources) if index == 0 or source != sources[index - 1]]
    return together.take(first)


def listed_in(table: Table, number: int) -> list[dict[str, Any]]:
    """The rows of all listings that are in part `number`."""
    paths = sorted((table.folder / "listings").glob("*.parquet"))
    rows = [row for path in paths for row in stage_parts.read_part(path, filters=[("part", "=", number)]).to_pylist()]
    return list({row["source"]: row for row in reversed(rows)}.values())


def write_sources(table: Table, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Adds videos to the table, each with the number of its part; False if another process was first."""
    folder = table.folder / "sources"
    path = folder / f"added-{len(list(folder.glob('added-*.parquet'))):05d}.parquet"
    return files.claim(path, lambda beside: stage_parts.write_part(beside, rows, _SOURCES))


def read_sources(table: Table) -> list[dict[str, Any]]:
    """Every video that the table has a part for, whether it still lies anywhere or not: a row of `_SOURCES` each."""
    added = sorted((table.folder / "sources").glob("added-*.parquet"))
    return [row for file in added for row in stage_parts.read_part(file).to_pylist()]


def _ids(
    table: Table, known: Sequence[Mapping[str, Any]], now: Mapping[str, tuple[int, int]], paths: Mapping[str, Path]
) -> dict[str, str]:
    """Name -> id; of a video that was touched but not changed, the id that it has had."""
    ids = {name: source_id(name, *stat) for name, stat in now.items()}
    sources = {row["source"] for row in known}
    before: dict[str, list[Mapping[str, Any]]] = {}
    for row in known:
        before.setdefault(row["name"], []).append(row)
    for name, source in ids.items():
        same_size = [row for row in before.get(name, ()) if row["size"] == now[name][0]]
        if source not in sources and same_size:
            digest = files.file_sha256(paths[name])
            same = (row["source"] for row in same_size if _sha256(table, row["part"], row["source"]) == digest)
            ids[name] = next(same, source)
    return ids


def _sha256(table: Table, number: int, source: str) -> str | None:
    """Of the bytes that the scan saw; None where it saw none."""
    if not table.part("scan", number).is_file():
        return None
    rows = table.read("scan", number, ["source", "sha256"]).to_pylist()
    return next((row["sha256"] for row in rows if row["source"] == source), None)


def _added(
    known: Sequence[Mapping[str, Any]], ids: Mapping[str, str], now: Mapping[str, tuple[int, int]], part_videos: int
) -> list[dict[str, Any]]:
    """The videos that no part has yet, each with the number of its new part."""
    sources = {row["source"] for row in known}
    new = sorted({i: name for name, i in ids.items() if i not in sources}.items())
    size = max(1, min(part_videos, -(-len(new) // _LEAST_PARTS)))
    first = max((row["part"] for row in known), default=-1) + 1
    return [
        {"part": first + n // size, "source": i, "name": name, "size": now[name][0], "mtime_ns": now[name][1]}
        for n, (i, name) in enumerate(new)
    ]


def _caption(path: Path, options: CaptionOptions) -> tuple[str, str, str]:
    """(caption, where it comes from, why it cannot be read)."""
    try:
        return *captions.caption_of(path, options.default, options.encoding), ""
    except captions.CaptionError as error:
        return "", "", file_names.printable(str(error))
