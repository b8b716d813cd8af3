"""Every kernel computes the same attention, whole or split over a mesh, and ids never mix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnihuman_jax.attention.dispatch import (
    IMPLEMENTATIONS,
    AttentionStrategy,
    attention,
    joint_attention,
    platform,
    resolve,
)
from omnihuman_jax.attention.kernel import attend
from omnihuman_jax.attention.xla import Dense
from omnihuman_jax.sharding import MeshConfig, create_mesh

M, S, N, K = 12, 10, 4, 6
PER_HEAD = AttentionStrategy(kernel="per_head")


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, n, N, K)).astype(np.float32) for n in (M, S, S))
    q_ids = np.sort(rng.integers(0, 3, size=(2, M))).astype(np.int32)
    kv_ids = np.sort(rng.integers(0, 3, size=(2, S))).astype(np.int32)
    q_ids[0, -1] = 7  # a query that no key matches
    return q, k, v, q_ids, kv_ids


def expected(q, k, v, q_ids, kv_ids) -> np.ndarray:
    """In float64, over nothing but the matching keys: what masking is meant to equal; zero where there is none."""
    out = np.zeros(q.shape)
    for b, m, n in np.ndindex(*q.shape[:3]):
        rows = kv_ids[b] == q_ids[b, m]
        if rows.any():
            scores = k[b, rows, n].astype(np.float64) @ q[b, m, n] / np.sqrt(K)
            weights = np.exp(scores - scores.max())
            out[b, m, n] = weights @ v[b, rows, n] / weights.sum()
    return out


@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS.keys() - {"cudnn"}))
def test_a_query_sees_the_keys_of_its_own_id_alone(name: str, inputs) -> None:
    found = attention(*inputs, strategy=AttentionStrategy(kernel=name))
    assert not (inputs[3][:, :, None] == inputs[4][:, None]).any(-1).all(), "a query without a key is among them"
    np.testing.assert_allclose(found, expected(*inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS.keys() - {"cudnn"}))
def test_gradients_are_those_of_the_formula(name: str, inputs) -> None:
    q, k, v, q_ids, kv_ids = inputs
    weight = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)
    kernel = resolve(AttentionStrategy(kernel=name))

    def ours(q, k, v):
        return (attend(kernel, q, k, v, q_ids, kv_ids) * weight).sum()

    def plain(q, k, v):
        same = (q_ids[:, :, None] == kv_ids[:, None, :])[:, None]
        scores = jnp.where(same, jnp.einsum("bmnk,bsnk->bnms", q, k) / np.sqrt(K), -1e30)
        weights = jnp.where(same.any(-1, keepdims=True), jax.nn.softmax(scores, -1), 0.0)
        return (jnp.einsum("bnms,bsnk->bmnk", weights, v) * weight).sum()

    found, wanted = (jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v) for loss in (ours, plain))
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS.keys() - {"cudnn"}))
@pytest.mark.parametrize("where", ["one key", "one query", "a window's keys"])
def test_what_is_not_a_number_is_not_hidden(name: str, where: str, inputs) -> None:
    q, k, v, q_ids, kv_ids = inputs
    q, k = q.copy(), k.copy()
    window = kv_ids[0, -1]
    meets_it = q_ids[0] == window
    assert meets_it.any() and not meets_it.all()
    if where == "one query":
        meets_it &= np.arange(M) == np.flatnonzero(meets_it)[0]
        q[0, meets_it] = np.nan
    else:
        k[0, -1 if where == "one key" else kv_ids[0] == window] = np.nan
    found = np.asarray(attention(q, k, v, q_ids, kv_ids, strategy=AttentionStrategy(kernel=name)))
    assert np.isnan(found[0, meets_it]).all()
    assert not found[0, -1].any() and np.isfinite(found[1]).all(), "no key: zero, as before; other sequences: theirs"


@pytest.mark.parametrize(
    "ways", [{"data": 2, "context": 2, "tensor": 2}, {"data": 8}], ids=["split", "batch not divisible"]
)
def test_the_mesh_changes_nothing(ways: dict[str, int], inputs) -> None:
    alone = attention(*inputs, strategy=PER_HEAD)
    with jax.set_mesh(create_mesh(MeshConfig(**ways))):
        split = jax.jit(lambda *x: attention(*x, strategy=PER_HEAD, q_axis="tokens"))(*inputs)
    np.testing.assert_allclose(split, alone, rtol=1e-6, atol=1e-6)
    shard = (1, M // 2, N // 2, K) if "tensor" in ways else split.shape
    assert split.addressable_shards[0].data.shape == shard


def test_joint_attention_is_attention_of_the_joined_streams(inputs) -> None:
    q, k, v, q_ids, kv_ids = inputs
    video, text = (k[:, :, :, :],) * 3, (v, q[:, :S], v)
    video_out, text_out = joint_attention(video, text, kv_ids, q_ids[:, :S], strategy=AttentionStrategy())
    joined = [np.concatenate([a, b], 1) for a, b in zip(video, text, strict=True)]
    ids = np.concatenate([kv_ids, q_ids[:, :S]], 1)
    both = attention(*joined, np.where(ids > 0, ids, -1), np.where(ids > 0, ids, -2), strategy=AttentionStrategy())
    np.testing.assert_allclose(np.concatenate([video_out, text_out], 1), both, rtol=1e-5, atol=1e-6)
    assert not np.asarray(both)[ids == 0].any() and (ids == 0).any(), "padding sees nothing"


def test_bfloat16_in_bfloat16_out(inputs) -> None:
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in inputs[:3])
    for name in IMPLEMENTATIONS.keys() - {"cudnn"}:
        found = attention(q, k, v, *inputs[3:], strategy=AttentionStrategy(kernel=name))
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(found, np.float32), expected(*inputs), atol=0.05)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"kernel": "flash"},
            r"execution.attention.kernel 'flash' is unknown; it is one of auto, dense, blocked, per_head",
        ),
        (
            {"context_parallel": "all"},
            r"execution.attention.context_parallel 'all' is unknown; it is one of gather, ulysses",
        ),
        ({"kernel": "splash", "block_q": 200}, r"execution.attention.block_q 200.*multiples of 128"),
        ({"block_kv": -1}, r"execution.attention.block_kv is -1"),
    ],
)
def test_a_wrong_value_is_an_error(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(AttentionStrategy(**wrong))


def test_auto_is_the_kernel_of_the_meshs_devices_not_of_the_process() -> None:
    mesh = jax.sharding.AbstractMesh(
        (2,),
        ("context",),
        abstract_device=jax.sharding.AbstractDevice(device_kind="TPU v5", num_cores=1, platform="tpu"),
    )
    with jax.sharding.use_abstract_mesh(mesh):
        assert platform() == "tpu" and type(resolve(AttentionStrategy())).__name__ == "Splash"
        assert not resolve(AttentionStrategy()).interpret
    assert platform() == "cpu" and type(resolve(AttentionStrategy())).__name__ == "PerHead"


def test_a_remat_policy_by_the_name_attention_spares_the_forward_kernel(inputs) -> None:
    def products(policy) -> int:
        run = jax.checkpoint(functools.partial(attend, Dense()), policy=policy)
        loss = lambda q, k, v: jnp.square(run(q, k, v, *inputs[3:])).sum()  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*inputs[:3])).count("dot_general")

    policies = jax.checkpoint_policies
    kept, again = products(policies.save_only_these_names("attention")), products(policies.nothing_saveable)
    # Forward: scores, output. Backward: scores, sum of out * grad, gradients of weights, q, k, v. Again: scores, and
    # output.
    assert kept == 8 and again > kept
