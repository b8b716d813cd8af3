"""The catalog on disk: a file of numbers a column, mapped into memory, and the ids in a file of their own.

    catalog/catalog.json    VERSION, rows, and the sha256 of every other file
    catalog/COLUMN.npy      numbers, one a row, as numpy saves them
    catalog/ids.arrow       window_id and clip_id, opened for errors and reports only

Every file is checked against its sha256 when it is opened. Reading does not go through the mapping, so that memory
holds only what is used afterwards.
"""

import dataclasses
import hashlib
import json
import mmap
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from omnihuman_jax.data.text_columns import Labels, Texts
from omnihuman_jax.runtime import files, folders

FOLDER, HEAD, IDS = "catalog", "catalog.json", "ids.arrow"
VERSION = 2  # 1 was one Parquet file, catalog.parquet
TEXTS = ("window_id", "clip_id")
NUMBERS: Mapping[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in {
        "record": "<i4", "start_frame": "<i4", "latent_frames": "<i2", "latent_height": "<i2", "latent_width": "<i2",
        "height": "<i4", "width": "<i4", "text_tokens": "<i2", "num_references": "<i2", "duration_s": "<f8",
        "eligible": "i1",
    }.items()
}  # fmt: skip
"""Column -> how a row is stored, in memory and on disk."""
_SPLIT, _ID_CHECK = np.dtype("u1"), np.dtype("<u4")
_CURE = "copy the folder again, or run `omnihuman encode` again"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """An opened catalog: its columns by name; `digests`, the sha256 of each column's content; `id_check` [n], the
    crc32 of each window id; and the mappings behind the numbers.
    """

    columns: Mapping[str, Any]
    empty_text_tokens: int
    digests: Mapping[str, str]
    id_check: np.ndarray
    maps: tuple[mmap.mmap, ...]

    def release(self) -> None:
        """Lets go of the memory that reading through the mappings has filled; what is read again comes back."""
        for one in self.maps:
            if hasattr(mmap, "MADV_DONTNEED"):
                one.madvise(mmap.MADV_DONTNEED)


def content_digests(columns: Mapping[str, Any]) -> dict[str, str]:
    """sha256 of every column's content, the same wherever it lies."""
    split = columns["split"]
    names = json.dumps(split.names).encode()
    numbers = {name: np.ascontiguousarray(columns[name], kind) for name, kind in NUMBERS.items()}
    return {
        **{name: columns[name].digest() for name in TEXTS},
        "split": hashlib.sha256(names + split.codes.tobytes()).hexdigest(),
        **{name: hashlib.sha256(column.data).hexdigest() for name, column in numbers.items()},
    }


def write(directory: Path, columns: Mapping[str, Any], empty_text_tokens: int, digests: Mapping[str, str]) -> Path:
    """Writes `catalog/` into `directory`, whole or not at all, over one that is there; returns catalog.json's path."""
    import pyarrow

    split = columns["split"]
    numbers = {**{name: np.asarray(columns[name], kind) for name, kind in NUMBERS.items()}, "split": split.codes}
    ids = columns["window_id"].array
    numbers["id_check"] = np.fromiter((id_check(one.as_py()) for one in ids), _ID_CHECK, len(ids))
    head: dict[str, Any] = {
        "version": VERSION, "rows": len(ids), "empty_text_tokens": empty_text_tokens, "splits": list(split.names),
        "content": dict(digests),
    }  # fmt: skip
    with folders.whole_folder(directory / FOLDER, overwrite=True) as folder:
        for name, column in numbers.items():
            with (folder / f"{name}.npy").open("wb") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(column), version=(1, 0), allow_pickle=False)
        table = pyarrow.table({name: columns[name].array for name in TEXTS})
        with pyarrow.ipc.new_file(str(folder / IDS), table.schema) as writer:
            writer.write_table(table)
        head["sha256"] = {path.name: files.file_sha256(path) for path in sorted(folder.iterdir())}
        (folder / HEAD).write_text(json.dumps(head, indent=2) + "\n")
    return directory / FOLDER / HEAD


def read(directory: Path) -> Stored:
    """The catalog that `write` wrote; ValueError or FileNotFoundError names the file that is missing, damaged or of
    another version.
    """
    folder = directory / FOLDER
    head = _head(folder / HEAD)
    rows = head["rows"]
    kinds = {**NUMBERS, "split": _SPLIT, "id_check": _ID_CHECK}
    mapped = {name: _map(folder / f"{name}.npy", kind, rows, head["sha256"]) for name, kind in kinds.items()}
    arrays = {name: array for name, (array, _) in mapped.items()}
    columns: dict[str, Any] = {name: arrays[name] for name in NUMBERS}
    columns["split"] = Labels(arrays["split"], tuple(head["splits"]))
    columns |= {name: Texts(rows, _Ids(folder / IDS, head["sha256"], name)) for name in TEXTS}
    return Stored(
        columns=columns,
        empty_text_tokens=head["empty_text_tokens"],
        digests=head["content"],
        id_check=arrays["id_check"],
        maps=tuple(one for _, one in mapped.values()),
    )


def id_check(window_id: str) -> int:
    """crc32 of an id: tells a record of another dataset without opening the ids."""
    return zlib.crc32(window_id.encode())


def _head(path: Path) -> dict[str, Any]:
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
        version = head["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the head of a catalog ({error}); {_CURE}") from None
    if version != VERSION:
        raise ValueError(
            f"{path}: a catalog of version {version}, this package reads {VERSION}; update the package, or run"
            " `omnihuman encode` again with this one"
        )
    missing = {"rows", "empty_text_tokens", "splits", "content", "sha256"} - head.keys()
    missing |= {f"content.{name}" for name in (*TEXTS, "split", *NUMBERS) if name not in head.get("content", {})}
    if missing:
        raise ValueError(f"{path}: without {', '.join(sorted(missing))}; {_CURE}")
    return head


def _check_bytes(path: Path, sha256: Mapping[str, str]) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: this column of the catalog is missing; {_CURE}")
    if (found := files.file_sha256(path)) != sha256.get(path.name):
        raise ValueError(
            f"{path}: damaged, or of another dataset: its sha256 is {found[:12]}..., {HEAD} says"
            f" {sha256.get(path.name, 'nothing')[:12]}...; {_CURE}"
        )


def _map(path: Path, kind: np.dtype, rows: int, sha256: Mapping[str, str]) -> tuple[np.ndarray, mmap.mmap]:
    """The numbers of a column, read-only, and the mapping that they lie in."""
    _check_bytes(path, sha256)
    with path.open("rb") as file:
        try:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("not version 1.0 of the format")
            shape, _, stored = np.lib.format.read_array_header_1_0(file)
        except ValueError as error:
            raise ValueError(f"{path}: no column of numbers ({error}); {_CURE}") from None
        if shape != (rows,) or stored != kind:
            raise ValueError(f"{path}: holds {stored} {shape}, expected {kind} ({rows},); {_CURE}")
        offset = file.tell()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, kind, rows, offset) if rows else np.zeros(0, kind), mapped


@dataclasses.dataclass(frozen=True, slots=True)
class _Ids:
    """Opens the ids of one column when they are asked for."""

    path: Path
    sha256: Mapping[str, str]
    name: str

    def __call__(self) -> Any:
        import pyarrow

        _check_bytes(self.path, self.sha256)
        try:
            column = pyarrow.ipc.open_file(pyarrow.memory_map(str(self.path))).read_all()[self.name]
            return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        except (pyarrow.ArrowException, KeyError) as error:
            raise ValueError(f"{self.path}: not the ids of a catalog ({error}); {_CURE}") from None
