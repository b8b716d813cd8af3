"""The one maker of parameters refuses what flax would take in silence; lookups are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from omnihuman_jax.models import layers


def test_an_unknown_logical_axis_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"unknown logical axis 'embd'.*embed"):
        layers.param(nnx.Rngs(params=0), (2, 3), ("embd", "mlp"), layers.zeros)


def test_a_dim_without_an_axis_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"needs 2 logical axes"):
        layers.param(nnx.Rngs(params=0), (2, 3), ("embed",), layers.zeros)


def test_parameters_remember_their_axes() -> None:
    made = layers.param(nnx.Rngs(params=0), (2, 3), ("embed", None), layers.ones)
    assert made.get_metadata("logical_axes") == ("embed", None)
    assert made.shape == (2, 3) and made.dtype == jnp.float32


def test_look_up_is_exact_and_zero_without_a_row() -> None:
    rng = np.random.default_rng(0)
    table = (rng.normal(size=(2, 5, 4)) * 10.0 ** rng.integers(-6, 6, size=(2, 5, 4))).astype(np.float32)
    index = np.array([[0, 4, -1, 2], [3, 3, 1, -1]])
    expected = np.where(index[..., None] >= 0, np.take_along_axis(table, np.maximum(index, 0)[..., None], axis=1), 0)
    np.testing.assert_array_equal(layers.look_up(layers.one_hot(jnp.asarray(index), 5), jnp.asarray(table)), expected)


def test_linear_contracts_over_several_dims_and_starts_at_unit_variance() -> None:
    linear = layers.Linear(nnx.Rngs(params=0), (16, 32), (64,), ("heads", "head_dim", "embed"))
    x = jax.random.normal(jax.random.key(1), (7, 16, 32))
    np.testing.assert_allclose(linear(x), np.einsum("bij,ijk->bk", x, linear.kernel[...]), rtol=1e-4, atol=1e-5)
    assert 0.6 < float(linear(x).std()) < 1.2


def test_norms() -> None:
    x = 3 + 5 * np.random.default_rng(0).normal(size=(4, 1000)).astype(np.float32)
    y = np.asarray(layers.layer_norm(jnp.asarray(x, jnp.bfloat16)))
    assert y.dtype == np.float32
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(y.std(-1), 1, atol=1e-5)
    rms = layers.RMSNorm(nnx.Rngs(params=0), 1000)(jnp.asarray(x))
    np.testing.assert_allclose(np.square(rms).mean(-1), 1, atol=1e-5)


def test_time_embedding_starts_with_cosines_of_a_thousand_t(monkeypatch) -> None:
    embedder = layers.TimestepEmbedder(nnx.Rngs(params=0), 8)
    seen = []
    monkeypatch.setattr(layers.MLP, "__call__", lambda self, x: seen.append(np.asarray(x)) or x)
    embedder(jnp.array([0.0, 0.25]))
    (features,) = seen
    assert features.shape == (2, 256)
    np.testing.assert_allclose(features[0], [1.0] * 128 + [0.0] * 128)
    np.testing.assert_allclose(features[1, [0, 128]], [np.cos(250.0), np.sin(250.0)], rtol=1e-5)
    np.testing.assert_allclose(features[1, 127], np.cos(250.0 * 10_000.0 ** (-127 / 128)), rtol=1e-5)


@pytest.mark.parametrize(
    ("x", "num_in", "out"),
    [((2, 5, 6), 1, (3, 4)), ((2, 3, 6), 1, (7,)), ((2, 5, 3, 4), 2, (6,)), ((1, 2, 8), 1, (3, 5))],
)
def test_gradients_of_a_product_are_those_that_jax_derives(x: tuple, num_in: int, out: tuple) -> None:
    rng = np.random.default_rng(0)
    shapes = x, (*x[-num_in:], *out), (*x[:-num_in], *out)
    arrays, kernel, grad = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    ours = jax.vjp(lambda a, b: layers.product(num_in, a, b), arrays, kernel)
    theirs = jax.vjp(lambda a, b: jnp.tensordot(a, b, axes=num_in), arrays, kernel)
    np.testing.assert_array_equal(ours[0], theirs[0])
    for mine, other in zip(ours[1](grad), theirs[1](grad), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-6)
