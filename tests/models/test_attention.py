"""Every implementation computes the same attention, whole or split over a mesh, and ids never mix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnihuman_jax.models.attention import IMPLEMENTATIONS, attention, joint_attention, resolve
from omnihuman_jax.sharding import MeshConfig, create_mesh

M, S, N, K = 12, 10, 4, 6


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, n, N, K)).astype(np.float32) for n in (M, S, S))
    q_ids = np.sort(rng.integers(0, 3, size=(2, M))).astype(np.int32)
    kv_ids = np.sort(rng.integers(0, 3, size=(2, S))).astype(np.int32)
    q_ids[0, -1] = 7  # a query that no key matches
    return q, k, v, q_ids, kv_ids


def expected(q, k, v, q_ids, kv_ids) -> np.ndarray:
    """In float64, over nothing but the matching keys: what masking is meant to equal."""
    out = np.zeros(q.shape)
    for b, m, n in np.ndindex(*q.shape[:3]):
        rows = kv_ids[b] == q_ids[b, m]
        if rows.any():
            scores = k[b, rows, n].astype(np.float64) @ q[b, m, n] / np.sqrt(K)
            weights = np.exp(scores - scores.max())
            out[b, m, n] = weights @ v[b, rows, n] / weights.sum()
    return out


def matched(q_ids, kv_ids) -> np.ndarray:
    return (q_ids[:, :, None] == kv_ids[:, None]).any(-1)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_query_sees_the_keys_of_its_own_id_alone(name: str, inputs) -> None:
    found = np.asarray(attention(*inputs, implementation=name))
    rows = matched(*inputs[3:])
    np.testing.assert_allclose(found[rows], expected(*inputs)[rows], rtol=1e-5, atol=1e-6)
    assert np.isfinite(found).all() and not rows.all()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_gradients_are_those_of_the_formula(name: str, inputs) -> None:
    q, k, v, q_ids, kv_ids = inputs
    weight = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)

    def loss(kernel, q, k, v):
        return (kernel(q, k, v, q_ids, kv_ids) * weight).sum()

    def plain(q, k, v, q_ids, kv_ids):
        scores = jnp.einsum("bmnk,bsnk->bnms", q, k) / np.sqrt(K)
        scores = jnp.where((q_ids[:, :, None] == kv_ids[:, None, :])[:, None], scores, -1e30)
        return jnp.einsum("bnms,bsnk->bmnk", jax.nn.softmax(scores, -1), v)

    found = jax.grad(loss, argnums=(1, 2, 3))(IMPLEMENTATIONS[name], q, k, v)
    for ours, theirs in zip(found, jax.grad(loss, argnums=(1, 2, 3))(plain, q, k, v), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ways", [{"data": 2, "context": 2, "tensor": 2}, {"data": 8}], ids=["split", "batch not divisible"])
def test_the_mesh_changes_nothing(ways: dict[str, int], inputs) -> None:
    alone = attention(*inputs, implementation="per_head")
    with jax.set_mesh(create_mesh(MeshConfig(**ways))):
        split = jax.jit(lambda *x: attention(*x, implementation="per_head", q_axis="tokens"))(*inputs)
    np.testing.assert_allclose(split, alone, rtol=1e-6, atol=1e-6)
    shard = (1, M // 2, N // 2, K) if "tensor" in ways else split.shape
    assert split.addressable_shards[0].data.shape == shard


def test_joint_attention_is_attention_of_the_joined_streams(inputs) -> None:
    q, k, v, q_ids, kv_ids = inputs
    video, text = (k[:, :, :, :],) * 3, (v, q[:, :S], v)
    video_out, text_out = joint_attention(video, text, kv_ids, q_ids[:, :S])
    joined = [np.concatenate([a, b], 1) for a, b in zip(video, text, strict=True)]
    ids = np.concatenate([kv_ids, q_ids[:, :S]], 1)
    np.testing.assert_allclose(np.concatenate([video_out, text_out], 1), attention(*joined, ids, ids), rtol=1e-5, atol=1e-6)


def test_bfloat16_in_bfloat16_out(inputs) -> None:
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in inputs[:3])
    for name in IMPLEMENTATIONS:
        found = attention(q, k, v, *inputs[3:], implementation=name)
        assert found.dtype == jnp.bfloat16
        rows = matched(*inputs[3:])
        np.testing.assert_allclose(np.asarray(found, np.float32)[rows], expected(*inputs)[rows], atol=0.05)


def test_an_unknown_implementation_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"unknown attention 'flash'.*auto, dense, per_head"):
        resolve("flash")
