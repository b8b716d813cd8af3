"""Packed batches of random content, with every array of `PackedShape`, for comparing two implementations of the model."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.typing import PackedShape, frames_of_latent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """A window of `latents` latent frames of `height` x `width` tokens."""

    latents: int
    height: int
    width: int
    text_tokens: int
    active: ConditionSet
    motion: bool = False

    @property
    def frames(self) -> int:
        return 1 + 4 * (self.latents - 1)


def packed_batch(shape: PackedShape, sequences: Sequence[Sequence[Window]], seed: int = 0) -> dict[str, np.ndarray]:
    """The windows of each sequence one after another; what no window owns is filled with noise, so that a leak shows."""
    rng = np.random.default_rng(seed)
    batch: dict[str, np.ndarray] = {}
    for name, (dims, dtype, _) in shape.arrays(len(sequences)).items():
        if dtype == np.float32:
            batch[name] = rng.standard_normal(dims).astype(np.float32)
        else:
            batch[name] = np.full(dims, -1 if name.split("_")[0] in ("frame", "audio", "pose", "window", "slot") else 0, dtype)
    batch["keypoints_BTJ3"] = np.abs(batch["keypoints_BTJ3"]) * np.array([2.0, 2.0, 0.5], np.float32)
    for b, windows in enumerate(sequences):
        ends = dict.fromkeys(("token", "text", "latent", "frame"), 0)
        for g, window in enumerate(windows):
            _place(batch, shape, b, g, window, ends)
        assert ends["token"] <= shape.latent_tokens and ends["text"] <= shape.text_tokens, ends
        assert ends["latent"] <= shape.latent_frames and ends["frame"] <= shape.frames, ends
    return batch


def _place(batch: dict[str, np.ndarray], shape: PackedShape, b: int, g: int, window: Window, ends: dict[str, int]) -> None:
    row_column = np.stack(np.meshgrid(np.arange(window.height), np.arange(window.width), indexing="ij"), -1).reshape(-1, 2)
    area = len(row_column)
    reference = Condition.REFERENCE in window.active
    begin, tokens = ends["token"], area * (window.latents + reference)
    own = slice(begin, begin + tokens)
    latent = np.repeat(np.arange(-int(reference), window.latents), area)
    batch["segment_ids_BL"][b, own] = g + 1
    batch["positions_BL3"][b, own, 0] = np.maximum(latent, 0)
    batch["positions_BL3"][b, own, 1:] = np.tile(row_column, (window.latents + reference, 1))
    batch["is_reference_BL"][b, own] = latent < 0
    batch["frame_BL"][b, own] = np.where(latent < 0, -1, latent + ends["latent"])
    batch["token_BL"][b, own] = np.arange(tokens)
    batch["text_segment_ids_BS"][b, ends["text"] : ends["text"] + window.text_tokens] = g + 1
    batch["active_BG4"][b, g] = window.active.mask()
    batch["motion_BG"][b, g] = window.motion
    batch["slot_BG"][b, g] = batch["window_BG"][b, g] = g
    for condition, name, count in (
        (Condition.AUDIO, "audio_index_BFA", shape.audio_tokens),
        (Condition.POSE, "pose_index_BFP", shape.pose_frames),
    ):
        if condition in window.active:
            margin = (count - 4) // 2
            for i in range(window.latents):
                covered = frames_of_latent(i)
                rows = ends["frame"] + np.arange(covered.start - margin, covered.stop + margin) + margin
                # The last rows stay -1: the first latent has fewer frames, and the edge of a clip has no neighbours.
                batch[name][b, ends["latent"] + i, : len(rows)] = np.where(rows < ends["frame"] + window.frames + margin, rows, -1)
    ends["token"] += tokens
    ends["text"] += window.text_tokens
    ends["latent"] += window.latents
    ends["frame"] += window.frames + max(shape.audio_tokens, shape.pose_frames) - 4
