"""The generations of a dataset: an append is a new one, and those before it stay as they are, to the byte.

    DATASET/manifest.json         the generations, oldest first; replaced whole once all files of a new one are there
    DATASET/...                   generation 1: shards, catalog, and what describes them
    DATASET/generations/00002/    generation 2: the shards that it adds, and catalog and description of all its windows

The records of a generation are those of the folders up to its own, in order; its catalog says which of them it draws
from. `DATASET@2` names a generation, `DATASET` the newest. A folder without a manifest has one generation.
"""

import dataclasses
import json
import os
import re
from collections.abc import Sequence

from omnihuman_jax.runtime import files
from omnihuman_jax.runtime.locations import Location, StrPath, location

MANIFEST, FOLDER = "manifest.json", "generations"
VERSION = 1
_NAMED = re.compile(r"(.*[^/])@([1-9][0-9]*)/?")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """number: from 1 on. windows: rows of its catalog. records: that its own folder holds. summary_sha256: of its
    `encode.json`; "" where nobody wrote it down.
    """

    number: int
    windows: int = 0
    records: int = 0
    summary_sha256: str = ""

    @property
    def folder(self) -> str:
        """Its folder, relative to the dataset; "" of the first."""
        return f"{FOLDER}/{self.number:05d}" if self.number > 1 else ""


ONLY = Generation(number=1)
"""Of a dataset without a manifest."""


def split_name(text: StrPath) -> tuple[str, int | None]:
    """(dataset, number) of `DATASET@2`; None where no generation is named."""
    text = os.fspath(text)
    match = _NAMED.fullmatch(text)
    return (match[1], int(match[2])) if match else (text, None)


def numbered(dataset: StrPath, number: int) -> str:
    """`DATASET@2`."""
    return f"{split_name(dataset)[0].rstrip('/')}@{number}"


def read_manifest(folder: Location) -> list[Generation]:
    """The generations of the dataset in a folder, as they are now; errors as `parse_manifest` has them."""
    path = folder / MANIFEST
    try:
        return parse_manifest(files.read_bytes(path), path)
    except FileNotFoundError:
        return [ONLY]


def parse_manifest(data: bytes, where: StrPath) -> list[Generation]:
    """ValueError, which begins with `where`, for what is no manifest, or one of another version."""
    try:
        stored = json.loads(data)
        version, rows = stored["version"], [Generation(**row) for row in stored["generations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: not the manifest of a dataset ({error}); copy it again") from None
    if version != VERSION:
        raise ValueError(f"{where}: a manifest of version {version}, this package reads {VERSION}; update the package")
    if not rows or [row.number for row in rows] != list(range(1, len(rows) + 1)):
        raise ValueError(f"{where}: generations {[row.number for row in rows]}, not 1, 2, ...; copy it again")
    return rows


def write_manifest(folder: StrPath, generations: Sequence[Generation]) -> None:
    """Replaces the manifest of the dataset in `folder`, whole: the moment in which a generation begins to be."""
    files.write_text(location(folder) / MANIFEST, manifest_text(generations))


def manifest_text(generations: Sequence[Generation]) -> str:
    """What `parse_manifest` reads."""
    rows = [dataclasses.asdict(one) for one in generations]
    return json.dumps({"version": VERSION, "generations": rows}, indent=1) + "\n"


def chosen(generations: Sequence[Generation], number: int | None, dataset: str) -> Generation:
    """The one of that number, or the newest; ValueError with those that are there."""
    if number is None:
        return generations[-1]
    if number > len(generations):
        raise ValueError(
            f"{dataset}@{number}: there is no such generation; {dataset} has "
            f"{f'1 to {len(generations)}' if len(generations) > 1 else 'one'}"
        )
    return generations[number - 1]
