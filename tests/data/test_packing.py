"""Packing: the layout of a sequence, the frames each latent sees, and that nothing of an inactive condition gets in."""

import dataclasses

import jax
import numpy as np
import pytest

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data.packing import UNREADABLE, PackInput, pack_batch, pack_sequence, window_latents
from omnihuman_jax.serving.pictures_omnihuman import patchify, token_positions
from omnihuman_jax.serving.windows_omnihuman import NO_FRAME, frame_index
from omnihuman_jax.typing import PackedShape

SHAPE = PackedShape(
    latent_tokens=256, text_tokens=24, windows=4, latent_frames=12, frames=80, patch_channels=16, text_width=6,
    pooled_width=5,
    audio_width=3, audio_tokens=8, keypoints=4, pose_frames=6,
)  # fmt: skip
EVERY = ConditionSet(15)


def window(
    seed: int, active: ConditionSet = EVERY, *, frames: int = 9, height: int = 4, width: int = 6, margin: int = 3
) -> PackInput:
    rng = np.random.default_rng(seed)
    rows = frames + 2 * margin
    return PackInput(
        latents_FHWC=rng.normal(size=(1 + (frames - 1) // 4, height, width, 4)).astype(np.float32),
        reference_HWC=rng.normal(size=(height, width, 4)).astype(np.float32),
        text_SE=rng.normal(size=(3 + seed, 6)).astype(np.float32),
        pooled_E=rng.normal(size=5).astype(np.float32),
        audio_TE=rng.normal(size=(rows, 3)).astype(np.float32),
        audio_valid_T=np.ones(rows, bool),
        keypoints_TJ3=rng.normal(size=(rows, 4, 3)).astype(np.float32),
        keypoints_valid_T=np.ones(rows, bool),
        margin=margin,
        active=active,
        motion=bool(seed % 2),
        slot=10 + seed,
        window=100 + seed,
    )


def test_round_trip_of_windows_of_different_sizes_with_an_empty_slot():
    windows = [
        window(0),
        None,
        window(2, frames=5, height=8, width=4),
        window(3, ConditionSet.of(Condition.TEXT), frames=1),
    ]
    batch = pack_batch([windows, []], SHAPE)
    found = jax.tree.map(lambda array: (array.shape, array.dtype), batch)
    assert dataclasses.asdict(found) == dataclasses.asdict(
        jax.tree.map(lambda spec: (spec.dims, spec.dtype), SHAPE.arrays(2))
    )
    for group, made in enumerate(windows):
        if made is None:
            assert batch.window_BG[0, group] == UNREADABLE and not (batch.segment_ids_BL[0] == group + 1).any()
            assert not batch.active_BG4[0, group].any() and not batch.motion_BG[0, group]
            continue
        np.testing.assert_array_equal(window_latents(batch, batch.latents_BLC, 0, group), made.latents_FHWC)
        text = batch.text_BSE[0][batch.text_segment_ids_BS[0] == group + 1]
        np.testing.assert_array_equal(text, made.text_SE)
        np.testing.assert_array_equal(batch.pooled_BGE[0, group], made.pooled_E)
        assert tuple(batch.active_BG4[0, group]) == made.active.mask()
        assert (batch.motion_BG[0, group], batch.slot_BG[0, group], batch.window_BG[0, group]) == (
            made.motion,
            made.slot,
            made.window,
        )
    assert not batch.segment_ids_BL[1].any() and (batch.window_BG[1] == -1).all()
    with pytest.raises(ValueError, match="slot 1"):
        window_latents(batch, batch.latents_BLC, 0, 1)


def test_reference_tokens_come_first_at_time_zero_with_their_own_places():
    made = window(0)
    out = pack_sequence([made], SHAPE)
    per_frame = 2 * 3
    assert out.is_reference_BL[:per_frame].all() and not out.is_reference_BL[per_frame:].any()
    np.testing.assert_array_equal(out.latents_BLC[:per_frame], patchify(made.reference_HWC[None]))
    np.testing.assert_array_equal(out.positions_BL3[:per_frame], token_positions(1, 4, 6))
    np.testing.assert_array_equal(out.positions_BL3[per_frame : 4 * per_frame], token_positions(3, 4, 6))
    assert (out.frame_BL[:per_frame] == -1).all()
    np.testing.assert_array_equal(out.frame_BL[per_frame : 4 * per_frame], np.repeat([0, 1, 2], per_frame))
    np.testing.assert_array_equal(out.token_BL[per_frame : 4 * per_frame], np.arange(3 * per_frame))


def test_every_latent_reads_the_features_of_its_own_frames():
    """Across windows in one sequence, by values: the packed rows behind the index are the stored ones."""
    windows = [
        window(0),
        window(1, frames=5),
        window(2, ConditionSet.of(Condition.POSE)),
        window(3, ConditionSet.of(Condition.AUDIO)),
    ]
    out = pack_sequence(windows, SHAPE)
    slot = 0
    for made in windows:
        frames = made.frames
        for array, index, values, condition in (
            (out.audio_BTE, out.audio_index_BFA, made.audio_TE, Condition.AUDIO),
            (out.keypoints_BTJ3, out.pose_index_BFP, made.keypoints_TJ3, Condition.POSE),
        ):
            wanted = frame_index(frames, index.shape[1])
            for latent, row in enumerate(index[slot : slot + len(wanted)]):
                if condition not in made.active:
                    assert (row == -1).all()
                    continue
                np.testing.assert_array_equal(row >= 0, wanted[latent] != NO_FRAME)
                read = array[row[row >= 0]]
                np.testing.assert_array_equal(read, values[wanted[latent][row >= 0] + made.margin])
        slot += 1 + (frames - 1) // 4
    assert (out.audio_index_BFA[slot:] == -1).all() and (out.pose_index_BFP[slot:] == -1).all()


def test_inactive_conditions_leave_no_trace():
    quiet = window(1, ConditionSet())
    bare = dataclasses.replace(
        quiet, reference_HWC=None, audio_TE=None, audio_valid_T=None, keypoints_TJ3=None, keypoints_valid_T=None
    )
    with_inputs, without = pack_sequence([quiet], SHAPE), pack_sequence([bare], SHAPE)
    jax.tree.map(np.testing.assert_array_equal, with_inputs, without)
    assert not without.is_reference_BL.any() and not without.audio_BTE.any() and not without.keypoints_BTJ3.any()


def test_stored_margins_beyond_the_models_neighbours_are_trimmed():
    wide, narrow = window(0, margin=9), window(0, margin=2)
    narrow = dataclasses.replace(narrow, audio_TE=wide.audio_TE[7:-7], keypoints_TJ3=wide.keypoints_TJ3[7:-7])
    trimmed = pack_sequence([wide], SHAPE)
    assert np.flatnonzero(trimmed.audio_BTE.any(axis=1)).max() == 9 + 2 * 2 - 1
    # Same generator, but other draws before: compare only what was made equal.
    exact = pack_sequence([narrow], SHAPE)
    for name in ("audio_BTE", "audio_index_BFA", "keypoints_BTJ3", "pose_index_BFP"):
        np.testing.assert_array_equal(getattr(trimmed, name), getattr(exact, name), err_msg=name)


def test_a_model_without_audio_or_pose_takes_windows_that_have_them():
    plain = dataclasses.replace(SHAPE, audio_width=0, audio_tokens=0, keypoints=0, pose_frames=0, pooled_width=0)
    out = pack_sequence([window(0)], plain)
    assert out.audio_index_BFA.shape == (12, 0) and out.keypoints_BTJ3.shape == (80, 0, 3)
    assert out.active_BG4[0].all()


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ([window(i) for i in range(5)], "5 windows in a sequence of at most 4"),
        ([window(0, frames=49)], r"window 100 needs 78 token slots|window 100 needs 13 frame slots"),
        ([window(0, height=16, width=22)], "window 100 needs 264 token slots, 168 of 256 are left"),
        ([window(0), window(21)], r"window 121 needs 24 text slots, 21 of 24"),
        ([window(0, frames=41), window(0, frames=41)], "frame slots|row slots"),
        ([dataclasses.replace(window(0), audio_TE=None)], "audio is active, its input is None"),
        (
            [dataclasses.replace(window(0), keypoints_TJ3=np.zeros((3, 4, 3)))],
            r"pose is active, its input is \(3, 4, 3\)",
        ),
        ([dataclasses.replace(window(0), reference_HWC=None)], "reference None"),
        ([dataclasses.replace(window(0), text_SE=np.zeros((0, 6)))], "text"),
    ],
)
def test_what_does_not_fit_is_an_error_with_the_numbers(windows, message):
    with pytest.raises(ValueError, match=message):
        pack_sequence(windows, SHAPE)
