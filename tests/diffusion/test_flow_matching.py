"""Noise, velocity, timestep draw and shift."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnihuman_jax.diffusion import flow_matching as fm

CONFIG = fm.FlowMatchingConfig()


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_end_points_of_the_path_are_exact():
    clean, noise = normal(0, 2, 5, 3), normal(1, 2, 5, 3)
    np.testing.assert_array_equal(fm.add_noise(clean, noise, np.zeros((2, 5))), clean)
    np.testing.assert_array_equal(fm.add_noise(clean, noise, np.ones((2, 5))), noise)


def test_velocity_is_the_derivative_of_the_path_and_gives_the_clean_tokens_back():
    clean, noise = normal(0, 2, 5, 3), normal(1, 2, 5, 3)
    t = np.random.default_rng(2).uniform(size=(2, 5)).astype(np.float32)
    _, slope = jax.jvp(lambda t: fm.add_noise(clean, noise, t), (jnp.asarray(t),), (jnp.ones_like(t),))
    velocity = fm.velocity_target(clean, noise)
    np.testing.assert_allclose(slope, velocity, atol=1e-6)
    np.testing.assert_allclose(fm.predict_clean(fm.add_noise(clean, noise, t), velocity, t), clean, atol=1e-5)


def test_bfloat16_inputs_are_mixed_in_float32():
    clean = jnp.asarray(normal(0, 1, 4, 3), jnp.bfloat16)
    mixed = fm.add_noise(clean, jnp.zeros_like(clean), np.full((1, 4), 0.3, np.float32))
    assert mixed.dtype == jnp.float32
    np.testing.assert_allclose(mixed, 0.7 * np.asarray(clean, np.float32), rtol=1e-6)


def test_shift_grows_with_tokens_keeps_the_ends_and_has_hunyuans_value_at_720p():
    tokens = np.array([1, 2400, 9600, 119_808, 10**9])
    np.testing.assert_allclose(fm.timestep_shift(tokens, CONFIG), [1, 1, 2, 7.065, 12], rtol=1e-3)
    for end in (0.0, 1.0):
        np.testing.assert_array_equal(fm.shift_t(end, tokens, CONFIG), np.full(5, end, np.float32))
    middle = np.asarray(fm.shift_t(0.5, tokens, CONFIG))
    np.testing.assert_allclose(middle, [0.5, 0.5, 2 / 3, 7.065 / 8.065, 12 / 13], rtol=1e-3)


def test_training_timesteps_are_logit_normal_and_shifted():
    keys = jax.random.split(jax.random.key(0), 20_000)
    draw = jax.jit(jax.vmap(lambda key, n: fm.sample_t(key, n, CONFIG)))
    few, many = np.asarray(draw(keys, np.full(20_000, 100))), np.asarray(draw(keys, np.full(20_000, 9600)))
    assert few.min() > 0 and few.max() < 1
    logit = np.log(few / (1 - few))
    assert abs(logit.mean()) < 0.03 and abs(logit.std() - 1) < 0.03
    np.testing.assert_allclose(many, fm.shift_t(few, np.full(20_000, 9600), CONFIG), rtol=1e-5)
    assert many.mean() > few.mean() + 0.1


def test_each_token_reads_the_timestep_of_its_window_and_padding_reads_zero():
    segment_ids = np.array([[1, 1, 2, 3, 0], [2, 2, 0, 0, 0]])
    t = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], np.float32)
    np.testing.assert_array_equal(
        fm.token_t(t, segment_ids), np.array([[0.1, 0.1, 0.2, 0.3, 0], [0.5, 0.5, 0, 0, 0]], np.float32)
    )


def test_reference_tokens_do_not_count_towards_the_shift():
    segment_ids = np.array([[1, 1, 1, 2, 2, 0, 0]])
    reference = np.array([[True, False, False, False, False, False, False]])
    np.testing.assert_array_equal(fm.video_tokens_of_slot(segment_ids, reference, 3), [[2, 2, 0]])


def test_sampling_timesteps_fall_from_one_to_zero():
    steps = np.asarray(fm.timesteps(10, np.array([[100, 119_808]]), CONFIG))
    assert steps.shape == (11, 1, 2)
    np.testing.assert_array_equal(steps[0], 1), np.testing.assert_array_equal(steps[-1], 0)
    assert (np.diff(steps, axis=0) < 0).all()
    np.testing.assert_allclose(steps[:, 0, 0], np.linspace(1, 0, 11), atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [{"logit_std": 0.0}, {"logit_mean": float("nan")}, {"shift_tokens": 0}, {"shift_min": 0.0}, {"shift_max": 0.5}],
)
def test_impossible_settings_are_refused(change):
    fm.FlowMatchingConfig().validate()
    with pytest.raises(ValueError, match="flow:"):
        fm.FlowMatchingConfig(**change).validate()


def test_no_steps_is_refused():
    with pytest.raises(ValueError, match="at least 1 step"):
        fm.timesteps(0, np.array([1]), CONFIG)
