"""Annealing curves, timesteps and the empty prompts of the unconditional branch."""

import numpy as np
import pytest

from omnihuman_jax.serving.guidance_omnihuman import (
    Branch,
    FlowMatchingConfig,
    GuidanceConfig,
    branch_scales,
    empty_prompts,
    guidance_branches,
    guidance_scales,
    timesteps,
)


@pytest.mark.parametrize("curve", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [2, 5, 50])
def test_curves_start_at_the_scale_end_at_the_final_scale_and_only_fall(curve, steps):
    scales = guidance_scales(GuidanceConfig(scale=6.5, final_scale=1.5, curve=curve), steps)
    assert scales.shape == (steps,) and scales[0] == np.float32(6.5) and scales[-1] == np.float32(1.5)
    assert (np.diff(scales) < 0).all()


def test_middles_of_the_curves_and_the_constant_one():
    linear = guidance_scales(GuidanceConfig(scale=5, final_scale=1), 5)
    cosine = guidance_scales(GuidanceConfig(scale=5, final_scale=1, curve="cosine"), 5)
    np.testing.assert_allclose(linear, [5, 4, 3, 2, 1], rtol=1e-6)
    np.testing.assert_allclose(cosine, [5, 3 + 2**0.5, 3, 3 - 2**0.5, 1], rtol=1e-6)
    np.testing.assert_array_equal(
        guidance_scales(GuidanceConfig(scale=5, final_scale=1, curve="constant"), 4), [5, 5, 5, 5]
    )


def test_one_step_alone_uses_the_scale():
    np.testing.assert_array_equal(guidance_scales(GuidanceConfig(scale=3), 1), [3])


def test_guidance_is_off_only_where_every_step_has_scale_one():
    assert GuidanceConfig().enabled
    assert not GuidanceConfig(scale=1.0).enabled
    assert not GuidanceConfig(scale=1.0, final_scale=4.0, curve="constant").enabled
    assert GuidanceConfig(scale=1.0, final_scale=2.0).enabled


@pytest.mark.parametrize("change", [{"curve": "stairs"}, {"scale": -1.0}, {"final_scale": float("inf")}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError, match="guidance"):
        GuidanceConfig(**change).validate()


def test_overrides_leave_the_config_as_it_was():
    base = GuidanceConfig(scale=2.0)
    assert base.with_overrides(None, None, None) == base
    assert not base.with_overrides(1.0, None, None).enabled, "1 alone is off"
    assert base.with_overrides(1.0, 3.0, None).enabled
    assert base.with_overrides(5.0, 2.0, "cosine") == GuidanceConfig(scale=5.0, final_scale=2.0, curve="cosine")
    assert base == GuidanceConfig(scale=2.0)


def test_text_and_audio_apart_are_two_branches_only_where_a_window_has_both():
    joint, apart = GuidanceConfig(scale=4.0), GuidanceConfig(scale=4.0, text_scale=2.0)
    both = Branch(drops_text=True, drops_audio=True, scale=4.0)
    assert guidance_branches(joint, text=True, audio=True) == (both,)
    assert guidance_branches(apart, text=False, audio=True) == (both,)
    assert guidance_branches(apart, text=True, audio=False) == (Branch(drops_text=True, drops_audio=True, scale=2.0),)
    found = guidance_branches(apart, text=True, audio=True)
    assert [(b.drops_text, b.drops_audio, b.scale) for b in found] == [(False, True, 4.0), (True, True, 2.0)]
    np.testing.assert_allclose(branch_scales(apart, found, 3), [[4, 2], [2.5, 1.5], [1, 1]])
    assert guidance_branches(joint, text=False, audio=False) == ()
    off = joint.with_overrides(1.0, None, None)
    assert guidance_branches(off, text=True, audio=True) == () and branch_scales(off, (), 3).shape == (3, 0)
    assert apart.with_overrides(None, None, None) == apart
    assert not apart.with_overrides(1.0, None, None).enabled, "1 alone is off"
    assert joint.with_overrides(None, None, None, 2.0) == apart
    assert GuidanceConfig(scale=1.0, final_scale=1.0, text_scale=3.0).enabled
    with pytest.raises(ValueError, match="guidance text_scale"):
        GuidanceConfig(text_scale=-1.0).validate()


def test_timesteps_need_a_step():
    assert timesteps(4, np.array([[2400]]), FlowMatchingConfig())[:, 0, 0].tolist() == [1, 0.75, 0.5, 0.25, 0]
    with pytest.raises(ValueError, match="at least 1 step, not 0"):
        timesteps(0, np.ones((1, 1)), FlowMatchingConfig())


def test_an_encoder_without_a_pooled_embedding():
    text, ids, pooled = empty_prompts(np.array([[1, 1, 2, 0]]), 3, 4, np.ones((2, 5), np.float32), np.zeros(0))
    assert text.shape == (1, 4, 5) and ids.tolist() == [[1, 1, 2, 2]] and pooled.shape == (1, 3, 0)
