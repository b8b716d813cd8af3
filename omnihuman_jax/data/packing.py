"""Packing: windows of different sizes and lengths into one sequence of fixed shape (`typing.PackedShape`).

On the host. The training pipeline and `generate` build their inputs here, so that there is one layout.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.serving.pictures_omnihuman import PATCH, token_positions, unpatchify
from omnihuman_jax.serving.windows_omnihuman import WindowInput, neighbours_of, row_index
from omnihuman_jax.typing import PackedBatch, PackedShape

REFERENCE_INDEX = 0  # temporal RoPE index of reference tokens: "zeroed" [S]


# In window_BG: a slot that the plan filled and no record could be read for, to be counted; -1 is a slot that the plan
# left empty.
UNREADABLE = -2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class PackInput(WindowInput):
    """A window, the conditions that are active on it (what is not in `active` is not used), and its catalog row, or
    any id >= 0.
    """

    active: ConditionSet
    window: int = 0


@dataclasses.dataclass(slots=True)
class _Cursor:
    """How full a sequence is."""

    token: int = 0
    text: int = 0
    frame: int = 0
    row: int = 0

    def take(self, what: str, count: int, limit: int, window: PackInput) -> slice:
        start = getattr(self, what)
        if start + count > limit:
            raise ValueError(
                f"window {window.window} needs {count} {what} slots, {limit - start} of {limit} are left in its"
                " sequence; raise the plan's limit or encode shorter or smaller windows"
            )
        setattr(self, what, start + count)
        return slice(start, start + count)


def pack_batch(sequences: Sequence[Sequence[PackInput | None]], shape: PackedShape) -> PackedBatch[np.ndarray]:
    """A batch of sequences as `pack_sequence` makes them, each written once, where it stays."""
    out = empty_batch(len(sequences), shape)
    for number, windows in enumerate(sequences):
        pack_sequence(windows, shape, out, number)
    return out


def empty_batch(batch: int, shape: PackedShape) -> PackedBatch[np.ndarray]:
    """`batch` sequences of padding."""
    out = jax.tree.map(lambda spec: spec.zeros(), shape.arrays(batch))
    for indices in (out.frame_BL, out.audio_index_BFA, out.pose_index_BFP, out.window_BG):
        indices.fill(-1)
    return out


def pack_sequence(
    windows: Sequence[PackInput | None],
    shape: PackedShape,
    batch: PackedBatch[np.ndarray] | None = None,
    number: int = 0,
) -> PackedBatch[np.ndarray]:
    """One sequence: the arrays of a batch without the batch dim. Window i gets slot i, None (unreadable) leaves its
    slot empty.

    With `batch` it is written there, as sequence `number` of padding, and what is returned are views.

    ValueError with the numbers if the windows do not fit, or if an active condition has no input.
    """
    if len(windows) > shape.windows:
        raise ValueError(f"{len(windows)} windows in a sequence of at most {shape.windows}")
    batch = empty_batch(1, shape) if batch is None else batch
    out = jax.tree.map(lambda array: array[number], batch)
    cursor = _Cursor()
    for group, window in enumerate(windows):
        if window is not None:
            _place_tokens(out, cursor, group, window, shape)
            _place_text(out, cursor, group, window, shape)
            _place_frames(out, cursor, window, shape)
            out.active_BG4[group] = window.active.mask()
            out.motion_BG[group] = window.motion
            out.slot_BG[group] = window.slot
            out.window_BG[group] = window.window
        else:
            out.window_BG[group] = UNREADABLE
    return out


def _place_tokens(
    out: PackedBatch[np.ndarray], cursor: _Cursor, group: int, window: PackInput, shape: PackedShape
) -> None:
    """Reference tokens, then video tokens."""
    frames, height, width, _ = window.latents_FHWC.shape
    if Condition.REFERENCE in window.active:
        if window.reference_HWC is None or window.reference_HWC.shape != window.latents_FHWC.shape[1:]:
            size = None if window.reference_HWC is None else window.reference_HWC.shape
            raise ValueError(f"window {window.window}: reference {size}, expected {window.latents_FHWC.shape[1:]}")
        at = cursor.take("token", height // PATCH * (width // PATCH), shape.latent_tokens, window)
        _write_patches(out.latents_BLC[at], window.reference_HWC[None])
        out.segment_ids_BL[at] = group + 1
        out.positions_BL3[at] = _positions(1, height, width)
        out.positions_BL3[at, 0] += REFERENCE_INDEX
        out.is_reference_BL[at] = True
        out.token_BL[at] = np.arange(at.stop - at.start)
    positions = _positions(frames, height, width)
    at = cursor.take("token", len(positions), shape.latent_tokens, window)
    _write_patches(out.latents_BLC[at], window.latents_FHWC)
    out.segment_ids_BL[at] = group + 1
    out.positions_BL3[at] = positions
    np.add(positions[:, 0], cursor.frame, out=out.frame_BL[at])
    # Counted from the first video token: the noise of a window does not change with its reference.
    out.token_BL[at] = np.arange(len(positions))


@functools.lru_cache(maxsize=256)
def _positions(frames: int, height: int, width: int) -> np.ndarray:
    """`token_positions`, made once a size."""
    positions = token_positions(frames, height, width)
    positions.setflags(write=False)
    return positions


def _write_patches(tokens_LC: np.ndarray, latents_FHWC: np.ndarray) -> None:
    """`patchify` into tokens that are there already: one pass over the latents."""
    frames, height, width, channels = latents_FHWC.shape
    rows, columns = height // PATCH, width // PATCH
    # A patch's row of pixels is contiguous on either side.
    patches = latents_FHWC.reshape(frames, rows, PATCH, columns, PATCH * channels).transpose(0, 1, 3, 2, 4)
    tokens_LC.reshape(patches.shape)[...] = patches


def _place_text(
    out: PackedBatch[np.ndarray], cursor: _Cursor, group: int, window: PackInput, shape: PackedShape
) -> None:
    if window.text_SE.shape[1:] != (shape.text_width,) or not len(window.text_SE):
        raise ValueError(
            f"window {window.window}: text {window.text_SE.shape}, expected [at least 1, {shape.text_width}]"
        )
    at = cursor.take("text", len(window.text_SE), shape.text_tokens, window)
    out.text_BSE[at] = window.text_SE
    out.text_segment_ids_BS[at] = group + 1
    if shape.pooled_width:
        out.pooled_BGE[group] = window.pooled_E


def _place_frames(out: PackedBatch[np.ndarray], cursor: _Cursor, window: PackInput, shape: PackedShape) -> None:
    """Latent-frame slots and, if audio or pose drives the window, its rows of features; stored margins are trimmed."""
    frames = window.frames
    slots = cursor.take("frame", len(window.latents_FHWC), shape.latent_frames, window)
    audio = Condition.AUDIO in window.active and shape.audio_width > 0
    pose = Condition.POSE in window.active and shape.keypoints > 0
    if not audio and not pose:
        return
    margin = min(window.margin, max(neighbours_of(shape.audio_tokens), neighbours_of(shape.pose_frames)))
    trimmed = slice(window.margin - margin, window.margin + frames + margin)
    rows = cursor.take("row", frames + 2 * margin, shape.frames, window)
    for on, condition, values, valid, array, index, width in (
        (
            audio,
            Condition.AUDIO,
            window.audio_TE,
            window.audio_valid_T,
            out.audio_BTE,
            out.audio_index_BFA,
            shape.audio_tokens,
        ),
        (
            pose,
            Condition.POSE,
            window.keypoints_TJ3,
            window.keypoints_valid_T,
            out.keypoints_BTJ3,
            out.pose_index_BFP,
            shape.pose_frames,
        ),
    ):
        if not on:
            continue
        expected = (frames + 2 * window.margin, *array.shape[1:])
        if values is None or valid is None or values.shape != expected:
            size = None if values is None else values.shape
            raise ValueError(
                f"window {window.window}: {condition.label} is active, its input is {size}, expected {expected}"
            )
        array[rows] = values[trimmed]
        row = row_index(frames, width, margin, valid[trimmed])
        index[slots] = np.where(row < 0, -1, row + rows.start)


def window_latents(batch: PackedBatch[np.ndarray], tokens_BLC: np.ndarray, sequence: int, group: int) -> np.ndarray:
    """The latents [F, H, W, C] of the window in slot `group` of `sequence`, out of tokens laid out as the batch's."""
    own = (batch.segment_ids_BL[sequence] == group + 1) & ~batch.is_reference_BL[sequence]
    if not own.any():
        raise ValueError(f"sequence {sequence} has no window in slot {group}")
    _, height, width = batch.positions_BL3[sequence][own].max(axis=0) + 1
    return unpatchify(tokens_BLC[sequence][own], PATCH * int(height), PATCH * int(width))
