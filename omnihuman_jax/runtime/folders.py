"""Folders that appear whole or not at all (`files.py` has the files): made beside their place, synced to the disk, then
renamed. A bucket has no folders, only objects whose names begin alike, and renames nothing.
"""

import contextlib
import datetime
import glob
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec.core
from etils import epath

from omnihuman_jax.runtime import files, locations
from omnihuman_jax.runtime.locations import Location

INCOMPLETE = ".incomplete"
_REPLACED = "-replaced"


@contextlib.contextmanager
def whole_folder(destination: Any, *, overwrite: bool = False) -> Iterator[Any]:
    """A temporary folder beside `destination` that becomes it when the block ends well, and vanishes when it does not.

    What a killed process left behind is removed by the next call on the same machine. FileExistsError if `destination`
    holds anything, unless `overwrite`.

    In a bucket nothing can be renamed: the folder is `destination` itself, with an object `.incomplete` until the block
    ends well (`is_incomplete`), and one that holds anything else is never overwritten.
    """
    if locations.is_remote(destination):
        with _whole_in_bucket(epath.Path(destination)) as folder:
            yield folder
        return
    destination = Path(os.path.abspath(destination))
    destination.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{destination.name}.incomplete-{socket.gethostname()}-"
    _sweep(destination, prefix)
    if destination.exists() and not destination.is_dir():
        raise FileExistsError(f"{destination} is a file; give a folder that does not exist yet")
    if destination.exists() and not overwrite and any(destination.iterdir()):
        raise FileExistsError(f"{destination} exists and is not empty; choose another folder, or empty it")
    folder = destination.parent / f"{prefix}{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
        replace_folder(folder, destination)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replace_folder(folder: Path, destination: Path) -> None:
    """Gives a finished folder the name `destination`, in the place of a folder that has it.

    The old folder keeps its name until the new one is on the disk, and is removed only after the new one has it.
    """
    if not destination.exists():
        files.move_into_place(folder, destination)
        return
    replaced = destination.parent / (f".{destination.name}.incomplete-{socket.gethostname()}-{os.getpid()}{_REPLACED}")
    files.sync(folder)  # before, so that the moment without a folder is short
    os.rename(destination, replaced)
    files.move_into_place(folder, destination)
    shutil.rmtree(replaced)


@contextlib.contextmanager
def _whole_in_bucket(destination: epath.Path) -> Iterator[epath.Path]:
    marker = destination / INCOMPLETE
    if is_incomplete(destination):
        destination.rmtree()
    elif destination.exists() and any(destination.iterdir()):
        raise FileExistsError(f"{destination} is not empty; choose another folder of the bucket, or empty it")
    marker.write_text("")
    try:
        yield destination
    except BaseException:
        with contextlib.suppress(OSError):
            destination.rmtree()
        raise
    marker.unlink()


def is_incomplete(folder: Any) -> bool:
    """Whether this is a bucket's folder that `whole_folder` was not finished with."""
    return locations.is_remote(folder) and bool((folder / INCOMPLETE).exists())


def make_folder(path: Location) -> None:
    """Makes a folder and those above it, unless they are there; a bucket has none."""
    if not locations.is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def remove_folder(folder: Location) -> None:
    """Removes a folder with all that is in it, as far as that can be."""
    if not locations.is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    fs, target = fsspec.core.url_to_fs(os.fspath(folder))
    if found := fs.find(target):
        with contextlib.suppress(FileNotFoundError):  # another process does the same
            fs.rm(found)


def matching(folder: Location, pattern: str) -> list[Location]:
    """What lies in a folder and fits the pattern, sorted; the folder's own name is taken as it is."""
    if not locations.is_remote(folder):
        return sorted(folder.glob(pattern))
    fs, target = fsspec.core.url_to_fs(os.fspath(folder))
    found = fs.glob(f"{glob.escape(target)}/{pattern}")
    return [folder / name.rstrip("/").rpartition("/")[2] for name in sorted(found)]


def last_written(folder: Location) -> float:
    """When something was written there last, in seconds since the epoch; 0 of a folder that is not there."""
    if not locations.is_remote(folder):
        return folder.stat().st_mtime if folder.is_dir() else 0.0
    fs, target = fsspec.core.url_to_fs(os.fspath(folder))
    found = fs.find(target, detail=True).values()
    return max((_modified(info) for info in found), default=0.0)


def _modified(info: Mapping[str, Any]) -> float:
    """Of what fsspec says of an object of GCS or S3; now, where it does not say."""
    stated = info.get("mtime") or info.get("LastModified") or info.get("updated")
    if isinstance(stated, str):
        stated = datetime.datetime.fromisoformat(stated)
    return float(stated.timestamp()) if stated else time.time()


def _sweep(destination: Path, prefix: str) -> None:
    """Removes what killed processes left beside `destination`; a folder taken away but not yet replaced goes back."""
    for stale in destination.parent.glob(f"{glob.escape(prefix)}*"):
        label = stale.name.removeprefix(prefix)
        if _is_running(label):
            continue
        if label.endswith(_REPLACED) and not destination.exists():
            os.rename(stale, destination)
        else:
            shutil.rmtree(stale)


def _is_running(label: str) -> bool:
    """Whether another process, whose id starts `label`, lives; False for anything that is no process id, and for this
    process's own: what has it was left by one of before, as in a container, where each is process 1.
    """
    digits = label.partition("-")[0]
    return digits.isdigit() and int(digits) != os.getpid() and files.is_running(int(digits))
