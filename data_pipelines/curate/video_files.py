"""The file of a listed video on this machine: where it lies, or a copy of what lies in a bucket, archive or shard.

A listing says where a video is, in text:

    ../media/a.mp4                      a path, from the table's folder
    gs://BUCKET/a.mp4                   an object
    tar:512:1048576:../tars/00.tar      the bytes of a member: where they begin and how many; a path or an object
    record:17:video:../set/x-train...   what a feature holds in a record of an ArrayRecord shard; a path or an object
    bad:REASON                          nowhere: the source itself says nothing that could be opened

Copies lie in a folder of the process while it works on them; what was not used for longest goes when room is needed.

    OMNIHUMAN_VIDEO_CACHE       the folder that holds those of all processes; omnihuman-videos where temporary files go
    OMNIHUMAN_VIDEO_CACHE_GB    limit of each process; 20

ArrayRecords and networks have a cache of their own (`omnihuman_jax/data/shard_cache.py`): this one outlives no process.
"""

import base64
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, BinaryIO

import fsspec.core

from data_pipelines.curate import tfds_records
from omnihuman_jax.runtime import exit_codes, file_names, files, storage, variables
from omnihuman_jax.runtime.locations import is_remote, location
from omnihuman_jax.serving.media_omnihuman import MediaError

logger = logging.getLogger(__name__)

FOLDER_VARIABLE, LIMIT_VARIABLE = "OMNIHUMAN_VIDEO_CACHE", "OMNIHUMAN_VIDEO_CACHE_GB"
_LIMIT_GB = "20"
_BLOCK_BYTES = 1 << 24
# Storage that does not answer is asked again: after pauses that double up to a minute, for ten minutes.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _PATIENCE_S = 1.0, 60.0, 600.0
# What arrives otherwise than the bucket says is fetched again so often, and is the object's own fault after that.
_GARBLED = 5
_MEMBER = re.compile(r"tar:(\d+):(\d+):(.*)", re.DOTALL)
_RECORD = re.compile(r"record:(\d+):([^:]+):(.*)", re.DOTALL)
_BAD = "bad:"


class NoAnswer(OSError):
    """Storage that did not answer, however long it was waited for: no fault of the video."""

    exit_code = exit_codes.RETRY


class GarbledError(ConnectionError):
    """An object that arrives with other bytes than the bucket has."""


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

    def text(self, table: str | os.PathLike[str]) -> str:
        """As a listing of the table holds it: paths are relative to the table's folder, and plain."""
        if self.problem:
            return _BAD + file_names.plain(self.problem)
        place = self.place if is_remote(self.place) else os.path.relpath(self.place, table)
        if self.offset >= 0:
            place = f"tar:{self.offset}:{self.size}:{place}"
        elif self.record >= 0:
            place = f"record:{self.record}:{self.feature}:{place}"
        return file_names.plain(place)

    @classmethod
    def parse(cls, text: str, table: str | os.PathLike[str]) -> "Address":
        """Of the text of a listing of the table."""
        raw = file_names.raw(text)
        if raw.startswith(_BAD):
            return cls(problem=raw.removeprefix(_BAD))
        member, record = _MEMBER.fullmatch(raw), _RECORD.fullmatch(raw)
        place = member[3] if member else record[3] if record else raw
        place = place if is_remote(place) else os.path.normpath(os.path.join(table, place))
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
    return Path(address.place) if address.is_file else _copies(os.getpid()).path(address)


def forget() -> None:
    """Lets go of this process's copies: what lies there may be something else by now."""
    if _copies.cache_info().currsize:
        _copies(os.getpid()).forget()


@functools.cache
def _copies(process: int) -> "_Copies":
    """Those of this process; of a fork they are others'."""
    del process
    limit = storage.cache_limit(LIMIT_VARIABLE, _LIMIT_GB)
    home = variables.folder(FOLDER_VARIABLE, Path(tempfile.gettempdir()) / "omnihuman-videos")
    return _Copies(home, limit)


class _Copies:
    """Copies of one process in a folder of their own, in the order of their last use."""

    def __init__(self, home: Path, limit_bytes: int):
        home.mkdir(parents=True, exist_ok=True)
        self._limit, self._sizes = limit_bytes, dict[Path, int]()
        with (home / ".lock").open("ab") as alone:
            fcntl.flock(alone, fcntl.LOCK_EX)
            _sweep(home)
            self._folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=home))
            # Held while the process lives: who finds it free takes the folder away.
            self._lock = (self._folder / ".lock").open("ab")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        Finalize(self, shutil.rmtree, (self._folder, True), exitpriority=1)

    def path(self, address: Address) -> Path:
        name = hashlib.sha256(repr(address).encode("utf-8", "surrogatepass")).hexdigest()[:24]
        suffix = "" if address.is_inside else Path(address.place).suffix
        target = self._folder / f"{name}{suffix}"
        if (size := self._sizes.pop(target, None)) is None:
            size = _patiently(address, lambda: self._fetch(address, target))
        self._sizes[target] = size  # the last used is the last
        return target

    def forget(self) -> None:
        """Removes all copies."""
        for path in self._sizes:
            path.unlink(missing_ok=True)
        self._sizes.clear()

    def _fetch(self, address: Address, target: Path) -> int:
        with files.whole_file(target) as temporary, temporary.open("wb") as file:
            if address.record >= 0:
                shard = local_file(Address(place=address.place))
                data = tfds_records.read_feature(shard, address.record, address.feature)
                self._make_room(address, len(data))
                file.write(data)
                return len(data)
            if address.offset >= 0:
                self._make_room(address, address.size)
                _copy_member(address, file)
                return address.size
            fs, path = open_storage(address.place)
            info = fs.info(path)
            self._make_room(address, int(info["size"]))
            _copy_object(fs, path, info, file)
            return int(info["size"])

    def _make_room(self, address: Address, needed: int) -> None:
        if needed > self._limit:
            raise OSError(
                f"{needed / 1e9:.3g} GB, but a process may hold {self._limit / 1e9:g} GB of copies; raise"
                f" {LIMIT_VARIABLE}"
            )
        for path in list(self._sizes):
            if sum(self._sizes.values()) + needed <= self._limit:
                return
            path.unlink(missing_ok=True)
            del self._sizes[path]


def _patiently(address: Address, fetch: Any) -> Any:
    """What `fetch` gives, once storage answers; NoAnswer where it does not."""
    begin, pause, garbled = time.monotonic(), _FIRST_PAUSE_S, 0
    while True:
        try:
            return fetch()
        except Exception as error:
            garbled += isinstance(error, GarbledError)
            # NoAnswer: of the shard that a record is in, which was waited for.
            if isinstance(error, NoAnswer) or not storage.does_not_answer(error) or garbled > _GARBLED:
                raise
            why = storage.cause(error)
        if (waited := time.monotonic() - begin) >= _PATIENCE_S:
            raise NoAnswer(f"{address.place}: storage did not answer for {waited / 60:.0f} minutes ({why})")
        logger.warning("%s: %s; again in %g s", address.place, why, pause)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def answers(place: str) -> bool:
    """Whether storage answers now: asked for an object beside the one at `place`, which it will say is not there."""
    fs, path = open_storage(place)
    try:
        fs.info(f"{path}.is-anybody-there")
    except Exception as error:
        return not storage.does_not_answer(error)
    return True


def open_storage(uri: str) -> tuple[Any, str]:
    """(fsspec's file system, the path in it) of a URI; LocationError for one that nothing here reads."""
    location(uri)
    return fsspec.core.url_to_fs(uri)


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


def _copy_object(fs: Any, path: str, info: dict[str, Any], file: BinaryIO) -> None:
    digest, size = hashlib.md5(usedforsecurity=False), 0
    with fs.open(path, "rb", cache_type="readahead", block_size=_BLOCK_BYTES) as source:
        while block := source.read(_BLOCK_BYTES):
            file.write(block)
            digest.update(block)
            size += len(block)
    md5 = base64.b64decode(info["md5Hash"]) if info.get("md5Hash") else b""
    if size != int(info["size"]) or (md5 and md5 != digest.digest()):
        raise GarbledError(f"arrives with {size:,} bytes, the bucket has {int(info['size']):,}, or with others")


def _sweep(home: Path) -> None:
    """Removes what processes left that are no more."""
    for lock in home.glob("*-*/.lock"):
        with contextlib.suppress(OSError), lock.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
