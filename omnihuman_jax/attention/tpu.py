"""Attention on TPUs: jax's splash kernels, told which blocks of a pack to leave out.

Splash wants its mask at compile time, or a dense one at run time. A pack's mask is neither: window ids mask inside of
blocks, and the tables that splash walks its grid by (`MaskInfo`) are made here, inside the program, from the ids. The
three passes are called one by one, so that a ring can give the backward passes the log-sum-exp of all its hops; jax
0.10.2 exports no such entry, hence the underscores.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo

from omnihuman_jax.attention.block_pairs import NO_KEY_FILL, NO_QUERY_FILL, block_pairs, each, fill, fit_block, round_up
from omnihuman_jax.attention.kernel import QKV, delta

LANES = 128  # of a vector register: blocks are multiples of it
PARTS_BYTES = 2**30  # of the queries' gradient, once a block of keys: heads are taken a few at a time to stay below


@dataclasses.dataclass(frozen=True)
class Splash:
    """Blocks of block_q x block_kv scores in on-chip memory; lengths are filled up to whole blocks."""

    block_q: int = 1024
    block_kv: int = 1024
    fused_backward: bool = False
    """One backward kernel of five products a block, not two of seven in all; the queries' gradient passes through
    memory, once
    a block of keys: at most about `PARTS_BYTES` at a time."""
    interpret: bool = False
    """Run the kernels' Python on any platform, slowly: for tests."""

    def __post_init__(self) -> None:
        if self.block_q % LANES or self.block_kv % LANES or min(self.block_q, self.block_kv) < LANES:
            raise ValueError(
                f"execution.attention.block_q {self.block_q} and block_kv {self.block_kv}: splash takes multiples of"
                f" {LANES}"
            )

    def forward(self, q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS) -> tuple[jax.Array, jax.Array]:
        length = q_BMNK.shape[1]
        rows = self._rows(q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS)
        out_BNMK, lse_BNM = each(self._forward_row, rows)
        return out_BNMK.transpose(0, 2, 1, 3)[:, :length], lse_BNM[..., :length]

    def backward(self, q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS, out_BMNK, lse_BNM, grad_BMNK) -> QKV:
        lengths = q_BMNK.shape[1], k_BSNK.shape[1], k_BSNK.shape[1]
        rows = self._rows(q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS)
        padded = rows[0].shape[2]
        lse_BNM, delta_BNM = (fill(x, 2, padded, 0.0) for x in (lse_BNM, delta(out_BMNK, grad_BMNK)))
        grad_BNMK = fill(grad_BMNK, 1, padded, 0.0).transpose(0, 2, 1, 3)
        grads = each(
            self._fused_backward_row if self.fused_backward else self._backward_row,
            (*rows, lse_BNM, delta_BNM, grad_BNMK),
        )
        grad_q, grad_k, grad_v = (x.transpose(0, 2, 1, 3)[:, :length] for x, length in zip(grads, lengths, strict=True))
        return grad_q * _scale(q_BMNK).astype(grad_q.dtype), grad_k, grad_v

    def _rows(self, q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS) -> tuple[jax.Array, ...]:
        """Heads first, scaled queries, whole blocks."""
        block_q, block_kv = self._blocks(q_BMNK.shape[1], k_BSNK.shape[1])
        m, s = round_up(q_BMNK.shape[1], block_q), round_up(k_BSNK.shape[1], block_kv)
        q_BMNK = q_BMNK * _scale(q_BMNK).astype(q_BMNK.dtype)
        q, k, v = (fill(x, 1, n, 0.0).transpose(0, 2, 1, 3) for x, n in ((q_BMNK, m), (k_BSNK, s), (v_BSNK, s)))
        return q, k, v, fill(q_ids_BM, 1, m, NO_QUERY_FILL), fill(kv_ids_BS, 1, s, NO_KEY_FILL)

    def _blocks(self, m: int, s: int) -> tuple[int, int]:
        return fit_block(m, self.block_q, LANES), fit_block(s, self.block_kv, LANES)

    def fused_backward_bytes(self, heads: int, queries: int, keys: int, head_dim: int, itemsize: int = 2) -> int:
        """What the one backward kernel takes beyond the two; `heads`, `queries`, `keys` of one call.

        The parts of the queries' gradient; and where heads are taken a few at a time, what goes in and comes out once
        more.
        """
        block_q, compute = self._blocks(queries, keys)
        head_bytes = round_up(queries, block_q) * head_dim * itemsize
        keys = round_up(keys, compute)
        block_kv, together = self._parts(heads, keys, compute, head_bytes)
        parts = round_up(keys, block_kv) // block_kv * head_bytes * together
        return parts + (6 * heads * head_bytes if together < heads else 0)

    def _parts(self, heads: int, keys: int, compute: int, head_bytes: int) -> tuple[int, int]:
        """Keys of a block in memory, and the heads that are taken together, for at most about `PARTS_BYTES`."""
        # Longer than that, a block in memory is two blocks of products: half the parts.
        block_kv = compute if keys // compute * head_bytes <= PARTS_BYTES else 2 * compute
        together = max(1, PARTS_BYTES // (round_up(keys, block_kv) // block_kv * head_bytes))
        return block_kv, max(n for n in range(1, heads + 1) if heads % n == 0 and n <= together)

    def _forward_row(self, q_NMK, k_NSK, v_NSK, q_ids_M, kv_ids_S):
        block_q, block_kv = self._blocks(q_NMK.shape[1], k_NSK.shape[1])
        pairs = block_pairs(q_ids_M, kv_ids_S, block_q, block_kv)
        # A row of blocks that computes none would divide by zero: one masked block gives a finite average instead.
        pairs = pairs.at[:, 0].set(pairs[:, 0] | ~pairs.any(axis=1))
        out, (lse,) = splash._splash_attention_forward(
            _walk(pairs),
            q_NMK,
            k_NSK,
            v_NSK,
            splash.SegmentIds(q=q_ids_M, kv=kv_ids_S),
            None,
            mask_value=splash.DEFAULT_MASK_VALUE,
            is_mqa=False,
            block_sizes=splash.BlockSizes(block_q=block_q, block_kv=block_kv),
            residual_checkpoint_name=None,
            save_residuals=True,
            mask_function=None,
            interpret=self.interpret,
        )
        return out, lse

    def _backward_row(self, q_NMK, k_NSK, v_NSK, q_ids_M, kv_ids_S, lse_NM, delta_NM, grad_NMK):
        block_q, block_kv = self._blocks(q_NMK.shape[1], k_NSK.shape[1])
        pairs = block_pairs(q_ids_M, kv_ids_S, block_q, block_kv)
        layout = splash.QKVLayout.HEAD_DIM_MINOR
        common: dict[str, Any] = {
            "bq": block_q,
            "bkv": block_kv,
            "is_mqa": False,
            "mask_value": splash.DEFAULT_MASK_VALUE,
            "attn_logits_soft_cap": None,
            "q_layout": layout,
            "k_layout": layout,
            "v_layout": layout,
            "mask_function": None,
            "interpret": self.interpret,
        }
        arrays = (q_NMK, k_NSK, v_NSK, splash.SegmentIds(q=q_ids_M, kv=kv_ids_S), None, lse_NM, grad_NMK, delta_NM)
        _, grad_k, grad_v = splash._splash_attention_bwd_dkv(
            *arrays, **common, bkv_compute=block_kv, mask_info=_walk(pairs, by_keys=True), use_fused_bwd_kernel=False
        )
        return splash._splash_attention_bwd_dq(*arrays, **common, mask_info=_walk(pairs)), grad_k, grad_v

    def _fused_backward_row(self, q_NMK, k_NSK, v_NSK, q_ids_M, kv_ids_S, lse_NM, delta_NM, grad_NMK):
        block_q, compute = self._blocks(q_NMK.shape[1], k_NSK.shape[1])
        heads, keys = q_NMK.shape[0], k_NSK.shape[1]
        block_kv, together = self._parts(heads, keys, compute, q_NMK[0].nbytes)
        filled = round_up(keys, block_kv)
        k_NSK, v_NSK = (fill(x, 1, filled, 0.0) for x in (k_NSK, v_NSK))
        kv_ids_S = fill(kv_ids_S, 0, filled, NO_KEY_FILL)
        mask_info = _walk(block_pairs(q_ids_M, kv_ids_S, block_q, block_kv), by_keys=True)
        ids, layout = splash.SegmentIds(q=q_ids_M, kv=kv_ids_S), splash.QKVLayout.HEAD_DIM_MINOR

        def some(q, k, v, lse, aligned, grad):
            return splash._splash_attention_bwd_dkv(
                q, k, v, ids, None, lse, grad, aligned,
                bq=block_q,
                bkv=block_kv,
                bkv_compute=compute,
                is_mqa=False,
                mask_info=mask_info,
                mask_value=splash.DEFAULT_MASK_VALUE,
                attn_logits_soft_cap=None,
                use_fused_bwd_kernel=True,
                q_layout=layout,
                k_layout=layout,
                v_layout=layout,
                mask_function=None,
                interpret=self.interpret,
            )  # fmt: skip

        arrays = (q_NMK, k_NSK, v_NSK, lse_NM, delta_NM, grad_NMK)
        parts = jax.tree.map(lambda x: x.reshape(heads // together, together, *x.shape[1:]), arrays)
        grads = each(some, parts)
        grad_q, grad_k, grad_v = (x.reshape(heads, *x.shape[2:]) for x in grads)
        return grad_q, grad_k[:, :keys], grad_v[:, :keys]


def _walk(pairs: jax.Array, *, by_keys: bool = False) -> MaskInfo:
    """The tables of a grid that goes over all pairs of blocks and computes those that are True.

    `data_next` names the block that the next computed pair reads (of keys; `by_keys`: of queries), in the order of the
    grid, so that skipped steps fetch nothing and the next block is on its way early.
    """
    ordered = (pairs.T if by_keys else pairs).reshape(-1)
    inner = pairs.shape[0 if by_keys else 1]
    index = jnp.where(ordered, jnp.arange(ordered.size, dtype=jnp.int32), ordered.size)
    following = jax.lax.cummin(index, reverse=True)
    last = jnp.max(jnp.where(ordered, jnp.arange(ordered.size, dtype=jnp.int32), 0))
    following = jnp.where(following < ordered.size, following, last) % inner
    data_next = following.reshape(pairs.shape[::-1]).T if by_keys else following.reshape(pairs.shape)
    # Scalar memory is small: the narrowest integer that holds a block's number.
    narrow = jnp.int8 if inner <= 127 else jnp.int16
    return MaskInfo(
        data_next=data_next.astype(narrow)[None],
        mask_next=None,
        block_mask=jnp.where(pairs, 2, 0).astype(jnp.int8)[None],
        partial_mask_blocks=None,
        q_sequence=None,
    )


def _scale(q_BMNK: jax.Array) -> jax.Array:
    return jnp.float32(1.0 / math.sqrt(q_BMNK.shape[-1]))
