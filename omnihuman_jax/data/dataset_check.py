"""What is wrong with a data set: its files, its catalog, and every record, against each other and the contract.

Nothing is repaired. Every problem has a kind, the place and one line that says what is wrong, so that a person or a
script can act on it. Reading goes on behind a problem wherever it can.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.dataset_files import dataset_folder, whole_copy
from omnihuman_jax.data.finite import not_finite
from omnihuman_jax.data.generations import FOLDER, MANIFEST, Generation, chosen, numbered, read_manifest, split_name
from omnihuman_jax.data.record_source import RecordSource
from omnihuman_jax.data.records import DESCRIPTION, DatasetSpec, WindowRecord
from omnihuman_jax.runtime import file_names, files
from omnihuman_jax.typing import FPS, PATCH, SPATIAL_STRIDE

SUMMARY_FILE = "encode.json"
NEEDED = ("dataset.json", "dataset.npz", "dataset_info.json", "features.json", SUMMARY_FILE)


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """kind: a word that stays the same; where: a file, or a window's id; what: one line."""

    kind: str
    where: str
    what: str

    def __str__(self) -> str:
        return file_names.printable(f"{self.kind}: {self.where}: {self.what}")


def check_dataset(
    directory: str | os.PathLike[str],
    *,
    sample: float = 1.0,
    hashes: bool = True,
    on_record: Callable[[], object] = lambda: None,
) -> Iterator[Problem]:
    """Every problem of a generation of the data set in `directory`, files first, as they are found; of the newest
    where none is named. The files of the generations before it, whose records it has, are among them. One in a bucket
    is fetched whole before.

    Args:
        sample: share of the records that are read, evenly spread.
        hashes: whether the files' bytes are compared with what `encode` wrote down.
        on_record: called after each record.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: `sample` is no share, or a bucket's data set has no room here.
    """
    if not 0 < sample <= 1:
        raise ValueError(f"--sample must be in (0, 1], not {sample}")
    dataset, number = split_name(directory)
    with whole_copy(dataset) as root:
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder; give a data set of `omnihuman encode`")
        yield from _check(root, dataset, number, sample, hashes, on_record)


def _check(
    root: Path, dataset: str, number: int | None, sample: float, hashes: bool, on_record: Callable[[], object]
) -> Iterator[Problem]:
    """Of the data set whose files are in `root`; `dataset` is what a message calls it."""
    try:
        there = read_manifest(root)
    except ValueError as error:
        yield Problem("manifest", MANIFEST, _line(error))
        return
    up_to = there[: chosen(there, number, dataset).number]
    yield from _extra_generations(root, there)
    for one in up_to:
        summary, problems = _summary(root, one, hashes=hashes)
        yield from problems
        yield from _files(root, one, summary, hashes=hashes)
        yield from _shards(root, one, summary, hashes=hashes)
    try:
        catalog = Catalog.load(numbered(root, up_to[-1].number))
    except (OSError, ValueError) as error:
        yield Problem("catalog", _place(up_to[-1], "catalog"), _line(error))
        return
    yield from _catalog(catalog, summary)
    try:
        source = RecordSource(numbered(root, up_to[-1].number), retries=0)
    except Exception as error:  # tfds and its readers raise what they please
        yield Problem("records", PurePosixPath(dataset).name, f"cannot be opened: {_line(error)}")
        return
    left_out = int(summary.get("left_out_records", 0))
    if len(source) != len(catalog) + left_out:
        known = f" and {left_out} that it leaves out" if left_out else ""
        yield Problem("count", "catalog", f"{len(catalog)} rows{known} for {len(source)} records")
    for row in np.unique(np.linspace(0, len(catalog) - 1, max(1, round(sample * len(catalog)))).astype(int)):
        yield from _record(catalog, int(row), source)
        on_record()


def num_checked(directory: str | os.PathLike[str], sample: float = 1.0) -> int:
    """How many records `check_dataset` will read, for a progress bar; 0 where that is not known."""
    try:
        return round(sample * int(json.loads((dataset_folder(directory) / SUMMARY_FILE).read_text())["windows"]))
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())


def _place(generation: Generation, name: str) -> str:
    """A file's path in the dataset."""
    return str(PurePosixPath(generation.folder, name))


def _extra_generations(root: Path, there: Sequence[Generation]) -> Iterator[Problem]:
    known = {root / one.folder for one in there}
    for folder in sorted((root / FOLDER).glob("*")):
        if folder not in known:
            where = f"{FOLDER}/{folder.name}"
            yield Problem(
                "extra generation", where, "is not in the manifest; encode again, which adds it, or take it away"
            )


def _summary(root: Path, generation: Generation, *, hashes: bool) -> tuple[dict[str, Any], list[Problem]]:
    path, where = root / generation.folder / SUMMARY_FILE, _place(generation, SUMMARY_FILE)
    if not path.is_file():
        return {}, []  # said with the other files
    problems = []
    if hashes and generation.summary_sha256 and files.file_sha256(path) != generation.summary_sha256:
        problems.append(Problem("changed file", where, f"its bytes are not those that {MANIFEST} is of"))
    try:
        summary = json.loads(path.read_text())
        return summary if isinstance(summary, dict) else {}, problems
    except ValueError as error:
        return {}, [*problems, Problem("summary", where, f"not JSON: {_line(error)}")]


def _files(root: Path, generation: Generation, summary: Mapping[str, Any], *, hashes: bool) -> Iterator[Problem]:
    folder, stated = root / generation.folder, summary.get("files", {})
    needed = set(NEEDED) - set(DESCRIPTION if generation.number > 1 and not generation.records else ())
    for name in sorted({*needed, *stated}):
        if not (folder / name).is_file():
            yield Problem("missing file", _place(generation, name), "not there; copy it again, or encode again")
        elif hashes and name in stated and files.file_sha256(folder / name) != stated[name]:
            yield Problem("changed file", _place(generation, name), "its bytes are not those that encode wrote")
    where = _place(generation, "dataset.json")
    try:
        spec = DatasetSpec.load(numbered(root, generation.number))
    except Exception as error:
        yield Problem("spec", where, _line(error))
        return
    if spec.fps != FPS:
        yield Problem("spec", where, f"{spec.fps} frames a second, not {FPS}")


def _shards(root: Path, generation: Generation, summary: Mapping[str, Any], *, hashes: bool) -> Iterator[Problem]:
    folder, stated = root / generation.folder, {row["name"]: row for row in summary.get("shards", ())}
    there = {path.name for path in folder.glob("*.array_record-*")}
    for name in sorted(there - set(stated) if stated else ()):
        yield Problem("extra shard", _place(generation, name), "belongs to no record; take it away")
    for name, row in stated.items():
        path, where = folder / name, _place(generation, name)
        if name not in there:
            yield Problem("missing shard", where, f"{row['records']} records are gone; copy it again, or encode again")
        elif not path.stat().st_size:
            yield Problem("empty shard", where, f"holds nothing of its {row['records']} records; copy it again")
        elif hashes and files.file_sha256(path) != row["sha256"]:
            yield Problem("changed shard", where, "its bytes are not those that encode wrote; copy it again")


def _catalog(catalog: Catalog, summary: Mapping[str, Any]) -> Iterator[Problem]:
    for name, values in (("window_id", catalog.window_id.array), ("record", catalog.record)):
        for value, count in _repeated(values):
            yield Problem("repeated row", str(value), f"{count} rows of the catalog have this {name}")
    if summary and summary.get("windows") != len(catalog):
        yield Problem("count", "catalog", f"{len(catalog)} rows, encode wrote {summary.get('windows')}")
    records = int(summary.get("windows", len(catalog))) + int(summary.get("left_out_records", 0))
    outside = (catalog.record < 0) | (catalog.record >= max(1, records))
    for row in np.flatnonzero(outside):
        yield Problem("no record", catalog.window_id[row], f"record {catalog.record[row]} is beyond the data set")


def _repeated(values: Any) -> list[tuple[Any, int]]:
    """(value, how often) of what a column has more than once, the most frequent first. Counted by Arrow: a Python
    string for each of ten million ids would be gigabytes.
    """
    import pyarrow
    import pyarrow.compute as pc

    found = pc.value_counts(pyarrow.array(values))
    more = found.filter(pc.greater(found.field("counts"), 1)).to_pylist()
    return sorted(((row["values"], row["counts"]) for row in more), key=lambda pair: -pair[1])


def _record(catalog: Catalog, row: int, source: RecordSource) -> Iterator[Problem]:
    name, index = str(catalog.window_id[row]), int(catalog.record[row])
    if not 0 <= index < len(source):
        return  # said with the catalog
    try:
        record = source[index]
    except OSError as error:
        yield Problem("unreadable record", name, _line(error))
        return
    if record is None:
        yield Problem("unreadable record", name, source.unreadable[index])
        return
    if record.window_id != name:
        yield Problem("another record", name, f"record {index} is window {record.window_id}")
        return
    yield from _shapes(catalog, row, record)
    yield from _values(record)
    yield from _eligible(catalog, row, record, source.spec.margin)


def _shapes(catalog: Catalog, row: int, record: WindowRecord) -> Iterator[Problem]:
    stated = tuple(int(c[row]) for c in (catalog.latent_frames, catalog.latent_height, catalog.latent_width))
    if record.latents_FHWC.shape[:3] != stated:
        what = f"the catalog says latents of {stated}, the record has {record.latents_FHWC.shape[:3]}"
        yield Problem("wrong size", record.window_id, what)
    pixels = (int(catalog.height[row]), int(catalog.width[row]))
    if pixels != (stated[1] * SPATIAL_STRIDE, stated[2] * SPATIAL_STRIDE):
        yield Problem("wrong size", record.window_id, f"the catalog says {pixels} pixels for latents of {stated[1:]}")
    if abs(float(catalog.duration_s[row]) - record.frames / FPS) > 1e-6:
        what = f"the catalog says {catalog.duration_s[row]:g} s, the record has {record.frames} frames"
        yield Problem("wrong length", record.window_id, what)
    for column, found in (("text_tokens", len(record.text_SE)), ("num_references", len(record.references_RHWC))):
        if (said := int(getattr(catalog, column)[row])) != found:
            yield Problem("wrong count", record.window_id, f"the catalog says {said} {column}, the record has {found}")


def _values(record: WindowRecord) -> Iterator[Problem]:
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, np.ndarray) and (wrong := not_finite(value)):
            yield Problem("not finite", record.window_id, f"{field.name} is {wrong}")
    points = record.keypoints_TJ3.astype(np.float32)
    if not points.size or not np.isfinite(points).all():
        return
    height, width = (side // PATCH for side in record.latents_FHWC.shape[1:3])
    # A point may lie beside the picture, but not a whole picture away from it.
    low, high = np.array([-width, -height, 0.0]), np.array([2.0 * width, 2.0 * height, 1.001])
    outside = (points < low) | (points > high)
    if outside.any():
        frame, joint, column = np.unravel_index(int(outside.argmax()), outside.shape)
        what = (
            f"{('x', 'y', 'confidence')[column]} of keypoint {joint} in row {frame} is {points[frame, joint, column]:g}"
        )
        yield Problem("keypoints", record.window_id, f"{what}, of a picture of {width} x {height} tokens")


def _eligible(catalog: Catalog, row: int, record: WindowRecord, margin: int) -> Iterator[Problem]:
    said, stored = int(catalog.eligible[row]), int(record.eligible)
    if said != stored:
        what = f"the catalog says {ConditionSet(said).label}, the record {ConditionSet(stored).label}"
        yield Problem("eligible", record.window_id, what)
    own = slice(margin, margin + record.frames)
    has = {
        Condition.TEXT: bool(record.text),
        Condition.REFERENCE: len(record.references_RHWC) > 0,
        Condition.AUDIO: len(record.audio_valid_T) > 0 and bool(record.audio_valid_T[own].all()),
        Condition.POSE: len(record.keypoints_TJ3) > 0 and bool((record.keypoints_TJ3[own, :, 2] > 0).any()),
    }
    denied = [condition.label for condition in Condition if said >> condition & 1 and not has[condition]]
    if denied:
        yield Problem("eligible", record.window_id, f"the record has nothing for {', '.join(denied)}")
