"""The MMDiT in HunyuanVideo's layout [D], with OmniHuman's reference, motion, audio and pose inputs [S].

Everyone else calls three functions and keeps parameters as a plain nested dict:
`abstract_params` (shapes and logical axes, nothing allocated), `init_params`, `apply`. Blocks are stacked along a leading
`layers` axis (`dual_blocks/...`, `single_blocks/...`, `text_refiner/blocks/...`) and run by a scan.

The two streams stay apart all the way: in a single-stream block they share weights, and computing a per-token product on
each stream equals computing it on both, while video tokens can be split over the mesh and text tokens stay whole.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from omnihuman_jax.conditions import Condition, clean_mask
from omnihuman_jax.models.attention import IMPLEMENTATIONS, QKV, attention, joint_attention
from omnihuman_jax.models.audio_adapter import AudioAdapter, AudioAdapterConfig, AudioCrossAttention, AudioTokens
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
    one_hot,
    zeros,
)
from omnihuman_jax.models.pose_guider import PoseGuider, PoseGuiderConfig
from omnihuman_jax.models.rope import Rotation, rotate, rotation
from omnihuman_jax.sharding import constrain
from omnihuman_jax.typing import PATCH, Batch, Params

REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "block": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names("attention"),
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What a block keeps for its backward pass: nothing, its attentions' outputs, its matrix products' outputs ("none": all)."""


@dataclasses.dataclass(kw_only=True, slots=True)
class MMDiTConfig:
    """Sizes of the model; the defaults are HunyuanVideo's."""

    width: int = 3072
    num_heads: int = 24
    num_dual_layers: int = 20
    num_single_layers: int = 40
    mlp_ratio: float = 4.0
    latent_channels: int = 16
    text_width: int = 4096
    pooled_width: int = 768
    """Width of the pooled text embedding; 0 = the model takes none."""
    num_refiner_layers: int = 2
    rope_axes: tuple[int, int, int] = (16, 56, 56)
    """Head channels that turn with (t, h, w)."""
    rope_theta: float = 256.0
    guidance_embed: bool = False
    """Embed a guidance scale, as the public distilled checkpoint does; fed 1.0 unless told otherwise [D]."""
    audio: AudioAdapterConfig | None = None
    pose: PoseGuiderConfig | None = None
    remat: str = "block"
    """`none` or a key of `REMAT_POLICIES`."""
    attention: str = "auto"
    """`auto` or a key of `attention.IMPLEMENTATIONS`."""

    @property
    def head_dim(self) -> int:
        """K."""
        return self.width // self.num_heads

    @property
    def mlp_width(self) -> int:
        """Hidden width of the blocks' MLPs."""
        return int(self.width * self.mlp_ratio)

    @property
    def patch_channels(self) -> int:
        """C of a packed batch: channels of a 1 x 2 x 2 patch."""
        return PATCH * PATCH * self.latent_channels

    def validate(self) -> None:
        """ValueError on sizes that do not fit together."""
        for name in ("width", "num_heads", "num_dual_layers", "latent_channels", "text_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("num_single_layers", "num_refiner_layers", "pooled_width"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 0")
        if self.width % self.num_heads:
            raise ValueError(f"model.width {self.width} is not a multiple of model.num_heads {self.num_heads}")
        if len(self.rope_axes) != 3 or sum(self.rope_axes) != self.head_dim or any(a % 2 or a < 2 for a in self.rope_axes):
            raise ValueError(
                f"model.rope_axes {tuple(self.rope_axes)} must be three even sizes that sum to width / num_heads = {self.head_dim}"
            )
        if self.remat != "none" and self.remat not in REMAT_POLICIES:
            raise ValueError(f"model.remat {self.remat!r} is none of none, {', '.join(REMAT_POLICIES)}")
        if self.attention != "auto" and self.attention not in IMPLEMENTATIONS:
            raise ValueError(f"model.attention {self.attention!r} is none of auto, {', '.join(IMPLEMENTATIONS)}")
        for part in (self.audio, self.pose):
            if part is not None:
                part.validate()


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
        self.implementation = config.attention
        self.video = DualStream(config, rngs)
        self.text = DualStream(config, rngs)
        audio = config.audio
        self.audio_attention = AudioCrossAttention(audio, config.width, config.attention, rngs) if audio else None

    def __call__(self, video_BLD: jax.Array, text_BSD: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
        video_table, text_table = self.video.modulation(context.embedding_BRD), self.text.modulation(context.embedding_BRD)
        video_rows, text_rows = context.video_rows_BLR, context.text_rows_BSR
        video_out, text_out = joint_attention(
            self.video.attend(video_BLD, video_table, video_rows, context.rotation),
            self.text.attend(text_BSD, text_table, text_rows, None),
            context.video_ids_BL,
            context.text_ids_BS,
            implementation=self.implementation,
        )
        video_BLD = self.video.add_attention(video_BLD, video_out, video_table, video_rows)
        text_BSD = self.text.add_attention(text_BSD, text_out, text_table, text_rows)
        if self.audio_attention is not None and context.audio is not None:
            video_BLD = video_BLD + self.audio_attention(video_BLD, context.audio)
        return self.video.add_mlp(video_BLD, video_table, video_rows), self.text.add_mlp(text_BSD, text_table, text_rows)


class SingleBlock(nnx.Module):
    """Attention and MLP in parallel with the same weights for both streams, then audio cross-attention on the video stream."""

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        self.implementation = config.attention
        self.modulation = Modulation(rngs, config.width, 3)
        self.attention = SelfAttentionInputs(config, rngs)
        self.mlp_in = Linear(rngs, (config.width,), (config.mlp_width,), ("embed", "mlp"))
        # HunyuanVideo's one projection of [attention; mlp] as the two products that it is the sum of; the bias is mlp_out's.
        heads = (config.num_heads, config.head_dim)
        self.out = Linear(rngs, heads, (config.width,), ("heads", "head_dim", "embed"), bias=False)
        self.mlp_out = Linear(rngs, (config.mlp_width,), (config.width,), ("mlp", "embed"))
        audio = config.audio
        self.audio_attention = AudioCrossAttention(audio, config.width, config.attention, rngs) if audio else None

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
            implementation=self.implementation,
        )
        video_BLD = add_gated(video_BLD, look_up(video_rows, table[:, :, 2]), self._project(video_in, video_out))
        text_BSD = add_gated(text_BSD, look_up(text_rows, table[:, :, 2]), self._project(text_in, text_out))
        if self.audio_attention is not None and context.audio is not None:
            video_BLD = video_BLD + self.audio_attention(video_BLD, context.audio)
        return video_BLD, text_BSD

    def _project(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        return self.out(attended) + self.mlp_out(activate(self.mlp_in(x), "gelu"))


class RefinerBlock(nnx.Module):
    """A block of the text refiner: affine norms, no QK-norm, gates only."""

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        heads, axes = (config.num_heads, config.head_dim), ("embed", "heads", "head_dim")
        self.implementation = config.attention
        self.norm1 = LayerNorm(rngs, config.width)
        self.q = Linear(rngs, (config.width,), heads, axes)
        self.k = Linear(rngs, (config.width,), heads, axes)
        self.v = Linear(rngs, (config.width,), heads, axes)
        self.out = Linear(rngs, heads, (config.width,), ("heads", "head_dim", "embed"))
        self.norm2 = LayerNorm(rngs, config.width)
        self.mlp = MLP(rngs, config.width, 4 * config.width, config.width, "silu")
        self.modulation = Modulation(rngs, config.width, 2)

    def __call__(self, x_BSD: jax.Array, ids_BS: jax.Array, embedding_BGD: jax.Array, rows_BSG: jax.Array) -> jax.Array:
        table = self.modulation(embedding_BGD)
        y = self.norm1(x_BSD)
        y = attention(self.q(y), self.k(y), self.v(y), ids_BS, ids_BS, implementation=self.implementation)
        x_BSD = add_gated(x_BSD, look_up(rows_BSG, table[:, :, 0]), self.out(y))
        return add_gated(x_BSD, look_up(rows_BSG, table[:, :, 1]), self.mlp(self.norm2(x_BSD)))


class TextRefiner(nnx.Module):
    """Text tokens -> the model's width, refined by self-attention within each window's own text."""

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        self.remat = config.remat
        self.time = TimestepEmbedder(rngs, config.width)
        self.pooled = MLP(rngs, config.text_width, config.width, config.width, "silu", ("features", "mlp", "embed"))
        self.proj_in = Linear(rngs, (config.text_width,), (config.width,), ("features", "embed"))
        self.blocks = _stack(RefinerBlock, config, config.num_refiner_layers, rngs)

    def __call__(self, text_BSE: jax.Array, ids_BS: jax.Array, t_BG: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """[B, S, D] in `dtype`; the mean of a window's own tokens joins its time embedding."""
        rows_BSG = one_hot(ids_BS - 1, t_BG.shape[1])
        counts_BG1 = rows_BSG.sum(axis=1)[..., None]
        text32 = text_BSE.astype(jnp.float32)
        sums_BGE = jnp.einsum("bsg,bse->bge", rows_BSG, text32, precision=jax.lax.Precision.HIGHEST)
        mean_BGE = sums_BGE / jnp.maximum(counts_BG1, 1.0)
        embedding_BGD = self.time(t_BG) + self.pooled(mean_BGE)
        x = self.proj_in(text_BSE.astype(dtype))
        return _scan(self.blocks, x, lambda block, x: block(x, ids_BS, embedding_BGD, rows_BSG), self.remat)


class MMDiT(nnx.Module):
    """Velocity of the packed tokens; see `apply`."""

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        config.validate()
        self.patch_channels, self.text_width, self.pooled_width = config.patch_channels, config.text_width, config.pooled_width
        self.rope_axes, self.rope_theta, self.remat = tuple(config.rope_axes), config.rope_theta, config.remat
        width = config.width
        self.patch_embed = Linear(rngs, (config.patch_channels,), (width,), ("features", "embed"))
        self.time = TimestepEmbedder(rngs, width)
        self.guidance = TimestepEmbedder(rngs, width) if config.guidance_embed else None
        pooled_axes = ("features", "mlp", "embed")
        self.pooled = MLP(rngs, config.pooled_width, width, width, "silu", pooled_axes) if config.pooled_width else None
        self.text_refiner = TextRefiner(config, rngs)
        self.audio_adapter = AudioAdapter(config.audio, rngs) if config.audio else None
        self.pose_guider = PoseGuider(config.pose, width, rngs) if config.pose else None
        self.dual_blocks = _stack(DualBlock, config, config.num_dual_layers, rngs)
        self.single_blocks = _stack(SingleBlock, config, config.num_single_layers, rngs)
        self.final_modulation = Modulation(rngs, width, 2)  # scale, then shift: HunyuanVideo's order here
        self.proj_out = Linear(rngs, (width,), (config.patch_channels,), ("embed", "features"), init=zeros)

    def __call__(
        self,
        tokens_BLC: jax.Array,
        t_BG: jax.Array,
        batch: Batch,
        *,
        dtype: jnp.dtype = jnp.float32,
        guidance: float | jax.Array = 1.0,
    ) -> jax.Array:
        self._check(tokens_BLC, t_BG, batch)
        video_ids_BL, text_ids_BS = jnp.asarray(batch["segment_ids_BL"]), jnp.asarray(batch["text_segment_ids_BS"])
        text_BSD = self.text_refiner(jnp.asarray(batch["text_BSE"]), text_ids_BS, t_BG, dtype)
        video_BLD = self.patch_embed(jnp.asarray(tokens_BLC).astype(dtype))
        if self.pose_guider is not None:
            video_BLD = video_BLD + self.pose_guider(batch, dtype)
        video_BLD = constrain(video_BLD, "batch", "tokens", None)
        rows = 2 * t_BG.shape[1]
        clean_BL = jnp.asarray(clean_mask(batch)).astype(jnp.int32)
        context = Context(
            rotation=rotation(jnp.asarray(batch["positions_BL3"]), self.rope_axes, self.rope_theta),
            video_ids_BL=video_ids_BL,
            text_ids_BS=text_ids_BS,
            embedding_BRD=self._embedding(t_BG, batch, guidance),
            # Padding (id 0) has a negative row: no modulation, gates closed.
            video_rows_BLR=one_hot(jnp.where(video_ids_BL > 0, 2 * (video_ids_BL - 1) + clean_BL, -1), rows),
            text_rows_BSR=one_hot(jnp.where(text_ids_BS > 0, 2 * (text_ids_BS - 1), -1), rows),
            audio=self.audio_adapter(batch, dtype) if self.audio_adapter is not None else None,
        )

        def run(block: DualBlock | SingleBlock, streams: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            video, text = block(*streams, context)
            return constrain(video, "batch", "tokens", None), constrain(text, "batch", None, None)

        streams = (video_BLD, constrain(text_BSD, "batch", None, None))
        streams = _scan(self.dual_blocks, streams, run, self.remat)
        video_BLD, _ = _scan(self.single_blocks, streams, run, self.remat)
        table = self.final_modulation(context.embedding_BRD)
        scale, shift = (look_up(context.video_rows_BLR, table[:, :, i]) for i in (0, 1))
        return self.proj_out(modulate(video_BLD, shift, scale)).astype(jnp.float32)

    def _embedding(self, t_BG: jax.Array, batch: Batch, guidance: float | jax.Array) -> jax.Array:
        """float32 [B, 2G, D]: conditioning of the noisy (2g) and the clean (2g + 1) tokens of each window."""
        noisy_BGD, clean_BGD = self.time(t_BG), self.time(jnp.zeros_like(t_BG))
        if self.guidance is not None:
            # Noisy rows only, as HunyuanVideo's image-to-video form has it for its clean tokens.
            noisy_BGD = noisy_BGD + self.guidance(jnp.broadcast_to(jnp.asarray(guidance, jnp.float32), t_BG.shape))
        both_BG2D = jnp.stack([noisy_BGD, clean_BGD], axis=2)
        if self.pooled is not None:
            both_BG2D = both_BG2D + self.pooled(jnp.asarray(batch["pooled_BGE"]).astype(jnp.float32))[:, :, None]
        return both_BG2D.reshape(t_BG.shape[0], 2 * t_BG.shape[1], -1)

    def _check(self, tokens_BLC: jax.Array, t_BG: jax.Array, batch: Batch) -> None:
        found = {"channels of a patch token": (self.patch_channels, tokens_BLC.shape[-1])}
        found["text width"] = (self.text_width, batch["text_BSE"].shape[-1])
        found["window slots in t_BG"] = (batch["active_BG4"].shape[1], t_BG.shape[1])
        if self.pooled is not None:
            found["pooled text width"] = (self.pooled_width, batch["pooled_BGE"].shape[-1])
        wrong = [f"{name}: {has} instead of {wants}" for name, (wants, has) in found.items() if has != wants]
        if wrong:
            raise ValueError(f"the batch does not fit the model: {'; '.join(wrong)}")


def _stack(block: Any, config: MMDiTConfig, num_layers: int, rngs: nnx.Rngs) -> Any:
    """`num_layers` blocks as one, every parameter with a leading `layers` dim; None for no block."""
    if num_layers == 0:
        return None
    keys = jax.random.split(rngs.params(), num_layers)
    return jax.vmap(lambda key: block(config, nnx.Rngs(params=key)))(keys)


def _scan(blocks: Any, carry: Any, run: Callable[[Any, Any], Any], remat: str) -> Any:
    """`run(block, carry)` over stacked blocks, keeping for the backward pass what `remat` says."""
    if blocks is None:
        return carry
    if remat != "none":
        run = jax.checkpoint(run, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return jax.lax.scan(lambda carry, block: (run(block, carry), None), carry, blocks)[0]


def init_params(config: MMDiTConfig, key: jax.Array) -> Params:
    """Freshly initialised parameters as a plain nested dict of float32 arrays; jit it with `out_shardings` to shard it.

    Modulation, the output projection and every addition's last layer start at zero (adaLN-Zero; additions that are
    exactly absent until trained).
    """
    return nnx.to_pure_dict(nnx.state(MMDiT(config, nnx.Rngs(params=key)), nnx.Param))


def abstract_params(config: MMDiTConfig) -> tuple[Params, Params]:
    """(shapes, axes): two trees like `init_params`', of `jax.ShapeDtypeStruct` and of tuples of logical axes.

    Allocates nothing. `axes` leaves are tuples: map over both with `is_leaf=lambda x: isinstance(x, tuple)`.
    """
    shapes: Params = {}
    axes: Params = {}
    for path, variable in nnx.to_flat_state(_abstract(config)[1]):
        shape = variable.get_value()
        logical = tuple(variable.get_metadata("logical_axes"))
        if len(shape.shape) == len(logical) + 1:
            logical = ("layers", *logical)
        assert len(logical) == len(shape.shape), (path, logical, shape.shape)
        for tree, leaf in ((shapes, jax.ShapeDtypeStruct(shape.shape, shape.dtype)), (axes, logical)):
            node = tree
            for name in path[:-1]:
                node = node.setdefault(str(name), {})
            node[str(path[-1])] = leaf
    return shapes, axes


def apply(
    config: MMDiTConfig,
    params: Params,
    tokens_BLC: jax.Array,
    t_BG: jax.Array,
    batch: Batch,
    *,
    dtype: jnp.dtype = jnp.float32,
    guidance: float | jax.Array = 1.0,
) -> jax.Array:
    """Velocity eps - z_0 of every packed token [SIB].

    Args:
        config: of the model that `params` belong to.
        params: as `init_params` gives them, float32.
        tokens_BLC: patch tokens as the model sees them: noisy on noisy video tokens, clean where `clean_mask(batch)` holds.
        t_BG: float32 in [0, 1], diffusion time of each window slot (any finite value for empty slots).
        batch: the packed batch (`PackedShape`); audio and pose arrays are read only if the model has those branches.
        dtype: of the blocks' computation; norms, softmax and modulation stay float32.
        guidance: scale that a model with `guidance_embed` is told, a number or [B, G].

    Returns:
        float32 [B, L, C]. Defined on noisy tokens; finite everywhere.
    """
    graphdef, _ = _abstract(config)
    return nnx.merge(graphdef, params)(tokens_BLC, t_BG, batch, dtype=dtype, guidance=guidance)


def condition_group(path: tuple[str, ...]) -> str:
    """`audio` or `pose` for a parameter that only that condition uses, `base` for all others."""
    for name in path:
        for condition in (Condition.AUDIO, Condition.POSE):
            if str(name).startswith(condition.label + "_"):
                return condition.label
    return "base"


def _abstract(config: MMDiTConfig) -> tuple[Any, Any]:
    """Structure and abstract state of the model; cached on the config's contents, which may change under its owner."""
    return _abstract_of(_Frozen(repr(config), config))


class _Frozen(NamedTuple):
    """A config that hashes and compares by what it says."""

    text: str
    config: MMDiTConfig

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frozen) and self.text == other.text

    def __ne__(self, other: object) -> bool:
        return not self == other


@functools.lru_cache(maxsize=16)
def _abstract_of(frozen: _Frozen) -> tuple[Any, Any]:
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):  # a structure, whatever mesh is set
        module = nnx.eval_shape(lambda: MMDiT(frozen.config, nnx.Rngs(params=0)))
    return nnx.split(module)
