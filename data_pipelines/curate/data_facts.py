"""What a report says of the clips behind a data set: the funnel, how scores are spread beside their thresholds, and the
clips nearest each threshold, which say best whether it is right.
"""

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.curate import source_list, stage_parts
from data_pipelines.curate.clip_records import read_record
from data_pipelines.curate.clip_sets import find_sets, read_head, table_folder
from data_pipelines.curate.funnel import FUNNEL_FILE
from data_pipelines.curate.score_columns import read_scores
from data_pipelines.curate.stage_parts import Table
from data_pipelines.curate.tagging import CHECKS, SCORES, Check, Thresholds
from omnihuman_jax.data.dataset_files import dataset_folder, generations_up_to
from omnihuman_jax.data.generations import numbered, split_name
from omnihuman_jax.data.keypoints import draw_keypoints
from omnihuman_jax.runtime import files
from omnihuman_jax.runtime.locations import Location, StrPath, location, resolved
from omnihuman_jax.typing import FPS

_ENCODED = "encode.json"
# Of a large table, so many parts give the histograms: videos are in parts by a hash.
_MAX_PARTS = 200
_BINS = 40
_NEAREST = 4


def sets_of(folder: StrPath) -> Location:
    """The sets that a data set was encoded from, or the sets in `folder` itself.

    Raises:
        FileNotFoundError: neither, or the sets are not where they were.
    """
    path = location(split_name(folder)[0])
    if files.is_there(path / _ENCODED):
        stated = json.loads((dataset_folder(folder) / _ENCODED).read_text()).get("sets", "")
        return find_sets(resolved(path.parent, stated))
    return find_sets(path)


def read_facts(folder: StrPath) -> dict[str, Any]:
    """Of a generation of a data set, or of sets: {"dataset": its name (`DATASET@2`) or None, "funnel", "histograms",
    "nearest"}.

    A histogram is {score, counts, low, high, marks: [(threshold's name, value)]}; a row of `nearest` is {reason,
    threshold, clips: [{label, score, thumbnail}]}, thumbnails being JPEG in base64, with keypoints where they were
    computed.
    """
    path = location(split_name(folder)[0])
    there = files.is_there(path / _ENCODED)
    facts: dict[str, Any] = {"dataset": numbered(path, generations_up_to(folder)[-1].number) if there else None}
    try:
        sets = sets_of(folder)
    except FileNotFoundError:
        if facts["dataset"] is None:
            raise
        return {**facts, "funnel": None, "histograms": [], "nearest": []}  # the data set is all there is
    head = read_head(sets)
    table = Table(folder=table_folder(sets), keys=head["stages"])
    numbers = [int(number) for number in head["parts"]]
    chosen = [numbers[i] for i in np.unique(np.linspace(0, len(numbers) - 1, _MAX_PARTS).astype(int))]
    columns = [_part_scores(table, number) for number in table.on_their_way(chosen)]
    scores = {name: np.concatenate([part[name] for part in columns]) for name in (*SCORES, "part", "row")}
    thresholds = Thresholds(**head["thresholds"])
    limits = {c.reason: head["checks"].get(c.reason) for c in CHECKS if c.asks(thresholds)}
    funnel = sets / FUNNEL_FILE
    return {
        **facts,
        "funnel": json.loads(funnel.read_text()) if files.is_there(funnel) else None,
        "histograms": [_histogram(name, scores[name], limits) for name in SCORES if np.isfinite(scores[name]).any()],
        "nearest": [
            _nearest(check, limit, scores, table)
            for check in {check.reason: check for check in CHECKS}.values()  # two conditions may share one
            if (limit := limits.get(check.reason)) is not None and np.isfinite(scores[check.score]).any()
        ],
    }


def _part_scores(table: Table, number: int) -> dict[str, np.ndarray]:
    scores = read_scores(table, number)
    rows = np.arange(len(scores["seconds"]))
    return {**scores, "part": np.full(len(rows), number), "row": rows}


def _histogram(name: str, values: np.ndarray, limits: dict[str, float | None]) -> dict[str, Any]:
    values = values[np.isfinite(values)]
    marks = [
        (check.reason, limit)
        for check in CHECKS
        if check.score == name and (limit := limits.get(check.reason)) is not None
    ]
    low, high = (float(value) for value in np.percentile(values, [0.5, 99.5]))
    # A threshold near the scores is in the picture.
    margin = (high - low) or 1.0
    near = [limit for _, limit in marks if low - margin <= limit <= high + margin]
    low, high = min([low, *near]), max([high, *near])
    counts, _ = np.histogram(values, bins=_BINS, range=(low, high if high > low else low + 1))
    return {
        "score": name,
        "counts": counts.tolist(),
        "low": low,
        "high": high if high > low else low + 1,
        "marks": marks,
    }


def _nearest(check: Check, limit: float, scores: dict[str, np.ndarray], table: Table) -> dict[str, Any]:
    values = check.seen(scores[check.score])
    distance = np.where(np.isfinite(values), np.abs(values - limit), np.inf)
    rows = [row for row in np.argsort(distance, kind="stable")[:_NEAREST] if np.isfinite(distance[row])]
    clips = [_shown(table, int(scores["part"][row]), int(scores["row"][row])) for row in rows]
    return {
        "reason": check.reason,
        "score": check.score,
        "threshold": limit,
        "clips": [{**clip, "score": float(values[row])} for clip, row in zip(clips, rows, strict=True)],
    }


def _shown(table: Table, number: int, row: int) -> dict[str, str]:
    scan = stage_parts.clip_rows(table.read("scan", number))[row]
    names = {one["source"]: one["name"] for one in source_list.listed_in(table, number)}
    thumbnail = read_record(table.thumbnails(number), row).get("thumbnail")
    data = "" if thumbnail is None else base64.b64encode(_with_keypoints(table, number, row, scan, thumbnail)).decode()
    begin, end = scan["start_frame"] / FPS, scan["end_frame"] / FPS
    return {"label": f"{names.get(scan['source'], '?')} {begin:.1f}-{end:.1f} s", "thumbnail": data}


def _with_keypoints(table: Table, number: int, row: int, scan: Mapping[str, Any], thumbnail: np.ndarray) -> bytes:
    """The thumbnail, which is the clip's middle frame, as JPEG; with the frame's keypoints where they were computed."""
    keypoints_TJ3 = read_record(table.landmarks(number), row).get("keypoints_TJ3")
    if keypoints_TJ3 is None:
        return thumbnail.tobytes()
    picture = np.asarray(Image.open(io.BytesIO(thumbnail.tobytes())).convert("RGB"))
    points_J3 = keypoints_TJ3[(scan["end_frame"] - scan["start_frame"]) // 2].astype(np.float64)
    points_J3[:, :2] *= np.array([picture.shape[1] / scan["width"], picture.shape[0] / scan["height"]])
    drawn = io.BytesIO()
    Image.fromarray(draw_keypoints(picture, points_J3)).save(drawn, "JPEG", quality=80)
    return drawn.getvalue()
