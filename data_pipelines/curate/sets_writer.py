"""Writes SETS (`clip_sets.py` has what they are): the rows of the clips, then the head, which makes them whole."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.curate.clip_sets import ROWS_FILE, SETS_FILE, SETS_FORMAT, SETS_SCHEMA
from data_pipelines.curate.clips import write_text
from data_pipelines.curate.part_tags import IN, WHYS, PartTags
from data_pipelines.curate.stage_parts import WRITTEN, Table
from data_pipelines.curate.tagging import CHECKS
from omnihuman_jax.conditions import Condition
from omnihuman_jax.runtime import file_names, files, folders
from omnihuman_jax.runtime.locations import Location, seen_from


def write_rows(out: Location, parts: Sequence[PartTags], dataset: str, weight: float) -> None:
    """Writes `sets.parquet`: a row group a part."""
    folders.make_folder(out)
    with (
        files.whole_file(out / ROWS_FILE) as temporary,
        pq.ParquetWriter(temporary, SETS_SCHEMA, **WRITTEN) as writer,
    ):
        for part in parts:
            writer.write_table(_rows(part, dataset, weight), row_group_size=max(1, len(part.seconds)))


def _rows(part: PartTags, dataset: str, weight: float) -> pa.Table:
    count = len(part.seconds)
    out_of = part.left_out != IN
    reasons = [check.reason for check in CHECKS]
    columns = {
        "eligible": np.where(out_of, 0, part.tags.bits).astype(np.uint8),
        "left_out": _words(part.left_out, WHYS),
        **{f"{c.label}_reason": _words(part.tags.failed[:, c], reasons) for c in Condition},
        **{f"{c.label}_score": part.failed_score[:, c] for c in Condition},
        "dedup_group": part.dedup_group,
        "dataset": _words(np.zeros(count, np.int8), [dataset]),
        "weight": np.full(count, weight, np.float32),
    }
    return pa.table(columns, schema=SETS_SCHEMA)


def _words(codes: np.ndarray, words: Sequence[str]) -> pa.Array:
    """A column of words; null where the code is negative."""
    # Each word once: pyarrow writes memory that nobody set into the file of a dictionary that has one twice.
    unique = list(dict.fromkeys(words))
    places = np.array([unique.index(word) for word in words], np.int8)
    return pa.DictionaryArray.from_arrays(
        pa.array(places[codes], pa.int8(), mask=codes < 0), pa.array(unique, pa.string())
    )


def write_head(
    out: Location,
    table: Table,
    parts: Mapping[int, int],
    *,
    thresholds: Mapping[str, float],
    checks: Mapping[str, float],
    landmarks: str = "",
    mix: Mapping[str, Any] | None = None,
) -> None:
    """Writes `sets.json`, the last of the sets' files.

    parts: number -> clips. checks: reason -> threshold. landmarks: sha256 of those that no stage's key stands for. mix:
    name and weight in a mix of several data sets.
    """
    text = json.dumps(dict(thresholds), sort_keys=True)
    head = {
        "format": SETS_FORMAT,
        "table": file_names.plain(seen_from(out, table.folder)),
        "stages": dict(table.keys),
        "thresholds": dict(thresholds),
        "thresholds_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "checks": dict(checks),
        "parts": {str(number): count for number, count in parts.items()},
        "rows_sha256": files.file_sha256(out / ROWS_FILE),
        "landmarks_sha256": landmarks,
        **(mix or {}),
    }
    write_text(out / SETS_FILE, json.dumps(head, indent=1) + "\n")
