"""The videos that a Parquet file lists: `path` (or `uri`), and if you like `caption` and `split`, a row a video.

A path is relative to the file's folder. What a row says wrong is a dead letter of its own.
"""

import concurrent.futures
import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.curate import bucket_source, captions, video_files
from data_pipelines.curate.found_videos import CaptionOptions, Found, FoundVideo, bad, version_of
from data_pipelines.curate.video_files import Address
from omnihuman_jax.runtime import bucket_copies, file_names
from omnihuman_jax.runtime.locations import is_remote

SUFFIX = ".parquet"
_PLACES, _TEXTS = ("path", "uri"), ("caption", "split")
# Objects are asked for their size this many at a time.
_ASKED_TOGETHER = 32


def find(place: str, options: CaptionOptions) -> Found:
    """The videos of the list at a path or URI.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no Parquet file, without a column `path` or `uri`, or a column that is no text.
    """
    rows = _read(place)
    first: dict[str, int] = {}
    videos: dict[str, FoundVideo] = {}
    addresses: dict[int, Address] = {}
    for number, row in enumerate(rows):
        if not row["path"]:
            videos[f"row {number}"] = bad("the list's row has no path")
        elif (before := first.setdefault(row["path"], number)) != number:
            name = f"{file_names.plain(row['path'])} (row {number})"
            videos[name] = bad(f"the list has it already, in row {before}; take the row out")
        else:
            addresses[number] = Address(place=_place_of(row["path"], place))
    with concurrent.futures.ThreadPoolExecutor(_ASKED_TOGETHER) as pool:
        for number, (size, version) in zip(addresses, pool.map(_known, addresses.values())):
            row = rows[number]
            videos[file_names.plain(row["path"])] = _video(number, row, addresses[number], size, version, options)
    return Found(dict(sorted(videos.items())), {})


def _read(place: str) -> list[dict[str, Any]]:
    """Rows with `path`, `caption` and `split`, of which each may be None."""
    try:
        with video_files.opened(place) as file:
            table = pq.read_table(pa.BufferReader(file.read()))
    except FileNotFoundError:
        raise FileNotFoundError(f"{place}: no such list") from None
    except pa.ArrowException as error:
        raise ValueError(f"{place}: not a readable Parquet file ({' '.join(str(error).split())})") from None
    column = next((name for name in _PLACES if name in table.column_names), None)
    if column is None:
        raise ValueError(f"{place}: has no column `path` or `uri`; it has {', '.join(table.column_names) or 'none'}")
    columns = {"path": table[column], **{name: table[name] for name in _TEXTS if name in table.column_names}}
    for name, values in columns.items():
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
            raise ValueError(f"{place}: its column {name} holds {values.type}, not text")
    missing = {name: [None] * len(table) for name in _TEXTS if name not in columns}
    lists = {**{name: values.to_pylist() for name, values in columns.items()}, **missing}
    return [dict(zip(lists, values)) for values in zip(*lists.values())]


def _place_of(path: str, list_place: str) -> str:
    """A row's path or URI, from the folder of the list if it is relative."""
    if is_remote(path) or os.path.isabs(path):
        return path
    folder = list_place.rpartition("/")[0] if is_remote(list_place) else os.path.dirname(list_place)
    return f"{folder}/{path}" if is_remote(list_place) else os.path.join(folder, path)


def _known(address: Address) -> tuple[int, int]:
    """(size, version); of what cannot be seen 0 and the reason's: its scan says why, and what comes later is new."""
    try:
        if not is_remote(address.place):
            status = os.stat(address.place)
            return status.st_size, status.st_mtime_ns
        fs, path = bucket_copies.open_storage(address.place)
        info = fs.info(path)
        return int(info["size"]), bucket_source.object_version(info)
    except Exception as error:
        return 0, version_of(type(error).__name__)


def _video(
    number: int, row: Mapping[str, Any], address: Address, size: int, version: int, options: CaptionOptions
) -> FoundVideo:
    text, problem = " ".join((row["caption"] or "").split()), ""
    try:
        captions.check_text(f"the caption of row {number}", text)
    except ValueError as error:
        problem = file_names.printable(str(error))
    caption = "" if problem else text or " ".join(options.default.split())
    return FoundVideo(
        address=address,
        size=size,
        version=version,
        caption=caption,
        caption_source="" if problem else "sidecar" if text else "default",
        caption_error=problem,
        split=row["split"] or "train",
    )
