"""The sound of a data set's windows: out of the table of clips that it was encoded from, as the records hold features
alone.
"""

from pathlib import Path

import numpy as np

from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.typing import FPS


class ClipSounds:
    """The clips of `folder`, of `omnihuman curate` or `select`, read once."""

    def __init__(self, folder: Path):
        from data_pipelines.curate.clip_sets import read_clips, table_folder

        self._folder, self._table = folder, table_folder(folder)
        self._clips = {clip.clip_id: clip for clip in read_clips(folder)}

    def of(self, clip_id: str, start_frame: int, frames: int, sample_rate_hz: int) -> np.ndarray | None:
        """Mono float32 [N] of a window of a clip, None without a track; ValueError for a clip that is not there."""
        if (clip := self._clips.get(clip_id)) is None:
            raise ValueError(f"{self._folder} has no clip {clip_id}: give the folder that the dataset was encoded from")
        start_s = clip.start_s + start_frame / FPS
        return media_omnihuman.read_audio(clip.video_path(self._table), sample_rate_hz, start_s, frames / FPS)
