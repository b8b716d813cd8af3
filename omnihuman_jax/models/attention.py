"""Attention between tokens of equal id, behind one interface.

`attention` is the only entry: which kernel runs is a value (`IMPLEMENTATIONS`), and every kernel sees the shard of one
device, so a kernel that loops, blocks or calls Pallas never meets the partitioner.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from omnihuman_jax.sharding import RULES

# Finite: a query without any key gets a uniform average (its caller gates it away), not 0 / 0.
MASKED = -1e30

QKV: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]
Kernel: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def dense(q_BMNK: jax.Array, k_BSNK: jax.Array, v_BSNK: jax.Array, q_ids_BM: jax.Array, kv_ids_BS: jax.Array) -> jax.Array:
    """All heads in one batched product; softmax in float32. Memory M x S a head."""
    scores = jnp.einsum("bmnk,bsnk->bnms", q_BMNK, k_BSNK, preferred_element_type=jnp.float32)
    scores = scores / math.sqrt(q_BMNK.shape[-1])
    scores = jnp.where((q_ids_BM[:, :, None] == kv_ids_BS[:, None, :])[:, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BSNK.dtype)
    return jnp.einsum("bnms,bsnk->bmnk", weights, v_BSNK)


@jax.custom_vjp
def _one_head(q_MK: jax.Array, k_SK: jax.Array, v_SK: jax.Array, q_ids_M: jax.Array, kv_ids_S: jax.Array) -> jax.Array:
    return _one_head_forward(q_MK, k_SK, v_SK, q_ids_M, kv_ids_S)[0]


def _scores(q_MK: jax.Array, k_SK: jax.Array, q_ids_M: jax.Array, kv_ids_S: jax.Array) -> jax.Array:
    scores = jnp.dot(q_MK * (1.0 / math.sqrt(q_MK.shape[-1])), k_SK.T, preferred_element_type=jnp.float32)
    return jnp.where(q_ids_M[:, None] == kv_ids_S[None, :], scores, MASKED)


def _one_head_forward(q, k, v, q_ids, kv_ids):
    scores = _scores(q, k, q_ids, kv_ids)
    peak = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - peak)
    total = weights.sum(axis=-1, keepdims=True)
    out = jnp.dot((weights / total).astype(v.dtype), v)
    return out, (q, k, v, q_ids, kv_ids, out, peak, total)


def _one_head_backward(residuals, grad_out):
    # The weights are computed again, not kept: M x S a head and layer is what memory would go to.
    q, k, v, q_ids, kv_ids, out, peak, total = residuals
    weights = jnp.exp(_scores(q, k, q_ids, kv_ids) - peak) / total
    aligned = (grad_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1, keepdims=True)
    grad_scores = weights * (jnp.dot(grad_out, v.T, preferred_element_type=jnp.float32) - aligned)
    # A query without any key has weights, of constant scores: they pass no gradient on.
    same = q_ids[:, None] == kv_ids[None, :]
    grad_scores = jnp.where(same, grad_scores * (1.0 / math.sqrt(q.shape[-1])), 0.0).astype(q.dtype)
    return grad_scores @ k, grad_scores.T @ q, weights.astype(v.dtype).T @ grad_out, None, None


_one_head.defvjp(_one_head_forward, _one_head_backward)


def per_head(q_BMNK: jax.Array, k_BSNK: jax.Array, v_BSNK: jax.Array, q_ids_BM: jax.Array, kv_ids_BS: jax.Array) -> jax.Array:
    """Two-dimensional products, one head at a time: XLA:CPU runs those several times faster than batched ones."""
    rows = []
    for b in range(q_BMNK.shape[0]):
        q, k, v = (x[b].transpose(1, 0, 2) for x in (q_BMNK, k_BSNK, v_BSNK))
        ids = q_ids_BM[b], kv_ids_BS[b]
        out = jax.lax.map(lambda head, ids=ids: _one_head(*head, *ids), (q, k, v))
        rows.append(out.transpose(1, 0, 2))
    return jnp.stack(rows)


IMPLEMENTATIONS: dict[str, Kernel] = {"dense": dense, "per_head": per_head}


def resolve(implementation: str) -> Kernel:
    """The kernel called `implementation`; `auto` is the fastest one that the platform has."""
    if implementation == "auto":
        implementation = "per_head" if jax.default_backend() == "cpu" else "dense"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"unknown attention {implementation!r}; there are auto, {', '.join(IMPLEMENTATIONS)}")
    return IMPLEMENTATIONS[implementation]


def attention(
    q_BMNK: jax.Array,
    k_BSNK: jax.Array,
    v_BSNK: jax.Array,
    q_ids_BM: jax.Array,
    kv_ids_BS: jax.Array,
    *,
    implementation: str = "auto",
    q_axis: str | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v, where a query sees the keys that carry its own id.

    Args:
        q_BMNK, k_BSNK, v_BSNK: any float dtype; scores and softmax are float32.
        q_ids_BM, kv_ids_BS: int32. A query that no key matches yields some finite average of `v`: gate it away.
        implementation: a key of `IMPLEMENTATIONS`, or `auto`.
        q_axis: logical axis of the queries' tokens (`tokens` for the video stream, None where every device has all of
            them). Keys and values are gathered along it.

    Returns:
        [B, M, N, K] in the dtype of `v`.
    """
    kernel = resolve(implementation)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:

        def ways(axis: str | None, size: int) -> tuple[str, ...] | None:
            # A dim that its mesh axes do not divide (one sequence, sampled on many devices) is computed by all of them.
            names = RULES[axis] if axis else None
            return names if names and size % math.prod(mesh.shape[name] for name in names) == 0 else None

        batch, heads = ways("batch", q_BMNK.shape[0]), ways("heads", q_BMNK.shape[2])
        tokens = ways(q_axis, q_BMNK.shape[1])
        kernel = jax.shard_map(
            kernel,
            in_specs=(
                PartitionSpec(batch, tokens, heads, None),
                PartitionSpec(batch, None, heads, None),
                PartitionSpec(batch, None, heads, None),
                PartitionSpec(batch, tokens),
                PartitionSpec(batch, None),
            ),
            out_specs=PartitionSpec(batch, tokens, heads, None),
            check_vma=False,
        )
    return checkpoint_name(kernel(q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS), "attention")


def joint_attention(
    video: QKV,
    text: QKV,
    video_ids_BL: jax.Array,
    text_ids_BS: jax.Array,
    *,
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Attention of both streams over both (order: video, then text); each stream's output, [B, L, N, K] and [B, S, N, K].

    The streams' queries go in separately, so that video tokens stay split over the mesh and text tokens stay whole.
    """
    k, v = (jnp.concatenate([video[i], text[i]], axis=1) for i in (1, 2))
    ids = jnp.concatenate([video_ids_BL, text_ids_BS], axis=1)
    video_out = attention(video[0], k, v, video_ids_BL, ids, implementation=implementation, q_axis="tokens")
    text_out = attention(text[0], k, v, text_ids_BS, ids, implementation=implementation)
    return video_out, text_out
