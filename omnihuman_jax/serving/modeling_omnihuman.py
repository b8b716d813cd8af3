"""OmniHuman's transformer in PyTorch, in one file: torch, safetensors and the standard library are all that it needs.

    from modeling_omnihuman import OmniHumanForVideo
    model = OmniHumanForVideo.from_pretrained(DIR)
    velocity = model(tokens, t, batch)

HunyuanVideo's layout: dual-stream blocks, then single-stream blocks, over packed latent tokens and text tokens. The
parameters of the base part carry the names that they have in diffusers' `HunyuanVideoTransformer3DModel`; audio and
pose add the modules `audio_embedder`, `pose_embedder` and one `audio_attn` a block.

Shape suffixes: B sequences, L packed latent tokens, S text tokens, M = L + S, G window slots, T frames at 25 fps,
F latent-frame slots, A audio tokens and P pose frames of a latent frame, J keypoints, E encoder width, C channels of a
patch token, D model width, N heads, K head size, R = 2G rows of a modulation table.

A batch packs windows (clips) of any size: `segment_ids_BL` says which window a token belongs to, g + 1 for the one in
slot g, 0 for padding; attention never crosses windows. `OmniHumanForVideo.forward` lists the arrays of a batch.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

MOTION_LATENTS = 2
TEMPORAL_STRIDE = 4
PATCH = 2
AUDIO, POSE = 2, 3  # columns of active_BG4
NORM_EPS = 1e-6
TIME_CHANNELS = 256
TIME_SCALE = 1000.0
SHARD = re.compile(r"model(-\d+-of-\d+)?\.safetensors")


@dataclasses.dataclass(kw_only=True)
class AudioConfig:
    """Sizes of the audio branch: E, the width of an audio token, frames seen on each side, heads of the
    cross-attention.
    """

    features: int
    width: int
    neighbours: int
    num_heads: int
    head_dim: int


@dataclasses.dataclass(kw_only=True)
class PoseConfig:
    """Sizes of the pose branch: J, features of a frame at a token, frames seen on each side, heatmap radius in
    tokens, points along a token's side at which it is read.
    """

    keypoints: int
    width: int
    neighbours: int
    sigma: float
    samples: int = PATCH


@dataclasses.dataclass(kw_only=True)
class OmniHumanConfig:
    """Sizes of the model: the part "model" of config.json, named as in the trainer."""

    width: int
    num_heads: int
    num_dual_layers: int
    num_single_layers: int
    num_refiner_layers: int
    mlp_ratio: float
    latent_channels: int
    text_width: int
    pooled_width: int
    rope_axes: tuple[int, int, int]
    rope_theta: float
    guidance_embed: bool
    audio: AudioConfig | None = None
    pose: PoseConfig | None = None

    @property
    def patch_channels(self) -> int:
        return PATCH * PATCH * self.latent_channels

    @classmethod
    def from_json(cls, path: Path) -> "OmniHumanConfig":
        """Reads config.json; a field that is missing or unknown is an error that names it."""
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is not there; from_pretrained takes a folder written by `omnihuman export`"
            )
        try:
            values: dict[str, Any] = json.loads(path.read_text())["model"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not the config.json of an export ({error!r}); export the model again") from None
        for name, branch in (("audio", AudioConfig), ("pose", PoseConfig)):
            if values.get(name) is not None:
                values[name] = branch(**_checked(path, branch, values[name]))
        return cls(**_checked(path, cls, values))


def _checked(path: Path, config: type, values: dict[str, Any]) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(config)}
    if set(values) != known:
        raise ValueError(f"{path}: missing {sorted(known - set(values))}, unknown {sorted(set(values) - known)}")
    return values


def timestep_embedding(t_BG: Tensor) -> Tensor:
    """Sinusoid of t * 1000 over 256 channels, cosines first; float32."""
    half = TIME_CHANNELS // 2
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half, device=t_BG.device, dtype=torch.float32) / half)
    angles = (t_BG.float() * TIME_SCALE)[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def rotary_embedding(positions_BL3: Tensor, axes: tuple[int, int, int], theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B, 1, L, K], each frequency twice in a row (interleaved pairs); float32."""
    angles = []
    for axis, dim in enumerate(axes):
        powers = torch.arange(0, dim, 2, device=positions_BL3.device, dtype=torch.float32) / dim
        angles.append(positions_BL3[..., axis, None].float() / theta**powers)
    angles_BLK = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1)
    return angles_BLK.cos()[:, None], angles_BLK.sin()[:, None]


def apply_rotary(x_BNLK: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turns each pair of neighbouring channels by the angle of its token; float32 in and out."""
    cos, sin = rotary
    turned = torch.stack([-x_BNLK[..., 1::2], x_BNLK[..., 0::2]], dim=-1).flatten(-2)
    return x_BNLK * cos + turned * sin


def attention(q_BNQK: Tensor, k_BNVK: Tensor, v_BNVK: Tensor, mask_B1QV: Tensor | None) -> Tensor:
    """Scaled dot-product attention, heads merged: [B, Q, N * K]. `mask` is True where a query sees a key; None:
    everywhere.
    """
    return F.scaled_dot_product_attention(q_BNQK, k_BNVK, v_BNVK, attn_mask=mask_B1QV).transpose(1, 2).flatten(2)


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm without parameters, in float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=NORM_EPS)


def take_rows(table_BRD: Tensor, row_BL: Tensor) -> Tensor:
    """[B, L, D]: for each token its row of the table."""
    return table_BRD.gather(1, row_BL[..., None].expand(-1, -1, table_BRD.shape[-1]))


def modulate(x_BLD: Tensor, shift_BRD: Tensor, scale_BRD: Tensor, row_BL: Tensor) -> Tensor:
    """Normalises `x` and applies its token's scale and shift, in float32; the result has the dtype of `x`."""
    return (layer_norm(x_BLD) * (1 + take_rows(scale_BRD, row_BL)) + take_rows(shift_BRD, row_BL)).to(x_BLD.dtype)


def gated(residual_BLD: Tensor, gate_BRD: Tensor, row_BL: Tensor, update_BLD: Tensor) -> Tensor:
    """`residual` plus `update` times the gate of its token, in float32; the result has the dtype of `residual`."""
    return (residual_BLD.float() + take_rows(gate_BRD, row_BL) * update_BLD.float()).to(residual_BLD.dtype)


def linear_float32(linear: nn.Linear, x: Tensor) -> Tensor:
    """`linear` in float32 whatever its weights are stored in: what modulates every token must not be rounded to
    bf16.
    """
    return F.linear(x.float(), linear.weight.float(), linear.bias.float())


class RMSNorm(nn.Module):
    """Root-mean-square norm over the head size; returns float32, since rotation comes next."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS) * self.weight.float()


class Embedder(nn.Module):
    """Linear, SiLU, Linear, in float32."""

    def __init__(self, in_features: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_features, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return linear_float32(self.linear_2, F.silu(linear_float32(self.linear_1, x)))


class Activated(nn.Module):
    """A linear map and an activation after it; named as in diffusers' FeedForward."""

    def __init__(self, in_features: int, out_features: int, activation: str) -> None:
        super().__init__()
        self.proj = nn.Linear(in_features, out_features)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        return F.silu(x) if self.activation == "silu" else F.gelu(x, approximate="tanh")


class FeedForward(nn.Module):
    """Linear, activation, Linear; `in_features` None is `width`."""

    def __init__(self, width: int, inner: int, activation: str, in_features: int | None = None) -> None:
        super().__init__()
        first = Activated(in_features or width, inner, activation)
        self.net = nn.ModuleList([first, nn.Identity(), nn.Linear(inner, width)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class Modulation(nn.Module):
    """SiLU, Linear, cut into `chunks` tables [B, R, D] of float32."""

    def __init__(self, width: int, chunks: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, chunks * width)
        self.chunks = chunks

    def forward(self, condition_BRD: Tensor) -> tuple[Tensor, ...]:
        return linear_float32(self.linear, F.silu(condition_BRD)).chunk(self.chunks, dim=-1)


class ConditionEmbedding(nn.Module):
    """Time, pooled text and guidance -> the vector that the modulation tables are computed from."""

    def __init__(self, width: int, pooled_width: int, guidance_embed: bool) -> None:
        super().__init__()
        self.timestep_embedder = Embedder(TIME_CHANNELS, width)
        self.text_embedder = Embedder(pooled_width, width) if pooled_width else None
        self.guidance_embedder = Embedder(TIME_CHANNELS, width) if guidance_embed else None

    def forward(self, t_BG: Tensor, pooled_BGE: Tensor | None, guidance: float | None = None) -> Tensor:
        condition_BGD = self.timestep_embedder(timestep_embedding(t_BG))
        if self.guidance_embedder is not None and guidance is not None:
            condition_BGD = condition_BGD + self.guidance_embedder(timestep_embedding(torch.full_like(t_BG, guidance)))
        if self.text_embedder is not None:
            if pooled_BGE is None:
                raise ValueError("this model takes pooled text: the batch needs pooled_BGE")
            condition_BGD = condition_BGD + self.text_embedder(pooled_BGE)
        return condition_BGD


class Attention(nn.Module):
    """Projections of one attention, named as in diffusers' Attention; which of them exist depends on the block."""

    def __init__(
        self, width: int, num_heads: int, *, qk_norm: bool, text_stream: bool = False, output: bool = True
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        head_dim = width // num_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.norm_q = RMSNorm(head_dim) if qk_norm else None
        self.norm_k = RMSNorm(head_dim) if qk_norm else None
        if text_stream:
            self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(width, width) for _ in range(3))
            self.norm_added_q, self.norm_added_k = RMSNorm(head_dim), RMSNorm(head_dim)
            self.to_add_out = nn.Linear(width, width)
        if output:
            self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def qkv(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, N, tokens, K] of the tokens `x`, queries and keys normalised and turned."""
        q, k, v = (self.heads(linear(x)) for linear in (self.to_q, self.to_k, self.to_v))
        if self.norm_q is not None and self.norm_k is not None:
            q, k = self.norm_q(q), self.norm_k(k)
        if rotary is not None:
            q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
        return q.to(x.dtype), k.to(x.dtype), v

    def text_qkv(self, x_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same for the text stream of a dual-stream block."""
        q, k, v = (self.heads(linear(x_BSD)) for linear in (self.add_q_proj, self.add_k_proj, self.add_v_proj))
        return self.norm_added_q(q).to(v.dtype), self.norm_added_k(k).to(v.dtype), v

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class RefinerBlock(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, num_heads, qk_norm=False)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.ff = FeedForward(width, 4 * width, "silu")  # 4 whatever the other blocks' mlp_ratio, as in diffusers
        self.norm_out = Modulation(width, 2)

    def forward(self, x_BSD: Tensor, condition_BGD: Tensor, slot_BS: Tensor, mask: Tensor | None) -> Tensor:
        gate_attn, gate_mlp = self.norm_out(condition_BGD)
        x_BSD = gated(
            x_BSD, gate_attn, slot_BS, self.attn.to_out[0](attention(*self.attn.qkv(self.norm1(x_BSD)), mask))
        )
        return gated(x_BSD, gate_mlp, slot_BS, self.ff(self.norm2(x_BSD)))


class TokenRefiner(nn.Module):
    def __init__(self, width: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.refiner_blocks = nn.ModuleList([RefinerBlock(width, num_heads) for _ in range(num_layers)])

    def forward(self, x_BSD: Tensor, condition_BGD: Tensor, slot_BS: Tensor, mask: Tensor | None) -> Tensor:
        for block in self.refiner_blocks:
            x_BSD = block(x_BSD, condition_BGD, slot_BS, mask)
        return x_BSD


class TextEmbedder(nn.Module):
    """Text embeddings -> text tokens: a projection and a few blocks, gated by time and the mean of the window's
    text.
    """

    def __init__(self, text_width: int, width: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.time_text_embed = ConditionEmbedding(width, text_width, guidance_embed=False)
        self.proj_in = nn.Linear(text_width, width)
        self.token_refiner = TokenRefiner(width, num_heads, num_layers)

    def forward(
        self, text_BSE: Tensor, t_BG: Tensor, segment_ids_BS: Tensor, slot_BS: Tensor, mask: Tensor | None
    ) -> Tensor:
        slots = torch.arange(1, t_BG.shape[1] + 1, device=t_BG.device)
        member_BGS = (segment_ids_BS[:, None, :] == slots[None, :, None]).to(torch.float32)
        count_BG1 = member_BGS.sum(-1, keepdim=True).clamp(min=1)
        mean_BGE = member_BGS @ text_BSE.float() / count_BG1
        condition_BGD = self.time_text_embed(t_BG, mean_BGE)
        return self.token_refiner(self.proj_in(text_BSE.to(self.proj_in.weight.dtype)), condition_BGD, slot_BS, mask)


class AudioTokens(NamedTuple):
    """What the audio cross-attentions read; K = F * A audio tokens."""

    tokens_BKE: Tensor
    mask_B1LK: Tensor
    gate_BL1: Tensor


class AudioEmbedder(nn.Module):
    """Speech features -> the audio tokens of each latent frame: an MLP a frame, then a frame's own and its
    neighbours.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.mlp = FeedForward(config.width, config.width, "gelu", config.features)
        self.position = nn.Parameter(torch.zeros(TEMPORAL_STRIDE + 2 * config.neighbours, config.width))

    def forward(self, batch: Mapping[str, Tensor], slot_BL: Tensor) -> AudioTokens:
        index_BFA, frame_BL = batch["audio_index_BFA"].long(), batch["frame_BL"].long()
        dtype = self.position.dtype
        frames_BTE = layer_norm(self.mlp(batch["audio_BTE"].to(dtype))).to(dtype)
        num_frames, num_tokens = index_BFA.shape[1:]
        tokens_BKE = take_rows(frames_BTE, index_BFA.flatten(1).clamp(min=0)) + self.position.repeat(num_frames, 1)
        exists_BK = (index_BFA >= 0).flatten(1)
        frame_K = torch.arange(num_frames, device=index_BFA.device).repeat_interleave(num_tokens)
        mask_BLK = (frame_BL[..., None] == frame_K) & exists_BK[:, None, :]
        heard_BL1 = mask_BLK.any(-1, keepdim=True)
        active_BL1 = active_tokens(batch, AUDIO, slot_BL)[..., None]
        # A query without a key sees all of them, so that the softmax is finite; the gate drops what it gets.
        return AudioTokens(tokens_BKE, (mask_BLK | ~heard_BL1)[:, None], heard_BL1 & active_BL1)


class AudioCrossAttention(nn.Module):
    """Video tokens attend to the audio tokens of their own latent frame; zero wherever audio is not active."""

    def __init__(self, config: AudioConfig, width: int) -> None:
        super().__init__()
        self.num_heads, inner = config.num_heads, config.num_heads * config.head_dim
        self.to_q = nn.Linear(width, inner)
        self.to_k, self.to_v = nn.Linear(config.width, inner), nn.Linear(config.width, inner)
        self.norm_q, self.norm_k = RMSNorm(config.head_dim), RMSNorm(config.head_dim)
        self.to_out = nn.ModuleList([nn.Linear(inner, width, bias=False)])

    def forward(self, x_BLD: Tensor, audio: AudioTokens) -> Tensor:
        inputs = (layer_norm(x_BLD).to(x_BLD.dtype), audio.tokens_BKE, audio.tokens_BKE)
        q, k, v = (
            linear(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear, x in zip((self.to_q, self.to_k, self.to_v), inputs, strict=True)
        )
        update_BLD = self.to_out[0](
            attention(self.norm_q(q).to(v.dtype), self.norm_k(k).to(v.dtype), v, audio.mask_B1LK)
        )
        return x_BLD + torch.where(audio.gate_BL1, update_BLD, torch.zeros_like(update_BLD))


class PoseEmbedder(nn.Module):
    """Keypoints -> heatmaps at the token grid -> what the patch embedding of a video token gets added."""

    def __init__(self, config: PoseConfig, width: int) -> None:
        super().__init__()
        self.sigma, self.samples = config.sigma, config.samples
        self.mlp = FeedForward(config.width, config.width, "gelu", config.samples**2 * config.keypoints)
        self.proj = nn.Linear((TEMPORAL_STRIDE + 2 * config.neighbours) * config.width, width, bias=False)

    def forward(self, batch: Mapping[str, Tensor], slot_BL: Tensor) -> Tensor:
        frame_BL = batch["frame_BL"].long()
        index_BFP = batch["pose_index_BFP"].long()
        index_BLP = take_rows(index_BFP, frame_BL.clamp(min=0))
        seen_BLP = (index_BLP >= 0) & (frame_BL >= 0)[..., None]
        sequence_B11 = torch.arange(len(frame_BL), device=frame_BL.device)[:, None, None]
        keypoints_BLPJ3 = batch["keypoints_BTJ3"][sequence_B11, index_BLP.clamp(min=0)]
        maps = self.heatmaps(keypoints_BLPJ3.float(), batch["positions_BL3"]).to(self.proj.weight.dtype)
        features = self.mlp(maps)
        features = torch.where(seen_BLP[..., None], features, torch.zeros_like(features))
        update_BLD = self.proj(features.flatten(2))
        active_BL = active_tokens(batch, POSE, slot_BL) & seen_BLP.any(-1)
        return torch.where(active_BL[..., None], update_BLD, torch.zeros_like(update_BLD))

    def heatmaps(self, keypoints_BLPJ3: Tensor, positions_BL3: Tensor) -> Tensor:
        """Confidence x Gaussian at a token's samples x samples cells: [B, L, P, (row, column, keypoint)], float32."""
        offsets = (torch.arange(self.samples, device=positions_BL3.device, dtype=torch.float32) + 0.5) / self.samples

        def near(position_BL: Tensor, point_BLPJ: Tensor) -> Tensor:
            centre = (position_BL[..., None].float() + offsets)[:, :, None, :, None]
            return torch.exp(-0.5 * (centre - point_BLPJ[..., None, :]).square() / self.sigma**2)

        x, y, confidence = keypoints_BLPJ3.unbind(-1)
        rows = near(positions_BL3[..., 1], y)
        columns = near(positions_BL3[..., 2], x) * confidence[..., None, :]
        return (rows[..., :, None, :] * columns[..., None, :, :]).flatten(3)


class Context(NamedTuple):
    """What every block reads beside its tokens; made once a call. R = 2G: row 2g is window g at t, row 2g + 1 at 0."""

    condition_BRD: Tensor
    row_BL: Tensor
    row_BS: Tensor
    rotary: tuple[Tensor, Tensor]
    mask_B1MM: Tensor | None
    audio: AudioTokens | None


class DualBlock(nn.Module):
    """Latent and text tokens with weights of their own: joint attention, audio, MLP."""

    def __init__(self, config: OmniHumanConfig) -> None:
        super().__init__()
        width, inner = config.width, int(config.width * config.mlp_ratio)
        self.norm1, self.norm1_context = Modulation(width, 6), Modulation(width, 6)
        self.attn = Attention(width, config.num_heads, qk_norm=True, text_stream=True)
        self.audio_attn = AudioCrossAttention(config.audio, width) if config.audio else None
        self.ff = FeedForward(width, inner, "gelu")
        self.ff_context = FeedForward(width, inner, "gelu")

    def forward(self, x_BLD: Tensor, text_BSD: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        row_BL, row_BS = context.row_BL, context.row_BS
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.norm1(context.condition_BRD)
        text_shift, text_scale, text_gate, text_mlp_shift, text_mlp_scale, text_mlp_gate = self.norm1_context(
            context.condition_BRD
        )

        latent_qkv = self.attn.qkv(modulate(x_BLD, shift, scale, row_BL), context.rotary)
        text_qkv = self.attn.text_qkv(modulate(text_BSD, text_shift, text_scale, row_BS))
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(latent_qkv, text_qkv, strict=True))
        out_BLD, out_BSD = attention(q, k, v, context.mask_B1MM).split([x_BLD.shape[1], text_BSD.shape[1]], dim=1)
        x_BLD = gated(x_BLD, gate, row_BL, self.attn.to_out[0](out_BLD))
        text_BSD = gated(text_BSD, text_gate, row_BS, self.attn.to_add_out(out_BSD))
        if self.audio_attn is not None and context.audio is not None:
            x_BLD = self.audio_attn(x_BLD, context.audio)

        x_BLD = gated(x_BLD, mlp_gate, row_BL, self.ff(modulate(x_BLD, mlp_shift, mlp_scale, row_BL)))
        text_update = self.ff_context(modulate(text_BSD, text_mlp_shift, text_mlp_scale, row_BS))
        return x_BLD, gated(text_BSD, text_mlp_gate, row_BS, text_update)


class SingleBlock(nn.Module):
    """Latent and text tokens with the same weights: attention and MLP in parallel, one projection of both, then
    audio.
    """

    def __init__(self, config: OmniHumanConfig) -> None:
        super().__init__()
        width, inner = config.width, int(config.width * config.mlp_ratio)
        self.norm = Modulation(width, 3)
        self.attn = Attention(width, config.num_heads, qk_norm=True, output=False)
        self.audio_attn = AudioCrossAttention(config.audio, width) if config.audio else None
        self.proj_mlp = nn.Linear(width, inner)
        self.proj_out = nn.Linear(width + inner, width)

    def forward(self, x_BLD: Tensor, text_BSD: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        shift, scale, gate = self.norm(context.condition_BRD)
        normed_BLD = modulate(x_BLD, shift, scale, context.row_BL)
        normed_BSD = modulate(text_BSD, shift, scale, context.row_BS)
        latent_qkv, text_qkv = self.attn.qkv(normed_BLD, context.rotary), self.attn.qkv(normed_BSD)
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(latent_qkv, text_qkv, strict=True))
        out_BLD, out_BSD = attention(q, k, v, context.mask_B1MM).split([x_BLD.shape[1], text_BSD.shape[1]], dim=1)
        x_BLD = gated(x_BLD, gate, context.row_BL, self.project(normed_BLD, out_BLD))
        text_BSD = gated(text_BSD, gate, context.row_BS, self.project(normed_BSD, out_BSD))
        if self.audio_attn is not None and context.audio is not None:
            x_BLD = self.audio_attn(x_BLD, context.audio)
        return x_BLD, text_BSD

    def project(self, normed: Tensor, attended: Tensor) -> Tensor:
        return self.proj_out(torch.cat([attended, F.gelu(self.proj_mlp(normed), approximate="tanh")], dim=-1))


class PatchEmbed(nn.Module):
    """The convolution of diffusers' patch embedding, applied to tokens that are patches already."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, width, kernel_size=(1, PATCH, PATCH), stride=(1, PATCH, PATCH))

    def forward(self, tokens_BLC: Tensor) -> Tensor:
        weight = self.proj.weight.permute(0, 2, 3, 4, 1).flatten(1)  # to our (patch row, patch column, channel)
        return F.linear(tokens_BLC.to(weight.dtype), weight, self.proj.bias)


class OmniHumanForVideo(nn.Module):
    """The velocity of flow matching, from noisy and clean latent tokens and up to five conditions."""

    def __init__(self, config: OmniHumanConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.x_embedder = PatchEmbed(config.latent_channels, width)
        self.context_embedder = TextEmbedder(config.text_width, width, config.num_heads, config.num_refiner_layers)
        self.time_text_embed = ConditionEmbedding(width, config.pooled_width, config.guidance_embed)
        self.audio_embedder = AudioEmbedder(config.audio) if config.audio else None
        self.pose_embedder = PoseEmbedder(config.pose, width) if config.pose else None
        self.transformer_blocks = nn.ModuleList([DualBlock(config) for _ in range(config.num_dual_layers)])
        self.single_transformer_blocks = nn.ModuleList([SingleBlock(config) for _ in range(config.num_single_layers)])
        self.norm_out = Modulation(width, 2)
        self.proj_out = nn.Linear(width, config.patch_channels)

    def forward(
        self,
        tokens_BLC: Tensor,
        t_BG: Tensor,
        batch: Mapping[str, Tensor],
        *,
        guidance: float = 1.0,
        one_window: bool = False,
    ) -> Tensor:
        """The velocity [B, L, C] in float32, of every token (those of padding mean nothing).

        Args:
          tokens_BLC: latent tokens of 2 x 2 patches, C = (patch row, patch column, channel); of each window its
            reference tokens, then its video tokens by latent frame, row, column. Noisy, z_t = (1 - t) z_0 + t noise,
            except for the tokens of the reference image and of motion frames, which are clean.
          t_BG: diffusion time of each window, in [0, 1]; 1 is noise.
          batch: the packed batch. What belongs to a condition that the model was built without is not read; the arrays
            of audio or of pose may be left out where no window has it.
            segment_ids_BL, text_segment_ids_BS  window of a token + 1, 0 for padding
            positions_BL3                        indices (t, h, w) of a token; t is 0 on reference tokens
            is_reference_BL, motion_BG           reference tokens; windows whose first 2 latents are motion frames
            text_BSE, pooled_BGE                 text embeddings of tokens and of windows
            active_BG4                           active conditions: text, reference, audio, pose
            frame_BL                             latent-frame slot of a video token, -1 for other tokens
            audio_BTE, audio_index_BFA           speech features; rows that a latent frame attends to, -1 for none
            keypoints_BTJ3, pose_index_BFP       (x, y, confidence) in token units; rows that a latent frame sees, -1
            for none
          guidance: the scale that a guidance-distilled model is told; others do not read it.
          one_window: every sequence is one window without padding, in both streams. Attention then needs no mask, which
            is [M, M] otherwise: what lets PyTorch use its fast kernels on long sequences.
        """
        slot_BL, slot_BS = ((batch[name].long() - 1).clamp(min=0) for name in ("segment_ids_BL", "text_segment_ids_BS"))
        segments_BM = torch.cat([batch["segment_ids_BL"], batch["text_segment_ids_BS"]], dim=1)
        text_segments_BS = batch["text_segment_ids_BS"]
        audio = (
            self.audio_embedder(batch, slot_BL) if self.audio_embedder is not None and "audio_BTE" in batch else None
        )
        pooled_BGE = batch.get("pooled_BGE")
        noisy_BGD = self.time_text_embed(t_BG, pooled_BGE, guidance)
        clean_BGD = self.time_text_embed(torch.zeros_like(t_BG), pooled_BGE)
        context = Context(
            condition_BRD=torch.stack([noisy_BGD, clean_BGD], dim=2).flatten(1, 2),
            row_BL=2 * slot_BL + clean_tokens(batch, slot_BL),
            row_BS=2 * slot_BS,
            rotary=rotary_embedding(batch["positions_BL3"], self.config.rope_axes, self.config.rope_theta),
            mask_B1MM=None if one_window else same_segment(segments_BM),
            audio=audio,
        )
        x_BLD = self.x_embedder(tokens_BLC)
        if self.pose_embedder is not None and "keypoints_BTJ3" in batch:
            x_BLD = x_BLD + self.pose_embedder(batch, slot_BL)
        text_mask = None if one_window else same_segment(text_segments_BS)
        text_BSD = self.context_embedder(batch["text_BSE"], t_BG, text_segments_BS, slot_BS, text_mask)
        for block in [*self.transformer_blocks, *self.single_transformer_blocks]:
            x_BLD, text_BSD = block(x_BLD, text_BSD, context)
        scale_BRD, shift_BRD = self.norm_out(context.condition_BRD)
        out_BLC = self.proj_out(modulate(x_BLD, shift_BRD, scale_BRD, context.row_BL)).float()
        # diffusers' order (channel, patch row, patch column) to ours
        return out_BLC.unflatten(-1, (self.config.latent_channels, PATCH, PATCH)).movedim(2, -1).flatten(2)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> "OmniHumanForVideo":
        """The model of an exported folder, in evaluation mode; `dtype` None keeps that of the file."""
        folder = Path(folder)
        config = OmniHumanConfig.from_json(folder / "config.json")
        with torch.device("meta"):
            model = cls(config)
        tensors: dict[str, Tensor] = {}
        for path in weight_files(folder):
            with safe_open(path, framework="pt", device=str(device)) as file:
                for name in file.keys():  # noqa: SIM118 (a safe_open is no dict)
                    tensors[name] = file.get_tensor(name).to(dtype)
        try:
            model.load_state_dict(tensors, assign=True)  # strict: missing, unknown and misshapen names are one error
        except RuntimeError as error:
            raise ValueError(
                f"{folder}: its weights do not fit its config.json: {' '.join(str(error).split())}"
            ) from None
        return model.eval()


def weight_files(folder: Path) -> list[Path]:
    """`model.safetensors` of an export, or the shards that its index names: whole, and all of one export.

    Raises:
        FileNotFoundError: one is missing; names it.
        ValueError: one is cut short, of another export, or beside files that are not its own; names it.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    there = {path.name for path in folder.glob("model*.safetensors") if SHARD.fullmatch(path.name)}
    names, weight_map = [single.name], {}
    if index.is_file():
        try:
            weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
            names = sorted(set(weight_map.values()))
            if not names or not all(SHARD.fullmatch(name) for name in names):
                raise ValueError(f"it names {names[:1]}, no file of this folder")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index}: damaged ({error!r}); copy it again") from None
    elif single.name not in there:
        raise FileNotFoundError(
            f"{index}: missing, beside {min(there)}; copy the whole folder again"
            if there
            else f"{folder} holds no model*.safetensors; it is no folder written by `omnihuman export`"
        )
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: missing, though {index.name} names it; copy it again")
    if strays := sorted(there - set(names)):
        raise ValueError(f"{folder / strays[0]}: not of the model beside it; remove the one that is old")
    export = json.loads((folder / "config.json").read_text()).get("export_id")
    for name in names:
        _check_whole(folder / name, {tensor for tensor, file in weight_map.items() if file == name}, export)
    return [folder / name for name in names]


def _check_whole(path: Path, expected: set[str], export: str | None) -> None:
    """ValueError unless a file's last tensor ends where it does, its tensors are those that the index says, and it is
    of this export.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header: dict[str, Any] = json.loads(file.read(length) if 8 + length <= size else "")
            metadata = header.pop("__metadata__", None) or {}
            end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise ValueError(f"{path}: no safetensors file, or cut short ({size} bytes); copy it again") from None
    if end != size:
        raise ValueError(f"{path}: has {size} bytes, should have {end}: cut short or damaged; copy it again")
    if expected and (wrong := sorted(expected ^ header.keys())):
        raise ValueError(f"{path}: {wrong[0]} is not where the index says: a file of another model; copy it again")
    if export is not None and metadata.get("export") != export:
        raise ValueError(f"{path}: of another export than config.json beside it; copy the whole folder again")


def clean_tokens(batch: Mapping[str, Tensor], slot_BL: Tensor) -> Tensor:
    """True where a token is given clean: reference tokens, and the motion latents of windows that have them."""
    motion_BL = batch["motion_BG"].gather(1, slot_BL) & (batch["segment_ids_BL"] > 0)
    return batch["is_reference_BL"] | (motion_BL & (batch["positions_BL3"][..., 0] < MOTION_LATENTS))


def active_tokens(batch: Mapping[str, Tensor], condition: int, slot_BL: Tensor) -> Tensor:
    """[B, L], True on the tokens of windows for which `condition` is active."""
    return batch["active_BG4"][..., condition].bool().gather(1, slot_BL) & (batch["segment_ids_BL"] > 0)


def same_segment(segments_BM: Tensor) -> Tensor:
    """[B, 1, M, M], True where query and key belong to the same window (or are both padding)."""
    return (segments_BM[:, :, None] == segments_BM[:, None, :])[:, None]
