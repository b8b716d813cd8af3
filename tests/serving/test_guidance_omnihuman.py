"""Annealing curves, timesteps and the empty prompts of the unconditional branch."""

import numpy as np
import pytest

from omnihuman_jax.serving.guidance_omnihuman import (
    FlowMatchingConfig,
    GuidanceConfig,
    empty_prompts,
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


def test_timesteps_need_a_step():
    assert timesteps(4, np.array([[2400]]), FlowMatchingConfig())[:, 0, 0].tolist() == [1, 0.75, 0.5, 0.25, 0]
    with pytest.raises(ValueError, match="at least 1 step, not 0"):
        timesteps(0, np.ones((1, 1)), FlowMatchingConfig())


def test_an_encoder_without_a_pooled_embedding():
    text, ids, pooled = empty_prompts(np.array([[1, 1, 2, 0]]), 3, 4, np.ones((2, 5), np.float32), np.zeros(0))
    assert text.shape == (1, 4, 5) and ids.tolist() == [[1, 1, 2, 2]] and pooled.shape == (1, 3, 0)
