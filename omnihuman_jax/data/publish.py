"""A dataset brought into a bucket, and what was appended to it: files first, the manifest last, in one request.

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
    lacking = own[len(there) :]
    for generation in lacking:
        paths = files_of(dataset, generation)
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


def _bring(fs: Any, path: Path, target: str) -> int:
    """Uploads a file unless it is there; its bytes. ValueError where something else is, TransferError where something
    else arrives.
    """
    size = path.stat().st_size
    try:
        found = StoredObject.of(fs.info(target))
        if found.size != size or (found.md5 and found.md5 != files.file_md5(path)):
            raise ValueError(f"{target}: is there, and is not {path}; give a folder of the bucket that is empty")
        return size
    except FileNotFoundError:
        fs.put_file(str(path), target)
    found = StoredObject.of(fs.info(target))
    if found.size != size or (found.md5 and found.md5 != files.file_md5(path)):
        raise TransferError(f"{target} has {found.size:,} bytes, {path} {size:,}: it has arrived damaged; try again")
    return size
