"""The files of a dataset by its name: those of a folder, or of a bucket behind a cache on a local disk.

    OMNIHUMAN_DATASET_CACHE       folder of the cache, which the processes of a host share;
                                  ~/.cache/omnihuman_jax/datasets
    OMNIHUMAN_DATASET_CACHE_GB    its limit; 100

They are the machine's, not the run's: the same run may go on where the disk is another.
"""

import contextlib
import functools
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from omnihuman_jax.data.generations import (
    FOLDER,
    MANIFEST,
    ONLY,
    Generation,
    chosen,
    read_manifest,
    split_name,
)
from omnihuman_jax.data.shard_cache import CacheUse, ChangedError, ShardCache
from omnihuman_jax.runtime import locations, scratch, variables
from omnihuman_jax.runtime.locations import StrPath
from omnihuman_jax.runtime.storage import cache_limit

FOLDER_VARIABLE, LIMIT_VARIABLE = "OMNIHUMAN_DATASET_CACHE", "OMNIHUMAN_DATASET_CACHE_GB"
_FOLDER, _LIMIT_GB = "~/.cache/omnihuman_jax/datasets", "100"


def dataset_folder(text: StrPath) -> Path:
    """The local folder with all files of a generation of the dataset but, of a bucket's, its shards; the newest
    generation where `text` names none.

    Raises:
        FileNotFoundError: the bucket has no such dataset.
        ValueError: text that is no location; no such generation; a limit that is no number, or below the size of one
            shard.
    """
    dataset, _ = split_name(text)
    generation = generations_up_to(text)[-1]
    if not locations.is_remote(locations.location(dataset)):
        return locations.local(dataset) / generation.folder
    cache = cache_of(dataset)
    for name in cache.names:
        if not is_shard(name) and _is_of(name, generation):
            cache.path(name)
    return cache.folder / generation.folder


def generations_of(text: StrPath) -> list[Generation]:
    """All generations of a dataset, whichever `text` names; errors as `dataset_folder` has them."""
    dataset, _ = split_name(text)
    if not locations.is_remote(locations.location(dataset)):
        return read_manifest(locations.local(dataset))
    return _listed_generations(dataset)


@functools.cache
def _listed_generations(uri: str) -> list[Generation]:
    """Of a bucket's dataset, as this process found them first: an append may come in between."""
    cache = cache_of(uri)
    if MANIFEST not in cache.names:
        return [ONLY]
    try:
        return read_manifest(cache.path(MANIFEST).parent)
    except ChangedError:  # between the listing and the fetching
        cache_of.cache_clear()
        return read_manifest(cache_of(uri).path(MANIFEST).parent)


def generations_up_to(text: StrPath) -> list[Generation]:
    """The generations whose folders have the records of the one that `text` names, itself the last."""
    dataset, number = split_name(text)
    there = generations_of(dataset)
    if number is not None and not (locations.is_remote(dataset) or locations.local(dataset).is_dir()):
        raise FileNotFoundError(f"{dataset}: no dataset here; make one with `omnihuman encode SETS --out {dataset}`")
    return there[: chosen(there, number, dataset).number]


@contextlib.contextmanager
def whole_copy(dataset: StrPath) -> Iterator[Path]:
    """The folder of a data set with all of its files; of a bucket's, as they are there now, fetched into this process's
    scratch folder for as long as the block lasts.

    Raises:
        FileNotFoundError: the bucket has no such dataset.
        ValueError: there is no room for all of it.
    """
    if not locations.is_remote(locations.location(dataset)):
        yield locations.local(dataset)
        return
    with tempfile.TemporaryDirectory(dir=scratch.own_folder()) as folder:
        free = shutil.disk_usage(folder).free
        cache = ShardCache(os.fspath(dataset), Path(folder), free)
        if cache.num_bytes > free:
            raise ValueError(
                f"{dataset} has {cache.num_bytes / 1e9:.3g} GB, and {scratch.FOLDER_VARIABLE}, {folder}, has room for"
                f" {free / 1e9:.3g}; name a folder of a larger disk there, or mount the bucket and give its path"
            )
        for name in cache.names:
            cache.path(name)
        for beside in cache.folder.rglob(".*"):  # the cache's own
            beside.unlink()
        yield cache.folder


def look_again() -> None:
    """Forgets how the buckets' data sets were found: of one that this process has appended to."""
    cache_of.cache_clear()
    _listed_generations.cache_clear()


def _is_of(name: str, generation: Generation) -> bool:
    """Whether a file is in the generation's own folder."""
    inside = name.startswith(f"{FOLDER}/")
    return name.startswith(f"{generation.folder}/") if generation.folder else not inside


def is_shard(name: str) -> bool:
    """Whether a file holds records: all others are small, and stay where they are."""
    return ".array_record-" in name


@functools.cache
def cache_of(uri: str) -> ShardCache:
    """This process's view of the cache of a bucket's dataset."""
    locations.location(uri)  # says what the environment lacks
    folder = variables.folder(FOLDER_VARIABLE, _FOLDER)
    limit = cache_limit(LIMIT_VARIABLE, _LIMIT_GB)
    return ShardCache(uri, folder, limit, stays=lambda name: not is_shard(name))


class CachedRecords:
    """The bytes of the records of a bucket's dataset by their index; thread-safe.

    A shard is open while its file is there: what the cache has let go is closed with the next one that is fetched, so
    that its bytes are free.
    """

    def __init__(self, cache: ShardCache, shards: list[str], lengths: list[int]):
        self._cache, self._shards = cache, shards
        self._ends = np.cumsum(lengths)
        self._readers: dict[str, tuple[int, Any]] = {}
        self._lock = threading.Lock()

    @property
    def use(self) -> CacheUse:
        """What this process has asked for so far."""
        return self._cache.use

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> bytes:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        return bytes(self._reader(self._shards[shard]).read([index - first])[0])

    def _reader(self, name: str) -> Any:
        from array_record.python.array_record_module import ArrayRecordReader

        while True:
            path = self._cache.path(name)
            with self._lock, contextlib.suppress(FileNotFoundError):
                known = self._readers.get(name)
                if known is not None and known[0] == path.stat().st_ino:
                    return known[1]
                # Held open meanwhile, so that no other file gets its inode.
                with path.open("rb") as held:
                    inode = os.fstat(held.fileno()).st_ino
                    self._readers = {
                        name: kept for name, kept in self._readers.items() if self._cache.is_kept(name, kept[0])
                    }
                    reader = ArrayRecordReader(str(path))
                    if reader.ok() or self._cache.is_kept(name, inode):
                        self._readers[name] = (inode, reader)
                        return reader
            # Another process of the host has made room since: no fault of the shard, which is fetched again.
