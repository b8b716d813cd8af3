"""Decodes the next clip on a thread while a device works on one. Apart from `clip_encoder.py`, whose code decides
whether a data set is still the right one: the records are the same.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from data_pipelines.curate.clips import Clip
from data_pipelines.curate.video_files import Address
from data_pipelines.encode.clip_encoder import ClipEncoder
from omnihuman_jax.serving.pictures_omnihuman import fit_size


class AheadEncoder(ClipEncoder):
    """A `ClipEncoder`, for a `with`, that holds the frames of two clips at most: that one's, and the next one's."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._decoder = ThreadPoolExecutor(1, "decode")
        self._ahead: dict[str, Future[np.ndarray]] = {}

    def __enter__(self) -> "AheadEncoder":
        return self

    def __exit__(self, *exception: object) -> None:
        self._decoder.shutdown(wait=False, cancel_futures=True)

    def decode_ahead(self, clip: Clip | None, *, kept: str = "") -> None:
        """Begins to decode a clip whose turn comes; what is wrong with it, its own `encode` says. Lets go of all others
        but `kept`, whose turn is now. Not of one out of a bucket or an archive: the room for copies may hold one alone,
        which is in use.
        """
        for other in [name for name in self._ahead if name != kept]:
            self._ahead.pop(other).cancel()
        if clip is not None and Address.parse(clip.path, self._table).is_file:
            size = fit_size(clip.height, clip.width, self._config.area)
            self._ahead[clip.clip_id] = self._decoder.submit(super()._frames, clip, size)

    def _frames(self, clip: Clip, size: tuple[int, int]) -> np.ndarray:
        ahead = self._ahead.pop(clip.clip_id, None)
        return super()._frames(clip, size) if ahead is None else ahead.result()
