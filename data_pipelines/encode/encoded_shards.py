"""What the marks of all shards come to, read one at a time: of a data set of ten million clips only sums, ids and dead
letters are held at once.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from data_pipelines.encode.clip_encoder import ClipStatistics
from data_pipelines.encode.encoded_clips import known_table
from data_pipelines.encode.shard_work import ShardFiles, read_marks

MAX_ROWS = 1000
"""Clips, and dead letters, that the summary shows one by one."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MadeShard:
    """A shard with records: its files, and what its mark says of them."""

    at: ShardFiles
    records: int
    bytes: int
    records_sha256: str
    file_sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EncodedShards:
    """made: the shards that have records. known: `known_table` of the clips that are encoded, or have no window.
    statistics: of all windows. rows: of the first `MAX_ROWS` clips, as `shard_work.make_shard` tells them.
    """

    made: list[MadeShard]
    known: pa.Table
    letters: list[dict[str, Any]]
    statistics: ClipStatistics
    num_clips: int
    rows: list[dict[str, Any]]

    @classmethod
    def of(cls, shards: Sequence[ShardFiles]) -> "EncodedShards":
        """Of shards that are all made."""
        made, known, letters, statistics, num_clips, rows = [], [], [], ClipStatistics(), 0, list[dict[str, Any]]()
        for at, mark in zip(shards, read_marks(shards), strict=True):
            dead = {letter["clip_id"] for letter in mark["quarantine"]}
            if mark["records"]:
                facts = {field: mark[field] for field in ("records", "bytes", "records_sha256", "file_sha256")}
                made.append(MadeShard(at=at, **facts))
            for row in mark["clips"]:
                if row["statistics"] is not None and row["windows"]:
                    statistics.add(ClipStatistics.from_json(row["statistics"]))
            known.append(known_table([row for row in mark["clips"] if row["clip_id"] not in dead]))
            letters += mark["quarantine"]
            num_clips += len(mark["clips"])
            rows += mark["clips"][: MAX_ROWS - len(rows)]
        return cls(
            made=made, known=pa.concat_tables([known_table([]), *known]), letters=letters, statistics=statistics,
            num_clips=num_clips, rows=rows,
        )  # fmt: skip
