"""Catalog: one small row a window, all that the plan knows about the data. On disk as in memory: a column of numbers a
field (`catalog_files.py`).
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from omnihuman_jax.conditions import NUM_CONDITIONS, Condition
from omnihuman_jax.data import catalog_files
from omnihuman_jax.data.catalog_files import NUMBERS, TEXTS
from omnihuman_jax.data.dataset_files import dataset_folder
from omnihuman_jax.data.text_columns import Labels, Texts
from omnihuman_jax.runtime.locations import local
from omnihuman_jax.typing import PATCH, TEMPORAL_STRIDE

logger = logging.getLogger(__name__)

COLUMNS = (*TEXTS, "split", *NUMBERS)
OLD_FILE = "catalog.parquet"  # of version 1
_OLD_EMPTY_TEXT_TOKENS = b"empty_text_tokens"


class _Sizes:
    """What follows from the latents' sizes of some windows."""

    __slots__ = ()
    latent_frames: np.ndarray
    latent_height: np.ndarray
    latent_width: np.ndarray

    @property
    def frames(self) -> np.ndarray:
        """int32 [n]: pixel frames of a window, 1 + 4n."""
        return 1 + TEMPORAL_STRIDE * (self.latent_frames.astype(np.int32) - 1)

    @property
    def reference_tokens(self) -> np.ndarray:
        """int32 [n]: patch tokens of one reference, which are also those of one latent frame."""
        return (self.latent_height // PATCH).astype(np.int32) * (self.latent_width // PATCH)

    @property
    def window_tokens(self) -> np.ndarray:
        """int32 [n]: patch tokens of the video of a window, its reference not counted."""
        return self.latent_frames * self.reference_tokens


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Catalog(_Sizes):
    """The windows of a dataset, a column a field [n].

    window_id, clip_id               `Texts`, given as any sequence of str
    split                            `Labels`, given as any sequence of str: "train" is what the plan may draw
    record                           index in the records
    start_frame                      first frame of the window in its clip (25 fps)
    latent_frames, _height, _width   of the latents; height and width even
    height, width                    pixels
    text_tokens                      of the window's text, no padding
    num_references                   reference frames stored
    duration_s                       the share of the draws: windows are drawn uniformly by hours
    eligible                         bits of `ConditionSet`; a window that is eligible for nothing is never drawn
    empty_text_tokens                tokens of the empty prompt (one number): what an inactive text occupies

    Numbers are read-only arrays of the dtypes in `catalog_files.NUMBERS`. `is_checked`: the rows are known to be sound.
    """

    window_id: Any
    clip_id: Any
    split: Any
    record: np.ndarray
    start_frame: np.ndarray
    latent_frames: np.ndarray
    latent_height: np.ndarray
    latent_width: np.ndarray
    height: np.ndarray
    width: np.ndarray
    text_tokens: np.ndarray
    num_references: np.ndarray
    duration_s: np.ndarray
    eligible: np.ndarray
    empty_text_tokens: int = 1
    is_checked: dataclasses.InitVar[bool] = False
    _stored: catalog_files.Stored | None = dataclasses.field(default=None, init=False, repr=False)

    def __post_init__(self, is_checked: bool) -> None:
        for name in TEXTS:
            object.__setattr__(self, name, Texts.of(getattr(self, name)))
        object.__setattr__(self, "split", Labels.of(self.split))
        for name, kind in NUMBERS.items():
            object.__setattr__(self, name, _numbers(name, getattr(self, name), kind))
        for name in COLUMNS:
            if (rows := len(getattr(self, name))) != len(self.window_id):
                raise ValueError(f"catalog: column {name} has {rows} rows, window_id {len(self.window_id)}")
        if not is_checked:
            self._check()

    def _check(self) -> None:
        if self.empty_text_tokens < 1:
            raise ValueError(f"catalog: the empty prompt has {self.empty_text_tokens} tokens; it must have at least 1")
        has_reference = self.eligible >> Condition.REFERENCE & 1 > 0
        broken = {
            "latent_frames < 1": self.latent_frames < 1,
            "latent size odd or < 2": (self.latent_height < 2) | (self.latent_width < 2)
            | (self.latent_height % PATCH > 0) | (self.latent_width % PATCH > 0),
            "duration_s not positive and finite": ~((self.duration_s > 0) & np.isfinite(self.duration_s)),
            "eligible bits outside the conditions": (self.eligible < 0) | (self.eligible >= 1 << NUM_CONDITIONS),
            "eligible for reference, but no reference stored": has_reference & (self.num_references < 1),
            "text_tokens < 1": self.text_tokens < 1,
            "record, start_frame or num_references < 0": (self.record < 0) | (self.start_frame < 0)
            | (self.num_references < 0),
        }  # fmt: skip
        for what, rows in broken.items():
            if rows.any():
                raise ValueError(
                    f"catalog: {what} in {rows.sum()} windows, the first is {self.window_id[rows.argmax()]}"
                )

    def __len__(self) -> int:
        return len(self.window_id)

    def select(self, rows: np.ndarray) -> "Catalog":
        """The catalog of these rows (mask or indices)."""
        texts = {name: getattr(self, name).take(rows) for name in (*TEXTS, "split")}
        return dataclasses.replace(self, **texts, **{name: getattr(self, name)[rows] for name in NUMBERS})

    def extended(self, other: "Catalog") -> "Catalog":
        """These rows, then those of another catalog."""
        columns: dict[str, Any] = {
            **{name: getattr(self, name).extended(getattr(other, name)) for name in (*TEXTS, "split")},
            **{name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in NUMBERS},
        }
        return dataclasses.replace(self, **columns)

    def numbers(self, rows: np.ndarray | slice) -> "Numbers":
        """The numbers of these rows alone, with the sizes that follow from them."""
        return Numbers(*(getattr(self, field.name)[rows] for field in dataclasses.fields(Numbers)))

    def is_window(self, row: int, window_id: str) -> bool:
        """Whether a row is the window of this id; by the id's crc32 where the ids lie in a file."""
        if self._stored is not None:
            return bool(self._stored.id_check[row] == catalog_files.id_check(window_id))
        return self.window_id[row] == window_id

    def record_of(self, row: int) -> int:
        """Index in the records of a row's window."""
        return int(self.record[row])

    def row_of(self, record: int) -> int:
        """The row whose record this is."""
        return int((self.record == record).argmax())

    def release(self) -> None:
        """Lets go of the memory of columns that lie in files; what is read again comes back."""
        if self._stored is not None:
            self._stored.release()

    def fingerprint(self) -> str:
        """sha256 over everything that the plan can depend on."""
        content = self._digests() | {"rows": str(len(self)), "empty_text_tokens": str(self.empty_text_tokens)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _digests(self) -> dict[str, str]:
        if self._stored is not None:
            return dict(self._stored.digests)
        return catalog_files.content_digests(self._columns())

    def _columns(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in COLUMNS}

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Writes the folder `catalog/`, whole or not at all, over one that is there; returns the path of its head."""
        folder = local(directory, "the dataset's folder")
        folder.mkdir(parents=True, exist_ok=True)
        return catalog_files.write(folder, self._columns(), self.empty_text_tokens, self._digests())

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "Catalog":
        """The catalog in `directory`; an error names the file, what is missing and the cure."""
        folder = dataset_folder(directory)
        if not _is_in(folder):
            raise FileNotFoundError(
                f"{folder / catalog_files.FOLDER}: no catalog here; make one with `omnihuman encode SETS --out"
                f" {directory}`"
            )
        if not (folder / catalog_files.FOLDER).is_dir():
            return cls(**_read_old(folder / OLD_FILE))
        stored = catalog_files.read(folder)
        catalog = cls(**stored.columns, empty_text_tokens=stored.empty_text_tokens, is_checked=True)
        object.__setattr__(catalog, "_stored", stored)
        return catalog


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Numbers(_Sizes):
    """What packing asks of some windows, arrays [n]; of `Catalog.numbers`."""

    latent_frames: np.ndarray
    latent_height: np.ndarray
    latent_width: np.ndarray
    text_tokens: np.ndarray
    eligible: np.ndarray


def columns() -> tuple[str, ...]:
    """Names of the columns, in the order of the fields."""
    return COLUMNS


def has_catalog(directory: str | os.PathLike[str]) -> bool:
    """Whether a catalog of any version is in the dataset's folder, or bucket."""
    try:
        folder = dataset_folder(directory)
    except FileNotFoundError:
        return False
    return _is_in(folder)


def _is_in(folder: Path) -> bool:
    return (folder / catalog_files.FOLDER).is_dir() or (folder / OLD_FILE).is_file()


def _numbers(name: str, given: Any, kind: np.dtype) -> np.ndarray:
    """The column as it is kept; ValueError names the first row that cannot be."""
    given = np.asarray(given)
    if given.dtype != kind and kind.kind == "i" and given.ndim == 1:
        limits = np.iinfo(kind)
        with np.errstate(invalid="ignore"):
            wrong = ~((given >= limits.min) & (given <= limits.max) & (given == np.rint(given)))
        if wrong.any():
            row = int(wrong.argmax())  # NaN among them
            raise ValueError(
                f"catalog: {name} of row {row} is {given[row]}, not a whole number from {limits.min} to {limits.max}"
            )
    if given.ndim != 1:
        raise ValueError(f"catalog: column {name} has shape {given.shape}, expected one number a row")
    column = np.ascontiguousarray(given, kind)
    column.setflags(write=False)
    return column


def _read_old(path: Path) -> Mapping[str, Any]:
    """Columns of a catalog of version 1, converted in memory: nothing is written beside it."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a readable Parquet file ({error}); run `omnihuman encode` again") from None
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise ValueError(f"{path}: columns {', '.join(missing)} are missing; run `omnihuman encode` again")
    metadata = table.schema.metadata or {}
    if _OLD_EMPTY_TEXT_TOKENS not in metadata:
        raise ValueError(f"{path}: no empty_text_tokens in the metadata; run `omnihuman encode` again")
    logger.info(
        "%s: a catalog of version 1, its %d rows are converted in memory at every start; `python -m"
        " omnihuman_jax.data.catalog %s` writes version %d beside it",
        path, len(table), path.parent, catalog_files.VERSION,
    )  # fmt: skip
    texts: dict[str, Any] = {name: table[name] for name in (*TEXTS, "split")}
    numbers = {name: table[name].to_numpy() for name in NUMBERS}
    return {**texts, **numbers, "empty_text_tokens": int(metadata[_OLD_EMPTY_TEXT_TOKENS])}


if __name__ == "__main__":
    import sys

    print(Catalog.load(sys.argv[1]).save(sys.argv[1]))
