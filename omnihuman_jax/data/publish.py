"""A dataset brought into a bucket, and what was appended to it: files first, the manifest last, in one request.

Of the files those that describe the generation come first: they state the sha256 of all others, so that what is there
already is told from another dataset's files of the same sizes where the bucket knows no md5 (S3).

Whoever reads there sees the generations of before, or the new one whole. What a killed call has brought stays, and the
next one goes on behind it.
"""

import concurrent.futures
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec.core

from omnihuman_jax.data.generations import (
    FOLDER,
    MANIFEST,
    ONLY,
    Generation,
    manifest_text,
    parse_manifest,
    read_manifest,
)
from omnihuman_jax.data.shard_cache import StoredObject, TransferError
from omnihuman_jax.runtime import files, locations

_THREADS = 8
_DESCRIBING = ("encode.json", "dataset.json")


def publish(dataset: Path, home: str, on_file: Callable[[int], object] = lambda nbytes: None) -> list[int]:
    """Brings the generations that the bucket's folder `home` lacks there; returns their numbers.

    on_file: hears the bytes of each file that is there.

    Raises:
        FileNotFoundError: no dataset in `dataset`.
        ValueError: `home` is no bucket's, or holds something else.
        OSError: storage does not answer, or something arrives damaged.
    """
    if not locations.is_remote(locations.location(home)):
        raise ValueError(f"--to {home}: give a bucket, gs://BUCKET/DATASET; on a disk a copy is all that is needed")
    if not (dataset / "dataset.json").is_file():
        raise FileNotFoundError(f"{dataset}: no dataset here; make one with `omnihuman encode SETS --out {dataset}`")
    fs, root = fsspec.core.url_to_fs(home.rstrip("/"))
    own, there = read_manifest(dataset), _published(fs, root, home)
    # `ONLY` is the first of a dataset that had no manifest yet.
    if len(there) > len(own) or any(one not in (mine, ONLY) for one, mine in zip(there, own)):
        raise ValueError(f"{home}: holds generations that {dataset} has not; give a folder of the bucket that is empty")
    if there:
        _check_first(fs, root, dataset)
    lacking = own[len(there) :]
    for generation in lacking:
        paths = files_of(dataset, generation)
        for path in (path for path in paths if path.name in _DESCRIBING):
            on_file(_bring(fs, path, f"{root}/{path.relative_to(dataset).as_posix()}"))
        paths = [path for path in paths if path.name not in _DESCRIBING]
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            jobs = [pool.submit(_bring, fs, path, f"{root}/{path.relative_to(dataset).as_posix()}") for path in paths]
            for job in concurrent.futures.as_completed(jobs):
                on_file(job.result())
        fs.pipe_file(f"{root}/{MANIFEST}", manifest_text(own[: generation.number]).encode())
    return [generation.number for generation in lacking]


def files_of(dataset: Path, generation: Generation) -> list[Path]:
    """All that lies in a generation's own folder, but the manifest."""
    folder = dataset / generation.folder
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    inside = dataset / FOLDER
    return [
        path
        for path in paths
        if path != dataset / MANIFEST and (generation.number > 1 or not path.is_relative_to(inside))
    ]


def _published(fs: Any, root: str, home: str) -> list[Generation]:
    """The generations that are there; [] of a folder without a manifest."""
    try:
        return parse_manifest(fs.cat_file(f"{root}/{MANIFEST}"), f"{home}/{MANIFEST}")
    except FileNotFoundError:
        return []


def _check_first(fs: Any, root: str, dataset: Path) -> None:
    """ValueError where the first generation that is there, which a manifest need not tell from others, is another."""
    for path in (path for name in _DESCRIBING if (path := dataset / name).is_file()):
        target = f"{root}/{path.name}"
        if not (fs.exists(target) and _is_same(fs, path, target)):
            raise ValueError(_other(path, target))


def _is_same(fs: Any, path: Path, target: str) -> bool:
    """Whether an object is this file, by its md5; by its size where the bucket knows none, and what describes the
    others by its bytes.
    """
    found = StoredObject.of(fs.info(target))
    if found.size != path.stat().st_size:
        return False
    if found.md5:
        return found.md5 == files.file_md5(path)
    return path.name not in _DESCRIBING or bool(fs.cat_file(target) == path.read_bytes())


def _other(path: Path, target: str) -> str:
    return f"{target}: is there, and is not {path}; give a folder of the bucket that is empty"


def _bring(fs: Any, path: Path, target: str) -> int:
    """Uploads a file unless it is there; its bytes. ValueError where something else is, TransferError where something
    else arrives.
    """
    size = path.stat().st_size
    try:
        if not _is_same(fs, path, target):
            raise ValueError(_other(path, target))
        return size
    except FileNotFoundError:
        fs.put_file(str(path), target)
    if not _is_same(fs, path, target):
        raise TransferError(f"{target} is not {path}, of {size:,} bytes: it has arrived damaged; try again")
    return size
