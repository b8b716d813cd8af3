"""A run's folder whose home is a bucket: written and read on a local disk, uploaded while it grows.

An object store cannot append. A log (`*.jsonl`) goes up in parts, each of them whole lines and each an object of its
own: `metrics.jsonl.parts/000000012345` holds the bytes of metrics.jsonl from 12,345 on. Every other file goes up whole
whenever it has changed. A part that is not the continuation of those before it is not believed.

Checkpoints are not in here: Orbax writes those to the bucket itself.
"""

import atexit
import contextlib
import dataclasses
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec.core

from omnihuman_jax.runtime import locations, signals
from omnihuman_jax.runtime.locations import Location, StrPath

logger = logging.getLogger(__name__)

UPLOAD_S = 5.0
"""Seconds between two looks for what has grown: what a process that is killed may leave untold."""
LAST_UPLOAD_S = 60.0
"""How long the end of a run waits for a bucket that does not answer."""
_PARTS = ".parts"
# From this many parts on they are made one: a listing of them is a request a thousand.
_MAX_PARTS = 500
# Checkpoints have a writer of their own, and local copies of them are of this machine.
_NOT_HERE = {"checkpoints"}


@contextlib.contextmanager
def opened(home: Location, retry: Callable[[str, Callable[[], Any]], Any]) -> Iterator[Path]:
    """The folder to write a run's files to: `home` itself, or a local one that is kept in the bucket.

    The local folder begins with what is in the bucket and is removed at the end, after the last upload. Once it is
    open, a bucket that does not answer never ends a run: it is said once, and tried again.

    `retry(what, look)` is the result of `look`, tried again while storage does not answer.
    """
    if not locations.is_remote(home):
        yield Path(home)
        return
    scratch, folder = _scratch(home)
    mirror = Mirror(folder, home)
    retry(f"reading {home}", mirror.download)
    stopped = threading.Event()
    thread = threading.Thread(target=_upload_until, args=(mirror, stopped), name="omnihuman-upload", daemon=True)
    thread.start()
    try:
        with signals.before_exit(lambda: mirror.upload_last(LAST_UPLOAD_S / 4)):
            yield folder
    finally:
        stopped.set()
        mirror.upload_last(LAST_UPLOAD_S)
        shutil.rmtree(scratch, ignore_errors=True)


def copy_of(text: StrPath) -> Path:
    """The folder to read a run's files from: the path itself, or a copy of what is in the bucket, kept until the
    process ends.

    Raises:
        LocationError: text that is no location.
        FileNotFoundError: there is nothing in the bucket.
    """
    home = locations.location(text)
    if not locations.is_remote(home):
        return Path(home)
    scratch, folder = _scratch(home)
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    if not Mirror(folder, home).download():
        raise FileNotFoundError(f"{home}: no such run; give the --run of `omnihuman train`")
    return folder


def output_of(run: StrPath, name: str) -> Path:
    """Where a command writes what it makes of a run by default: into its folder; of a bucket's, here."""
    return Path(name) if locations.is_remote(run) else Path(run) / name


def _scratch(home: Location) -> tuple[Path, Path]:
    """A temporary folder, and one in it that ends like the URI, so that a message that names a file can be
    understood.
    """
    scratch = Path(tempfile.mkdtemp(prefix="omnihuman-run-"))
    folder = scratch.joinpath(*PurePosixPath(str(home).replace("://", "/")).parts)
    folder.mkdir(parents=True)
    return scratch, folder


def _upload_until(mirror: "Mirror", stopped: threading.Event) -> None:
    while not stopped.wait(UPLOAD_S):
        mirror.try_upload()


class Mirror:
    """A local folder and its home in a bucket; used by one thread at a time, which a lock sees to.

    Args:
        folder: on this machine.
        home: URI.
    """

    def __init__(self, folder: Path, home: Location):
        self._folder, self._home = folder, str(home)
        self._lock = threading.Lock()
        self._logs: dict[str, _Log] = {}
        self._whole: dict[str, tuple[int, int]] = {}
        self._silent_since: float | None = None
        self._fs, self._root = fsspec.core.url_to_fs(self._home)

    def download(self) -> int:
        """Fetches what is in the bucket; how many files that was."""
        parts: dict[str, list[str]] = {}
        for name in self._names(""):
            log, separator, _ = name.rpartition(f"{_PARTS}/")
            if separator:
                parts.setdefault(log, []).append(name)
                continue
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_bytes(self._fs.cat_file(f"{self._root}/{name}"))
            self._whole[name] = _stamp(self._folder / name)
        for log, names in parts.items():
            self._join(log, sorted(names))
        return len(self._whole) + len(self._logs)

    def try_upload(self) -> bool:
        """`upload`; False, said once until it heals, where the bucket does not take it."""
        try:
            with self._lock:
                self.upload()
        except Exception as error:  # whatever a driver raises: logs are not worth a run
            if self._silent_since is None:
                self._silent_since = time.monotonic()
                logger.warning("%s does not take the run's logs (%s: %s); they wait here", self._home,
                               type(error).__name__, str(error)[:200])  # fmt: skip
            return False
        if self._silent_since is not None:
            logger.info("%s takes the run's logs again, after %.0f s", self._home,
                        time.monotonic() - self._silent_since)  # fmt: skip
            self._silent_since = None
        return True

    def upload_last(self, seconds: float) -> None:
        """Uploads what is left, for as long as that; what cannot go is named, and lost."""
        done = threading.Event()

        def work() -> None:
            until, pause = time.monotonic() + seconds, 0.5
            while not self.try_upload() and time.monotonic() + pause < until:
                time.sleep(pause)
                pause *= 2
            if self._silent_since is None:
                done.set()

        # In a thread: a request that is never answered must not keep a process from its end.
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(seconds)
        if not done.is_set():
            logger.error("%s did not take the last lines of the run's logs within %g s", self._home, seconds)

    def upload(self) -> None:
        """Brings every file that has changed to the bucket; raises what its driver raises."""
        for path in sorted(self._files()):
            name = path.relative_to(self._folder).as_posix()
            if path.suffix == ".jsonl":
                self._upload_log(name, path)
            elif self._whole.get(name) != (stamp := _stamp(path)):
                self._put(name, path.read_bytes())
                self._whole[name] = stamp

    def _upload_log(self, name: str, path: Path) -> None:
        log, status = self._logs.get(name, _Log()), path.stat()
        if not log.is_of(status):
            # Another file of that name: parts behind the first go before it, so that what is left is a beginning,
            # whenever this ends.
            self._remove_stale(name, log)
            while len(log.offsets) > 1:
                self._remove_part(name, log.offsets[-1])
                log.length = log.offsets.pop()
            log = _Log(inode=status.st_ino, must_put=bool(log.offsets))
        elif len(log.offsets) >= _MAX_PARTS:
            # The whole is put first: what the other parts hold is then there twice, and never less than once.
            data = _whole_lines(path, 0)
            self._put(_part(name, 0), data)
            log = _Log(inode=status.st_ino, stale=log.offsets[1:])
            log.sent(len(data))
            self._logs[name] = log
        self._remove_stale(name, log)
        data = _whole_lines(path, log.length)
        if data or log.must_put:
            self._put(_part(name, log.length), data)
            log.sent(len(data))
        self._logs[name] = log

    def _remove_stale(self, name: str, log: "_Log") -> None:
        while log.stale:
            self._remove_part(name, log.stale[-1])
            log.stale.pop()

    def _remove_part(self, name: str, offset: int) -> None:
        with contextlib.suppress(FileNotFoundError):  # removed by a request whose answer was lost
            self._fs.rm_file(f"{self._root}/{_part(name, offset)}")

    def _join(self, log: str, names: list[str]) -> None:
        """The file that these parts are, in order."""
        path, found = self._folder / log, _Log()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for name in names:
                if int(name.rpartition("/")[2]) != found.length:
                    logger.warning("%s/%s does not continue the parts before it; it is passed over", self._home, name)
                    continue
                data = self._fs.cat_file(f"{self._root}/{name}")
                file.write(data)
                found.sent(len(data))
        found.inode = path.stat().st_ino
        self._logs[log] = found

    def _names(self, folder: str) -> Iterator[str]:
        """Names of the objects below `folder`, relative to the home."""
        try:
            entries = self._fs.ls(f"{self._root}/{folder}".rstrip("/"), detail=True)
        except FileNotFoundError:
            return
        for entry in entries:
            name = entry["name"].removeprefix(self._root).strip("/")
            if not name or name == folder or name in _NOT_HERE:
                continue
            if entry["type"] == "directory":
                yield from self._names(name)
            else:
                yield name

    def _files(self) -> Iterator[Path]:
        for path in self._folder.rglob("*"):
            hidden = any(part.startswith(".") for part in path.relative_to(self._folder).parts)  # being written
            if path.is_file() and not hidden and path.relative_to(self._folder).parts[0] not in _NOT_HERE:
                yield path

    def _put(self, name: str, data: bytes) -> None:
        self._fs.pipe_file(f"{self._root}/{name}", data)


@dataclasses.dataclass(kw_only=True)
class _Log:
    """How much of a log is in the bucket.

    inode: of the local file that it is of.
    must_put: a first part of another file is there.
    length, offsets: of the parts: bytes together, and where each begins.
    stale: offsets of parts that are in the first one now, and are to be removed.
    """

    inode: int | None = None
    must_put: bool = False
    length: int = 0
    offsets: list[int] = dataclasses.field(default_factory=list)
    stale: list[int] = dataclasses.field(default_factory=list)

    def is_of(self, status: os.stat_result) -> bool:
        """Whether the local file is still the one that its parts are of."""
        return status.st_ino == self.inode and status.st_size >= self.length

    def sent(self, nbytes: int) -> None:
        """Another part is there."""
        self.offsets.append(self.length)
        self.length, self.must_put = self.length + nbytes, False


def _whole_lines(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    return data[: data.rfind(b"\n") + 1]


def _part(name: str, offset: int) -> str:
    return f"{name}{_PARTS}/{offset:012d}"


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
