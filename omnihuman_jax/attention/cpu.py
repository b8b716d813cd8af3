"""Attention on a CPU: two-dimensional products, one head at a time, which XLA:CPU runs several times faster than
batched ones.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from omnihuman_jax.attention.kernel import MASKED, QKV, delta


@dataclasses.dataclass(frozen=True)
class PerHead:
    """A loop over heads; memory M x S for each of the `at_once` heads of a round.

    XLA:CPU runs a product of a head's size on one core: the heads of a round, which do not wait for one another, keep
    more busy. The result does not depend on it.
    """

    at_once: int = 2

    def forward(self, q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS) -> tuple[jax.Array, jax.Array]:
        outs, lses = [], []
        for b in range(q_BMNK.shape[0]):
            ids = q_ids_BM[b], kv_ids_BS[b]
            q, k, v = (x[b].transpose(1, 0, 2) for x in (q_BMNK, k_BSNK, v_BSNK))
            out, lse = self._heads(functools.partial(_forward, ids=ids), (q, k, v))
            outs.append(out.transpose(1, 0, 2))
            lses.append(lse)
        return jnp.stack(outs), jnp.stack(lses)

    def backward(self, q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS, out_BMNK, lse_BNM, grad_BMNK) -> QKV:
        delta_BNM = delta(out_BMNK, grad_BMNK)
        rows = []
        for b in range(q_BMNK.shape[0]):
            ids = q_ids_BM[b], kv_ids_BS[b]
            q, k, v, grad = (x[b].transpose(1, 0, 2) for x in (q_BMNK, k_BSNK, v_BSNK, grad_BMNK))
            grads = self._heads(functools.partial(_backward, ids=ids), (q, k, v, grad, lse_BNM[b], delta_BNM[b]))
            rows.append([x.transpose(1, 0, 2) for x in grads])
        grad_q, grad_k, grad_v = (jnp.stack([row[i] for row in rows]) for i in range(3))
        return grad_q, grad_k, grad_v

    def _heads(self, run: Callable[..., Any], arrays: tuple[jax.Array, ...]) -> Any:
        """`run` on each head of arrays [N, ...], results stacked."""
        num_heads = arrays[0].shape[0]
        ways = math.gcd(num_heads, self.at_once)

        def rounds(chunk: tuple[jax.Array, ...]) -> Any:
            heads = [run(*(x[i] for x in chunk)) for i in range(ways)]
            return jax.tree.map(lambda *parts: jnp.stack(parts), *heads)

        stacked = jax.lax.map(rounds, tuple(x.reshape(num_heads // ways, ways, *x.shape[1:]) for x in arrays))
        return jax.tree.map(lambda x: x.reshape(num_heads, *x.shape[2:]), stacked)


def _scores(q_MK: jax.Array, k_SK: jax.Array, q_ids_M: jax.Array, kv_ids_S: jax.Array) -> jax.Array:
    scores = jnp.dot(q_MK * (1.0 / math.sqrt(q_MK.shape[-1])), k_SK.T, preferred_element_type=jnp.float32)
    return jnp.where(q_ids_M[:, None] == kv_ids_S[None, :], scores, MASKED)


def _forward(q, k, v, *, ids):
    scores = _scores(q, k, *ids)
    peak = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - peak)
    total = weights.sum(axis=-1, keepdims=True)
    out = jnp.dot((weights / total).astype(v.dtype), v)
    return out, (peak + jnp.log(total))[:, 0]


def _backward(q, k, v, grad, lse, aligned, *, ids):
    # The weights are computed again, not kept: M x S a head and layer is what memory would go to.
    weights = jnp.exp(_scores(q, k, *ids) - lse[:, None])
    grad_scores = weights * (jnp.dot(grad, v.T, preferred_element_type=jnp.float32) - aligned[:, None])
    grad_scores = (grad_scores * (1.0 / math.sqrt(q.shape[-1]))).astype(q.dtype)
    return grad_scores @ k, grad_scores.T @ q, weights.astype(v.dtype).T @ grad
