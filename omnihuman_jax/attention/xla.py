"""Attention in plain XLA operations, on any platform: `Dense`, the formula as it is written, and `Blocked`, in bounded
memory.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

from omnihuman_jax.attention.block_pairs import NO_KEY_FILL, NO_QUERY_FILL, block_pairs, each, fill, fit_block, round_up
from omnihuman_jax.attention.kernel import MASKED, NO_KEY, QKV, delta


@dataclasses.dataclass(frozen=True)
class Dense:
    """All heads in one batched product; softmax in float32. Memory M x S a head: what the others are compared with."""

    def forward(self, q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS) -> tuple[jax.Array, jax.Array]:
        scores = self._scores(q_BMNK, k_BSNK, q_ids_BM, kv_ids_BS)
        lse_BNM = jax.nn.logsumexp(scores, axis=-1)
        weights = jnp.exp(scores - lse_BNM[..., None]).astype(v_BSNK.dtype)
        return jnp.einsum("bnms,bsnk->bmnk", weights, v_BSNK), lse_BNM

    def backward(self, q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS, out_BMNK, lse_BNM, grad_BMNK) -> QKV:
        weights = jnp.exp(self._scores(q_BMNK, k_BSNK, q_ids_BM, kv_ids_BS) - lse_BNM[..., None])
        grad_weights = jnp.einsum("bmnk,bsnk->bnms", grad_BMNK, v_BSNK, preferred_element_type=jnp.float32)
        grad_scores = weights * (grad_weights - delta(out_BMNK, grad_BMNK)[..., None]) / math.sqrt(q_BMNK.shape[-1])
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


@dataclasses.dataclass(frozen=True)
class Blocked:
    """Blocks of block_q x block_kv scores, one head at a time, online softmax in float32; pairs without a window are
    left out.

    Memory beside inputs and outputs: a few blocks, and one head's key and value gradients in float32.
    """

    block_q: int = 512
    block_kv: int = 512

    def forward(self, q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS) -> tuple[jax.Array, jax.Array]:
        length = q_BMNK.shape[1]
        out_BNMK, lse_BNM = each(self._forward_row, self._rows(q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS))
        return out_BNMK.transpose(0, 2, 1, 3)[:, :length], lse_BNM[..., :length]

    def backward(self, q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS, out_BMNK, lse_BNM, grad_BMNK) -> QKV:
        rows = self._rows(q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS)
        padded = rows[0].shape[2]
        lse_BNM, delta_BNM = (fill(x, 2, padded, 0.0) for x in (lse_BNM, delta(out_BMNK, grad_BMNK)))
        grad_BNMK = fill(grad_BMNK, 1, padded, 0.0).transpose(0, 2, 1, 3)
        grads = each(self._backward_row, (*rows, lse_BNM, delta_BNM, grad_BNMK))
        lengths = q_BMNK.shape[1], k_BSNK.shape[1], k_BSNK.shape[1]
        grad_q, grad_k, grad_v = (x.transpose(0, 2, 1, 3)[:, :length] for x, length in zip(grads, lengths, strict=True))
        return grad_q, grad_k, grad_v

    def _rows(self, q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS) -> tuple[jax.Array, ...]:
        """Heads first, whole blocks."""
        block_q, block_kv = self._blocks(q_BMNK.shape[1], k_BSNK.shape[1])
        m, s = round_up(q_BMNK.shape[1], block_q), round_up(k_BSNK.shape[1], block_kv)
        q, k, v = (fill(x, 1, n, 0.0).transpose(0, 2, 1, 3) for x, n in ((q_BMNK, m), (k_BSNK, s), (v_BSNK, s)))
        return q, k, v, fill(q_ids_BM, 1, m, NO_QUERY_FILL), fill(kv_ids_BS, 1, s, NO_KEY_FILL)

    def _blocks(self, m: int, s: int) -> tuple[int, int]:
        return fit_block(m, self.block_q, 1), fit_block(s, self.block_kv, 1)

    def _forward_row(self, q_NMK, k_NSK, v_NSK, q_ids_M, kv_ids_S):
        walk = _Walk.of(q_ids_M, kv_ids_S, *self._blocks(q_ids_M.size, kv_ids_S.size))

        def head(arrays):
            q, k, v = arrays

            def row(i):
                def meet(n, carry):
                    out, peak, total = carry
                    j = walk.order[i, n]
                    scores = walk.scores(q, k, i, j)
                    next_peak = jnp.maximum(peak, scores.max(axis=1, keepdims=True))
                    weights = jnp.exp(scores - next_peak)
                    shrink = jnp.exp(peak - next_peak)
                    more = jnp.dot(weights.astype(v.dtype), walk.keys(v, j), preferred_element_type=jnp.float32)
                    return out * shrink + more, next_peak, total * shrink + weights.sum(axis=1, keepdims=True)

                block = walk.block_q
                start = jnp.zeros((block, q.shape[1])), jnp.full((block, 1), MASKED), jnp.zeros((block, 1))
                out, peak, total = lax.fori_loop(0, walk.count[i], meet, start)
                # No block at all, or only masked scores: no key. A total that is no number had keys: `maximum` may
                # pass over what is none, so that the peak does not tell.
                empty = ((total == 0) | (peak <= NO_KEY)) & ~jnp.isnan(total)
                lse = jnp.where(empty, MASKED, peak + jnp.log(jnp.where(empty, 1.0, total)))
                return (out / jnp.where(empty, 1.0, total)).astype(v.dtype), lse[:, 0]

            out, lse = lax.map(row, jnp.arange(walk.count.size))
            return out.reshape(q.shape), lse.reshape(-1)

        return lax.map(head, (q_NMK, k_NSK, v_NSK))

    def _backward_row(self, q_NMK, k_NSK, v_NSK, q_ids_M, kv_ids_S, lse_NM, delta_NM, grad_NMK):
        walk = _Walk.of(q_ids_M, kv_ids_S, *self._blocks(q_ids_M.size, kv_ids_S.size))

        def head(arrays):
            q, k, v, lse, aligned, grad = arrays

            def row(carry, i):
                grad_i, lse_i, aligned_i = (
                    walk.queries(grad, i),
                    walk.queries(lse, i)[:, None],
                    walk.queries(aligned, i)[:, None],
                )

                def meet(n, carry):
                    grad_q, grad_k, grad_v = carry
                    j = walk.order[i, n]
                    weights = jnp.exp(walk.scores(q, k, i, j) - lse_i)
                    grad_weights = jnp.dot(grad_i, walk.keys(v, j).T, preferred_element_type=jnp.float32)
                    grad_scores = (weights * (grad_weights - aligned_i) / math.sqrt(q.shape[1])).astype(q.dtype)
                    grad_q = grad_q + jnp.dot(grad_scores, walk.keys(k, j), preferred_element_type=jnp.float32)
                    more_k = jnp.dot(grad_scores.T, walk.queries(q, i), preferred_element_type=jnp.float32)
                    more_v = jnp.dot(weights.astype(v.dtype).T, grad_i, preferred_element_type=jnp.float32)
                    return grad_q, walk.add(grad_k, j, more_k), walk.add(grad_v, j, more_v)

                start = (jnp.zeros((walk.block_q, q.shape[1])), *carry)
                grad_q, *carry = lax.fori_loop(0, walk.count[i], meet, start)
                return tuple(carry), grad_q.astype(q.dtype)

            start = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
            (grad_k, grad_v), grad_q = lax.scan(row, start, jnp.arange(walk.count.size))
            return grad_q.reshape(q.shape), grad_k.astype(k.dtype), grad_v.astype(v.dtype)

        return lax.map(head, (q_NMK, k_NSK, v_NSK, lse_NM, delta_NM, grad_NMK))


@dataclasses.dataclass(frozen=True)
class _Walk:
    """Which blocks of keys each block of queries meets: the first `count[i]` of `order[i]`."""

    q_ids: jax.Array
    kv_ids: jax.Array
    block_q: int
    block_kv: int
    order: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, q_ids: jax.Array, kv_ids: jax.Array, block_q: int, block_kv: int) -> "_Walk":
        pairs = block_pairs(q_ids, kv_ids, block_q, block_kv)
        order = jnp.argsort(~pairs, axis=1, stable=True)
        return cls(q_ids, kv_ids, block_q, block_kv, order, pairs.sum(axis=1, dtype=jnp.int32))

    def queries(self, x: jax.Array, i: jax.Array) -> jax.Array:
        return lax.dynamic_slice_in_dim(x, i * self.block_q, self.block_q)

    def keys(self, x: jax.Array, j: jax.Array) -> jax.Array:
        return lax.dynamic_slice_in_dim(x, j * self.block_kv, self.block_kv)

    def add(self, to: jax.Array, j: jax.Array, more: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(to, self.keys(to, j) + more, j * self.block_kv, 0)

    def scores(self, q: jax.Array, k: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        scores = jnp.dot(self.queries(q, i), self.keys(k, j).T, preferred_element_type=jnp.float32) / math.sqrt(
            q.shape[1]
        )
        return jnp.where(self.queries(self.q_ids, i)[:, None] == self.keys(self.kv_ids, j)[None, :], scores, MASKED)
