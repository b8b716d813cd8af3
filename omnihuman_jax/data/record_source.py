"""The records of a dataset by their index: read from a folder, or from a bucket through the cache, with patience for
storage and a word for what is damaged.
"""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.dataset_files import CachedRecords, cache_of, dataset_folder, generations_up_to
from omnihuman_jax.data.generations import split_name
from omnihuman_jax.data.records import DESCRIPTION, SPLIT, VERSION, DatasetSpec, WindowRecord, decode_record, features
from omnihuman_jax.data.shard_cache import CacheUse, ChangedError
from omnihuman_jax.runtime import exit_codes
from omnihuman_jax.runtime.locations import is_remote, local

logger = logging.getLogger(__name__)


class StorageError(OSError):
    """The storage that the records lie on did not answer for as long as it was given: no fault of a record."""

    exit_code = exit_codes.RETRY


class RecordSource:
    """Random access to the windows of a dataset; thread-safe. An unreadable record is None, and its reason is kept.

    A record is unreadable if its bytes are wrong: the same on every host and at every try. Storage that does not answer
    is waited for instead, `retries` times with doubling pauses from `delay_s` on, and is a StorageError after that.
    """

    def __init__(self, directory: str | os.PathLike[str], *, retries: int = 6, delay_s: float = 1.0):
        self.directory = dataset_folder(directory)
        self.spec = DatasetSpec.load(directory)
        self._retries, self._delay_s = retries, delay_s
        dataset, _ = split_name(directory)
        self._cache = cache_of(dataset) if is_remote(dataset) else None
        self._root = self._cache.folder if self._cache else local(dataset)
        # A generation that only left windows out has no records of its own.
        added = [one for one in generations_up_to(directory) if one.records or one.number == 1]
        builders = [self._builder(one.folder) for one in added]
        for builder in builders:
            _check_layout(directory, builder.info, features(self.spec))
        splits = [builder.info.splits[SPLIT] for builder in builders]
        self._shards = [
            str(PurePosixPath(one.folder, name)) for one, split in zip(added, splits) for name in split.filenames
        ]
        lengths = [length for split in splits for length in split.shard_lengths]
        self._ends = np.cumsum(lengths)
        for name in self._shards:
            path = self._root / name
            if not (self._cache.size(name) if self._cache else path.is_file() and path.stat().st_size):
                raise FileNotFoundError(
                    f"{path}: shard missing or empty; copy it again or run `omnihuman encode` again"
                )
        self._source = CachedRecords(self._cache, self._shards, lengths) if self._cache else _of_folders(builders)
        self.unreadable: dict[int, str] = {}  # record index -> why

    def _builder(self, folder: str) -> Any:
        """What tensorflow-datasets says of the records in a generation's folder."""
        import tensorflow_datasets as tfds

        if self._cache:
            for name in DESCRIPTION:
                self._cache.path(str(PurePosixPath(folder, name)))
        return tfds.builder_from_directory(str(self._root / folder))

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def cache_use(self) -> CacheUse | None:
        """What was read from a bucket through the cache; None of a folder."""
        return self._cache.use if self._cache else None

    def locate(self, index: int) -> tuple[Path, int]:
        """The folder of the record's data set, and its index in it."""
        return self.directory, index

    def covers(self, catalog: Catalog) -> None:
        """ValueError where the catalog names records that are not there."""
        if len(catalog) and (last := int(catalog.record.max())) >= len(self):
            raise ValueError(
                f"{self.directory}: the catalog names record {last}, there are {len(self)}; run `omnihuman encode`"
                " again"
            )

    def __getitem__(self, index: int) -> WindowRecord | None:
        """The window at `index`; None if its bytes are damaged. IndexError outside of the dataset, StorageError without
        storage.
        """
        if not 0 <= index < len(self):
            raise IndexError(
                f"record {index} of {len(self)} in {self.directory}; the catalog belongs to another dataset"
            )
        for attempt in range(self._retries + 1):
            try:
                record = decode_record(self._source[index], self.spec)
                record.validate(self.spec)
                return record
            except (MemoryError, ChangedError):
                raise
            except (
                Exception
            ) as error:  # readers raise RuntimeError on a bad checksum, protobuf and numpy what they please
                if (outage := self._outage(index)) is None:
                    self.unreadable[index] = f"{type(error).__name__}: {error}".splitlines()[0]
                    return None
            if attempt < self._retries:
                pause = self._delay_s * 2**attempt
                logger.warning(
                    "record %d: storage does not answer (%s); try %d in %g s", index, outage, attempt + 2, pause
                )
                time.sleep(pause)
        raise StorageError(f"record {index}: storage did not answer in {self._retries + 1} tries: {outage}")

    def _outage(self, index: int) -> str | None:
        """Why the shard of a record cannot be read at all; None if it can, and the record itself is to blame."""
        name = self._shards[int(np.searchsorted(self._ends, index, side="right"))]
        path = self._root / name
        try:
            path = self._cache.path(name) if self._cache else path
            with path.open("rb", buffering=0) as file:
                return None if file.read(1) else f"{path} is empty"
        except OSError as error:
            return f"{path}: {error.strerror or error}"


def _of_folders(builders: Sequence[Any]) -> Any:
    """The bytes of the records of local folders, one after the other, by their index."""
    import tensorflow_datasets as tfds

    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    sources = [builder.as_data_source(split=SPLIT, deserialize_method=raw) for builder in builders]
    return sources[0] if len(sources) == 1 else _Chain(sources)


class _Chain:
    """Sources as one."""

    def __init__(self, sources: Sequence[Any]):
        self._sources = sources
        self._ends = np.cumsum([len(source) for source in sources])

    def __getitem__(self, index: int) -> bytes:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return bytes(self._sources[number][index - (int(self._ends[number - 1]) if number else 0)])


def _check_layout(directory: str | os.PathLike[str], info: Any, expected: Any) -> None:
    """ValueError unless the records are laid out as `decode_record` takes them apart: otherwise each would count as
    damaged.
    """
    cure = "encode its clips again with this version, into another folder"
    if str(info.version) != VERSION:
        raise ValueError(f"{directory}: its records have layout {info.version}, this version reads {VERSION}; {cure}")
    stored, mine = (
        {name: (tuple(one.shape), np.dtype(one.np_dtype).name) for name, one in features.get_tensor_info().items()}
        for features in (info.features, expected)
    )
    if wrong := sorted(name for name in stored.keys() | mine.keys() if stored.get(name) != mine.get(name)):
        name = wrong[0]
        raise ValueError(
            f"{directory}: its records have {name} {stored.get(name)}, dataset.json wants {mine.get(name)}; its files"
            f" are not of one data set: {cure}"
        )


def open_records(directory: str | os.PathLike[str], *, retries: int = 6, delay_s: float = 1.0) -> RecordSource:
    """The records of the dataset in `directory`."""
    return RecordSource(directory, retries=retries, delay_s=delay_s)
