"""Named arrays of clips, a record a clip, in an ArrayRecord: thumbnails and landmarks of a part of the table."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from omnihuman_jax.runtime import bucket_copies, files, folders
from omnihuman_jax.runtime.locations import Location

RECORDS_SUFFIX = ".array_record"
# Small next to pixels, and read often by few.
_RECORD_OPTIONS = "group_size:1,zstd:3"


class RecordWriter:
    """An ArrayRecord of named arrays, a record a clip, written as they come; whole or not at all."""

    def __init__(self, path: Location) -> None:
        folders.make_folder(path.parent)
        self._whole = files.locked_whole_file(path)

    def __enter__(self) -> "RecordWriter":
        from array_record.python.array_record_module import ArrayRecordWriter

        self._writer = ArrayRecordWriter(str(self._whole.__enter__()), _RECORD_OPTIONS)
        return self

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        from safetensors.numpy import save

        self._writer.write(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))

    def copy(self, path: Location, index: int) -> None:
        """Writes record `index` of another file, which `read_record` would read."""
        self._writer.write(_read_bytes(path, index))

    def copy_all(self, path: Location) -> None:
        """Writes all records of another file."""
        for record in _all_bytes(path):
            self._writer.write(record)

    def __exit__(self, *exception: Any) -> bool | None:
        self._writer.close()
        return self._whole.__exit__(*exception)


def read_record(path: Location, index: int) -> dict[str, np.ndarray]:
    """Arrays by name of record `index`; FileNotFoundError, or ValueError for what is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(_read_bytes(path, index))
    except SafetensorError as error:
        raise _damaged(path, index, error) from error


def _read_bytes(path: Location, index: int) -> bytes:
    with _reader(path) as reader:
        try:
            return bytes(reader.read([index])[0])
        except (RuntimeError, IndexError, ValueError) as error:
            raise _damaged(path, index, error) from error


def _all_bytes(path: Location) -> Iterator[bytes]:
    with _reader(path) as reader:
        for index in range(reader.num_records()):
            try:
                yield bytes(reader.read([index])[0])
            except (RuntimeError, IndexError, ValueError) as error:
                raise _damaged(path, index, error) from error


@contextlib.contextmanager
def _reader(path: Location) -> Iterator[Any]:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        local = bucket_copies.as_file(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no landmarks; run curate again") from None
    try:
        reader = ArrayRecordReader(str(local), "readahead_buffer_size:0")
    except (RuntimeError, ValueError) as error:
        raise _damaged(path, 0, error) from error
    try:
        yield reader
    finally:
        reader.close()


def _damaged(path: Location, index: int, error: Exception) -> ValueError:
    return ValueError(
        f"{path}: record {index} is not the landmarks of a clip ({error}); delete it and run curate again"
    )
