"""Copies of a bucket's objects on the local disk, of one process: whole, verified, waited for while storage does not
answer; what was not used for longest goes when room is needed.

    OMNIHUMAN_VIDEO_CACHE_GB    limit of each process; 20

Datasets and networks have a cache of their own (`omnihuman_jax/data/shard_cache.py`): this one outlives no process.
"""

import base64
import functools
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

import fsspec.core

from omnihuman_jax.runtime import exit_codes, files, scratch, storage
from omnihuman_jax.runtime.locations import Location, StrPath, is_remote, location

logger = logging.getLogger(__name__)

LIMIT_VARIABLE = "OMNIHUMAN_VIDEO_CACHE_GB"
_LIMIT_GB = "20"
_BLOCK_BYTES = 1 << 24
# Storage that does not answer is asked again: after pauses that double up to a minute, for ten minutes.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _PATIENCE_S = 1.0, 60.0, 600.0
# What arrives otherwise than the bucket says is fetched again so often, and is the object's own fault after that.
_GARBLED = 5
_first = threading.Lock()

Given = TypeVar("Given")


class NoAnswer(OSError):
    """Storage that did not answer, however long it was waited for: no fault of the object."""

    exit_code = exit_codes.RETRY


class GarbledError(ConnectionError):
    """An object that arrives with other bytes than the bucket has."""


def copy_of(uri: StrPath) -> Path:
    """The object as a file, as it is now; the copy stays until this process needs the room for others.

    Raises:
        FileNotFoundError, PermissionError: no such object, or none that may be read.
        NoAnswer: of the storage, in ten minutes.
        OSError: there is no room.
    """
    text = os.fspath(uri)

    def look() -> tuple[Any, str, dict[str, Any]]:
        fs, path = open_storage(text)
        return fs, path, fs.info(path)

    fs, path, info = patiently(text, look)
    version = str(info.get("generation") or info.get("ETag") or info.get("etag") or info.get("mtime") or "")

    key = f"{text}\0{version}\0{info['size']}"
    suffix = PurePosixPath(path).suffix
    return own().path(text, key, suffix, lambda file, make_room: copy_object(fs, path, info, file, make_room))


def as_file(path: Location) -> Path:
    """The file itself, or a copy of what lies in a bucket; FileNotFoundError for what is not there."""
    if not is_remote(path):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        return Path(path)
    return copy_of(path)


def own() -> "Copies":
    """Those of this process."""
    with _first:  # several threads may be the first to ask
        return _copies(os.getpid())


def forget() -> None:
    """Lets go of this process's copies: what lies there may be something else by now."""
    if _copies.cache_info().currsize:
        own().forget()


@functools.cache
def _copies(process: int) -> "Copies":
    """Those of this process; of a fork they are others'."""
    del process
    return Copies(scratch.own_folder(), storage.cache_limit(LIMIT_VARIABLE, _LIMIT_GB))


class Copies:
    """Copies of one process in its own folder, in the order of their last use; thread-safe."""

    def __init__(self, folder: Path, limit_bytes: int):
        self._folder, self._limit, self._sizes = folder, limit_bytes, dict[Path, int]()
        self._lock = threading.Lock()

    def path(self, place: str, key: str, suffix: str, fetch: Callable[[BinaryIO, Callable[[int], None]], int]) -> Path:
        """The copy of that key, which `fetch` makes where there is none: it is given the file to write to, and what
        makes room for so many bytes, and returns how many it wrote. place: what a message calls it.
        """
        name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        target = self._folder / f"{name}{suffix}"
        with self._lock:
            size = self._sizes.pop(target, None)
            if size is not None:
                self._sizes[target] = size  # the last used is the last
                return target
        size = patiently(place, lambda: self._fetch(target, fetch))
        with self._lock:
            self._sizes[target] = size
        return target

    def forget(self) -> None:
        """Removes all copies."""
        with self._lock:
            for path in self._sizes:
                path.unlink(missing_ok=True)
            self._sizes.clear()

    def _fetch(self, target: Path, fetch: Callable[[BinaryIO, Callable[[int], None]], int]) -> int:
        with files.whole_file(target) as temporary, temporary.open("wb") as file:
            return fetch(file, self._make_room)

    def _make_room(self, needed: int) -> None:
        if needed > self._limit:
            raise OSError(
                f"{needed / 1e9:.3g} GB, but a process may hold {self._limit / 1e9:g} GB of copies; raise"
                f" {LIMIT_VARIABLE}"
            )
        with self._lock:
            for path in list(self._sizes):
                if sum(self._sizes.values()) + needed <= self._limit:
                    return
                path.unlink(missing_ok=True)
                del self._sizes[path]


def patiently(place: str, fetch: Callable[[], Given]) -> Given:
    """What `fetch` gives, once storage answers; NoAnswer where it does not."""
    begin, pause, garbled = time.monotonic(), _FIRST_PAUSE_S, 0
    while True:
        try:
            return fetch()
        except Exception as error:
            garbled += isinstance(error, GarbledError)
            # NoAnswer: of what this is in, which was waited for.
            if isinstance(error, NoAnswer) or not storage.does_not_answer(error) or garbled > _GARBLED:
                raise
            why = storage.cause(error)
        if (waited := time.monotonic() - begin) >= _PATIENCE_S:
            raise NoAnswer(f"{place}: storage did not answer for {waited / 60:.0f} minutes ({why})")
        logger.warning("%s: %s; again in %g s", place, why, pause)
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


def copy_object(fs: Any, path: str, info: dict[str, Any], file: BinaryIO, make_room: Callable[[int], None]) -> int:
    """Writes an object's bytes to a file; how many. GarbledError unless they are those that `info` tells of."""
    make_room(int(info["size"]))
    digest, size = hashlib.md5(usedforsecurity=False), 0
    with fs.open(path, "rb", cache_type="readahead", block_size=_BLOCK_BYTES) as source:
        while block := source.read(_BLOCK_BYTES):
            file.write(block)
            digest.update(block)
            size += len(block)
    md5 = base64.b64decode(info["md5Hash"]) if info.get("md5Hash") else b""
    if size != int(info["size"]) or (md5 and md5 != digest.digest()):
        raise GarbledError(f"arrives with {size:,} bytes, the bucket has {int(info['size']):,}, or with others")
    return size
