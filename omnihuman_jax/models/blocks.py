"""The blocks of the MMDiT: dual-stream, single-stream, and the text refiner; how they are stacked and scanned.

The two streams stay apart all the way: in a single-stream block they share weights, and computing a per-token product
on each stream equals computing it on both, while video tokens can be split over the mesh and text tokens stay whole.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from omnihuman_jax import segments
from omnihuman_jax.attention.dispatch import AttentionStrategy, attention, joint_attention
from omnihuman_jax.attention.kernel import QKV, window_ids
from omnihuman_jax.models.audio_adapter import AudioCrossAttention, AudioTokens
from omnihuman_jax.models.execution import BLOCK_INPUT, REMAT_POLICIES, ExecutionConfig
from omnihuman_jax.models.layers import (
    MLP,
    LayerNorm,
    Linear,
    Modulation,
    RMSNorm,
    TimestepEmbedder,
    activate,
    add_gated,
    look_up,
    modulate,
)
from omnihuman_jax.models.mmdit_config import MMDiTConfig
from omnihuman_jax.models.rope import Rotation, rotate


class Context(NamedTuple):
    """What every block reads beside its tokens."""

    rotation: Rotation
    video_ids_BL: jax.Array
    text_ids_BS: jax.Array
    embedding_BRD: jax.Array
    """Conditioning (time + pooled text): rows 2g of noisy and 2g + 1 of clean tokens of window g; float32."""
    video_rows_BLR: jax.Array
    """One-hot row of each video token."""
    text_rows_BSR: jax.Array
    audio: AudioTokens | None
    strategy: AttentionStrategy


class SelfAttentionInputs(nnx.Module):
    """Queries, keys (RMS-normed a head) and values of one stream."""

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        heads, axes = (config.num_heads, config.head_dim), ("embed", "heads", "head_dim")
        self.q = Linear(rngs, (config.width,), heads, axes)
        self.k = Linear(rngs, (config.width,), heads, axes)
        self.v = Linear(rngs, (config.width,), heads, axes)
        self.q_norm = RMSNorm(rngs, config.head_dim)
        self.k_norm = RMSNorm(rngs, config.head_dim)

    def __call__(self, x_BLD: jax.Array, turn: Rotation | None) -> QKV:
        q, k = self.q_norm(self.q(x_BLD)), self.k_norm(self.k(x_BLD))
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        return q.astype(x_BLD.dtype), k.astype(x_BLD.dtype), self.v(x_BLD)


class DualStream(nnx.Module):
    """One stream's own weights in a dual-stream block."""

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        # Order of the chunks: shift, scale, gate of the attention; shift, scale, gate of the MLP.
        self.modulation = Modulation(rngs, config.width, 6)
        self.attention = SelfAttentionInputs(config, rngs)
        self.out = Linear(rngs, (config.num_heads, config.head_dim), (config.width,), ("heads", "head_dim", "embed"))
        self.mlp = MLP(rngs, config.width, config.mlp_width, config.width, "gelu")

    def attend(self, x: jax.Array, table: jax.Array, rows: jax.Array, turn: Rotation | None) -> QKV:
        shift, scale = look_up(rows, table[:, :, 0]), look_up(rows, table[:, :, 1])
        return self.attention(modulate(x, shift, scale), turn)

    def add_attention(self, x: jax.Array, y: jax.Array, table: jax.Array, rows: jax.Array) -> jax.Array:
        return add_gated(x, look_up(rows, table[:, :, 2]), self.out(y))

    def add_mlp(self, x: jax.Array, table: jax.Array, rows: jax.Array) -> jax.Array:
        shift, scale = look_up(rows, table[:, :, 3]), look_up(rows, table[:, :, 4])
        return add_gated(x, look_up(rows, table[:, :, 5]), self.mlp(modulate(x, shift, scale)))


class DualBlock(nnx.Module):
    """Joint attention, audio cross-attention on the video stream, MLP; weights of its own for each stream."""

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        self.video = DualStream(config, rngs)
        self.text = DualStream(config, rngs)
        audio = config.audio
        self.audio_attention = AudioCrossAttention(audio, config.width, rngs) if audio else None

    def __call__(self, video_BLD: jax.Array, text_BSD: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
        video_table, text_table = (
            self.video.modulation(context.embedding_BRD),
            self.text.modulation(context.embedding_BRD),
        )
        video_rows, text_rows = context.video_rows_BLR, context.text_rows_BSR
        video_out, text_out = joint_attention(
            self.video.attend(video_BLD, video_table, video_rows, context.rotation),
            self.text.attend(text_BSD, text_table, text_rows, None),
            context.video_ids_BL,
            context.text_ids_BS,
            strategy=context.strategy,
            windows=context.embedding_BRD.shape[1] // 2,
        )
        video_BLD = self.video.add_attention(video_BLD, video_out, video_table, video_rows)
        text_BSD = self.text.add_attention(text_BSD, text_out, text_table, text_rows)
        if self.audio_attention is not None and context.audio is not None:
            video_BLD = video_BLD + self.audio_attention(video_BLD, context.audio, context.strategy)
        return self.video.add_mlp(video_BLD, video_table, video_rows), self.text.add_mlp(
            text_BSD, text_table, text_rows
        )


class SingleBlock(nnx.Module):
    """Attention and MLP in parallel with the same weights for both streams, then audio cross-attention on the video
    stream.
    """

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        self.modulation = Modulation(rngs, config.width, 3)
        self.attention = SelfAttentionInputs(config, rngs)
        self.mlp_in = Linear(rngs, (config.width,), (config.mlp_width,), ("embed", "mlp"))
        # HunyuanVideo's one projection of [attention; mlp] as the two products that it is the sum of; the bias is
        # mlp_out's.
        heads = (config.num_heads, config.head_dim)
        self.out = Linear(rngs, heads, (config.width,), ("heads", "head_dim", "embed"), bias=False)
        self.mlp_out = Linear(rngs, (config.mlp_width,), (config.width,), ("mlp", "embed"))
        audio = config.audio
        self.audio_attention = AudioCrossAttention(audio, config.width, rngs) if audio else None

    def __call__(self, video_BLD: jax.Array, text_BSD: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
        table = self.modulation(context.embedding_BRD)
        video_rows, text_rows = context.video_rows_BLR, context.text_rows_BSR
        video_in = modulate(video_BLD, look_up(video_rows, table[:, :, 0]), look_up(video_rows, table[:, :, 1]))
        text_in = modulate(text_BSD, look_up(text_rows, table[:, :, 0]), look_up(text_rows, table[:, :, 1]))
        video_out, text_out = joint_attention(
            self.attention(video_in, context.rotation),
            self.attention(text_in, None),
            context.video_ids_BL,
            context.text_ids_BS,
            strategy=context.strategy,
            windows=context.embedding_BRD.shape[1] // 2,
        )
        video_BLD = add_gated(video_BLD, look_up(video_rows, table[:, :, 2]), self._project(video_in, video_out))
        text_BSD = add_gated(text_BSD, look_up(text_rows, table[:, :, 2]), self._project(text_in, text_out))
        if self.audio_attention is not None and context.audio is not None:
            video_BLD = video_BLD + self.audio_attention(video_BLD, context.audio, context.strategy)
        return video_BLD, text_BSD

    def _project(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        return self.out(attended) + self.mlp_out(activate(self.mlp_in(x), "gelu"))


class RefinerBlock(nnx.Module):
    """A block of the text refiner: affine norms, no QK-norm, gates only."""

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        heads, axes = (config.num_heads, config.head_dim), ("embed", "heads", "head_dim")
        self.norm1 = LayerNorm(rngs, config.width)
        self.q = Linear(rngs, (config.width,), heads, axes)
        self.k = Linear(rngs, (config.width,), heads, axes)
        self.v = Linear(rngs, (config.width,), heads, axes)
        self.out = Linear(rngs, heads, (config.width,), ("heads", "head_dim", "embed"))
        self.norm2 = LayerNorm(rngs, config.width)
        self.mlp = MLP(rngs, config.width, 4 * config.width, config.width, "silu")
        self.modulation = Modulation(rngs, config.width, 2)

    def __call__(
        self,
        x_BSD: jax.Array,
        ids_BS: jax.Array,
        embedding_BGD: jax.Array,
        rows_BSG: jax.Array,
        strategy: AttentionStrategy,
    ) -> jax.Array:
        table = self.modulation(embedding_BGD)
        y = self.norm1(x_BSD)
        y = attention(self.q(y), self.k(y), self.v(y), *window_ids(ids_BS), strategy=strategy)
        x_BSD = add_gated(x_BSD, look_up(rows_BSG, table[:, :, 0]), self.out(y))
        return add_gated(x_BSD, look_up(rows_BSG, table[:, :, 1]), self.mlp(self.norm2(x_BSD)))


class TextRefiner(nnx.Module):
    """Text tokens -> the model's width, refined by self-attention within each window's own text."""

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        self.time = TimestepEmbedder(rngs, config.width)
        self.pooled = MLP(rngs, config.text_width, config.width, config.width, "silu", ("features", "mlp", "embed"))
        self.proj_in = Linear(rngs, (config.text_width,), (config.width,), ("features", "embed"))
        self.blocks = stack(RefinerBlock, config, config.num_refiner_layers, rngs)

    def __call__(
        self, text_BSE: jax.Array, ids_BS: jax.Array, t_BG: jax.Array, dtype: DTypeLike, execution: ExecutionConfig
    ) -> jax.Array:
        """[B, S, D] in `dtype`; the mean of a window's own tokens joins its time embedding."""
        rows_BSG = segments.members(ids_BS, t_BG.shape[1]).astype(jnp.float32)
        counts_BG1 = rows_BSG.sum(axis=1)[..., None]
        text32 = text_BSE.astype(jnp.float32)
        sums_BGE = jnp.einsum("bsg,bse->bge", rows_BSG, text32, precision=jax.lax.Precision.HIGHEST)
        mean_BGE = sums_BGE / jnp.maximum(counts_BG1, 1.0)
        embedding_BGD = self.time(t_BG) + self.pooled(mean_BGE)
        x = self.proj_in(text_BSE.astype(dtype))
        run = lambda block, x: block(x, ids_BS, embedding_BGD, rows_BSG, execution.attention)  # noqa: E731
        return scan(self.blocks, x, run, execution.remat)


def stack(block: Any, config: MMDiTConfig, num_layers: int, rngs: nnx.Rngs) -> Any:
    """`num_layers` blocks as one, every parameter with a leading `layers` dim; None for no block."""
    if num_layers == 0:
        return None
    keys = jax.random.split(rngs.params(), num_layers)
    return jax.vmap(lambda key: block(config, nnx.Rngs(params=key)))(keys)


def scan(blocks: Any, carry: Any, run: Callable[[Any, Any], Any], remat: str) -> Any:
    """`run(block, carry)` over stacked blocks, keeping for the backward pass what `remat` says."""
    if blocks is None:
        return carry
    if remat != "none":
        name = lambda x: checkpoint_name(x, BLOCK_INPUT)  # noqa: E731
        run = jax.checkpoint(
            lambda block, carry, plain=run: plain(block, jax.tree.map(name, carry)),
            policy=REMAT_POLICIES[remat],
            prevent_cse=False,
        )
    return jax.lax.scan(lambda carry, block: (run(block, carry), None), carry, blocks)[0]
