"""Euler sampling on velocity fields whose solution is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnihuman_jax.diffusion import flow_matching, solver
from omnihuman_jax.serving.guidance_omnihuman import SOLVERS, GuidanceConfig, guidance_scales

B, L, C, G = 2, 7, 3, 2
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 0, 0]], np.int32)
CLEAN = SEGMENTS == 0
CLEAN[:, 0] = True
FLOW = flow_matching.FlowMatchingConfig(shift_tokens=2)  # so that few tokens are shifted


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def schedule(steps: int) -> jax.Array:
    return flow_matching.timesteps(steps, np.array([[2, 8], [50, 1]]), FLOW)


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_a_straight_field_is_integrated_exactly_at_any_number_of_steps(steps):
    noise, clean = normal(0, B, L, C), normal(1, B, L, C)
    out = solver.sample(lambda x, t: jnp.asarray(noise - clean), noise, clean, CLEAN, SEGMENTS, schedule(steps))
    np.testing.assert_allclose(out, clean, atol=2e-6)


def test_a_field_that_points_at_one_target_is_followed_to_it():
    """v = (x - target) / t is the velocity of a data set of one point: Euler steps stay on the straight line."""
    noise, target = normal(0, B, L, C), normal(1, B, L, C)

    def field(tokens, t_BG):
        t_BL = flow_matching.token_t(t_BG, SEGMENTS)[..., None]
        return (tokens - target) / jnp.where(t_BL > 0, t_BL, 1)

    out = np.asarray(solver.sample(field, noise, np.zeros_like(noise), CLEAN, SEGMENTS, schedule(6)))
    np.testing.assert_allclose(out[~CLEAN], target[~CLEAN], atol=1e-5)


@pytest.mark.parametrize(("method", "ratio", "small"), [("euler", 2.0, 0.05), ("ab2", 4.0, 0.002)])
@pytest.mark.parametrize("spacing", ["even", "shifted"])
def test_error_on_a_curved_field_falls_by_the_solvers_order(method, ratio, small, spacing):
    """dx/dt = x from t = 1 to 0 gives x / e; halving the steps halves Euler's error and quarters that of order two."""
    noise = normal(0, B, L, C)

    def error(steps):
        t = jnp.broadcast_to(jnp.linspace(1.0, 0.0, steps + 1)[:, None, None], (steps + 1, B, G))
        t = 3 * t / (1 + 2 * t) if spacing == "shifted" else t
        out = np.asarray(solver.sample(lambda x, t: x, noise, noise, CLEAN, SEGMENTS, t, None, method))
        return np.abs(out - noise / np.e)[~CLEAN].max()

    assert error(80) < small
    assert error(40) / error(80) == pytest.approx(ratio, rel=0.15)


def test_steps_in_chunks_are_the_steps_at_once():
    noise, clean, t = normal(0, B, L, C), normal(1, B, L, C), schedule(6)
    field = lambda x, t: jnp.sin(x)  # noqa: E731
    for method in SOLVERS:
        state = solver.start(noise, clean, CLEAN, G, method)
        for first in (0, 2, 4):
            state = solver.advance(field, state, clean, CLEAN, SEGMENTS, t[first : first + 3])
        whole = solver.sample(field, noise, clean, CLEAN, SEGMENTS, t, None, method)
        np.testing.assert_allclose(state.tokens_BLC, whole, atol=1e-6)


def test_given_tokens_leave_as_they_came_and_are_shown_to_the_model_at_every_step():
    noise, clean = normal(0, B, L, C), normal(1, B, L, C)
    seen = []

    def field(tokens, t_BG):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), tokens, ordered=True)
        return 100.0 * tokens + 3.0

    out = np.asarray(solver.sample(field, noise, clean, CLEAN, SEGMENTS, schedule(3)))
    jax.effects_barrier()
    np.testing.assert_array_equal(out[CLEAN], clean[CLEAN])
    assert len(seen) == 3
    for tokens in seen:
        np.testing.assert_array_equal(tokens[CLEAN], clean[CLEAN])
    np.testing.assert_array_equal(seen[0][~CLEAN], noise[~CLEAN])


def test_clean_values_of_noisy_tokens_are_never_read():
    noise, clean = normal(0, B, L, C), normal(1, B, L, C)
    spoilt = np.where(CLEAN[..., None], clean, np.nan)
    field = lambda x, t: jnp.sin(x)  # noqa: E731
    out = [solver.sample(field, noise, c, CLEAN, SEGMENTS, schedule(3)) for c in (clean, spoilt)]
    np.testing.assert_array_equal(*out)


def test_each_window_follows_its_own_timesteps():
    seen = []

    def field(tokens, t_BG):
        jax.debug.callback(lambda t: seen.append(np.asarray(t)), t_BG, ordered=True)
        return jnp.zeros_like(tokens)

    solver.sample(field, normal(0, B, L, C), normal(1, B, L, C), CLEAN, SEGMENTS, schedule(4))
    jax.effects_barrier()
    np.testing.assert_allclose(seen, schedule(4)[:-1], rtol=1e-6)
    assert seen[1][0, 0] < seen[1][0, 1] < seen[1][1, 0], "more tokens, more noise"


def test_guidance_calls_the_model_once_a_step_on_both_branches():
    noise, clean = normal(0, B, L, C), normal(1, B, L, C)
    rows = []

    def field(tokens, t_BG):
        rows.append(tokens.shape[0])
        return jnp.concatenate([jnp.full((B, L, C), 3.0), jnp.full((B, L, C), 1.0)])

    scales = guidance_scales(GuidanceConfig(scale=4, final_scale=1), 4)[:, None]
    t = jnp.broadcast_to(jnp.linspace(1.0, 0.0, 5)[:, None, None], (5, B, G))
    out = np.asarray(solver.sample(field, noise, clean, CLEAN, SEGMENTS, t, scales))
    # Velocities 1 + s (3 - 1) for s = 4, 3, 2, 1 and steps of 1/4.
    np.testing.assert_allclose(out[~CLEAN], (noise - (9 + 7 + 5 + 3) / 4)[~CLEAN], atol=1e-5)
    assert set(rows) == {2 * B}


def test_guidance_off_is_the_conditional_sample_at_half_the_rows():
    noise, clean = normal(0, B, L, C), normal(1, B, L, C)
    rows = []

    def field(tokens, t_BG):
        rows.append(tokens.shape[0])
        velocity = jnp.cos(tokens[:B]) - 0.3
        return velocity if tokens.shape[0] == B else jnp.concatenate([velocity, 5 * velocity])

    off = solver.sample(field, noise, clean, CLEAN, SEGMENTS, schedule(5))
    assert set(rows) == {B}
    at_one = solver.sample(field, noise, clean, CLEAN, SEGMENTS, schedule(5), np.ones((5, 1), np.float32))
    np.testing.assert_allclose(off, at_one, atol=1e-5)


def test_noise_of_a_window_does_not_depend_on_what_it_is_packed_with():
    key = jax.random.key(3)
    alone = solver.token_noise(key, np.full((1, 3), 5), np.array([[0, 1, 2]]), 4)
    packed = solver.token_noise(key, np.array([[9, 9, 5, 5, 5]]), np.array([[0, 1, 0, 1, 2]]), 4)
    np.testing.assert_array_equal(packed[:, 2:], alone)
    assert np.unique(np.asarray(packed)).size == 20
    many = np.asarray(
        solver.token_noise(key, np.arange(40)[:, None].repeat(50, 1), np.arange(50)[None].repeat(40, 0), 16)
    )
    assert abs(many.mean()) < 0.02 and abs(many.std() - 1) < 0.02


@pytest.mark.parametrize(
    "change", [{"num_steps": 0}, {"segment_frames": 5}, {"segment_frames": 24}, {"solver": "heun"}]
)
def test_impossible_settings_are_refused(change):
    solver.SamplingConfig(segment_frames=25).validate()
    with pytest.raises(ValueError):
        solver.SamplingConfig(**change).validate()
