"""Which windows a clip is cut into, at which size, and what belongs to each: pure functions on numbers and arrays."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from omnihuman_jax.typing import TOKEN_STRIDE, latent_frames_of


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Window:
    """`frames` = 1 + 4n consecutive frames of a clip from frame `start` on."""

    start: int
    frames: int

    @property
    def end(self) -> int:
        return self.start + self.frames

    def window_id(self, clip_id: str) -> str:
        return f"{clip_id}-f{self.start:05d}-n{self.frames:03d}"


def cut_windows(num_frames: int, lengths: Sequence[int], stride: int, image_stride: int) -> list[Window]:
    """The windows of a clip of `num_frames`: for each length, a start every `stride` frames (0: of as many as
    the window has), and one that ends with the clip.

    Single frames start every `image_stride` frames instead, in the middle of each stretch. A length that does not fit
    gives none.
    """
    windows = []
    for frames in sorted(set(lengths)):
        latent_frames_of(frames)
        last = num_frames - frames
        if frames == 1:
            starts = [min(last, start + image_stride // 2) for start in range(0, num_frames, image_stride)]
        else:
            starts = [*range(0, last, stride or frames), last] if last >= 0 else []
        windows += [Window(start, frames) for start in starts]
    return windows


def reference_frames(num_frames: int, window: Window, count: int, spacing: int) -> tuple[int, ...]:
    """Up to `count` frames of a clip outside of `window`, spread evenly; none if the window is the whole clip.

    They are taken from every `spacing`-th frame, so that the windows of a clip share a few encoded references; from all
    frames if none of those lies outside.
    """
    candidates: Sequence[int] = []
    for step in (max(1, spacing), 1):
        candidates = [frame for frame in range(step // 2, num_frames, step) if not window.start <= frame < window.end]
        if candidates:
            break
    count = min(count, len(candidates))
    return tuple(candidates[(2 * i + 1) * len(candidates) // (2 * count)] for i in range(count))


def to_token_units(keypoints_TJ3: np.ndarray, source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """x, y in pixels of `source` (height, width) -> tokens (16 pixels) of `target`, from the corner; confidence is
    kept.
    """
    scale = np.array([target[1] / source[1], target[0] / source[0], TOKEN_STRIDE]) / TOKEN_STRIDE
    return (keypoints_TJ3 * scale).astype(np.float32)
