"""Windows for `OmniHumanForVideo`: one clip's latents and conditions as the arrays of a batch, and the segments of a
long video.

numpy and torch alone. The numbers are those of the trainer's own packing, with one window a sequence and no padding.
"""

import dataclasses
import itertools
import math

import numpy as np
import torch
from torch import Tensor

FPS = 25
TEMPORAL_STRIDE = 4
SPATIAL_STRIDE = 8
PATCH = 2
TOKEN_STRIDE = SPATIAL_STRIDE * PATCH
MOTION_FRAMES = 5
MOTION_LATENTS = 2
_NO_FRAME = np.iinfo(np.int64).min


@dataclasses.dataclass(kw_only=True)
class WindowInput:
    """One window of 1 + 4n frames. What is None is absent; text is always there, the empty prompt's where there is
    none.

    latents_FHWC   float32; the first two are read with `motion`, the others only give the size
    reference_HWC  latent of the reference image
    audio_TE       speech features, `margin` frames on each side; audio_valid_T says which rows are real
    keypoints_TJ3  x, y in tokens of 16 pixels, and confidence; likewise
    has_text       whether text_SE is a prompt's, not the empty one's
    slot           number of the segment: what its noise is keyed on
    """

    latents_FHWC: np.ndarray
    text_SE: np.ndarray
    pooled_E: np.ndarray
    has_text: bool
    reference_HWC: np.ndarray | None = None
    audio_TE: np.ndarray | None = None
    audio_valid_T: np.ndarray | None = None
    keypoints_TJ3: np.ndarray | None = None
    keypoints_valid_T: np.ndarray | None = None
    margin: int = 0
    motion: bool = False
    slot: int = 0


def patchify(latents_FHWC: np.ndarray) -> np.ndarray:
    """[F, H, W, C] -> [F * H/2 * W/2, 4 C], channels (patch row, patch column, channel)."""
    frames, height, width, channels = latents_FHWC.shape
    patches = latents_FHWC.reshape(frames, height // PATCH, PATCH, width // PATCH, PATCH, channels)
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(-1, PATCH * PATCH * channels)


def unpatchify(tokens_LC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Inverse of `patchify` for latents of `height` x `width`."""
    channels = tokens_LC.shape[1] // PATCH**2
    patches = tokens_LC.reshape(-1, height // PATCH, width // PATCH, PATCH, PATCH, channels)
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, channels)


def row_index(latents: int, slots: int, margin: int, valid_T: np.ndarray) -> np.ndarray:
    """Rows of [frames + 2 margin] features that each latent sees, [F, slots]; -1 for none.

    A row of the index: m frames before the latent's own 4 (the first latent's single frame takes the last of the four
    places), those, and m after; slots = 4 + 2m.
    """
    m = (slots - TEMPORAL_STRIDE) // 2
    index = np.full((latents, slots), _NO_FRAME, np.int64)
    for latent in range(latents):
        own = range(1) if latent == 0 else range(TEMPORAL_STRIDE * latent - 3, TEMPORAL_STRIDE * latent + 1)
        index[latent, :m] = np.arange(own.start - m, own.start)
        index[latent, m + TEMPORAL_STRIDE - len(own) : m + TEMPORAL_STRIDE] = own
        index[latent, m + TEMPORAL_STRIDE :] = np.arange(own.stop, own.stop + m)
    rows = np.where(index == _NO_FRAME, -1, index + margin)
    inside = (rows >= 0) & (rows < len(valid_T))
    return np.where(inside & valid_T[np.clip(rows, 0, len(valid_T) - 1)], rows, -1)


def pack(window: WindowInput, *, audio_slots: int, pose_slots: int) -> dict[str, Tensor]:
    """The batch of one sequence with this one window and no padding; slots: 4 + 2 neighbours of the audio and pose
    branch.
    """
    frames, height, width, _ = window.latents_FHWC.shape
    reference, video = window.reference_HWC, patchify(window.latents_FHWC)
    grid = np.meshgrid(np.arange(frames), np.arange(height // PATCH), np.arange(width // PATCH), indexing="ij")
    positions = np.stack(grid, axis=-1).reshape(-1, 3)
    area = len(positions) // frames
    count = 0 if reference is None else area
    first = [] if reference is None else [patchify(reference[None])]
    is_audio, is_pose = window.audio_TE is not None, window.keypoints_TJ3 is not None
    arrays = {
        "latents_BLC": np.concatenate([*first, video]).astype(np.float32),
        "segment_ids_BL": np.ones(count + len(video), np.int64),
        # A reference image stands at time 0, wherever the window is.
        "positions_BL3": np.concatenate([positions[:count], positions]),
        "is_reference_BL": np.arange(count + len(video)) < count,
        "frame_BL": np.concatenate([np.full(count, -1), positions[:, 0]]),
        # Counted from the first video token: the noise of a window does not change with its reference.
        "token_BL": np.concatenate([np.arange(count), np.arange(len(video))]),
        "text_BSE": np.asarray(window.text_SE, np.float32),
        "text_segment_ids_BS": np.ones(len(window.text_SE), np.int64),
        "pooled_BGE": np.asarray(window.pooled_E, np.float32)[None],
        "active_BG4": np.array([[window.has_text, reference is not None, is_audio, is_pose]]),
        "motion_BG": np.array([window.motion]),
        "slot_BG": np.array([window.slot]),
    }
    if window.audio_TE is not None and window.audio_valid_T is not None:
        arrays["audio_BTE"] = window.audio_TE.astype(np.float32)
        arrays["audio_index_BFA"] = row_index(frames, audio_slots, window.margin, window.audio_valid_T)
    if window.keypoints_TJ3 is not None and window.keypoints_valid_T is not None:
        arrays["keypoints_BTJ3"] = window.keypoints_TJ3.astype(np.float32)
        arrays["pose_index_BFP"] = row_index(frames, pose_slots, window.margin, window.keypoints_valid_T)
    return {name: torch.from_numpy(np.ascontiguousarray(array))[None] for name, array in arrays.items()}


def with_margins(rows_T: np.ndarray, start: int, frames: int, margin: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of frames start - margin .. start + frames + margin, zero where there is none, and which of them are
    real.
    """
    wanted = np.arange(start - margin, start + frames + margin)
    valid = (wanted >= 0) & (wanted < len(rows_T))
    out = np.zeros((len(wanted), *rows_T.shape[1:]), rows_T.dtype)
    out[valid] = rows_T[wanted[valid]]
    return out, valid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """Frames `start` .. `start + frames` of the video; the first `overlap` of them are the segment before's last."""

    index: int
    start: int
    frames: int
    overlap: int


def segments_of(total_frames: int, segment_frames: int) -> list[Segment]:
    """Segments of one length that cover the video, each overlapping the one before by 5 frames.

    One segment is cut to the shortest valid length when that covers the video. ValueError if a segment brings no new
    frames.
    """
    if segment_frames < 1 or (segment_frames - 1) % TEMPORAL_STRIDE:
        raise ValueError(f"a segment has 1 + 4n frames, not {segment_frames}")
    if total_frames <= segment_frames:
        frames = 1 + TEMPORAL_STRIDE * math.ceil((total_frames - 1) / TEMPORAL_STRIDE)
        return [Segment(index=0, start=0, frames=frames, overlap=0)]
    stride = segment_frames - MOTION_FRAMES
    if stride < 1:
        raise ValueError(
            f"{segment_frames} frames a segment leave none beside its {MOTION_FRAMES} motion frames: use 9 or more"
        )
    count = 1 + math.ceil((total_frames - segment_frames) / stride)
    return [
        Segment(index=i, start=i * stride, frames=segment_frames, overlap=MOTION_FRAMES if i else 0)
        for i in range(count)
    ]


def fit_size(height: int, width: int, area: int) -> tuple[int, int]:
    """(height, width) in multiples of 16 of about `area` pixels and the shape of `height` x `width`, never larger than
    it.
    """
    if height < TOKEN_STRIDE or width < TOKEN_STRIDE:
        raise ValueError(f"a picture of {height} x {width}: needs {TOKEN_STRIDE} pixels a side at least")
    area = min(area, height * width)
    scale = math.sqrt(area / (height * width)) / TOKEN_STRIDE

    def around(exact: float) -> set[int]:
        return {max(1, math.floor(exact)), math.ceil(exact)}

    def error(size: tuple[int, int]) -> tuple[float, int]:
        h, w = size[0] * TOKEN_STRIDE, size[1] * TOKEN_STRIDE
        return round(abs(math.log(h * width / (w * height))) + abs(math.log(h * w / area)), 6), h * w

    h, w = min(sorted(itertools.product(around(height * scale), around(width * scale))), key=error)
    return h * TOKEN_STRIDE, w * TOKEN_STRIDE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """How a source picture is laid over the video's: pixel (y, x) goes to (y * scale_y - top, x * scale_x - left)."""

    scale_y: float
    scale_x: float
    top: float
    left: float


def place(height: int, width: int, size: tuple[int, int]) -> Placement:
    """A picture of height x width over a video of `size`: stretched into the size that it was trained at, else cropped
    to fill.
    """
    scale_y, scale_x = size[0] / height, size[1] / width
    if fit_size(height, width, size[0] * size[1]) == size:
        return Placement(scale_y=scale_y, scale_x=scale_x, top=0.0, left=0.0)
    scale = max(scale_y, scale_x)
    return Placement(
        scale_y=scale, scale_x=scale, top=(height * scale - size[0]) / 2, left=(width * scale - size[1]) / 2
    )
