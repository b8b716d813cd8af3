"""Attention between tokens of equal id, behind one interface.

`attention` and `joint_attention` are the only entries. Which kernel runs and how the mesh's `context` axis shares the
work are values (`AttentionStrategy`); every kernel sees the shard of one device, so a kernel that loops, blocks or
calls Pallas never meets the partitioner.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from omnihuman_jax.attention import context_parallel
from omnihuman_jax.attention.cpu import PerHead
from omnihuman_jax.attention.gpu import Cudnn, Triton
from omnihuman_jax.attention.kernel import QKV, Kernel, attend
from omnihuman_jax.attention.tpu import Splash
from omnihuman_jax.attention.xla import Blocked, Dense
from omnihuman_jax.sharding import RULES, platform


@dataclasses.dataclass(kw_only=True, slots=True)
class AttentionStrategy:
    """How attention is computed, never what: every strategy gives the same result. `execution.attention` of a config.

    kernel: a key of `IMPLEMENTATIONS`, or `auto`: the fastest one on the platform of the mesh's devices
    block_q, block_kv: sizes of a kernel's blocks of queries and keys; 0 is the kernel's own choice
    fused_backward: on TPUs: one backward kernel of five products a block, instead of two of seven, for one or two GiB
        more memory (`tpu.Splash`)
    context_parallel: what the devices of the mesh's `context` axis exchange: a key of `context_parallel.MODES`
    ulysses_ways: devices that share out heads under `ulysses_ring`, a divisor of mesh.context; the ring goes over
        context / ulysses_ways groups of them; 0: as many as divide both heads and mesh.context
    """

    kernel: str = "auto"
    block_q: int = 0
    block_kv: int = 0
    fused_backward: bool = False
    context_parallel: str = "gather"
    ulysses_ways: int = 0

    def validate(self) -> None:
        """ValueError on names and numbers that no mesh could use."""
        if self.kernel != "auto" and self.kernel not in IMPLEMENTATIONS:
            raise ValueError(
                f"execution.attention.kernel {self.kernel!r} is unknown; it is one of auto,"
                f" {', '.join(IMPLEMENTATIONS)}"
            )
        if self.context_parallel not in context_parallel.MODES:
            raise ValueError(
                f"execution.attention.context_parallel {self.context_parallel!r} is unknown; it is one of"
                f" {', '.join(context_parallel.MODES)}"
            )
        for name in ("block_q", "block_kv", "ulysses_ways"):
            if getattr(self, name) < 0:
                raise ValueError(f"execution.attention.{name} is {getattr(self, name)}; it must be at least 0")
        if self.kernel != "auto":
            IMPLEMENTATIONS[self.kernel](self, "")


def _blocks(strategy: AttentionStrategy) -> dict[str, int]:
    sizes = {"block_q": strategy.block_q, "block_kv": strategy.block_kv}
    return {name: size for name, size in sizes.items() if size}


IMPLEMENTATIONS: dict[str, Callable[[AttentionStrategy, str], Kernel]] = {
    "dense": lambda strategy, platform: Dense(),
    "blocked": lambda strategy, platform: Blocked(**_blocks(strategy)),
    "per_head": lambda strategy, platform: PerHead(),
    "cudnn": lambda strategy, platform: Cudnn(),
    "triton": lambda strategy, platform: Triton(**_blocks(strategy), interpret=platform != "gpu"),
    "splash": lambda strategy, platform: Splash(
        **_blocks(strategy), fused_backward=strategy.fused_backward, interpret=platform != "tpu"
    ),
}
"""Name -> the kernel for a platform (a Pallas kernel runs in interpret mode, slowly, on any other than its own)."""

FASTEST = {"cpu": "per_head", "tpu": "splash", "gpu": "triton"}
ONE_WINDOW = "cudnn"  # knows no ids


def resolve(strategy: AttentionStrategy, *, one_window: bool = False) -> Kernel:
    """The kernel of `strategy` on the devices that the program is for.

    `cudnn`, which knows no ids, is for sequences of one window; `auto` takes it for them on GPUs, and where a strategy
    names it, attentions of another kind (audio, the text refiner) take what `auto` gives.
    """
    strategy.validate()
    where = platform()
    return IMPLEMENTATIONS[kernel_name(strategy, where, one_window=one_window)](strategy, where)


def kernel_name(strategy: AttentionStrategy, where: str, *, one_window: bool) -> str:
    """The key of `IMPLEMENTATIONS` that `strategy` comes to on a platform."""
    if strategy.kernel == "auto" and one_window and where == "gpu":
        return ONE_WINDOW
    if strategy.kernel == "auto" or (strategy.kernel == ONE_WINDOW and not one_window):
        return FASTEST.get(where, "blocked")
    return strategy.kernel


def check_one_window(strategy: AttentionStrategy, windows: int | None, dtype: jnp.dtype) -> bool:
    """Whether `cudnn` can take the joint attention; ValueError, with the cure, where the strategy asks for it and it
    cannot.
    """
    one, half = windows == 1, jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    if strategy.kernel == ONE_WINDOW and not one:
        raise ValueError(
            f"execution.attention.kernel cudnn takes one window a sequence, data.plan.windows is {windows}; take"
            " triton or auto"
        )
    if strategy.kernel == ONE_WINDOW and not half:
        raise ValueError(
            f"execution.attention.kernel cudnn computes in bfloat16, compute_dtype is {jnp.dtype(dtype)};"
            " take triton or auto"
        )
    return one and half


def attention(
    q_BMNK: jax.Array,
    k_BSNK: jax.Array,
    v_BSNK: jax.Array,
    q_ids_BM: jax.Array,
    kv_ids_BS: jax.Array,
    *,
    strategy: AttentionStrategy,
    q_axis: str | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v, where a query sees the keys that carry its own id; keys are whole on every device.

    Args:
        q_BMNK, k_BSNK, v_BSNK: any float dtype; scores and softmax are float32.
        q_ids_BM, kv_ids_BS: int32; a negative id of a query is none of a key. A query that no key matches yields zero.
        strategy: its kernel is used; keys that are whole everywhere need no exchange.
        q_axis: logical axis of the queries' tokens (`tokens` for the video stream, None where every device has all of
            them).

    Returns:
        [B, M, N, K] in the dtype of `v`.
    """
    run = functools.partial(attend, resolve(strategy))
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        batch, heads = _ways("batch", q_BMNK.shape[0]), _ways("heads", q_BMNK.shape[2])
        tokens = _ways(q_axis, q_BMNK.shape[1])
        q_spec, kv_spec = PartitionSpec(batch, tokens, heads, None), PartitionSpec(batch, None, heads, None)
        run = jax.shard_map(
            run,
            in_specs=(q_spec, kv_spec, kv_spec, PartitionSpec(batch, tokens), PartitionSpec(batch, None)),
            out_specs=q_spec,
            check_vma=False,
        )
    return run(q_BMNK, k_BSNK, v_BSNK, q_ids_BM, kv_ids_BS)


def joint_attention(
    video: QKV,
    text: QKV,
    video_ids_BL: jax.Array,
    text_ids_BS: jax.Array,
    *,
    strategy: AttentionStrategy,
    windows: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention of both streams over both (order: video, then text); each stream's output, [B, L, N, K] and [B, S, N,
    K].

    Video tokens stay split over the mesh's `context` axis and text tokens whole; what the devices exchange in between
    is `strategy.context_parallel`. Padding (id 0) sees nothing and is seen by nothing: zero.

    Args:
        video, text: queries, keys and values of each stream.
        video_ids_BL, text_ids_BS: `segment_ids` of `PackedShape`.
        windows: a sequence's window slots, if known: one window needs no ids (`cudnn`).
    """
    kernel = resolve(strategy, one_window=check_one_window(strategy, windows, video[0].dtype))
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return context_parallel.local(kernel, video, text, video_ids_BL, text_ids_BS)
    batch, tokens, heads = (_ways(axis, size) for axis, size in zip(("batch", "tokens", "heads"), video[0].shape))
    ways = math.prod(mesh.shape[axis] for axis in tokens or ())
    tensor = math.prod(mesh.shape[axis] for axis in heads or ())
    if not tokens:
        context_parallel.check_tokens(strategy.context_parallel, video[0].shape[1], mesh.shape[context_parallel.AXIS])
    run = context_parallel.exchange(
        kernel,
        mode=strategy.context_parallel,
        ways=ways,
        ulysses_ways=strategy.ulysses_ways,
        heads=video[0].shape[2] // tensor,
    )
    video_spec, text_spec = PartitionSpec(batch, tokens, heads, None), PartitionSpec(batch, None, heads, None)
    split = jax.shard_map(
        run,
        in_specs=((video_spec,) * 3, (text_spec,) * 3, PartitionSpec(batch, tokens), PartitionSpec(batch, None)),
        out_specs=(video_spec, text_spec),
        check_vma=False,
    )
    # In float32, where every device adds its part to the text's gradients.
    text = tuple(x.astype(jnp.float32) for x in text) if ways > 1 else text  # type: ignore[assignment]
    return split(video, text, video_ids_BL, text_ids_BS)


def _ways(axis: str | None, size: int) -> tuple[str, ...] | None:
    """The mesh axes of a logical axis; None where they do not divide the dim (one sequence, sampled on many
    devices).
    """
    mesh = jax.sharding.get_abstract_mesh()
    names = RULES[axis] if axis else None
    return names if names and size % math.prod(mesh.shape[name] for name in names) == 0 else None
