"""Rotary embedding: a rotation of interleaved pairs, relative in every axis."""

import jax.numpy as jnp
import numpy as np

from omnihuman_jax.models.rope import rotate, rotation

AXES, THETA = (4, 8, 10), 256.0


def scores(q: np.ndarray, k: np.ndarray, at: list[int], to: list[int]) -> np.ndarray:
    turn = rotation(jnp.array([[at, to]]), AXES, THETA)
    turned = rotate(jnp.stack([q, k])[None], turn)
    return np.einsum("nk,nk->n", turned[0, 0], turned[0, 1])


def test_the_origin_is_left_alone_and_lengths_are_kept() -> None:
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 22)).astype(np.float32)
    turned = np.asarray(rotate(jnp.asarray(x), rotation(jnp.array([[[0, 0, 0], [3, 1, 7]]]), AXES, THETA)))
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6)
    assert np.abs(turned[:, 1] - x[:, 1]).max() > 0.1


def test_scores_depend_on_distance_alone_in_every_axis() -> None:
    q, k = np.random.default_rng(1).normal(size=(2, 3, 22)).astype(np.float32)
    here = scores(q, k, [1, 2, 3], [2, 5, 1])
    np.testing.assert_allclose(scores(q, k, [5, 3, 10], [6, 6, 8]), here, rtol=1e-4, atol=1e-4)
    for axis in range(3):
        moved = [2, 5, 1]
        moved[axis] += 1
        assert np.abs(scores(q, k, [1, 2, 3], moved) - here).max() > 1e-2


def test_pairs_are_neighbours_and_frequencies_fall_within_an_axis() -> None:
    x = jnp.zeros((1, 1, 1, 22)).at[..., 6].set(1.0)  # first half of the second pair of axis 1
    turned = np.asarray(rotate(x, rotation(jnp.array([[[0, 2, 0]]]), AXES, THETA)))[0, 0, 0]
    angle = 2 * THETA ** (-2 / 8)
    np.testing.assert_allclose(turned[[6, 7]], [np.cos(angle), np.sin(angle)], rtol=1e-6)
    assert np.count_nonzero(turned) == 2
