"""The catalogs of several data sets as one: the rows of the first, then those of the second, and so on.

Nothing is copied: a column is asked for some rows, and each data set gives its own.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from omnihuman_jax.data.catalog import Catalog, Numbers

# In `record` of a joined catalog: the data set's number, then the record's in it.
RECORD_BITS = 32
_MOST_ROWS = 1 << 31


class JoinedCatalog:
    """What the plan and the pipeline ask of a `Catalog`, of several with their names and weights.

    parts: the catalogs. weights: float64 [D], their sum is 1. first_rows: int64 [D], row of each one's first window.
    """

    def __init__(self, names: Sequence[str], weights: Sequence[float], catalogs: Sequence[Catalog]):
        """ValueError where the catalogs do not go together, or have more rows than a row number can say."""
        self.names, self.parts = tuple(names), tuple(catalogs)
        self.weights = np.asarray(weights, np.float64) / np.sum(np.asarray(weights, np.float64))
        self._ends = np.cumsum([len(part) for part in self.parts])
        self.first_rows = self._ends - [len(part) for part in self.parts]
        if len(self) >= _MOST_ROWS:
            raise ValueError(f"{len(self)} windows in all of {', '.join(self.names)}; a run draws from at most 2**31")
        sizes = [part.empty_text_tokens for part in self.parts]
        if len(set(sizes)) > 1:
            told = ", ".join(f"{name} {size}" for name, size in zip(self.names, sizes))
            raise ValueError(
                f"the empty prompt has different numbers of tokens: {told}; one text encoder must make all"
            )
        self.empty_text_tokens = sizes[0]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def dataset_of(self, rows: np.ndarray) -> np.ndarray:
        """int64 [n]: number of the data set that each row is in."""
        return np.searchsorted(self._ends, rows, side="right")

    def place(self, row: int) -> tuple[int, int]:
        """(number of the data set, row of its own catalog)."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        return number, row - int(self.first_rows[number])

    def numbers(self, rows: np.ndarray) -> Numbers:
        """As `Catalog.numbers` has it."""
        of, rows = self.dataset_of(rows), np.asarray(rows)
        found = [
            part.numbers(rows[of == number] - first)
            for number, (part, first) in enumerate(zip(self.parts, self.first_rows))
        ]
        return Numbers(*(_merged(of, [getattr(one, name) for one in found]) for name in Numbers.__slots__))

    def column(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A column of numbers of these rows, int64 or int [n]."""
        of, rows = self.dataset_of(rows), np.asarray(rows)
        parts = zip(self.parts, self.first_rows)
        return _merged(of, [getattr(part, name)[rows[of == d] - first] for d, (part, first) in enumerate(parts)])

    @property
    def eligible(self) -> "_Column":
        return _Column(self, "eligible")

    @property
    def num_references(self) -> "_Column":
        return _Column(self, "num_references")

    @property
    def latent_frames(self) -> "_Column":
        return _Column(self, "latent_frames")

    @property
    def window_id(self) -> "_Ids":
        """`NAME/ID` of a row: two data sets may hold the same window."""
        return _Ids(self)

    def record_of(self, row: int) -> int:
        """Index in `JoinedRecords`."""
        number, own = self.place(row)
        return number << RECORD_BITS | self.parts[number].record_of(own)

    def row_of(self, record: int) -> int:
        """The row whose record this is."""
        number, own = record >> RECORD_BITS, record & (1 << RECORD_BITS) - 1
        return int(self.first_rows[number]) + self.parts[number].row_of(own)

    def is_window(self, row: int, window_id: str) -> bool:
        """As `Catalog.is_window` has it; the id is the data set's own."""
        number, own = self.place(row)
        return self.parts[number].is_window(own, window_id)

    def release(self) -> None:
        """As `Catalog.release` has it."""
        for part in self.parts:
            part.release()

    def fingerprint(self) -> str:
        """sha256 over everything that the plan can depend on: names, weights and catalogs, in order."""
        parts = [[name, part.fingerprint()] for name, part in zip(self.names, self.parts)]
        return hashlib.sha256(json.dumps([parts, self.weights.tolist()]).encode()).hexdigest()


class _Column:
    """Numbers by row, as an array of a `Catalog` is asked for them."""

    def __init__(self, joined: JoinedCatalog, name: str):
        self._joined, self._name = joined, name

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self._joined.column(self._name, rows)


class _Ids:
    """Window ids by row."""

    def __init__(self, joined: JoinedCatalog):
        self._joined = joined

    def __getitem__(self, row: int) -> str:
        number, own = self._joined.place(int(row))
        return f"{self._joined.names[number]}/{self._joined.parts[number].window_id[own]}"


def _merged(of: np.ndarray, parts: Sequence[Any]) -> np.ndarray:
    """The values of the data sets at the places where each is asked for."""
    out = np.empty(len(of), np.result_type(*parts))
    for number, values in enumerate(parts):
        out[of == number] = values
    return out
