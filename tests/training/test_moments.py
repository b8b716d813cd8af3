"""Moments in bfloat16: right on average, the same after a resume, and why rounding to the nearest is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnihuman_jax.training import moments
from omnihuman_jax.training import optimizer as optim

LABELS = {"w": "base", "b": "base"}
AXES = {"w": ("embed", "mlp"), "b": ("mlp",)}
PARAMS = {"w": np.ones((8, 16), np.float32), "b": np.ones(16, np.float32)}


def make(**config: object) -> tuple[optim.OptimizerConfig, object]:
    chosen = optim.OptimizerConfig(warmup_steps=0, clip_norm=1e9, **config)  # type: ignore[arg-type]
    return chosen, optim.create_optimizer(chosen, LABELS, AXES, seed=3)


def grads(k: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(k)
    return {name: (scale * rng.standard_normal(value.shape)).astype(np.float32) for name, value in PARAMS.items()}


def test_rounding_is_right_on_average_and_exact_where_it_can_be() -> None:
    x = np.float32(1.0 + 0.3 / 128)  # 0.3 of the way from 1 to the next bfloat16
    many = np.asarray(moments.round_stochastically(jax.random.key(0), jnp.full(20_000, x)), np.float32)
    assert set(many) == {1.0, 1.0 + 1 / 128}
    assert many.mean(dtype=np.float64) == pytest.approx(x, abs=5 * np.sqrt(0.3 * 0.7 / 20_000) / 128)
    special = jnp.asarray([0.0, -0.0, 1.5, -2.0, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    np.testing.assert_array_equal(
        np.asarray(moments.round_stochastically(jax.random.key(1), special), np.float32), np.asarray(special)
    )


def test_the_second_moment_follows_a_gradient_that_shrinks_only_if_rounded_at_random() -> None:
    """200 steps of gradients near 1, then 2000 of nearly nothing: beta2 = 0.999 should leave exp(-2) of the moment."""
    last = {}
    for name, config in {
        "float32": {}, "stochastic": {"moments_dtype": "bfloat16"},
        "nearest": {"moments_dtype": "bfloat16", "moments_rounding": "nearest"},
    }.items():  # fmt: skip
        _, optimizer = make(**config)

        def run(state, optimizer=optimizer):
            def one(k, state):
                size = jnp.where(k < 200, 1.0, 1e-3)
                return optimizer.update(jax.tree.map(lambda p: size * jnp.ones_like(p), PARAMS), state, PARAMS)[1]

            return jax.lax.fori_loop(0, 2200, one, state)

        nu = jax.jit(run)(optimizer.init(PARAMS)).inner_states["base"].inner_state[0].nu
        assert nu["w"].dtype == (jnp.float32 if name == "float32" else jnp.bfloat16)
        last[name] = float(np.asarray(nu["w"], np.float64).mean())
    assert last["stochastic"] == pytest.approx(last["float32"], rel=0.05)
    assert last["nearest"] > 3 * last["float32"]  # it never came down


def test_a_resume_draws_the_same_bits_and_the_count_moves_them() -> None:
    _, optimizer = make(moments_dtype="bfloat16")
    update = jax.jit(lambda g, state: optimizer.update(g, state, PARAMS)[1])  # type: ignore[attr-defined]
    state = optimizer.init(PARAMS)  # type: ignore[attr-defined]
    for k in range(4):
        state = update(grads(k), state)
        if k == 1:
            saved = jax.device_get(state)
    for k in (2, 3):
        saved = update(grads(k), saved)
    for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(saved), strict=True):
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))
    assert optim.group_counts(state)["base"] == 4


def test_unknown_values_are_refused() -> None:
    with pytest.raises(ValueError, match="moments_dtype 'float16' is unknown; it is one of float32, bfloat16"):
        optim.OptimizerConfig(moments_dtype="float16").validate()
    with pytest.raises(ValueError, match="moments_rounding 'up' is unknown; it is one of stochastic, nearest"):
        optim.OptimizerConfig(moments_rounding="up").validate()
