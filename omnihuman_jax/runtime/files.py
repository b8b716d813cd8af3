"""Files that appear whole or not at all: written beside their place, synced to the disk, then renamed.

Whoever is killed before the rename leaves what was there before. Without the sync, a host that loses power may keep the
new name and none of the bytes. `tests/runtime/test_files.py` finds whoever renames by hand. A bucket's object is
written on the local disk and put, which is whole by itself.
"""

import base64
import contextlib
import errno
import fcntl
import hashlib
import io
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec.core
from etils import epath

from omnihuman_jax.runtime import exit_codes, locations, scratch
from omnihuman_jax.runtime.locations import Location, StrPath

_HASH_BYTES = 1 << 22
# A half-written file that nobody has written to for so long is of a process that is gone.
DEAD_S = 3600.0
# Of file systems that do not know fsync, such as some buckets that are mounted as a folder.
_CANNOT_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}


class SentError(OSError):
    """An object that is not what was put there: damaged on its way, or overtaken by another one."""

    exit_code = exit_codes.RETRY


@contextlib.contextmanager
def whole_file(path: StrPath) -> Iterator[Any]:
    """A local path to write to, which becomes `path` when the block ends well, and vanishes when it does not.

    It is beside `path`, whose folder has to exist; in the process's scratch folder where `path` is a bucket's.
    """
    if locations.is_remote(path):
        with _whole_object(path) as temporary:
            yield temporary
        return
    target = _as_path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        move_into_place(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def _whole_object(uri: StrPath) -> Iterator[Path]:
    temporary = _for_object(uri)
    try:
        yield temporary
        fs, target = fsspec.core.url_to_fs(os.fspath(uri))
        fs.put_file(str(temporary), target)
        info = fs.info(target)
        md5 = base64.b64decode(info.get("md5Hash") or "")  # of S3 the size is all that can be compared
        if int(info["size"]) != temporary.stat().st_size or (md5 and md5 != file_md5(temporary)):
            raise SentError(f"{os.fspath(uri)}: has other bytes than were sent; run the same command again")
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked_whole_file(path: Location) -> Iterator[Path]:
    """`whole_file`, on a disk locked until it has its name: `remove_stale` beside it leaves it alone."""
    if locations.is_remote(path):
        with _whole_object(path) as temporary:
            yield temporary
        return
    with contextlib.ExitStack() as until_renamed, whole_file(path) as temporary:
        held = until_renamed.enter_context(temporary.open("ab"))
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary


def remove_dead(folder: Location) -> None:
    """Removes what killed processes left in `folder`, locked or not: what nobody has written to for `DEAD_S`. In a
    bucket they leave nothing.
    """
    if locations.is_remote(folder):
        return
    for left in folder.glob(".*.part"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > DEAD_S:
                left.unlink()


def remove_stale(folder: Location, name: str) -> None:
    """Removes what killed processes left in `folder` of files that `name`, a pattern, fits, and nothing that
    `locked_whole_file` is writing. `write_text`, `whole_file` and `claim` hold no lock: theirs would go too; for them
    `remove_dead`. In a bucket they leave nothing.
    """
    if locations.is_remote(folder):
        return
    for stale in folder.glob(f".{name}.*.part"):
        with contextlib.suppress(FileNotFoundError), stale.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            except OSError:  # a file system without locks
                pass
            stale.unlink()


def write_text(path: StrPath, text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: StrPath, data: bytes) -> None:
    """Writes `data`, whole or not at all."""
    if locations.is_remote(path):
        fs, target = fsspec.core.url_to_fs(os.fspath(path))
        fs.pipe_file(target, data)
        return
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def read_bytes(path: Location) -> bytes:
    """Of a file, or of a bucket's object, which is one request; FileNotFoundError where it is not there."""
    if not locations.is_remote(path):
        return path.read_bytes()
    fs, target = fsspec.core.url_to_fs(os.fspath(path))
    return bytes(fs.cat_file(target))


def safe_name(text: str) -> str:
    """`text` as the name of a file on any system and in any URL: ASCII letters, digits, `-`, `_` and `.` alone.

    A text of at most 200 characters that is such a name already stays. Any other gets eight digits of its sha256 behind
    it, so that two texts never share a file.
    """
    kept = "".join(c if (c.isascii() and c.isalnum()) or c in "-_." else "_" for c in text)
    if kept == text and text.strip(".") and len(text) <= 200:
        return text
    return f"{kept[:100]}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:8]}"


def num_bytes(path: Any) -> int:
    """The size of a file, or of a bucket's object."""
    stat = path.stat()
    return int(stat.length if locations.is_remote(path) else stat.st_size)


def move_into_place(temporary: StrPath, target: StrPath) -> None:
    """Syncs a finished file or folder, gives it the name `target` on the same file system, and syncs that name.

    A file that is there is replaced; a folder that is there has to be empty. In a bucket it is a copy.
    """
    if locations.is_remote(target):
        _as_path(temporary).replace(target)
        return
    sync(temporary)
    os.replace(temporary, target)
    _fsync(_as_path(target).parent)


def remove(path: Location) -> None:
    """Removes a file or an object, if it is there."""
    if not locations.is_remote(path):
        path.unlink(missing_ok=True)
        return
    fs, target = fsspec.core.url_to_fs(os.fspath(path))
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(target)


def is_there(path: Location) -> bool:
    """Whether this file or object is there: for a bucket one request, two where it is not."""
    if not locations.is_remote(path):
        return path.is_file()
    fs, target = fsspec.core.url_to_fs(os.fspath(path))
    try:
        return bool(fs.info(target)["type"] == "file")
    except FileNotFoundError:
        return False


def claim(path: Location, write: Callable[[Path], object]) -> bool:
    """Writes a file whole unless it is there; whether it was this call that did. `write` gets a local path: beside it,
    in a folder that has to exist, or in the process's scratch folder.
    """
    if locations.is_remote(path):
        return _claim_object(path, write)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        write(beside)
        sync(beside)
        os.link(beside, path)
    except FileExistsError:
        return False
    finally:
        beside.unlink(missing_ok=True)
    _fsync(path.parent)
    return True


def _claim_object(uri: StrPath, write: Callable[[Path], object]) -> bool:
    beside = _for_object(uri)
    fs, target = fsspec.core.url_to_fs(os.fspath(uri))
    try:
        write(beside)
        data = beside.read_bytes()
    finally:
        beside.unlink(missing_ok=True)
    try:
        fs.pipe_file(target, data, mode="create")
    except FileExistsError:
        # This very call's, where the answer to a first request was lost.
        return bool(fs.cat_file(target) == data)
    return True


def _for_object(uri: StrPath) -> Path:
    """Where an object is written before it is put."""
    return scratch.own_folder() / f"{secrets.token_hex(8)}{PurePosixPath(os.fspath(uri)).suffix}"


def sync(path: StrPath) -> None:
    """Brings a file, or a folder with all that is in it, to the disk."""
    for folder, _, names in os.walk(path):
        for name in names:
            _fsync(os.path.join(folder, name))
        _fsync(folder)
    if os.path.isfile(path):
        _fsync(path)


def file_md5(path: StrPath) -> bytes:
    """md5 of a local file's bytes, as object stores have it of an object: against damage on the way, nothing else."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()


def file_sha256(path: StrPath, on_read: Callable[[int], None] = lambda nbytes: None) -> str:
    """sha256 of a file's bytes, in hex; `on_read` hears how many bytes each read gave."""
    if locations.is_remote(path):
        digest = hashlib.sha256()
        with epath.Path(path).open("rb") as stream:
            while block := stream.read(_HASH_BYTES):
                digest.update(block)
                on_read(len(block))
        return digest.hexdigest()
    with _WatchedFile(path, on_read) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _WatchedFile(io.FileIO):
    def __init__(self, path: StrPath, on_read: Callable[[int], None]):
        super().__init__(path)
        self._on_read = on_read

    def readinto(self, buffer: Any) -> int:
        nbytes = super().readinto(buffer)
        assert nbytes is not None, "a file on a disk does not block"
        self._on_read(nbytes)
        return nbytes


def _as_path(path: StrPath) -> Any:
    return Path(path) if isinstance(path, str) else path


def _fsync(path: StrPath) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def is_running(pid: int) -> bool:
    """Whether this machine has a process of that id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
