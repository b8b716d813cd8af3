"""HunyuanVideo's causal 3D autoencoder (`AutoencoderKLHunyuanVideo` of diffusers) in JAX, as plain functions.

Convolutions look back in time only (their input is repeated in front), and attention in the middle blocks sees no later
frame. But group norms pool over all frames of a stretch: latent i depends, weakly, on frames after 4i too. Its first
latent is nearly that of its first frame alone, not exactly.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from omnihuman_jax.codecs import vae_layers as layers
from omnihuman_jax.codecs.vae_tiling import DECODE, ENCODE, Tile, over_space, over_time
from omnihuman_jax.encoders.pretrained import Weights
from omnihuman_jax.typing import SPATIAL_STRIDE, TEMPORAL_STRIDE, Params

_EPS = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HunyuanVaeConfig:
    """Sizes, under the names of diffusers' config.json; the defaults are HunyuanVideo's own (246.5 M parameters)."""

    latent_channels: int = 16
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    scaling_factor: float = 0.476986

    def validate(self) -> None:
        """ValueError unless the blocks make a 4 x 8 x 8 codec with whole groups."""
        blocks = len(self.block_out_channels)
        if blocks < 3:
            raise ValueError(
                f"block_out_channels {self.block_out_channels}: at least three blocks are needed to reduce 4 x 8 x 8"
            )
        if any(width % self.norm_num_groups for width in self.block_out_channels):
            raise ValueError(
                f"block_out_channels {self.block_out_channels} must be multiples of norm_num_groups "
                f"{self.norm_num_groups}"
            )


FIXED: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "silu",
    "spatial_compression_ratio": SPATIAL_STRIDE,
    "temporal_compression_ratio": TEMPORAL_STRIDE,
    "down_block_types": "HunyuanVideoDownBlock3D",
    "up_block_types": "HunyuanVideoUpBlock3D",
}
"""Keys of config.json with the one value that there is (of each entry, where the value is a list)."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HunyuanVaeOptions:
    """How a video is worked off; by default in the tiles of diffusers' `enable_tiling`.

    dtype                  what is computed in: `float32`, `bfloat16`, or `auto`: float32 on a CPU, bfloat16 elsewhere
    tile_*, stride_*       tiles in pixels and frames; tile 0: not cut along that dim. They change the latents
                           (slightly): group norms see a tile, neighbours are blended
    """

    dtype: str = "auto"
    tile_height: int = 256
    tile_width: int = 256
    tile_frames: int = 16
    stride_height: int = 192
    stride_width: int = 192
    stride_frames: int = 12

    @property
    def space(self) -> tuple[Tile, Tile]:
        return (
            Tile.of_pixels("height", self.tile_height, self.stride_height, SPATIAL_STRIDE),
            Tile.of_pixels("width", self.tile_width, self.stride_width, SPATIAL_STRIDE),
        )

    @property
    def time(self) -> Tile:
        return Tile.of_pixels("frames", self.tile_frames, self.stride_frames, TEMPORAL_STRIDE)

    def validate(self) -> None:
        """ValueError with the tile that is wrong."""
        _ = self.space, self.time


def strides(config: HunyuanVaeConfig) -> list[tuple[int, int, int]]:
    """(time, height, width) by which each block of the encoder shrinks, and each of the decoder grows; 1s for not at
    all.
    """
    last = len(config.block_out_channels) - 1
    made = []
    for block in range(last + 1):
        space = 2 if block < 3 else 1
        time = 2 if last - 2 <= block < last else 1
        made.append((time, space, space))
    return made


def read_params(config: HunyuanVaeConfig, weights: Weights) -> Params:
    """Every parameter, taken from `weights` by diffusers' names; `weights.check` then says what did not fit."""
    widths, c = config.block_out_channels, config.latent_channels

    def conv(name: str, inputs: int, outputs: int, size: int = 3) -> Params:
        return layers.read_conv(weights, f"{name}.conv", inputs, outputs, size, size, size)

    def half(name: str, number: int, inputs: int, outputs: int) -> Params:
        norm = layers.read_norm(weights, f"{name}.norm{number}", inputs)
        return {"norm": norm, "conv": conv(f"{name}.conv{number}", inputs, outputs)}

    def resnets(name: str, inputs: int, width: int, count: int) -> Params:
        """`count` of them in a row; all are alike but a first that changes the width."""
        block: Params = {}
        first = int(inputs != width)
        if first:
            at = f"{name}.0"
            block["first"] = {"half1": half(at, 1, inputs, width), "half2": half(at, 2, width, width)}
            block["first"]["conv_shortcut"] = conv(f"{at}.conv_shortcut", inputs, width, 1)
        same = [layers.stacked([half(f"{name}.{i}", n, width, width) for n in (1, 2)]) for i in range(first, count)]
        return block | ({"same": layers.stacked(same)} if same else {})

    def middle(name: str) -> Params:
        width = widths[-1]
        block: Params = {"resnets": resnets(f"{name}.resnets", width, width, 2)}
        if config.mid_block_add_attention:
            at = f"{name}.attentions.0"
            names = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
            block["attention"] = {
                "group_norm": layers.read_norm(weights, f"{at}.group_norm", width),
                **{ours: layers.read_conv(weights, f"{at}.{theirs}", width, width) for ours, theirs in names.items()},
            }
        return block

    def stages(name: str, sampler: str, channels: tuple[int, ...], num_layers: int) -> Params:
        made: Params = {}
        before = channels[0]
        for i, (width, stride) in enumerate(zip(channels, strides(config), strict=True)):
            at = f"{name}.{i}"
            block: Params = {"resnets": resnets(f"{at}.resnets", before, width, num_layers)}
            if stride != (1, 1, 1):
                block["sampler"] = conv(f"{at}.{sampler}.0.conv", width, width)
            made[f"block_{i}"] = block
            before = width
        return made

    return {
        "encoder": {
            "conv_in": conv("encoder.conv_in", 3, widths[0]),
            **stages("encoder.down_blocks", "downsamplers", widths, config.layers_per_block),
            "mid_block": middle("encoder.mid_block"),
            "norm_out": layers.read_norm(weights, "encoder.conv_norm_out", widths[-1]),
            "conv_out": conv("encoder.conv_out", widths[-1], 2 * c),
        },
        "decoder": {
            "conv_in": conv("decoder.conv_in", c, widths[-1]),
            "mid_block": middle("decoder.mid_block"),
            **stages("decoder.up_blocks", "upsamplers", widths[::-1], config.layers_per_block + 1),
            "norm_out": layers.read_norm(weights, "decoder.conv_norm_out", widths[0]),
            "conv_out": conv("decoder.conv_out", widths[0], 3),
        },
        "quant_conv": layers.read_conv(weights, "quant_conv", 2 * c, 2 * c, 1, 1, 1),
        "post_quant_conv": layers.read_conv(weights, "post_quant_conv", c, c, 1, 1, 1),
    }


def encode(
    config: HunyuanVaeConfig, options: HunyuanVaeOptions, params: Mapping[str, Any], video_THW3: jax.Array
) -> jax.Array:
    """The posterior's mean of one video [1 + 4n, H, W, 3] in [-1, 1], scaled to about unit variance: [1 + n, H/8, W/8,
    C].
    """

    def network(x: jax.Array) -> jax.Array:
        moments = layers.linear(params["quant_conv"], _encoder(config, params["encoder"], x))
        return moments[..., : config.latent_channels]

    in_space = lambda x: over_space(network, x, options.space, ENCODE)  # noqa: E731
    return over_time(in_space, video_THW3, options.time, ENCODE) * config.scaling_factor


def decode(
    config: HunyuanVaeConfig, options: HunyuanVaeOptions, params: Mapping[str, Any], latents_FHWC: jax.Array
) -> jax.Array:
    """The frames [1 + 4n, H, W, 3] of one video's latents, about [-1, 1], not clipped."""

    def network(x: jax.Array) -> jax.Array:
        return _decoder(config, params["decoder"], layers.linear(params["post_quant_conv"], x))

    in_space = lambda x: over_space(network, x, options.space, DECODE)  # noqa: E731
    return over_time(in_space, latents_FHWC / config.scaling_factor, options.time, DECODE)


def _conv(params: Mapping[str, Any], x: jax.Array, stride: tuple[int, int, int] = (1, 1, 1)) -> jax.Array:
    """Causal: the first frame is repeated in front, edges of a frame around it."""
    t, h, w, _, _ = params["kernel"].shape
    if t * h * w > 1:
        x = jnp.pad(x, ((t - 1, 0), (h // 2, h // 2), (w // 2, w // 2), (0, 0)), mode="edge")
    return layers.conv3d(params, x, stride)


def _norm_silu(config: HunyuanVaeConfig, params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    return jax.nn.silu(layers.group_norm(params, x, config.norm_num_groups, _EPS))


def _half(config: HunyuanVaeConfig, params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    return _conv(params["conv"], _norm_silu(config, params["norm"], x))


def _resnets(config: HunyuanVaeConfig, params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """Residual blocks in a row. Those that are alike, and the two halves of each, are scanned over: a compiler for TPUs
    takes seconds a convolution, and a tiled program holds the network once for each shape of tile."""
    if "first" in params:
        first = params["first"]
        h = _half(config, first["half2"], _half(config, first["half1"], x))
        x = h + _conv(first["conv_shortcut"], x)
    if "same" not in params:
        return x

    def resnet(x: jax.Array, halves: Mapping[str, Any]) -> tuple[jax.Array, None]:
        h, _ = jax.lax.scan(lambda h, half: (_half(config, half, h), None), x, halves)
        return x + h, None

    return jax.lax.scan(resnet, x, params["same"])[0]


def _attention(config: HunyuanVaeConfig, params: Mapping[str, Any], x_THWC: jax.Array) -> jax.Array:
    """A frame sees itself and earlier ones; frame by frame, so that scores are [H W, T H W] at a time."""
    frames, height, width, channels = x_THWC.shape
    tokens = layers.group_norm(params["group_norm"], x_THWC, config.norm_num_groups, _EPS).reshape(-1, channels)
    q, k, v = (layers.linear(params[name], tokens) for name in ("to_q", "to_k", "to_v"))
    of_key = jnp.arange(len(tokens)) // (height * width)

    def attend_from(frame_and_q: tuple[jax.Array, jax.Array]) -> jax.Array:
        frame, q_of_frame = frame_and_q
        return layers.attend(q_of_frame, k, v, of_key[None] <= frame)

    seen = jax.lax.map(attend_from, (jnp.arange(frames), q.reshape(frames, height * width, channels)))
    return x_THWC + layers.linear(params["to_out"], seen).reshape(x_THWC.shape)


def _middle(config: HunyuanVaeConfig, params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    before, after = (
        {"same": jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], params["resnets"]["same"])} for i in range(2)
    )
    x = _resnets(config, before, x)
    if "attention" in params:
        x = _attention(config, params["attention"], x)
    return _resnets(config, after, x)


def _grow(x: jax.Array, stride: tuple[int, int, int]) -> jax.Array:
    """Nearest neighbours; the first frame grows in space only."""
    t, h, w = stride
    wide = jnp.repeat(jnp.repeat(x, h, axis=1), w, axis=2)
    return wide if t == 1 else jnp.concatenate([wide[:1], jnp.repeat(wide[1:], t, axis=0)])


def _encoder(config: HunyuanVaeConfig, params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    x = _conv(params["conv_in"], x)
    for i, stride in enumerate(strides(config)):
        block = params[f"block_{i}"]
        x = _resnets(config, block["resnets"], x)
        if "sampler" in block:
            x = _conv(block["sampler"], x, stride)
    x = _middle(config, params["mid_block"], x)
    return _conv(params["conv_out"], _norm_silu(config, params["norm_out"], x))


def _decoder(config: HunyuanVaeConfig, params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    x = _middle(config, params["mid_block"], _conv(params["conv_in"], x))
    for i, stride in enumerate(strides(config)):
        block = params[f"block_{i}"]
        x = _resnets(config, block["resnets"], x)
        if "sampler" in block:
            x = _conv(block["sampler"], _grow(x, stride))
    return _conv(params["conv_out"], _norm_silu(config, params["norm_out"], x))
