"""The videos of a bucket, or of a part of one: those below a prefix, or that a pattern fits, with the captions beside
them.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from data_pipelines.curate import captions, footage, held_out
from data_pipelines.curate.found_videos import CaptionOptions, Found, FoundVideo, version_of
from data_pipelines.curate.video_files import Address
from omnihuman_jax.runtime import bucket_copies, file_names, storage

# Small objects read together.
_READ_TOGETHER = 1000
_PATTERN = "*?["


@dataclasses.dataclass(frozen=True, slots=True)
class Listing:
    """Objects of a bucket. home: URI that their names are relative to. objects: name -> what fsspec says of it."""

    home: str
    objects: Mapping[str, Mapping[str, Any]]

    def uri(self, name: str) -> str:
        """Of an object: its key as it is, also where it has two slashes in a row."""
        return f"{self.home.partition('://')[0]}://{self.objects[name]['name']}"


def listed(uri: str) -> Listing:
    """What `gs://BUCKET/PREFIX`, `.../**` or a pattern stands for.

    Raises:
        FileNotFoundError: nothing.
        OSError: the bucket cannot be listed.
    """
    fs, path = bucket_copies.open_storage(uri)
    fixed = path.removesuffix("/**").rstrip("/")
    is_pattern = any(mark in fixed for mark in _PATTERN)
    try:
        found = fs.glob(fixed, detail=True) if is_pattern else fs.find(fixed, detail=True)
    except Exception as error:
        raise OSError(f"{uri}: cannot be listed ({storage.cause(error)}); check the name and your access") from error
    root = _fixed_part(fixed) if is_pattern else fixed
    objects = {
        str(PurePosixPath(name).relative_to(root)) if name != root else PurePosixPath(name).name: info
        for name, info in found.items()
        if info.get("type", "file") == "file" and not name.endswith("/")
    }
    if not objects:
        raise FileNotFoundError(f"{uri}: nothing is there; give gs://BUCKET/PREFIX/**, or a pattern that objects fit")
    scheme = uri.partition("://")[0]
    home = root if root not in found else str(PurePosixPath(root).parent)
    return Listing(home=f"{scheme}://{home}", objects=dict(sorted(objects.items())))


def find(uri: str, options: CaptionOptions) -> Found:
    """Videos, their captions (NAME.txt beside NAME.mp4) and their splits (splits.json in the prefix)."""
    listing = listed(uri)
    kinds: dict[str, list[str]] = {}
    for name in listing.objects:
        kinds.setdefault(footage.kind_of(name), []).append(name)
    videos, sidecars = kinds.pop("", []), kinds.pop(footage.SIDECAR, [])
    stems = {_stem(name) for name in videos}
    texts = _read(listing, [name for name in sidecars if _stem(name) in stems])
    splits = _splits(listing)
    if lone := [name for name in sidecars if _stem(name) not in stems]:
        kinds[footage.LONE_SIDECAR] = lone
    if empty := [name for name, data in texts.items() if isinstance(data, bytes) and footage.is_blank(data)]:
        kinds[footage.EMPTY_SIDECAR] = empty
    beside = {_stem(name): name for name in reversed(texts)}
    found = {}
    for name in videos:
        sidecar = beside.get(_stem(name), "")
        told = captioned(sidecar, texts.get(sidecar), options)
        info = listing.objects[name]
        found[file_names.plain(name)] = FoundVideo(
            address=Address(place=listing.uri(name)),
            size=int(info["size"]),
            version=object_version(info),
            caption=told[0],
            caption_source=told[1],
            caption_error=told[2],
            split=splits.get(file_names.plain(name), "train"),
        )
    passed_over = {kind: sorted(map(file_names.plain, names)) for kind, names in sorted(kinds.items())}
    return Found(found, passed_over)


def captioned(sidecar: str, data: bytes | Exception | None, options: CaptionOptions) -> tuple[str, str, str]:
    """(caption, where it comes from, why it cannot be read) of the bytes beside a video; None: there are none."""
    if isinstance(data, Exception):
        return "", "", file_names.printable(f"{PurePosixPath(sidecar).name}: {storage.cause(data)}")
    try:
        return *captions.caption_in(PurePosixPath(sidecar).name, data, options.default, options.encoding), ""
    except captions.CaptionError as error:
        return "", "", file_names.printable(str(error))


def object_version(info: Mapping[str, Any]) -> int:
    """Another number with every write of an object."""
    return version_of(str(info.get("generation") or info.get("ETag") or info.get("etag") or ""))


def _read(listing: Listing, names: list[str]) -> dict[str, bytes | Exception]:
    """Name -> bytes, or why they cannot be read; many at a time."""
    found: dict[str, bytes | Exception] = {}
    fs, _ = bucket_copies.open_storage(listing.home)
    for first in range(0, len(names), _READ_TOGETHER):
        paths = {str(listing.objects[name]["name"]): name for name in names[first : first + _READ_TOGETHER]}
        given = fs.cat(list(paths), on_error="return")
        found |= {name: given.get(path, FileNotFoundError("not there any more")) for path, name in paths.items()}
    return found


def _splits(listing: Listing) -> dict[str, str]:
    if held_out.SPLITS_FILE not in listing.objects:
        return {}
    data = _read(listing, [held_out.SPLITS_FILE])[held_out.SPLITS_FILE]
    where = f"{listing.home}/{held_out.SPLITS_FILE}"
    if isinstance(data, Exception):
        raise OSError(f"{where}: cannot be read ({storage.cause(data)})") from data
    return held_out.splits_in(where, data)


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _fixed_part(path: str) -> str:
    """The folder above the first part that has a mark of a pattern."""
    parts = path.split("/")
    return "/".join(parts[: next(i for i, part in enumerate(parts) if any(mark in part for mark in _PATTERN))])
