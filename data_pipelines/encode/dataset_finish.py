"""The shards of a data set, joined: named by how many there are, with metadata, catalog and summary.

Everything is made in the folder that the shards were made in, which then gets the data set's name: it is there whole or
not at all. Killed on the way, the next call goes on.
"""

import collections
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipelines.curate.stage_parts import read_part
from data_pipelines.encode.clip_encoder import ClipStatistics
from data_pipelines.encode.kept_dataset import SUMMARY_FILE
from data_pipelines.encode.shard_plan import PLAN_FILE, read_plan
from data_pipelines.encode.shard_work import ShardFiles
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data.catalog import Catalog, columns
from omnihuman_jax.data.records import DatasetSpec, shard_path, write_dataset_metadata
from omnihuman_jax.runtime import files

MADE_BY_FILE = "made_by.json"
_MAX_ROWS = 1000


def finish(folder: Path, out: Path) -> dict[str, Any]:
    """Joins the shards in `folder` into the data set `out`; returns the summary that it also writes there.

    Raises:
        FileNotFoundError: nothing is being encoded in `folder`.
        ValueError: shards are missing, or not one clip could be encoded (then `folder` is taken away).
    """
    if not (folder / SUMMARY_FILE).is_file():
        _join(folder)
    summary: dict[str, Any] = json.loads((folder / SUMMARY_FILE).read_text())
    for path in [*folder.glob("part-*"), *folder.glob(".*.part"), folder / PLAN_FILE, folder / MADE_BY_FILE]:
        path.unlink(missing_ok=True)
    files.replace_folder(folder, out)
    return summary


def _join(folder: Path) -> None:
    at = [ShardFiles(folder, task.number) for task in read_plan(folder)]
    if left := [one for one in at if not one.mark.is_file()]:
        raise ValueError(
            f"{folder}: {len(left)} of {len(at)} shards are not made yet, the first is {left[0].number}; run"
            " `omnihuman encode` without --finish"
        )
    marks = [json.loads(one.mark.read_text()) for one in at]
    made = [(one, mark) for one, mark in zip(at, marks, strict=True) if mark["records"]]
    if not made:
        letter = next(row for mark in marks for row in (*mark["quarantine"], _SERVES_NONE))
        shutil.rmtree(folder)
        raise ValueError(
            f"none of the {sum(len(mark['clips']) for mark in marks)} clips can be encoded; the first,"
            f" {letter['clip_id']}: {letter['reason']}"
        )
    for shard, (one, _) in enumerate(made):
        final = shard_path(folder, shard, len(made))
        if not final.is_file():
            files.move_into_place(one.records, final)
    spec = DatasetSpec.load(folder)
    digest = hashlib.sha256("".join(mark["records_sha256"] for _, mark in made).encode())
    spec = dataclasses.replace(spec, records_sha256=digest.hexdigest())
    write_dataset_metadata(folder, spec, [(mark["records"], mark["bytes"]) for _, mark in made])
    catalog = _catalog(made, spec)
    catalog.save(folder)
    made_by = json.loads((folder / MADE_BY_FILE).read_text())
    summary = _summary(catalog, marks) | {"shards": _shards(folder, made), "files": _others(folder), **made_by}
    files.write_text(folder / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")


_SERVES_NONE = {"clip_id": "like all others", "reason": "is eligible for no condition"}


def _catalog(made: Sequence[tuple[ShardFiles, Mapping[str, Any]]], spec: DatasetSpec) -> Catalog:
    parts, first = [], 0
    for one, mark in made:
        rows = read_part(one.rows)
        index = rows.column_names.index("record")
        parts.append(rows.set_column(index, "record", pa.array(rows["record"].to_numpy() + first)))
        first += mark["records"]
    together = pa.concat_tables(parts)
    arrays: dict[str, Any] = {name: together[name].to_numpy() for name in columns()}
    return Catalog(**arrays, empty_text_tokens=spec.empty_text_tokens)


def _shards(folder: Path, made: Sequence[tuple[ShardFiles, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {
            "name": shard_path(folder, shard, len(made)).name,
            "records": mark["records"],
            "bytes": mark["bytes"],
            "sha256": mark["file_sha256"],
        }
        for shard, (_, mark) in enumerate(made)
    ]


def _others(folder: Path) -> dict[str, str]:
    """Name -> sha256 of every file of the data set beside its shards and the summary."""
    passing = (PLAN_FILE, MADE_BY_FILE, SUMMARY_FILE)
    kept = [path for path in sorted(folder.iterdir()) if path.is_file() and ".array_record-" not in path.name]
    names = [path for path in kept if not path.name.startswith(("part-", ".", *passing))]
    return {path.name: files.file_sha256(path) for path in names}


def _summary(catalog: Catalog, marks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `encode.json` holds: counts of windows, and what the codec did to each clip (of few) and to all of them."""
    overall = ClipStatistics()
    for mark in marks:
        for row in mark["clips"]:
            if row["statistics"] is not None and row["windows"]:
                overall.add(ClipStatistics.from_json(row["statistics"]))
    clips = [row for mark in marks for row in mark["clips"]]
    return {
        "windows": len(catalog),
        "bytes": sum(mark["bytes"] for mark in marks),
        "by_frames": _counts(catalog.frames),
        "by_eligible": {
            ConditionSet(int(bits)).label: n for bits, n in sorted(collections.Counter(catalog.eligible).items())
        },
        "by_split": {str(name): n for name, n in sorted(collections.Counter(catalog.split).items())},
        "round_trip_psnr_db": _rounded(overall.psnr),
        "latent_std": [round(float(std), 4) for std in overall.latent_std_C],
        "num_clips": len(clips),
        "clips": _clip_rows(catalog, clips) if len(clips) <= _MAX_ROWS else [],
        "dead_letters": sum(len(mark["quarantine"]) for mark in marks),
        "quarantine": [row for mark in marks for row in mark["quarantine"]][:_MAX_ROWS],
    }


def _clip_rows(catalog: Catalog, clips: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for clip in clips:
        named = {name: clip[name] for name in ("clip_id", "label", "windows", "serves") if name in clip}
        mine = catalog.clip_id == clip["clip_id"]
        if not mine.any():
            rows.append(named)
            continue
        statistics = ClipStatistics.from_json(clip["statistics"])
        rows.append(
            {
                **named,
                "height": int(catalog.height[mine][0]),
                "width": int(catalog.width[mine][0]),
                "source_height": clip["height"],
                "source_width": clip["width"],
                "by_frames": _counts(catalog.frames[mine]),
                "eligible": {c.label: int((catalog.eligible[mine] >> c & 1).sum()) for c in Condition},
                "round_trip_psnr_db": _rounded(statistics.psnr),
                "latent_std": [round(float(std), 4) for std in statistics.latent_std_C],
            }
        )
    return rows


def _rounded(decibels: float) -> float | None:
    return None if np.isnan(decibels) else round(decibels, 3)


def _counts(values: np.ndarray) -> dict[str, int]:
    return {str(value): count for value, count in sorted(collections.Counter(values.tolist()).items())}
