"""A shard of a data set, made: its file first, then what the catalog says of it, then the mark that it is done.

    part-00007.array_record     the records
    part-00007.parquet          their rows of the catalog, numbered from 0
    part-00007.json             the mark: the plan's id, counts, digests, statistics of the clips, dead letters

Without the mark, or with that of another plan, it is work. It is a function of its clips alone, so that whoever makes
it makes the same bytes.
"""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from data_pipelines.curate.clips import Clip
from data_pipelines.curate.stage_parts import write_columns
from data_pipelines.encode.clip_encoder import EncodedWindow
from data_pipelines.encode.dead_letters import DeadLetters
from data_pipelines.encode.decode_ahead import AheadEncoder
from data_pipelines.encode.encoded_clips import KeyedClip
from omnihuman_jax.data.records import DatasetSpec, WindowRecord, write_shard
from omnihuman_jax.runtime import files
from omnihuman_jax.runtime.locations import Location, is_remote
from omnihuman_jax.typing import FPS, SPATIAL_STRIDE, latent_frames_of

_ASKED_AT_ONCE = 32


@dataclasses.dataclass(frozen=True, slots=True)
class ShardFiles:
    """Where shard `number` of the data set that is being made in `folder` lies; `plan` is the `plan_id` of it."""

    folder: Location
    number: int
    plan: str

    @property
    def records(self) -> Location:
        return self._named("array_record")

    @property
    def rows(self) -> Location:
        return self._named("parquet")

    @property
    def mark(self) -> Location:
        return self._named("json")

    @property
    def lease(self) -> Location:
        return self._named("lease")

    @property
    def is_made(self) -> bool:
        """Whether it is whole, and of this plan."""
        return self.read_mark().get("plan") == self.plan

    def read_mark(self) -> dict[str, Any]:
        """What the mark says; {} where there is none."""
        try:
            return dict(json.loads(files.read_bytes(self.mark)))
        except FileNotFoundError:
            return {}

    def _named(self, suffix: str) -> Location:
        return self.folder / f"part-{self.number:05d}.{suffix}"


def read_marks(shards: Sequence[ShardFiles]) -> Iterator[dict[str, Any]]:
    """`read_mark` of each, in order; of a bucket's many are asked for at once, and few are held."""
    if not shards or not is_remote(shards[0].folder):
        yield from (one.read_mark() for one in shards)
        return
    with concurrent.futures.ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        for first in range(0, len(shards), 4 * _ASKED_AT_ONCE):
            yield from pool.map(ShardFiles.read_mark, shards[first : first + 4 * _ASKED_AT_ONCE])


def make_shard(
    at: ShardFiles, clips: Sequence[KeyedClip], encoder: AheadEncoder, letters: DeadLetters, spec: DatasetSpec
) -> None:
    """Encodes the clips into a shard; of clips of which none can be encoded there is a mark alone."""
    for path in (at.records, at.rows):
        files.remove_stale(at.folder, path.name)
    rows: list[dict[str, Any]] = []
    encoded: dict[str, dict[str, Any]] = {}
    digest = hashlib.sha256()
    keys = {clip.clip_id: key for clip, key in clips}

    def records() -> Iterator[WindowRecord]:
        groups = list(encoder.groups([clip for clip, _ in clips if clip.conditions.bits]))
        for number, group in enumerate(groups):
            following = groups[number + 1] if number + 1 < len(groups) else []
            encoder.decode_ahead([*group, *following])
            for clip, found in zip(group, letters.encoded(encoder, group, spec), strict=True):
                encoded[clip.clip_id] = _clip_row(clip, keys[clip.clip_id], found.windows, found.statistics.to_json())
                for window in found.windows:
                    rows.append(_catalog_row(len(rows), window))
                    yield window.record

    stream = records()
    first = next(stream, None)
    count = size = 0
    of_file: list[str] = []
    if first is not None:
        given = (at.records, itertools.chain((first,), stream), spec, digest.update)
        count, size = write_shard(*given, lambda file: of_file.append(files.file_sha256(file)))
        write_columns(at.rows, pa.Table.from_pylist(rows))
    mark = {
        "plan": at.plan,
        "records": count,
        "bytes": size,
        "records_sha256": digest.hexdigest(),
        "file_sha256": "".join(of_file),
        "clips": [
            encoded.get(clip.clip_id) or _clip_row(clip, key, [], None) | {"serves": "none"} for clip, key in clips
        ],
        "quarantine": letters.taken(),
    }
    files.write_text(at.mark, json.dumps(mark))


def _clip_row(
    clip: Clip, key: str, windows: Sequence[EncodedWindow], statistics: dict[str, Any] | None
) -> dict[str, Any]:
    row = {"clip_id": clip.clip_id, "key": key, "label": clip.label, "height": clip.height, "width": clip.width}
    return {**row, "windows": len(windows), "statistics": statistics}


def _catalog_row(index: int, window: EncodedWindow) -> dict[str, Any]:
    record = window.record
    return {
        "window_id": record.window_id,
        "clip_id": record.clip_id,
        "split": window.split,
        "record": index,
        "start_frame": window.window.start,
        "latent_frames": latent_frames_of(record.frames),
        "latent_height": window.height // SPATIAL_STRIDE,
        "latent_width": window.width // SPATIAL_STRIDE,
        "height": window.height,
        "width": window.width,
        "text_tokens": len(record.text_SE),
        "num_references": len(record.references_RHWC),
        "duration_s": record.frames / FPS,
        "eligible": record.eligible,
    }
