"""A table of clips that are known without looking: `omnihuman encode` reads it as it reads curate's."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from data_pipelines.curate import source_list, stage_parts
from data_pipelines.curate.clip_records import RecordWriter
from data_pipelines.curate.clip_sets import OWN_SETS, ROWS_FILE, SETS_SCHEMA
from data_pipelines.curate.clips import Clip, Landmarks
from data_pipelines.curate.sets_writer import write_head
from data_pipelines.curate.source_list import ListedVideo
from data_pipelines.curate.stage_parts import CLIP, SCHEMAS, Table
from omnihuman_jax.conditions import Condition
from omnihuman_jax.runtime import files
from omnihuman_jax.runtime.locations import StrPath, location

_KEYS = dict.fromkeys(stage_parts.STAGES, "known")
_PART = 0


def write_clips(folder: StrPath, clips: Iterable[tuple[Clip, Landmarks | Mapping[str, np.ndarray]]]) -> None:
    """Writes a table of one part with these clips, in their order, and sets of it with the tags that they have."""
    table, rows = Table(folder=location(folder), keys=_KEYS), []
    with RecordWriter(table.landmarks(_PART)) as records, RecordWriter(table.thumbnails(_PART)) as thumbnails:
        for clip, landmarks in clips:
            thumbnails.write({})
            records.write(landmarks.arrays() if isinstance(landmarks, Landmarks) else landmarks)
            rows.append(clip)
    stage_parts.write_part(table.part("scan", _PART), [_scan_row(clip) for clip in rows], SCHEMAS["scan"])
    for stage in stage_parts.STAGES[1:]:
        names = {field.name for field in SCHEMAS[stage]}
        scored = [{"clip_id": c.clip_id, **{n: v for n, v in c.scores.items() if n in names}} for c in rows]
        stage_parts.write_part(table.part(stage, _PART), scored, SCHEMAS[stage])
    listed = {clip.video: _listed(clip) for clip in rows}
    source_list.write_listing(table, "", list(listed.values()), {})
    table.save()
    stage_parts.write_part(table.folder / OWN_SETS / ROWS_FILE, list(map(_set_row, rows)), SETS_SCHEMA)
    checks = {r["reason"]: r["threshold"] for clip in rows for r in clip.reasons.values()}
    digest = files.file_sha256(table.landmarks(_PART))
    write_head(table.folder / OWN_SETS, table, {_PART: len(rows)}, thresholds={}, checks=checks, landmarks=digest)


def _listed(clip: Clip) -> ListedVideo:
    return ListedVideo(
        part=_PART,
        source=clip.video,
        name=clip.video,
        path=clip.path,
        caption=clip.caption,
        caption_source=clip.caption_source,
        caption_error="",
        split=clip.split,
    )


def _scan_row(clip: Clip) -> dict[str, Any]:
    names = ("sha256", "start_frame", "end_frame", "height", "width", "has_audio")
    facts = {name: getattr(clip, name) for name in names}
    unknown = {name: clip.scores.get(name, 0.0) for name in ("source_fps", "bits_per_pixel")}
    return {"source": clip.video, "kind": CLIP, **facts, **unknown, "duration_s": clip.end_frame / clip.fps}


def _set_row(clip: Clip) -> dict[str, Any]:
    row: dict[str, Any] = {"eligible": clip.conditions.bits, "dedup_group": -1, "dataset": "", "weight": 1.0}
    for condition in Condition:
        if (why := clip.reasons.get(condition.label)) is not None:
            row[f"{condition.label}_reason"] = why["reason"]
            row[f"{condition.label}_score"] = math.nan if why["score"] is None else why["score"]
    return row
