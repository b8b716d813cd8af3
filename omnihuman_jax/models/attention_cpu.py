"""Attention on a CPU: two-dimensional products, one head at a time, which XLA:CPU runs several times faster than batched ones."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from omnihuman_jax.models.attention_kernel import MASKED, QKV, delta


@dataclasses.dataclass(frozen=True)
class PerHead:
    """A map over heads; memory M x S once, not once a head."""

    def forward(self, q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS) -> tuple[jax.Array, jax.Array]:
        outs, lses = [], []
        for b in range(q_BMNK.shape[0]):
            ids = q_ids_BM[b], kv_ids_BS[b]
            q, k, v = (x[b].transpose(1, 0, 2) for x in (q_BMNK, k_BSNK, v_BSNK))
            out, lse = jax.lax.map(lambda head, ids=ids: _forward(*head, *ids), (q, k, v))
            outs.append(out.transpose(1, 0, 2))
            lses.append(lse)
        return jnp.stack(outs), jnp.stack(lses)

    def backward(self, q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS, out_BMNK, lse_BNM, grad_BMNK) -> QKV:
        delta_BNM = delta(out_BMNK, grad_BMNK)
        rows = []
        for b in range(q_BMNK.shape[0]):
            ids = q_ids_BM[b], kv_ids_BS[b]
            q, k, v, grad = (x[b].transpose(1, 0, 2) for x in (q_BMNK, k_BSNK, v_BSNK, grad_BMNK))
            grads = jax.lax.map(lambda head, ids=ids: _backward(*head, *ids), (q, k, v, grad, lse_BNM[b], delta_BNM[b]))
            rows.append([x.transpose(1, 0, 2) for x in grads])
        grad_q, grad_k, grad_v = (jnp.stack([row[i] for row in rows]) for i in range(3))
        return grad_q, grad_k, grad_v


def _scores(q_MK: jax.Array, k_SK: jax.Array, q_ids_M: jax.Array, kv_ids_S: jax.Array) -> jax.Array:
    scores = jnp.dot(q_MK * (1.0 / math.sqrt(q_MK.shape[-1])), k_SK.T, preferred_element_type=jnp.float32)
    return jnp.where(q_ids_M[:, None] == kv_ids_S[None, :], scores, MASKED)


def _forward(q, k, v, q_ids, kv_ids):
    scores = _scores(q, k, q_ids, kv_ids)
    peak = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - peak)
    total = weights.sum(axis=-1, keepdims=True)
    out = jnp.dot((weights / total).astype(v.dtype), v)
    return out, (peak + jnp.log(total))[:, 0]


def _backward(q, k, v, grad, lse, aligned, q_ids, kv_ids):
    # The weights are computed again, not kept: M x S a head and layer is what memory would go to.
    weights = jnp.exp(_scores(q, k, q_ids, kv_ids) - lse[:, None])
    grad_scores = weights * (jnp.dot(grad, v.T, preferred_element_type=jnp.float32) - aligned[:, None])
    grad_scores = (grad_scores * (1.0 / math.sqrt(q.shape[-1]))).astype(q.dtype)
    return grad_scores @ k, grad_scores.T @ q, weights.astype(v.dtype).T @ grad
