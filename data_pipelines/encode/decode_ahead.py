"""Decodes the next clips on threads while the devices work on others. Apart from `clip_encoder.py`, whose code decides
whether a data set is still the right one: the records are the same.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from data_pipelines.curate.clips import Clip
from data_pipelines.curate.video_files import Address
from data_pipelines.encode.clip_encoder import ClipEncoder, WindowConfig
from omnihuman_jax.serving.pictures_omnihuman import fit_size

# Clips that are worked on together: their batches are shared by the devices, and few of these are left without one.
_CLIPS_A_DEVICE = 4
# Of all their frames, and of those of the next ones.
_GROUP_BYTES = 4 << 30


class AheadEncoder(ClipEncoder):
    """A `ClipEncoder`, for a `with`, that holds the frames of two groups of clips at most: those that are worked on,
    and the next ones.
    """

    def __init__(self, *arguments: Any, devices: int = 1) -> None:
        super().__init__(*arguments, devices=devices)
        self._decoder = ThreadPoolExecutor(devices, "decode")
        self._ahead: dict[str, Future[np.ndarray]] = {}

    def __enter__(self) -> "AheadEncoder":
        return self

    def __exit__(self, *exception: object) -> None:
        self._decoder.shutdown(wait=False, cancel_futures=True)

    def groups(self, clips: Sequence[Clip]) -> Iterator[list[Clip]]:
        """The clips in their order, so many together as the devices share; with one device each alone."""
        group: list[Clip] = []
        for clip in clips:
            many = len(group) >= (_CLIPS_A_DEVICE * self._devices if self._devices > 1 else 1)
            if group and (many or sum(map(self._bytes, (*group, clip))) > _GROUP_BYTES):
                yield group
                group = []
            group.append(clip)
        if group:
            yield group

    def decode_ahead(self, clips: Sequence[Clip]) -> None:
        """Begins to decode those whose turn is now or next, and lets go of all others; what is wrong with one, its own
        `open` says. Not of those out of a bucket or an archive: the room for copies may hold one alone, which is in
        use.
        """
        for other in self._ahead.keys() - {clip.clip_id for clip in clips}:
            self._ahead.pop(other).cancel()
        for clip in clips:
            if clip.clip_id not in self._ahead and Address.parse(clip.path, self._table).is_file:
                self._ahead[clip.clip_id] = self._decoder.submit(super()._frames, clip, _size(clip, self._config))

    def _frames(self, clip: Clip, size: tuple[int, int]) -> np.ndarray:
        ahead = self._ahead.pop(clip.clip_id, None)
        return super()._frames(clip, size) if ahead is None else ahead.result()

    def _bytes(self, clip: Clip) -> int:
        height, width = _size(clip, self._config)
        return clip.frames * height * width * 3


def _size(clip: Clip, config: WindowConfig) -> tuple[int, int]:
    return fit_size(clip.height, clip.width, config.area)
