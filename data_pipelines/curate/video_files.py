"""The file of a listed video on this machine: where it lies, or a copy of what lies in a bucket, archive or shard.

A listing says where a video is, in text:

    ../media/a.mp4                      a path, from the table's folder; from the root where the table is in a bucket
    gs://BUCKET/a.mp4                   an object
    tar:512:1048576:../tars/00.tar      the bytes of a member: where they begin and how many; a path or an object
    record:17:video:../set/x-train...   what a feature holds in a record of an ArrayRecord shard; a path or an object
    bad:REASON                          nowhere: the source itself says nothing that could be opened

Copies are those of `omnihuman_jax/runtime/bucket_copies.py`.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from data_pipelines.curate import tfds_records
from omnihuman_jax.runtime import bucket_copies, file_names
from omnihuman_jax.runtime.bucket_copies import open_storage
from omnihuman_jax.runtime.locations import StrPath, is_remote, resolved, seen_from
from omnihuman_jax.serving.media_omnihuman import MediaError

_BLOCK_BYTES = 1 << 24
_MEMBER = re.compile(r"tar:(\d+):(\d+):(.*)", re.DOTALL)
_RECORD = re.compile(r"record:(\d+):([^:]+):(.*)", re.DOTALL)
_BAD = "bad:"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a video is. place: path or URI of its file, or of its archive or shard; offset, size: of a member; record,
    feature: of a shard; problem: why there is nothing to open.
    """

    place: str = ""
    offset: int = -1
    size: int = -1
    record: int = -1
    feature: str = ""
    problem: str = ""

    def text(self, table: StrPath) -> str:
        """As a listing of the table holds it: paths are relative to the table's folder, and plain."""
        if self.problem:
            return _BAD + file_names.plain(self.problem)
        place = self.place if is_remote(self.place) else seen_from(table, self.place)
        if self.offset >= 0:
            place = f"tar:{self.offset}:{self.size}:{place}"
        elif self.record >= 0:
            place = f"record:{self.record}:{self.feature}:{place}"
        return file_names.plain(place)

    @classmethod
    def parse(cls, text: str, table: StrPath) -> "Address":
        """Of the text of a listing of the table."""
        raw = file_names.raw(text)
        if raw.startswith(_BAD):
            return cls(problem=raw.removeprefix(_BAD))
        member, record = _MEMBER.fullmatch(raw), _RECORD.fullmatch(raw)
        place = member[3] if member else record[3] if record else raw
        place = resolved(table, place)
        if member:
            return cls(place=place, offset=int(member[1]), size=int(member[2]))
        return cls(place=place, record=int(record[1]), feature=record[2]) if record else cls(place=place)

    @property
    def is_file(self) -> bool:
        """Whether it is a file of this machine as it is."""
        return not (self.problem or self.is_inside or is_remote(self.place))

    @property
    def is_inside(self) -> bool:
        """Whether it is a part of a file: a member of an archive, or a record of a shard."""
        return self.offset >= 0 or self.record >= 0


def local_file(address: Address) -> Path:
    """The video as a file: itself, or a copy, which stays until this process needs the room for others.

    Raises:
        MediaError: the source says nothing that could be opened, an archive ends in the middle of the video, or its
            record is damaged.
        FileNotFoundError, PermissionError: no such object, or none that may be read.
        NoAnswer: of the storage, in ten minutes.
        OSError: there is no room.
    """
    if address.problem:
        raise MediaError(address.problem)
    if address.is_file:
        return Path(address.place)
    suffix = "" if address.is_inside else Path(address.place).suffix
    return bucket_copies.own().path(
        address.place, repr(address), suffix, lambda file, make_room: _fetch(address, file, make_room)
    )


def _fetch(address: Address, file: BinaryIO, make_room: Callable[[int], None]) -> int:
    if address.record >= 0:
        shard = local_file(Address(place=address.place))
        data = tfds_records.read_feature(shard, address.record, address.feature)
        make_room(len(data))
        file.write(data)
        return len(data)
    if address.offset >= 0:
        make_room(address.size)
        _copy_member(address, file)
        return address.size
    fs, path = open_storage(address.place)
    return bucket_copies.copy_object(fs, path, fs.info(path), file, make_room)


@contextlib.contextmanager
def opened(place: str) -> Iterator[BinaryIO]:
    """A file of a disk or a bucket, to be read here and there."""
    if not is_remote(place):
        with open(place, "rb") as file:
            yield file
        return
    fs, path = open_storage(place)
    with fs.open(path, "rb", cache_type="readahead", block_size=1 << 18) as file:
        yield file


def _copy_member(address: Address, file: BinaryIO) -> None:
    left = address.size
    with contextlib.ExitStack() as stack:
        if is_remote(address.place):
            fs, path = open_storage(address.place)
            source = stack.enter_context(fs.open(path, "rb", cache_type="readahead", block_size=_BLOCK_BYTES))
        else:
            source = stack.enter_context(open(address.place, "rb"))
        source.seek(address.offset)
        while left and (block := source.read(min(left, _BLOCK_BYTES))):
            file.write(block)
            left -= len(block)
    if left:
        raise MediaError(f"cut: its archive ends {left} bytes before its end; copy the archive again")
