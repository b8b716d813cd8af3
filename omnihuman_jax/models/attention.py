"""Attention between tokens of equal id, behind one interface.

`attention` is the only entry: which kernel runs is a value (`IMPLEMENTATIONS`), and every kernel sees the shard of one
device, so a kernel that loops, blocks or calls Pallas never meets the partitioner.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from omnihuman_jax.sharding import RULES

# Finite: a query without any key gets a uniform average (its caller gates it away), not 0 / 0.
MASKED = -1e30

Kernel = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def dense(q_BMNK: jax.Array, k_BSNK: jax.Array, v_BSNK: jax.Array, q_ids_BM: jax.Array, kv_ids_BS: jax.Array) -> jax.Array:
    """All heads in one batched product; softmax in float32. Memory M x S a head."""
    scores = jnp.einsum("bmnk,bsnk->bnms", q_BMNK, k_BSNK, preferred_element_type=jnp.float32)
    scores = scores / math.sqrt(q_BMNK.shape[-1])
    scores = jnp.where((q_ids_BM[:, :, None] == kv_ids_BS[:, None, :])[:, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BSNK.dtype)
    return jnp.einsum("bnms,bsnk->bmnk", weights, v_BSNK)


def per_head(q_BMNK: jax.Array, k_BSNK: jax.Array, v_BSNK: jax.Array, q_ids_BM: jax.Array, kv_ids_BS: jax.Array) -> jax.Array:
    """One two-dimensional product a sequence and head: XLA:CPU runs those several times faster than batched ones."""
    scale = 1.0 / math.sqrt(q_BMNK.shape[-1])
    rows = []
    for b in range(q_BMNK.shape[0]):
        same = q_ids_BM[b, :, None] == kv_ids_BS[b, None, :]
        heads = []
        for n in range(q_BMNK.shape[2]):
            scores = jnp.dot(q_BMNK[b, :, n] * scale, k_BSNK[b, :, n].T, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(jnp.where(same, scores, MASKED), axis=-1).astype(v_BSNK.dtype)
            heads.append(weights @ v_BSNK[b, :, n])
        rows.append(jnp.stack(heads, axis=1))
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
    video: tuple[jax.Array, jax.Array, jax.Array],
    text: tuple[jax.Array, jax.Array, jax.Array],
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
