"""Videos longer than a segment: segments chained through 5 motion frames [S].

The last 5 decoded frames of a segment are encoded again and given clean to the next one, which is decoded together with
them; its first 5 frames are dropped (contract, "Motion frames"). Every segment has the same length, so one compiled
sampler serves them all; what the last one has too much is cut off. Which they are: `serving/windows_omnihuman.py`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np

from omnihuman_jax.serving.windows_omnihuman import MOTION_FRAMES, TEMPORAL_STRIDE, Segment


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Seam:
    """How well two segments meet at output frame `frame` (values of pictures in [-1, 1]).

    overlap_psnr_db: decoded motion frames of the new segment against the frames that they were encoded from.
    jump: root mean square difference over the cut; typical_jump: its median over the other places in the two segments
    where one latent's frames end and the next one's begin, which is where a cut always falls.
    """

    frame: int
    overlap_psnr_db: float
    jump: float
    typical_jump: float


def chain(
    segments: tuple[Segment, ...], generate_segment: Callable[[Segment, np.ndarray | None], np.ndarray]
) -> Iterator[tuple[np.ndarray, Seam | None]]:
    """The new frames of each segment [<= frames, H, W, 3] float32, and the seam with the one before.

    Args:
        segments: of `windows_omnihuman.segment_schedule`.
        generate_segment: (segment, motion frames [5, H, W, 3] in [-1, 1] or None) -> decoded frames [frames, H, W, 3],
            motion frames included. It encodes them: only it knows the codec.
    """
    before: np.ndarray | None = None
    for segment in segments:
        motion = None if before is None else before[-MOTION_FRAMES:]
        frames = np.clip(np.asarray(generate_segment(segment, motion), np.float32), -1.0, 1.0)
        if len(frames) != segment.frames:
            raise ValueError(f"segment {segment.index} came back with {len(frames)} frames, not {segment.frames}")
        seam = None if before is None else measure_seam(before, frames, segment)
        yield frames[segment.overlap :], seam
        before = frames


def measure_seam(before_THW3: np.ndarray, after_THW3: np.ndarray, segment: Segment) -> Seam:
    """The seam between the segment before and `segment`, both with all of their decoded frames."""
    overlap = segment.overlap
    error = float(np.mean((before_THW3[-overlap:] - after_THW3[:overlap]) ** 2))

    def steps(frames: np.ndarray) -> np.ndarray:
        return np.sqrt(np.mean(np.diff(frames, axis=0) ** 2, axis=(1, 2, 3)))

    # Latents begin at frames 1, 5, 9, ...; the cut is the step before frame `overlap` = 5.
    inside = np.concatenate(
        [steps(before_THW3)[::TEMPORAL_STRIDE], steps(after_THW3)[overlap - 1 + TEMPORAL_STRIDE :: TEMPORAL_STRIDE]]
    )
    return Seam(
        frame=segment.start + overlap,
        overlap_psnr_db=10 * math.log10(4.0 / error) if error else math.inf,
        jump=float(steps(np.stack([before_THW3[-1], after_THW3[overlap]]))[0]),
        typical_jump=float(np.median(inside)),
    )
