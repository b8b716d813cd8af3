"""The guided velocity and the unconditional branch."""

import dataclasses

import jax
import numpy as np
import pytest

from omnihuman_jax.conditions import Condition
from omnihuman_jax.diffusion import guidance
from omnihuman_jax.serving.guidance_omnihuman import Branch
from omnihuman_jax.typing import ArraySpec, PackedBatch, PackedShape

SHAPE = PackedShape(
    latent_tokens=12, text_tokens=8, windows=3, latent_frames=4, frames=20, patch_channels=8, text_width=4,
    pooled_width=4,
    audio_width=6, audio_tokens=8, keypoints=5, pose_frames=6,
)  # fmt: skip
BOTH = Branch(drops_text=True, drops_audio=True, scale=2.0)
EMPTY = np.full((2, 4), 7.0, np.float32), np.full(4, 9.0, np.float32)


def packed(seed: int = 0) -> PackedBatch[np.ndarray]:
    """Two sequences, all conditions active: windows in slots 0 and 2 of the first, in slot 1 of the second."""
    rng = np.random.default_rng(seed)

    def fill(spec: ArraySpec) -> np.ndarray:
        if spec.dtype == np.float32:
            return rng.standard_normal(spec.dims).astype(spec.dtype)
        return np.ones(spec.dims, spec.dtype)

    return dataclasses.replace(
        jax.tree.map(fill, SHAPE.arrays(2)),
        segment_ids_BL=np.array([[1] * 4 + [3] * 6 + [0] * 2, [2] * 12], np.int32),
        text_segment_ids_BS=np.array([[1] * 5 + [3] * 2 + [0], [2] * 7 + [0]], np.int32),
    )


def test_guided_velocity_extrapolates_from_the_unconditional_one():
    conditional, unconditional = np.array([3.0]), np.array([1.0])
    for scale, expected in [(0.0, 1.0), (1.0, 3.0), (6.5, 14.0)]:
        np.testing.assert_allclose(guidance.guided([conditional, unconditional], np.array([scale])), expected)
    apart = guidance.guided([np.array([7.0]), conditional, unconditional], np.array([2.0, 6.5]))
    np.testing.assert_allclose(apart, 14.0 + 2.0 * (7.0 - 3.0))


def test_the_branch_without_sound_alone_keeps_the_prompt():
    batch = packed()
    out = guidance.branch_batch(batch, Branch(drops_text=False, drops_audio=True, scale=1.0), *EMPTY)
    assert not out.active_BG4[..., Condition.AUDIO].any() and out.active_BG4[..., Condition.TEXT].all()
    np.testing.assert_array_equal(out.text_BSE, batch.text_BSE)
    np.testing.assert_array_equal(out.pooled_BGE, batch.pooled_BGE)


def test_unconditional_branch_drops_text_and_audio_and_nothing_else():
    batch = packed()
    out = guidance.branch_batch(batch, BOTH, *EMPTY)
    np.testing.assert_array_equal(out.active_BG4[..., Condition.TEXT], False)
    np.testing.assert_array_equal(out.active_BG4[..., Condition.AUDIO], False)
    for kept in (Condition.REFERENCE, Condition.POSE):
        np.testing.assert_array_equal(out.active_BG4[..., kept], batch.active_BG4[..., kept])
    changed = {"active_BG4", "text_BSE", "text_segment_ids_BS", "pooled_BGE"}
    for name in {field.name for field in dataclasses.fields(batch)} - changed:
        np.testing.assert_array_equal(getattr(out, name), getattr(batch, name))
    assert batch.active_BG4.all(), "the conditional batch must stay as it was"


def test_unconditional_branch_holds_the_empty_prompt_of_every_window():
    out = guidance.branch_batch(packed(), BOTH, *EMPTY)
    np.testing.assert_array_equal(out.text_segment_ids_BS, [[1, 1, 3, 3, 0, 0, 0, 0], [2, 2, 0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(out.text_BSE[0, :4], np.full((4, 4), 7))
    np.testing.assert_array_equal(out.text_BSE[out.text_segment_ids_BS == 0], 0)
    np.testing.assert_array_equal(out.pooled_BGE[:, :, 0], [[9, 0, 9], [0, 9, 0]])


def test_an_empty_prompt_that_does_not_fit_is_an_error_with_the_numbers():
    with pytest.raises(ValueError, match=r"2 windows x 5 tokens.*has 8"):
        guidance.branch_batch(packed(), BOTH, np.zeros((5, 4)), EMPTY[1])


def test_branches_are_stacked_conditional_first():
    batch = packed()
    both = guidance.stack_branches([batch, guidance.branch_batch(batch, BOTH, *EMPTY)])
    assert both.latents_BLC.shape[0] == 4
    np.testing.assert_array_equal(both.active_BG4[:2], True)
    assert not both.active_BG4[2:, :, Condition.AUDIO].any()
