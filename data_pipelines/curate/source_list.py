"""What a source is and what lies in it now, and which part of the table each of its videos is in.

Parts only ever get added: videos that no part has yet become new parts, in the order of a hash of their names, so that
a part is a fair sample of what came with it. A video is known by its name, size and time of change; one that was
touched and has the same bytes as before is the video that it was, which is written down, so that it is hashed once.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipelines.curate import (
    bucket_source,
    captions,
    footage,
    held_out,
    parquet_source,
    stage_parts,
    tar_source,
    tfds_source,
    video_files,
)
from data_pipelines.curate.found_videos import CaptionOptions, Found, FoundVideo
from data_pipelines.curate.stage_parts import Table
from data_pipelines.curate.video_files import Address
from omnihuman_jax.runtime import bucket_copies, file_names, files, folders
from omnihuman_jax.runtime.locations import Location, LocationError, is_remote, location, seen_from

PART_VIDEOS = 1000
# A small folder becomes so many parts, that processes share it; fewer where the table has many already, for each is six
# files or more: after N parts _CROWDED / N.
_LEAST_PARTS, _CROWDED = 32, 32_000
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_SOURCES = pa.schema([
    pa.field("part", pa.int32()), pa.field("source", pa.string()), pa.field("name", pa.string()),
    pa.field("size", pa.int64()), pa.field("mtime_ns", pa.int64()),
])  # fmt: skip
_LISTING = pa.schema([
    pa.field("part", pa.int32()), pa.field("source", pa.string()), pa.field("name", pa.string()),
    pa.field("path", pa.string()), pa.field("caption", pa.string()), pa.field("caption_source", pa.string()),
    pa.field("caption_error", pa.string()), pa.field("split", pa.string()),
])  # fmt: skip
_WRITTEN = b"written"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ListedVideo:
    """A video of a source. `path` says where it lies (`video_files.Address`)."""

    part: int
    source: str
    name: str
    path: str
    caption: str
    caption_source: str
    caption_error: str
    split: str


def look_up(
    table: Table, source: str | os.PathLike[str], options: CaptionOptions, part_videos: int = PART_VIDEOS
) -> list[ListedVideo]:
    """The videos of a source (`find`); writes the listing, and parts for what is new.

    Raises:
        FileNotFoundError, ValueError, OSError: no such source, no videos in it, or a `splits.json` that is none.
    """
    bucket_copies.forget()
    found = find(source, options, besides=table.folder)
    now = {name: (video.size, video.version) for name, video in found.videos.items()}
    addresses = {name: video.address for name, video in found.videos.items()}
    while True:
        known = _read_added(table)
        ids, touched = _ids(table, known, now, addresses)
        added = _added(known, ids, now, part_videos, touched)
        # Another worker may list the same source at the same time: what is written first is what counts.
        if not added or write_sources(table, added):
            break
    parts = {row["source"]: row["part"] for row in [*known, *added]}
    videos = [
        ListedVideo(
            part=parts[ids[name]],
            source=ids[name],
            name=name,
            path=video.address.text(table.folder),
            caption=video.caption,
            caption_source=video.caption_source,
            caption_error=video.caption_error,
            split=video.split,
        )
        for name, video in found.videos.items()
    ]
    write_listing(table, _shown(os.fspath(source), table), videos, found.passed_over)
    return videos


def as_listed(table: Table, source: str | os.PathLike[str]) -> list[ListedVideo]:
    """The videos of a source as the last `look_up` of it found them, without a look; FileNotFoundError without one."""
    path = table.folder / "listings" / f"{_listing_name(_shown(check_source(source), table))}.parquet"
    if not files.is_there(path):
        raise FileNotFoundError(
            f"--listed: {source} was not listed for {table.folder} yet; run `omnihuman curate --source {source} --out"
            f" {table.folder} --list` first"
        )
    return [ListedVideo(**row) for row in stage_parts.read_part(path).to_pylist()]


def find(
    source: str | os.PathLike[str], options: CaptionOptions, besides: str | os.PathLike[str] | None = None
) -> Found:
    """The videos of a source, by what its text stands for.

    DIR                              a folder of videos, all of it but the folder `besides`
    gs://BUCKET/PREFIX, .../**       all below a prefix of a bucket, or what a pattern fits; s3:// too
    LIST.parquet                     a list of paths and URIs; of a disk or a bucket
    tars/*.tar                       archives as WebDataset has them; of a disk or a bucket
    tfds:DIR                         a data set of tensorflow-datasets; of a disk or a bucket
    """
    place = check_source(source)
    if place.startswith(tfds_source.PREFIX):
        found = tfds_source.find(place, options)
    elif place.endswith(parquet_source.SUFFIX):
        found = parquet_source.find(place, options)
    elif place.endswith(tar_source.SUFFIX) and not os.path.isdir(place):
        found = tar_source.find(place, options)
    else:
        found = bucket_source.find(place, options) if is_remote(place) else _folder(place, options, besides)
    if not found.videos:
        footage.check_any(place, footage.Footage(videos={}, passed_over=dict(found.passed_over)))
    return found


def _shown(place: str, table: Table) -> str:
    """A source as its listing calls it: a path is relative to the table's folder."""
    prefix = tfds_source.PREFIX if place.startswith(tfds_source.PREFIX) else ""
    bare = place.removeprefix(prefix)
    return place if is_remote(bare) else prefix + seen_from(table.folder, bare)


def check_source(text: str | os.PathLike[str]) -> str:
    """The text of a source, for a command line as well; LocationError (a ValueError) for one that nothing reads."""
    place = os.fspath(text)
    if place.endswith(_COMPRESSED):
        raise LocationError(f"{place}: a compressed archive cannot be read from its middle; decompress it to .tar")
    location(place.removeprefix(tfds_source.PREFIX))
    return place


def _folder(place: str, options: CaptionOptions, besides: str | os.PathLike[str] | None) -> Found:
    found = footage.look_into(place, besides=besides)
    splits = held_out.read_splits(place)
    videos = {}
    for name, path in found.videos.items():
        status, told = path.stat(), _caption(path, options)
        videos[name] = FoundVideo(
            address=Address(place=os.fspath(path)),
            size=status.st_size,
            version=status.st_mtime_ns,
            caption=told[0],
            caption_source=told[1],
            caption_error=told[2],
            split=splits.get(name, "train"),
        )
    return Found(videos, found.passed_over)


def source_id(name: str, size: int, version: int) -> str:
    return hashlib.sha256(f"{name}\0{size}\0{version}".encode("utf-8", "surrogatepass")).hexdigest()[:24]


def write_listing(
    table: Table, source: str, videos: Sequence[ListedVideo], passed_over: Mapping[str, Sequence[str]]
) -> None:
    """Writes what lies in `source` (its path relative to the table), over what lay there before, as the newest listing.
    passed_over: reason -> names of what is no video.
    """
    rows = [dataclasses.asdict(video) for video in sorted(videos, key=lambda v: (v.part, v.source))]
    name, folder = _listing_name(source), table.folder / "listings"
    others = [path for path in folders.matching(folder, "*.parquet") if path.stem != name]
    written = 1 + max(map(_written, others), default=0)
    schema = _LISTING.with_metadata({_WRITTEN: str(written)})
    stage_parts.write_columns(folder / f"{name}.parquet", pa.Table.from_pylist(rows, schema=schema))
    files.write_text(folder / f"{name}.json", json.dumps({"passed_over": passed_over}))


def _listing_name(source: str) -> str:
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _listings(table: Table) -> list[Location]:
    """The files of all listings, the one that was written last first."""
    return sorted(folders.matching(table.folder / "listings", "*.parquet"), key=_written, reverse=True)


def _written(listing: Location) -> int:
    """A number that is larger than those of all listings that were there before; no time, as clocks of hosts differ."""
    return int((stage_parts.read_schema(listing).metadata or {}).get(_WRITTEN, 0))


def read_passed_over(table: Table) -> dict[str, list[str]]:
    """Reason -> names, of all sources."""
    found: dict[str, list[str]] = {}
    for path in folders.matching(table.folder / "listings", "*.json"):
        for reason, names in json.loads(path.read_text())["passed_over"].items():
            found.setdefault(reason, []).extend(names)
    return found


def read_listings(table: Table) -> pa.Table:
    """All listings of a table, by part and source; a video that several have is in it once, as the newest has it."""
    listings = [stage_parts.read_part(path) for path in _listings(table)]
    if not listings:
        raise FileNotFoundError(f"{table.folder / 'listings'}: nothing is listed; run curate again")
    if len(listings) == 1:
        return listings[0]
    # A stable sort, so that of a video the newest stays first.
    together = pa.concat_tables(listings).sort_by([("part", "ascending"), ("source", "ascending")])
    sources = together["source"].to_pylist()
    first = [index for index, source in enumerate(sources) if index == 0 or source != sources[index - 1]]
    return together.take(first)


def listed_in(table: Table, number: int) -> list[dict[str, Any]]:
    """The rows of all listings that are in part `number`, a video once, as `read_listings` has it."""
    rows = [
        row
        for path in _listings(table)
        for row in stage_parts.read_part(path, filters=[("part", "=", number)]).to_pylist()
    ]
    return list({row["source"]: row for row in reversed(rows)}.values())


def write_sources(table: Table, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Adds videos to the table, each with the number of its part; False if another process was first."""
    folder = table.folder / "sources"
    path = folder / f"added-{len(folders.matching(folder, 'added-*.parquet')):05d}.parquet"
    folders.make_folder(folder)
    return files.claim(path, lambda beside: stage_parts.write_part(beside, rows, _SOURCES))


def read_sources(table: Table) -> list[dict[str, Any]]:
    """Every video that the table has a part for, whether it still lies anywhere or not: a row of `_SOURCES` each."""
    first: dict[str, dict[str, Any]] = {}
    for row in _read_added(table):
        first.setdefault(row["source"], row)
    return list(first.values())


def _read_added(table: Table) -> list[dict[str, Any]]:
    """As `read_sources`, with a row more for each other time of change that a video was found with."""
    added = folders.matching(table.folder / "sources", "added-*.parquet")
    return [row for file in added for row in stage_parts.read_part(file).to_pylist()]


def _ids(
    table: Table, known: Sequence[Mapping[str, Any]], now: Mapping[str, tuple[int, int]], at: Mapping[str, Address]
) -> tuple[dict[str, str], list[str]]:
    """(name -> id; names of videos that were touched but not changed, which have the id that they have had)."""
    before: dict[str, list[Mapping[str, Any]]] = {}
    for row in known:
        before.setdefault(row["name"], []).append(row)
    scanned = functools.cache(functools.partial(_scanned_sha256, table))
    ids, touched = {}, []
    for name, (size, version) in now.items():
        same_size = [row for row in before.get(name, ()) if row["size"] == size]
        same = [row["source"] for row in same_size if row["mtime_ns"] == version]
        if same_size and not same:
            digest = _digest(at[name])
            same = [row["source"] for row in same_size if scanned(row["part"]).get(row["source"]) == digest]
            touched += [name] if same else []
        ids[name] = same[0] if same else source_id(name, size, version)
    return ids, touched


def _digest(address: Address) -> str:
    """sha256 of a video; "" where it cannot be had, as its scan will tell."""
    try:
        return files.file_sha256(video_files.local_file(address))
    except (OSError, ValueError):
        return ""


def _scanned_sha256(table: Table, number: int) -> dict[str, str | None]:
    """Source -> sha256 of the bytes that the scan of a part saw, or None; {} before it."""
    if not files.is_there(table.part("scan", number)):
        return {}
    rows = table.read("scan", number, ["source", "sha256"]).to_pylist()
    return {row["source"]: row["sha256"] for row in rows}


def _added(
    known: Sequence[Mapping[str, Any]],
    ids: Mapping[str, str],
    now: Mapping[str, tuple[int, int]],
    part_videos: int,
    touched: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The videos that no part has yet, each with the number of its new part; those that were touched, with theirs."""
    parts = {row["source"]: row["part"] for row in known}
    new = sorted({i: name for name, i in ids.items() if i not in parts}.items())
    first = max(parts.values(), default=-1) + 1
    least = max(1, min(_LEAST_PARTS, _CROWDED // max(1, first)))
    size = max(1, min(part_videos, -(-len(new) // least)))
    numbered = [(first + n // size, i, name) for n, (i, name) in enumerate(new)]
    numbered += [(parts[ids[name]], ids[name], name) for name in sorted(touched)]
    return [
        {"part": number, "source": i, "name": name, "size": now[name][0], "mtime_ns": now[name][1]}
        for number, i, name in numbered
    ]


def _caption(path: Path, options: CaptionOptions) -> tuple[str, str, str]:
    """(caption, where it comes from, why it cannot be read)."""
    try:
        return *captions.caption_of(path, options.default, options.encoding), ""
    except captions.CaptionError as error:
        return "", "", file_names.printable(str(error))
