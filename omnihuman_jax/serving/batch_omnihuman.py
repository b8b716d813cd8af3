"""One window as the arrays of a batch of `OmniHumanForVideo`, and that batch without text and audio. numpy alone.

The numbers are those of the trainer's own packing, with one window a sequence and no padding.
"""

from collections.abc import Mapping

import numpy as np
from guidance_omnihuman import empty_prompts
from pictures_omnihuman import patchify, token_positions
from windows_omnihuman import WindowInput, row_index

TEXT, AUDIO = 0, 2  # columns of active_BG4: what guidance drops


def pack(window: WindowInput, *, has_text: bool, audio_slots: int, pose_slots: int) -> dict[str, np.ndarray]:
    """The batch of one sequence with this one window; what it has no array for is not active.

    Args:
      window: what the model is to see.
      has_text: whether `text_SE` is a prompt's, not the empty one's.
      audio_slots, pose_slots: 4 + 2 neighbours of the audio and pose branch.
    """
    frames, height, width, _ = window.latents_FHWC.shape
    reference, video = window.reference_HWC, patchify(window.latents_FHWC)
    positions = token_positions(frames, height, width)
    count = 0 if reference is None else len(positions) // frames
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
        "active_BG4": np.array([[has_text, reference is not None, is_audio, is_pose]]),
        "motion_BG": np.array([window.motion]),
        "slot_BG": np.array([window.slot]),
    }
    if window.audio_TE is not None and window.audio_valid_T is not None:
        arrays["audio_BTE"] = window.audio_TE.astype(np.float32)
        arrays["audio_index_BFA"] = row_index(window.frames, audio_slots, window.margin, window.audio_valid_T)
    if window.keypoints_TJ3 is not None and window.keypoints_valid_T is not None:
        arrays["keypoints_BTJ3"] = window.keypoints_TJ3.astype(np.float32)
        arrays["pose_index_BFP"] = row_index(window.frames, pose_slots, window.margin, window.keypoints_valid_T)
    return {name: array[None] for name, array in arrays.items()}


def without(
    batch: Mapping[str, np.ndarray],
    text_SE: np.ndarray,
    pooled_E: np.ndarray,
    text_rows: int | None = None,
    *,
    drops_text: bool = True,
) -> dict[str, np.ndarray]:
    """`batch` for an unconditional branch: no audio and the empty prompt, everything else kept.

    Args:
      batch: of `pack`, or of any packing.
      text_SE, pooled_E: embeddings of the empty prompt, of the run's own text encoder.
      text_rows: rows of text of a sequence; those of `batch` by default.
      drops_text: False keeps the prompt, for a branch without the sound alone.

    Raises:
      ValueError: the empty prompt of every window does not fit the rows.
    """
    active = batch["active_BG4"].copy()
    active[..., [TEXT, AUDIO] if drops_text else [AUDIO]] = False
    if not drops_text:
        return dict(batch) | {"active_BG4": active}
    rows = batch["text_BSE"].shape[1] if text_rows is None else text_rows
    text, ids, pooled = empty_prompts(batch["segment_ids_BL"], active.shape[1], rows, text_SE, pooled_E)
    return dict(batch) | {"active_BG4": active, "text_BSE": text, "text_segment_ids_BS": ids, "pooled_BGE": pooled}
