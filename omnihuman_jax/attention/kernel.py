"""What a kernel is: attention of one device's queries over one device's keys, forward and backward, without
collectives.

The forward pass gives the output and the log of each query's softmax denominator; the backward pass takes both from
outside. So what several calls computed over parts of the keys can be merged, and each call can be
differentiated as a part of the whole: a ring needs no more than this.
"""

import functools
from typing import Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# Finite: masked scores never make 0 / 0 or inf - inf. A log-sum-exp below NO_KEY is a query's that saw no key.
MASKED = -1e30
NO_KEY = -1e29

QKV: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]


NO_QUERY_ID, NO_KEY_ID = -1, -2
"""Ids of a query that sees nothing and of a key that nothing sees."""


def window_ids(ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(ids as queries, ids as keys) of tokens with `segment_ids`: padding (0) sees nothing and is seen by nothing."""
    return jnp.where(ids > 0, ids, NO_QUERY_ID), jnp.where(ids > 0, ids, NO_KEY_ID)


class Kernel(Protocol):
    """A frozen dataclass, equal to another with the same settings (programs are cached on it).

    A query sees the keys that carry its own id; no query carries a key's negative id and the other way round. q, k and
    v are [B, M or S, N, K] of one float dtype, ids int32 [B, M or S], `lse_BNM` float32.
    """

    def forward(
        self, q_BMNK: jax.Array, k_BSNK: jax.Array, v_BSNK: jax.Array, q_ids_BM: jax.Array, kv_ids_BS: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(out_BMNK in the dtype of v, lse_BNM): softmax(q k^T / sqrt(K)) v and the log of the softmax's denominator.

        Queries without any key: any finite or NaN output, with `lse` below NO_KEY.
        """

    def backward(
        self,
        q_BMNK: jax.Array,
        k_BSNK: jax.Array,
        v_BSNK: jax.Array,
        q_ids_BM: jax.Array,
        kv_ids_BS: jax.Array,
        out_BMNK: jax.Array,
        lse_BNM: jax.Array,
        grad_BMNK: jax.Array,
    ) -> QKV:
        """Gradients of q, k and v: what these keys add to them, with the weights exp(score - lse).

        `out` and `lse` are those over all keys, of which these may be a part. A query whose `grad` is zero adds
        nothing.
        """


def seen(lse_BNM: jax.Array) -> jax.Array:
    """bool [B, M, N, 1]: the queries that saw a key; one whose `lse` is not a number saw one that is not."""
    return ~(lse_BNM <= NO_KEY).transpose(0, 2, 1)[..., None]


def delta(out_BMNK: jax.Array, grad_BMNK: jax.Array) -> jax.Array:
    """float32 [B, N, M]: sum over K of out * grad."""
    return jnp.einsum("bmnk,bmnk->bnm", out_BMNK, grad_BMNK, preferred_element_type=jnp.float32)


def named(out_BMNK: jax.Array, lse_BNM: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two arrays that a remat policy keeps by the name `attention`: with them the forward kernel is not run
    again.
    """
    return checkpoint_name(out_BMNK, "attention"), checkpoint_name(lse_BNM, "attention")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
    kernel: Kernel, q_BMNK: jax.Array, k_BSNK: jax.Array, v_BSNK: jax.Array, q_ids_BM: jax.Array, kv_ids_BS: jax.Array
) -> jax.Array:
    """One kernel call, differentiable. Queries without any key: zero, and no gradient."""
    return _attend_forward(kernel, q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS)[0]


def _attend_forward(kernel, q, k, v, q_ids, kv_ids):
    out, lse = kernel.forward(q, k, v, q_ids, kv_ids)
    out, lse = named(jnp.where(seen(lse), out, jnp.zeros((), out.dtype)), lse)
    return out, (q, k, v, q_ids, kv_ids, out, lse)


def _attend_backward(kernel, residuals, grad):
    q, k, v, q_ids, kv_ids, out, lse = residuals
    grad = jnp.where(seen(lse), grad, jnp.zeros((), grad.dtype))
    return *kernel.backward(q, k, v, q_ids, kv_ids, out, lse, grad), None, None


attend.defvjp(_attend_forward, _attend_backward)
