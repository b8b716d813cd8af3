"""Columns of text for millions of rows: no Python string is made but for what is asked for."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Rows = np.ndarray | slice


class Texts:
    """n strings that mostly differ, such as ids, in Arrow's memory; those of a file are opened when the first is asked
    for.
    """

    def __init__(self, size: int, open_array: Callable[[], Any]):
        self._size, self._open = size, open_array
        self._array: Any = None

    @classmethod
    def of(cls, values: Any) -> "Texts":
        """The same strings; `values` is a sequence of them, an Arrow array, or Texts."""
        if isinstance(values, cls):
            return values
        array = _arrow(values)
        return cls(len(array), lambda: array)

    @property
    def array(self) -> Any:
        """pyarrow.LargeStringArray."""
        if self._array is None:
            self._array = self._open()
        return self._array

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, rows: Any) -> Any:
        """str of a row; of a slice, a mask or indices an array of str objects."""
        if isinstance(rows, int | np.integer):
            return self.array[int(rows)].as_py()
        return self.take(rows).array.to_numpy(zero_copy_only=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())

    def __eq__(self, text: object) -> Any:
        """bool [n]: which are `text`."""
        import pyarrow.compute

        return pyarrow.compute.equal(self.array, str(text)).to_numpy(zero_copy_only=False)

    def __ne__(self, text: object) -> Any:
        """bool [n]: which are not."""
        return ~(self == text)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.array.to_numpy(zero_copy_only=False)

    def tolist(self) -> list[str]:
        return self.array.to_pylist()

    def take(self, rows: Rows) -> "Texts":
        """Those of a slice, a mask or indices."""
        return Texts.of(self.array.take(_indices(rows, self._size)))

    def extended(self, other: "Texts") -> "Texts":
        """These, then the others."""
        import pyarrow

        return Texts.of(pyarrow.concat_arrays([self.array, other.array]))

    def digest(self) -> str:
        """sha256 of the strings: of where each ends, and of their bytes."""
        array, n = self.array, self._size
        if not n:
            return hashlib.sha256().hexdigest()
        _, ends, data = array.buffers()
        offsets = np.frombuffer(ends, np.int64)[array.offset : array.offset + n + 1]
        result = hashlib.sha256((offsets - offsets[0]).astype("<i8").tobytes())
        if data is not None:
            result.update(memoryview(data)[int(offsets[0]) : int(offsets[-1])])
        return result.hexdigest()


class Labels:
    """n strings of which there are few kinds, such as the names of splits: `names`, sorted, and uint8 `codes` [n]."""

    def __init__(self, codes: np.ndarray, names: tuple[str, ...]):
        if len(names) > 256:
            raise ValueError(f"{len(names)} different labels; there can be 256")
        self.codes, self.names = np.asarray(codes, np.uint8), names

    @classmethod
    def of(cls, values: Any) -> "Labels":
        """The same strings; `values` is a sequence of them, an Arrow array, or Labels."""
        if isinstance(values, cls):
            return values
        coded = _arrow(values).dictionary_encode()
        found = np.asarray(coded.dictionary.to_pylist(), object)
        names, inverse = np.unique(found, return_inverse=True) if len(found) else (found, np.zeros(0, np.int64))
        codes = inverse.astype(np.uint8)[coded.indices.to_numpy(zero_copy_only=False)] if len(found) else inverse
        return cls(codes, tuple(names.tolist()))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Any) -> Any:
        return np.asarray(self.names, object)[self.codes[rows]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())

    def __eq__(self, name: object) -> Any:
        """bool [n]: which are `name`."""
        return self.codes == self.names.index(name) if name in self.names else np.zeros(len(self), bool)

    def __ne__(self, name: object) -> Any:
        """bool [n]: which are not."""
        return ~(self == name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:]

    def tolist(self) -> list[str]:
        return self[:].tolist() if len(self) else []

    def take(self, rows: Rows) -> "Labels":
        """Those of a slice, a mask or indices."""
        return Labels(self.codes[rows], self.names)

    def extended(self, other: "Labels") -> "Labels":
        """These, then the others."""
        names = tuple(sorted({*self.names, *other.names}))
        codes = [np.asarray([names.index(n) for n in one.names], np.uint8)[one.codes] for one in (self, other)]
        return Labels(np.concatenate(codes), names)


def _arrow(values: Any) -> Any:
    import pyarrow

    if isinstance(values, pyarrow.ChunkedArray):
        values = values.cast(pyarrow.large_string()).combine_chunks()  # `string` ends at 2 GB a chunk
    if isinstance(values, pyarrow.Array):
        return values.cast(pyarrow.large_string())
    return pyarrow.array(list(values), pyarrow.large_string())


def _indices(rows: Rows, size: int) -> np.ndarray:
    if isinstance(rows, slice):
        return np.arange(size)[rows]
    rows = np.asarray(rows)
    return np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
