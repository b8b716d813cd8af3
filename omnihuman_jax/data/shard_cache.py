"""A dataset in a bucket, read from a local disk: a file comes when it is asked for, is verified, and leaves when room
is needed.

ArrayRecord reads local files only. The processes of a host share the folder: one fetches, the others wait for it.
"""

import base64
import contextlib
import dataclasses
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec.core

from omnihuman_jax.runtime import files

_BLOCK_BYTES = 1 << 24
# Of a dataset's folder in the cache: hex digits of a hash of its URI.
_FOLDER_DIGITS = 16
# How exactly the last use of a file is remembered.
_TOUCH_S = 30.0


class ChangedError(ValueError):
    """An object is not what it was when the dataset was opened."""


class TransferError(ConnectionError):
    """An object does not arrive as it is in the bucket: a fault of the way, which the next try may find healed."""


@dataclasses.dataclass(kw_only=True, slots=True)
class CacheUse:
    """What a process has asked of the cache: files that were there, that were fetched, seconds and bytes of these."""

    hits: int = 0
    fetched: int = 0
    fetched_bytes: int = 0
    stall_s: float = 0.0

    @property
    def hit_rate(self) -> float:
        """In [0, 1]; 1 before anything was asked for."""
        asked = self.hits + self.fetched
        return self.hits / asked if asked else 1.0

    def line(self) -> dict[str, float]:
        """For a line of metrics: since the process began."""
        return {"dataset_cache_hit_rate": self.hit_rate, "dataset_cache_stall_s": self.stall_s}


class ShardCache:
    """The files of one dataset; thread-safe.

    Args:
        home: the dataset's URI.
        folder: on this machine, of all datasets that are cached there.
        limit_bytes: of all files that are cached in `folder` together. A file that a process has open is freed when
            it closes it.
        stays: whether a file of that name is never removed to make room.

    Raises:
        FileNotFoundError: there is no such folder in the bucket.
        ValueError: a file is larger than the limit.
    """

    def __init__(self, home: str, folder: Path, limit_bytes: int, stays: Callable[[str], bool] = lambda name: False):
        self.home, self._limit, self._all, self._stays = home.rstrip("/"), limit_bytes, folder, stays
        self._fs, self._root = fsspec.core.url_to_fs(self.home)
        self.folder = folder / hashlib.sha256(self.home.encode()).hexdigest()[:_FOLDER_DIGITS]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._objects = {
            name.removeprefix(self._root).lstrip("/"): StoredObject.of(info)
            for name, info in self._fs.find(self._root, detail=True).items()
        }
        if not self._objects:
            raise FileNotFoundError(f"{self.home}: no dataset here; give the --out of `omnihuman encode`")
        largest = max(self._objects, key=lambda name: self._objects[name].size)
        if (size := self._objects[largest].size) > limit_bytes:
            raise ValueError(
                f"the cache holds {limit_bytes / 1e9:g} GB, but {self.home}/{largest} has {size / 1e9:.3g} GB; give it"
                " room for one file at least, and for all of them if none shall be fetched twice"
            )
        self.use = CacheUse()
        self._lock = threading.Lock()
        self._used_at: dict[str, float] = {}

    @property
    def names(self) -> list[str]:
        """Of all files, relative to the dataset."""
        return sorted(self._objects)

    @property
    def num_bytes(self) -> int:
        """Of all files together."""
        return sum(one.size for one in self._objects.values())

    def size(self, name: str) -> int:
        """Bytes of a file; 0 where there is none."""
        return self._objects[name].size if name in self._objects else 0

    def path(self, name: str) -> Path:
        """The local file, whole and verified, fetched where it is not there.

        Raises:
            FileNotFoundError: the dataset had no such file when it was opened.
            ChangedError: the object is another one by now.
            OSError: storage does not answer, the object arrives damaged, or there is no room.
        """
        if name not in self._objects:
            raise FileNotFoundError(f"{self.home}/{name}: no such file when the dataset was opened")
        target = self.folder / name
        if self._is_there(name, target):
            with self._lock:
                self.use.hits += 1
            return target
        began = time.perf_counter()
        with self._alone(f".{name.replace('/', '_')}.lock"):
            fetched = not self._is_there(name, target)
            if fetched:
                self._fetch(name, target)
        with self._lock:
            self.use.stall_s += time.perf_counter() - began
            self.use.hits += not fetched
            self.use.fetched += fetched
            self.use.fetched_bytes += self._objects[name].size * fetched
        return target

    def is_kept(self, name: str, inode: int) -> bool:
        """Whether the local file is still the one that was opened."""
        try:
            return (self.folder / name).stat().st_ino == inode
        except OSError:
            return False

    def _is_there(self, name: str, target: Path) -> bool:
        """Whether this very object is; its last use is noted."""
        try:
            found = target.stat()
        except OSError:
            return False
        if found.st_size != self._objects[name].size or _version_of(target) != self._objects[name].version:
            return False
        now = time.monotonic()
        if now - self._used_at.get(name, -_TOUCH_S) >= _TOUCH_S:
            self._used_at[name] = now
            with contextlib.suppress(OSError):  # another process has just let it go
                os.utime(target)
        return True

    def _fetch(self, name: str, target: Path) -> None:
        expected = self._objects[name]
        target.parent.mkdir(parents=True, exist_ok=True)
        _version_file(target).unlink(missing_ok=True)
        with files.whole_file(target) as temporary:
            with self._alone(".room.lock", self._all):
                self._make_room(expected.size, target)
                # All of it at once: whoever fetches meanwhile counts it.
                with temporary.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, max(expected.size, 1))
            digest, size = hashlib.md5(usedforsecurity=False), 0
            source = self._fs.open(f"{self._root}/{name}", "rb", cache_type="readahead", block_size=_BLOCK_BYTES)
            with source, temporary.open("r+b") as file:
                while block := source.read(_BLOCK_BYTES):
                    file.write(block)
                    digest.update(block)
                    size += len(block)
                file.truncate()
            self._verify(name, size, digest.digest())
        _version_file(target).write_text(expected.version, encoding="utf-8")

    def _verify(self, name: str, size: int, md5: bytes) -> None:
        expected, now = self._objects[name], StoredObject.of(self._fs.info(f"{self._root}/{name}"))
        if now.version != expected.version:
            raise ChangedError(f"{self.home}/{name} was replaced since the dataset was opened; start the run again")
        if size != expected.size or (expected.md5 and md5 != expected.md5):
            raise TransferError(
                f"{self.home}/{name} arrives with {size:,} bytes and md5 {md5.hex()[:12]}, in the bucket it has"
                f" {expected.size:,} and {expected.md5.hex()[:12] or 'no md5'}"
            )

    def _make_room(self, needed: int, target: Path) -> None:
        """Removes what was not used for longest, of any dataset that is cached here, until `needed` bytes fit."""
        whole, total = [], 0
        for path in (path for folder in self._cached_folders() for path in folder.rglob("*")):
            with contextlib.suppress(OSError):  # another process has just let it go
                status = path.stat()
                if path == target or not path.is_file():
                    continue
                if not path.name.startswith(".") and not self._stays(path.name):
                    whole.append((status.st_mtime, status.st_size, path))
                elif path.suffix == ".part" and time.time() - status.st_mtime > files.DEAD_S:
                    path.unlink()  # of a process that was killed
                    continue
                total += status.st_size
        for _, size, path in sorted(whole):
            if total + needed <= self._limit:
                return
            _version_file(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            total -= size

    def _cached_folders(self) -> Iterator[Path]:
        """Of all datasets. What else lies beside them is somebody's, perhaps the only copy of it."""
        for folder in self._all.glob("[0-9a-f]" * _FOLDER_DIGITS):
            if any(folder.glob(".*.lock")):  # which every fetch leaves
                yield folder

    @contextlib.contextmanager
    def _alone(self, name: str, folder: Path | None = None) -> Iterator[None]:
        """Only one thread of one process of this host is here."""
        with open((folder or self.folder) / name, "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@dataclasses.dataclass(frozen=True, slots=True)
class StoredObject:
    """size; version: another one with every write; md5: b"" where the bucket does not know it."""

    size: int
    version: str
    md5: bytes

    @classmethod
    def of(cls, info: dict[str, Any]) -> "StoredObject":
        """From what fsspec says of an object of GCS, S3 or memory."""
        etag = str(info.get("ETag") or info.get("etag") or "").strip('"')
        version = str(info.get("generation") or etag)
        # An ETag of S3 may look like an md5 without being one (KMS, parts): its size is what can be verified.
        md5 = base64.b64decode(info["md5Hash"]) if info.get("md5Hash") else b""
        return cls(size=int(info["size"]), version=version, md5=md5)


def _version_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.version")


def _version_of(path: Path) -> str | None:
    try:
        return _version_file(path).read_text(encoding="utf-8")
    except OSError:
        return None
