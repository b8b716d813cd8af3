"""Attention on NVIDIA GPUs: cuDNN's flash attention for one window a sequence, a Pallas kernel with window ids for
packs.

jax's own Pallas kernel (`pallas.ops.gpu.attention.mha`) takes one array of ids for queries and keys alike and computes
every block; shards of a context axis and audio keys have ids and a length of their own, and a pack is mostly blocks
between windows.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as fused
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from omnihuman_jax.attention.block_pairs import NO_KEY_FILL, NO_QUERY_FILL, block_pairs, fill, round_up
from omnihuman_jax.attention.kernel import MASKED, NO_KEY, QKV, delta

# JAX 0.12's rule takes a function of the scores too, and the arrays that it reads: none here.
SCORE_MOD = "score_mod" in inspect.signature(fused._dot_product_attention_bwd_rule).parameters


@dataclasses.dataclass(frozen=True)
class Triton:
    """Flash attention by Pallas on Triton; each block of queries walks the list of key blocks that share a window with
    it.
    """

    block_q: int = 64
    block_kv: int = 64
    interpret: bool = False
    """Run the kernels' Python on any platform, slowly: for tests."""

    def __post_init__(self) -> None:
        for name in ("block_q", "block_kv"):
            size = getattr(self, name)
            if size < 16 or size & (size - 1):
                raise ValueError(f"execution.attention.{name} {size}: triton takes powers of two from 16")

    def forward(self, q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS) -> tuple[jax.Array, jax.Array]:
        q, k, v, q_ids, kv_ids = self._filled(q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS)
        order, count = self._walk(q_ids, kv_ids)
        mine, all_keys = _Specs(self.block_q, q.shape), _Specs(k.shape[1], k.shape)
        out, lse = self._call(
            functools.partial(_forward_kernel, block_kv=self.block_kv, scale=_scale(q_BMNK)),
            blocks=count.shape[1],
            inputs=[
                (q, mine.tokens()),
                (k, all_keys.tokens(whole=True)),
                (v, all_keys.tokens(whole=True)),
                (q_ids, mine.ids()),
                (kv_ids, all_keys.ids(whole=True)),
                (order, _row(order)),
                (count, _row(count)),
            ],
            outputs=[
                (jax.ShapeDtypeStruct(q.shape, v.dtype), mine.tokens()),
                (jax.ShapeDtypeStruct((q.shape[0], q.shape[2], q.shape[1]), jnp.float32), mine.rows()),
            ],
            name="packed_attention_forward",
        )
        return out[:, : q_BMNK.shape[1], :, : q_BMNK.shape[3]], lse[..., : q_BMNK.shape[1]]

    def backward(self, q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS, out_BMNK, lse_BNM, grad_BMNK) -> QKV:
        q, k, v, q_ids, kv_ids = self._filled(q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS)
        m, s, size = q.shape[1], k.shape[1], q.shape[3]
        lse, sums = (fill(x, 2, m, 0.0) for x in (lse_BNM, delta(out_BMNK, grad_BMNK)))
        grad = fill(fill(grad_BMNK, 1, m, 0.0), 3, size, 0.0)
        settings = {"scale": _scale(q_BMNK)}
        order, count = self._walk(q_ids, kv_ids)
        mine, all_keys = _Specs(self.block_q, q.shape), _Specs(s, k.shape)
        grad_q = self._call(
            functools.partial(_backward_q_kernel, block_kv=self.block_kv, **settings),
            blocks=count.shape[1],
            inputs=[
                (q, mine.tokens()),
                (k, all_keys.tokens(whole=True)),
                (v, all_keys.tokens(whole=True)),
                (q_ids, mine.ids()),
                (kv_ids, all_keys.ids(whole=True)),
                (lse, mine.rows()),
                (sums, mine.rows()),
                (grad, mine.tokens()),
                (order, _row(order)),
                (count, _row(count)),
            ],
            outputs=[(jax.ShapeDtypeStruct(q.shape, q.dtype), mine.tokens())],
            name="packed_attention_backward_q",
        )[0]
        order, count = self._walk(q_ids, kv_ids, by_keys=True)
        mine, all_queries = _Specs(self.block_kv, k.shape), _Specs(m, q.shape)
        grad_k, grad_v = self._call(
            functools.partial(_backward_kv_kernel, block_q=self.block_q, **settings),
            blocks=count.shape[1],
            inputs=[
                (q, all_queries.tokens(whole=True)),
                (k, mine.tokens()),
                (v, mine.tokens()),
                (q_ids, all_queries.ids(whole=True)),
                (kv_ids, mine.ids()),
                (lse, all_queries.rows(whole=True)),
                (sums, all_queries.rows(whole=True)),
                (grad, all_queries.tokens(whole=True)),
                (order, _row(order)),
                (count, _row(count)),
            ],
            outputs=[(jax.ShapeDtypeStruct(x.shape, x.dtype), mine.tokens()) for x in (k, v)],
            name="packed_attention_backward_kv",
        )
        found = zip((grad_q, grad_k, grad_v), (q_BMNK, k_BSNK, v_BSNK), strict=True)
        grad_q, grad_k, grad_v = (x[:, : like.shape[1], :, : like.shape[3]] for x, like in found)
        return grad_q, grad_k, grad_v

    def _filled(self, q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS) -> tuple[jax.Array, ...]:
        """Whole blocks, and a head size that is a power of two."""
        m, s = round_up(q_BMNK.shape[1], self.block_q), round_up(k_BSNK.shape[1], self.block_kv)
        size = max(16, pl.next_power_of_2(q_BMNK.shape[3]))
        q, k, v = (fill(fill(x, 1, n, 0.0), 3, size, 0.0) for x, n in ((q_BMNK, m), (k_BSNK, s), (v_BSNK, s)))
        return q, k, v, fill(q_ids_BM, 1, m, NO_QUERY_FILL), fill(kv_ids_BS, 1, s, NO_KEY_FILL)

    def _walk(self, q_ids: jax.Array, kv_ids: jax.Array, *, by_keys: bool = False) -> tuple[jax.Array, jax.Array]:
        """(order [B, blocks, others], count [B, blocks, 1]): which other blocks a block meets, the first `count` of
        `order`.
        """
        pairs = jax.vmap(lambda q, kv: block_pairs(q, kv, self.block_q, self.block_kv))(q_ids, kv_ids)
        pairs = pairs.transpose(0, 2, 1) if by_keys else pairs
        order = jnp.argsort(~pairs, axis=2, stable=True).astype(jnp.int32)
        return order, pairs.sum(axis=2, keepdims=True, dtype=jnp.int32)

    def _call(
        self,
        kernel: Callable[..., None],
        *,
        blocks: int,
        inputs: list[tuple[jax.Array, pl.BlockSpec]],
        outputs: list[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
        name: str,
    ) -> Any:
        batch, _, heads, size = inputs[0][0].shape
        return pl.pallas_call(
            kernel,
            grid=(blocks, batch, heads),
            in_specs=[spec for _, spec in inputs],
            out_specs=[spec for _, spec in outputs],
            out_shape=[shape for shape, _ in outputs],
            compiler_params=plgpu.CompilerParams(num_warps=4 if size <= 64 else 8, num_stages=2),
            interpret=self.interpret,
            name=name,
        )(*(array for array, _ in inputs))


@dataclasses.dataclass(frozen=True)
class _Specs:
    """Where a program of the grid (block, row of the batch, head) finds its part of an array with `block` tokens a
    part.
    """

    block: int
    shape: tuple[int, ...]

    def tokens(self, *, whole: bool = False) -> pl.BlockSpec:
        return pl.BlockSpec((None, self.block, None, self.shape[3]), lambda i, b, h: (b, 0 if whole else i, h, 0))

    def ids(self, *, whole: bool = False) -> pl.BlockSpec:
        return pl.BlockSpec((None, self.block), lambda i, b, h: (b, 0 if whole else i))

    def rows(self, *, whole: bool = False) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, self.block), lambda i, b, h: (b, h, 0 if whole else i))


def _row(x: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, x.shape[2]), lambda i, b, h: (b, i, 0))


def _scale(q_BMNK: jax.Array) -> float:
    return 1.0 / math.sqrt(q_BMNK.shape[-1])


def _scores(q, k, q_ids, kv_ids, scale: float) -> jax.Array:
    return jnp.where(q_ids[:, None] == kv_ids[None, :], plgpu.dot(q, k.T) * scale, MASKED)


def _forward_kernel(
    q_ref, k_ref, v_ref, q_ids_ref, kv_ids_ref, order_ref, count_ref, out_ref, lse_ref, *, block_kv, scale
):
    q, q_ids = q_ref[...], q_ids_ref[...]

    def meet(n, carry):
        out, peak, total = carry
        keys = pl.ds(order_ref[n] * block_kv, block_kv)
        scores = _scores(q, k_ref[keys, :], q_ids, kv_ids_ref[keys], scale)
        next_peak = jnp.maximum(peak, scores.max(axis=1))
        weights = jnp.exp(scores - next_peak[:, None])
        shrink = jnp.exp(peak - next_peak)
        v = v_ref[keys, :]
        out = out * shrink[:, None] + plgpu.dot(weights.astype(v.dtype), v)
        return out, next_peak, total * shrink + weights.sum(axis=1)

    start = (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(q.shape[:1], MASKED, jnp.float32),
        jnp.zeros(q.shape[:1], jnp.float32),
    )
    out, peak, total = jax.lax.fori_loop(0, count_ref[0], meet, start)
    # A total that is no number had keys: the device's maximum passes over what is none, so that the peak does not tell.
    total = jnp.where((peak <= NO_KEY) & (total == total), 1.0, total)
    out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
    lse_ref[...] = peak + jnp.log(total)


def _backward_q_kernel(
    q_ref,
    k_ref,
    v_ref,
    q_ids_ref,
    kv_ids_ref,
    lse_ref,
    delta_ref,
    grad_ref,
    order_ref,
    count_ref,
    grad_q_ref,
    *,
    block_kv,
    scale,
):
    q, q_ids, grad, lse, aligned = q_ref[...], q_ids_ref[...], grad_ref[...], lse_ref[...], delta_ref[...]

    def meet(n, grad_q):
        keys = pl.ds(order_ref[n] * block_kv, block_kv)
        k = k_ref[keys, :]
        weights = jnp.exp(_scores(q, k, q_ids, kv_ids_ref[keys], scale) - lse[:, None])
        grad_scores = weights * (plgpu.dot(grad, v_ref[keys, :].T) - aligned[:, None]) * scale
        return grad_q + plgpu.dot(grad_scores.astype(k.dtype), k)

    grad_q_ref[...] = jax.lax.fori_loop(0, count_ref[0], meet, jnp.zeros(q.shape, jnp.float32)).astype(grad_q_ref.dtype)


def _backward_kv_kernel(
    q_ref, k_ref, v_ref, q_ids_ref, kv_ids_ref, lse_ref, delta_ref, grad_ref, order_ref, count_ref, grad_k_ref,
    grad_v_ref, *,
    block_q, scale,
):  # fmt: skip
    k, v, kv_ids = k_ref[...], v_ref[...], kv_ids_ref[...]

    def meet(n, carry):
        grad_k, grad_v = carry
        rows = pl.ds(order_ref[n] * block_q, block_q)
        q, grad = q_ref[rows, :], grad_ref[rows, :]
        weights = jnp.exp(_scores(q, k, q_ids_ref[rows], kv_ids, scale) - lse_ref[rows][:, None])
        grad_v = grad_v + plgpu.dot(weights.astype(grad.dtype).T, grad)
        grad_scores = weights * (plgpu.dot(grad, v.T) - delta_ref[rows][:, None]) * scale
        return grad_k + plgpu.dot(grad_scores.astype(q.dtype).T, q), grad_v

    start = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    grad_k, grad_v = jax.lax.fori_loop(0, count_ref[0], meet, start)
    grad_k_ref[...], grad_v_ref[...] = grad_k.astype(grad_k_ref.dtype), grad_v.astype(grad_v_ref.dtype)


@dataclasses.dataclass(frozen=True)
class Cudnn:
    """cuDNN's flash attention where a sequence holds one window: its padding is all that there is to mask.

    cuDNN masks what lies behind a length, and a joint sequence has its video's padding in the middle: keys are sorted,
    those of the window first. Entered below `jax.nn.dot_product_attention`, which rounds the log-sum-exp to bfloat16
    and has no entry for the backward pass alone. bfloat16 or float16; head size a multiple of 8, at most 128 (256 from
    Hopper on).
    """

    def forward(self, q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS) -> tuple[jax.Array, jax.Array]:
        order, lengths = _window_first(kv_ids_BS)
        out, lse_BNM = fused.dot_product_attention(
            q_BMNK,
            _take(k_BSNK, order),
            _take(v_BSNK, order),
            q_seqlen=self._query_lengths(q_BMNK),
            kv_seqlen=lengths,
            scale=_scale(q_BMNK),
            mask_type=fused.MaskType.PADDING,
            return_residual=True,
        )
        saw = (q_ids_BM >= 0) & (lengths[:, None] > 0)
        return out, jnp.where(saw[:, None, :], lse_BNM, MASKED)

    def backward(self, q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS, out_BMNK, lse_BNM, grad_BMNK) -> QKV:
        order, lengths = _window_first(kv_ids_BS)
        unused = jnp.zeros(0, q_BMNK.dtype)
        # A query without a key: weights of zero, not exp(score - MASKED).
        lse_BNM = jnp.where(lse_BNM <= NO_KEY, -MASKED, lse_BNM)
        residuals = (
            *(q_BMNK, _take(k_BSNK, order), _take(v_BSNK, order), unused, self._query_lengths(q_BMNK), lengths),
            *(unused, unused, unused, unused, *([()] if SCORE_MOD else []), lse_BNM, out_BMNK),
        )
        rule: Callable[..., Any] = fused._dot_product_attention_bwd_rule
        grads = rule(
            _scale(q_BMNK), 42, 0.0, (False, False), fused.MaskType.PADDING, fused.AttentionLayout.BTNH.value, None,
            *([None] if SCORE_MOD else []), True, False, residuals, grad_BMNK,
        )  # fmt: skip
        back = jnp.argsort(order, axis=1)
        return grads[0], _take(grads[1], back), _take(grads[2], back)

    def _query_lengths(self, q_BMNK: jax.Array) -> jax.Array:
        return jnp.full(q_BMNK.shape[:1], q_BMNK.shape[1], jnp.int32)


def _window_first(kv_ids_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(order that puts the keys of the window before all others, their number)."""
    return jnp.argsort(kv_ids_BS < 0, axis=1, stable=True), (kv_ids_BS >= 0).sum(axis=1, dtype=jnp.int32)


def _take(x_BSNK: jax.Array, order_BS: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_BSNK, order_BS[:, :, None, None], axis=1)
