"""Which clips a dataset has already, by all that its records were made of: what an append need not encode again.

clips.parquet       of a generation: a row a clip that it has, or that has no window: id and key
left_out.parquet    while a generation is made: the clips of the one before that it does not take on
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from data_pipelines.curate.clip_sets import load_landmarks, read_head
from data_pipelines.curate.clips import Clip
from data_pipelines.curate.stage_parts import read_part, write_columns
from omnihuman_jax.conditions import Condition
from omnihuman_jax.runtime import bucket_copies
from omnihuman_jax.runtime.locations import Location

CLIPS_FILE, LEFT_OUT_FILE = "clips.parquet", "left_out.parquet"
_BYTES = 16
_KEY = np.dtype(f"S{_BYTES}")
_SCHEMA = pa.schema([pa.field("clip_id", pa.string()), pa.field("key", pa.binary(_BYTES))])


class KeyedClip(NamedTuple):
    """A clip and its key."""

    clip: Clip
    key: str


class ClipKeys:
    """The keys of the clips of sets: another one for a clip that would give other records."""

    def __init__(self, sets: Location) -> None:
        head = read_head(sets)
        self._sets = sets
        # Where no stage's key stands for the landmarks, their own bytes do.
        self._look = "" if head["landmarks_sha256"] else str(head["stages"]["look"])

    def of(self, clip: Clip) -> str:
        """Hex. Where the video lies, and what it is called, do not count."""
        landmarks = self._landmarks(clip) if Condition.POSE in clip.conditions else ""
        facts = [clip.clip_id, clip.sha256, clip.start_frame, clip.end_frame, clip.height, clip.width, clip.caption,
                 clip.split, clip.conditions.bits, landmarks]  # fmt: skip
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[: 2 * _BYTES]

    def _landmarks(self, clip: Clip) -> str:
        try:
            return self._look or hashlib.sha256(load_landmarks(self._sets, clip).keypoints_TJ3.tobytes()).hexdigest()
        except bucket_copies.NoAnswer:
            raise
        except (OSError, ValueError):
            return "unreadable"  # encode will say so of this clip alone


@dataclasses.dataclass(frozen=True, slots=True)
class Keys:
    """Keys of many clips, sorted, 16 bytes each."""

    sorted: np.ndarray

    @classmethod
    def of(cls, keys: Sequence[np.ndarray]) -> "Keys":
        """Of arrays as `as_array` and `keys_of` make them."""
        return cls(np.sort(np.concatenate([np.zeros(0, _KEY), *keys])))

    def has(self, keys: np.ndarray) -> np.ndarray:
        """Bool [n]."""
        if not len(self.sorted):
            return np.zeros(len(keys), bool)
        at = np.minimum(np.searchsorted(self.sorted, keys), len(self.sorted) - 1)
        return np.asarray(self.sorted[at] == keys)


def as_array(keys: Sequence[str]) -> np.ndarray:
    """Keys in hex, as 16 bytes each."""
    return np.asarray([bytes.fromhex(key) for key in keys], _KEY)


def keys_of(known: pa.Table) -> np.ndarray:
    """The keys of `read_known`, as 16 bytes each."""
    column = known["key"].combine_chunks()
    data = column.buffers()[1]
    return np.frombuffer(data, _KEY, len(column), column.offset * _BYTES) if len(column) else np.zeros(0, _KEY)


def read_known(generation: Location) -> pa.Table:
    """clip_id and key of every clip that the generation in this folder has."""
    return read_part(generation / CLIPS_FILE)


def known_table(clips: Sequence[Mapping[str, Any]]) -> pa.Table:
    """clip_id and key of clips as the marks of shards tell them."""
    rows = [{"clip_id": row["clip_id"], "key": bytes.fromhex(row["key"])} for row in clips]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def write_known(folder: Path, before: pa.Table | None, own: pa.Table) -> None:
    """Writes the clips of a generation: those of the one before that it takes on, and its own."""
    write_columns(folder / CLIPS_FILE, own if before is None else pa.concat_tables([before, own]))


def left_out(known: pa.Table, wanted: Keys) -> pa.Table:
    """Of the known clips those that are not wanted, or not as they are."""
    return known.filter(pa.array(~wanted.has(keys_of(known))))


def write_left_out(path: Path, gone: pa.Table) -> None:
    """Writes what `left_out` found."""
    write_columns(path, gone)


def read_left_out(folder: Location) -> pa.Table:
    """What `write_left_out` wrote there."""
    return read_part(folder / LEFT_OUT_FILE)
