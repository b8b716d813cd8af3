"""Array aliases, the shape legend, and the layout of a packed batch.

Shape suffixes, one legend for the whole package (`q_BMNK` has four dims):

    B  sequences of a batch            L  packed latent tokens (video, reference, motion) of a sequence
    S  text tokens of a sequence       M  joint tokens, L + S
    G  window slots of a sequence      T  pixel-rate frames (25 fps); in a batch: packed, with margins
    F  latent frames; in a batch: packed latent-frame slots of a sequence
    A  audio tokens of a latent frame  P  pose frames of a latent frame
    H W  latent height and width       C  channels (in a batch: of a patch token)
    D  model width   N  heads   K  head size   E  encoder width   J  keypoints
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray
Params: TypeAlias = dict[str, Any]
Batch: TypeAlias = Mapping[str, Array]

FPS = 25
SAMPLE_RATE_HZ = 16_000
TEMPORAL_STRIDE = 4
SPATIAL_STRIDE = 8
PATCH = 2
TOKEN_STRIDE = SPATIAL_STRIDE * PATCH
MOTION_FRAMES = 5
MOTION_LATENTS = 2


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PackedShape:
    """Sizes of one packed sequence: everything that the compiled step's input shapes depend on.

    A `Batch` holds, for B sequences (dtypes in `arrays`; padding tokens have segment id 0):

    latents_BLC          clean patch tokens in the order of their windows: a window's reference tokens first (if
                         active), then its video tokens, latent frame by latent frame, row by row; C is (patch row,
                         patch column, channel)
    segment_ids_BL       0 padding, g + 1 for the window in slot g
    positions_BL3        RoPE indices (t, h, w); t is 0 on reference tokens
    is_reference_BL      reference tokens: clean, no loss
    frame_BL             packed latent-frame slot (0..F-1) of a video token, -1 on reference and padding
    token_BL             index of the token in its own window: what its noise is keyed on, whatever it is packed with
    text_BSE             token-level text embeddings; the empty prompt's where text is inactive
    text_segment_ids_BS  as segment_ids_BL
    pooled_BGE           pooled text embedding of a window
    audio_BTE            speech features of the packed frames (with margins), layers flattened into E
    audio_index_BFA      rows of audio_BTE that a latent frame attends to, -1 for none
    keypoints_BTJ3       (x, y, confidence) of the packed frames, x and y in token units of the window's grid
    pose_index_BFP       rows of keypoints_BTJ3 that a latent frame sees, -1 for none
    active_BG4           active conditions of a window, in the order of `Condition`
    motion_BG            motion frames active: the first 2 latents are given clean
    slot_BG              number of the window among the step's windows: noise, t and drops are keyed on (seed, step,
    slot)
    window_BG            catalog row, -1 for an empty slot, -2 for one whose record cannot be read
    """

    latent_tokens: int
    text_tokens: int
    windows: int
    latent_frames: int
    frames: int
    patch_channels: int
    text_width: int
    pooled_width: int
    audio_width: int
    audio_tokens: int
    keypoints: int
    pose_frames: int

    def arrays(self, batch: int) -> dict[str, tuple[tuple[int, ...], np.dtype, tuple[str | None, ...]]]:
        """Name -> (shape, dtype, logical axes) of every array of a batch of `batch` sequences."""
        b, l, s, g = batch, self.latent_tokens, self.text_tokens, self.windows
        f, t = self.latent_frames, self.frames
        f32, i32, boolean = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.bool_)
        return {
            "latents_BLC": ((b, l, self.patch_channels), f32, ("batch", "tokens", None)),
            "segment_ids_BL": ((b, l), i32, ("batch", "tokens")),
            "positions_BL3": ((b, l, 3), i32, ("batch", "tokens", None)),
            "is_reference_BL": ((b, l), boolean, ("batch", "tokens")),
            "frame_BL": ((b, l), i32, ("batch", "tokens")),
            "token_BL": ((b, l), i32, ("batch", "tokens")),
            "text_BSE": ((b, s, self.text_width), f32, ("batch", None, None)),
            "text_segment_ids_BS": ((b, s), i32, ("batch", None)),
            "pooled_BGE": ((b, g, self.pooled_width), f32, ("batch", None, None)),
            "audio_BTE": ((b, t, self.audio_width), f32, ("batch", None, None)),
            "audio_index_BFA": ((b, f, self.audio_tokens), i32, ("batch", None, None)),
            "keypoints_BTJ3": ((b, t, self.keypoints, 3), f32, ("batch", None, None, None)),
            "pose_index_BFP": ((b, f, self.pose_frames), i32, ("batch", None, None)),
            "active_BG4": ((b, g, 4), boolean, ("batch", None, None)),
            "motion_BG": ((b, g), boolean, ("batch", None)),
            "slot_BG": ((b, g), i32, ("batch", None)),
            "window_BG": ((b, g), i32, ("batch", None)),
        }


def latent_frames_of(frames: int) -> int:
    """Latent frames of a window of `frames` = 1 + 4n pixel frames; ValueError otherwise."""
    if frames < 1 or (frames - 1) % TEMPORAL_STRIDE:
        raise ValueError(
            f"a window has 1 + 4n frames, not {frames}; nearest below is {max(1, frames - (frames - 1) % 4)}"
        )
    return 1 + (frames - 1) // TEMPORAL_STRIDE


def frames_of_latent(index: int) -> range:
    """Pixel frames that latent `index` of a window covers: frame 0, or frames 4i-3 .. 4i (contract)."""
    if index == 0:
        return range(1)
    return range(TEMPORAL_STRIDE * index - 3, TEMPORAL_STRIDE * index + 1)
