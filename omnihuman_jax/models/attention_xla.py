"""Attention in plain XLA operations, on any platform: `Dense`, the formula as it is written."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from omnihuman_jax.models.attention_kernel import MASKED, QKV


@dataclasses.dataclass(frozen=True)
class Dense:
    """All heads in one batched product; softmax in float32. Memory M x S a head: what the others are compared with."""

    def forward(self, q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS) -> tuple[jax.Array, jax.Array]:
        scores = self._scores(q_BMNK, k_BSNK, q_ids_BM, kv_ids_BS)
        lse_BNM = jax.nn.logsumexp(scores, axis=-1)
        weights = jnp.exp(scores - lse_BNM[..., None]).astype(v_BSNK.dtype)
        return jnp.einsum("bnms,bsnk->bmnk", weights, v_BSNK), lse_BNM

    def backward(self, q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS, lse_BNM, delta_BNM, grad_BMNK) -> QKV:
        weights = jnp.exp(self._scores(q_BMNK, k_BSNK, q_ids_BM, kv_ids_BS) - lse_BNM[..., None])
        grad_weights = jnp.einsum("bmnk,bsnk->bnms", grad_BMNK, v_BSNK, preferred_element_type=jnp.float32)
        grad_scores = weights * (grad_weights - delta_BNM[..., None]) / math.sqrt(q_BMNK.shape[-1])
        grad_scores = grad_scores.astype(q_BMNK.dtype)
        return (
            jnp.einsum("bnms,bsnk->bmnk", grad_scores, k_BSNK),
            jnp.einsum("bnms,bmnk->bsnk", grad_scores, q_BMNK),
            jnp.einsum("bnms,bmnk->bsnk", weights.astype(v_BSNK.dtype), grad_BMNK),
        )

    def _scores(self, q_BMNK, k_BSNK, q_ids_BM, kv_ids_BS) -> jax.Array:
        scores = jnp.einsum("bmnk,bsnk->bnms", q_BMNK, k_BSNK, preferred_element_type=jnp.float32)
        scores = scores / math.sqrt(q_BMNK.shape[-1])
        return jnp.where((q_ids_BM[:, :, None] == kv_ids_BS[:, None, :])[:, None], scores, MASKED)
