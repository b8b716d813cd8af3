"""The scores of a part's clips as columns of numbers, float64 [n] each, NaN where a score was not computed; those that
were read.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.curate.file_stages import BY_PREVIEW, KNOWN_SCORES, PREVIEW_SCORES
from data_pipelines.curate.stage_parts import Table, clips_of
from data_pipelines.curate.tagging import SCORES
from omnihuman_jax.typing import FPS

# What `scan` knows of a clip, and columns that are read for `all_scores`: stage -> names.
_OF_SCAN = ("start_frame", "end_frame", "height", "width", "source_fps", "bits_per_pixel", "has_audio")
KNOWN_COLUMNS = {"scan": ("kind", *_OF_SCAN), "preview": (*KNOWN_SCORES, *PREVIEW_SCORES)}


def known_scores(clips: pa.Table, previewed: pa.Table) -> dict[str, np.ndarray]:
    """Those that are known before landmarks: of `scan`'s rows of clips, and of `preview`'s."""
    frames = clips["end_frame"].to_numpy() - clips["start_frame"].to_numpy()
    return {
        "seconds": frames / FPS,
        "short_side_px": np.minimum(clips["height"].to_numpy(), clips["width"].to_numpy()).astype(np.float64),
        "source_fps": clips["source_fps"].to_numpy(),
        "bits_per_pixel": clips["bits_per_pixel"].to_numpy(),
        "audio_tracks": clips["has_audio"].to_numpy().astype(np.float64),
        **{name: previewed[name].to_numpy() for name in KNOWN_COLUMNS["preview"] if name in previewed.column_names},
    }


def all_scores(clips: pa.Table, scored: Mapping[str, pa.Table]) -> dict[str, np.ndarray]:
    """Those that checks compare, and the preview's; the rows are one another's. scored: stage -> its rows."""
    scores = known_scores(clips, scored["preview"])
    scores["looked_at"] = 1.0 - is_word(scored["look"]["landmarks_why"], BY_PREVIEW)
    for stage, columns in scored.items():
        if stage == "preview":
            continue
        scores |= {name: columns[name].to_numpy() for name in columns.column_names if name in SCORES}
    return scores


def is_word(column: pa.ChunkedArray, word: str) -> np.ndarray:
    """Bool [n]: where a column of words has this one."""
    return np.asarray(pc.fill_null(pc.equal(column.cast(pa.string()), word), False).to_numpy(), bool)


def read_scores(table: Table, number: int) -> dict[str, np.ndarray]:
    """`all_scores` of a part; of stages that the table does not have, nothing was computed."""
    scored = {stage: table.read(stage, number) for stage in table.scored}
    clips = clips_of(table.read("scan", number))
    return {**{name: np.full(len(clips), np.nan) for name in SCORES}, **all_scores(clips, scored)}
