"""Wan 2.1's causal 3D autoencoder (`AutoencoderKLWan` of diffusers) in JAX, as plain functions.

Strictly causal: norms are of a pixel, attention of a frame, convolutions look back only. So a video may be worked off
in stretches of any number of latents, with what each convolution has last seen carried from one to the next, and gives
the same result; diffusers does so one latent at a time. The first frame is a stretch of its own: it skips the layers
that shrink or grow in time.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omnihuman_jax.codecs import vae_layers as layers
from omnihuman_jax.codecs.vae_tiling import DECODE, ENCODE, Direction, Tile, over_space
from omnihuman_jax.encoders.pretrained import Weights
from omnihuman_jax.typing import SPATIAL_STRIDE, TEMPORAL_STRIDE, Params

_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
_KEPT = 2  # frames that a convolution of three looks back


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WanVaeConfig:
    """Sizes, under the names of diffusers' config.json (its spelling too); the defaults are Wan 2.1's own."""

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = _MEAN
    latents_std: tuple[float, ...] = _STD

    @property
    def latent_channels(self) -> int:
        return self.z_dim

    def validate(self) -> None:
        """ValueError unless the blocks make a 4 x 8 x 8 codec."""
        if len(self.dim_mult) != 4 or len(self.temperal_downsample) != 3 or sum(self.temperal_downsample) != 2:
            raise ValueError(
                f"dim_mult {self.dim_mult}, temperal_downsample {self.temperal_downsample}: a 4 x 8 x 8 codec "
                "has four blocks, the first three halve the picture, and two of those halve time"
            )
        if not len(self.latents_mean) == len(self.latents_std) == self.z_dim:
            raise ValueError(
                f"latents_mean, latents_std: {len(self.latents_mean)} and {len(self.latents_std)} values, but z_dim is"
                f" {self.z_dim}"
            )


FIXED: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "dropout": 0.0,
    "attn_scales": [],
    "is_residual": False,
    "patch_size": None,
    "scale_factor_spatial": SPATIAL_STRIDE,
    "scale_factor_temporal": TEMPORAL_STRIDE,
}
"""Keys of config.json with the one value that there is; others are Wan 2.2's, which is no 4 x 8 x 8 codec."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WanVaeOptions:
    """How a video is worked off; whole frames by default, as the original does.

    dtype                  what is computed in: `float32`, `bfloat16`, or `auto`: float32 on a CPU, bfloat16 elsewhere
    tile_*, stride_*       tiles in pixels, as in diffusers' `enable_tiling`; 0: whole frames. They change the latents
    (slightly)
    chunk_latents          latents at once; changes memory and speed alone
    """

    dtype: str = "auto"
    tile_height: int = 0
    tile_width: int = 0
    stride_height: int = 192
    stride_width: int = 192
    chunk_latents: int = 1

    @property
    def space(self) -> tuple[Tile, Tile]:
        return (
            Tile.of_pixels("height", self.tile_height, self.stride_height, SPATIAL_STRIDE),
            Tile.of_pixels("width", self.tile_width, self.stride_width, SPATIAL_STRIDE),
        )

    def validate(self) -> None:
        """ValueError with the tile or the number that is wrong."""
        _ = self.space
        if self.chunk_latents < 1:
            raise ValueError(f"chunk_latents must be at least 1, not {self.chunk_latents}")


def read_params(config: WanVaeConfig, weights: Weights) -> Params:
    """Every parameter, taken from `weights` by diffusers' names; `weights.check` then says what did not fit."""

    def conv(name: str, inputs: int, outputs: int, *size: int) -> Params:
        return layers.read_conv(weights, name, inputs, outputs, *(size or (3, 3, 3)))

    def norm(name: str, channels: int, dims: int = 3) -> Params:
        return {"gamma": weights.take(f"{name}.gamma", channels, *[1] * dims).reshape(channels)}

    def resnet(name: str, inputs: int, outputs: int) -> Params:
        block = {
            "norm1": norm(f"{name}.norm1", inputs),
            "conv1": conv(f"{name}.conv1", inputs, outputs),
            "norm2": norm(f"{name}.norm2", outputs),
            "conv2": conv(f"{name}.conv2", outputs, outputs),
        }
        if inputs != outputs:
            block["conv_shortcut"] = conv(f"{name}.conv_shortcut", inputs, outputs, 1, 1, 1)
        return block

    def middle(name: str, width: int) -> Params:
        at = f"{name}.attentions.0"
        return {
            "resnets_0": resnet(f"{name}.resnets.0", width, width),
            "attention": {
                "norm": norm(f"{at}.norm", width, 2),
                "to_qkv": conv(f"{at}.to_qkv", width, 3 * width, 1, 1),
                "proj": conv(f"{at}.proj", width, width, 1, 1),
            },
            "resnets_1": resnet(f"{name}.resnets.1", width, width),
        }

    def encoder() -> Params:
        widths = [config.base_dim * mult for mult in (1, *config.dim_mult)]
        made: Params = {"conv_in": conv("encoder.conv_in", 3, widths[0])}
        index = 0  # resnets and samplers are numbered in one row
        for i, (before, width) in enumerate(itertools.pairwise(widths)):
            block: Params = {}
            for j in range(config.num_res_blocks):
                block[f"resnets_{j}"] = resnet(f"encoder.down_blocks.{index}", width if j else before, width)
                index += 1
            if i < len(config.temperal_downsample):
                at = f"encoder.down_blocks.{index}"
                block["sampler"] = conv(f"{at}.resample.1", width, width, 3, 3)
                if config.temperal_downsample[i]:
                    block["time_conv"] = conv(f"{at}.time_conv", width, width, 3, 1, 1)
                index += 1
            made[f"block_{i}"] = block
        made["mid_block"] = middle("encoder.mid_block", widths[-1])
        made["norm_out"] = norm("encoder.norm_out", widths[-1])
        return made | {"conv_out": conv("encoder.conv_out", widths[-1], 2 * config.z_dim)}

    def decoder() -> Params:
        base = config.decoder_base_dim or config.base_dim
        widths = [base * mult for mult in (config.dim_mult[-1], *config.dim_mult[::-1])]
        made: Params = {"conv_in": conv("decoder.conv_in", config.z_dim, widths[0])}
        made["mid_block"] = middle("decoder.mid_block", widths[0])
        for i, (before, width) in enumerate(itertools.pairwise(widths)):
            at = f"decoder.up_blocks.{i}"
            inputs = before // 2 if i else before  # the sampler before has halved it
            block: Params = {
                f"resnets_{j}": resnet(f"{at}.resnets.{j}", width if j else inputs, width)
                for j in range(config.num_res_blocks + 1)
            }
            if i < len(config.temperal_downsample):
                block["sampler"] = conv(f"{at}.upsamplers.0.resample.1", width, width // 2, 3, 3)
                if config.temperal_downsample[::-1][i]:
                    block["time_conv"] = conv(f"{at}.upsamplers.0.time_conv", width, 2 * width, 3, 1, 1)
            made[f"block_{i}"] = block
        made["norm_out"] = norm("decoder.norm_out", widths[-1])
        return made | {"conv_out": conv("decoder.conv_out", widths[-1], 3)}

    z = config.z_dim
    return {
        "encoder": encoder(),
        "decoder": decoder(),
        "quant_conv": conv("quant_conv", 2 * z, 2 * z, 1, 1, 1),
        "post_quant_conv": conv("post_quant_conv", z, z, 1, 1, 1),
    }


def encode(config: WanVaeConfig, options: WanVaeOptions, params: Mapping[str, Any], video_THW3: jax.Array) -> jax.Array:
    """The posterior's mean of one video [1 + 4n, H, W, 3] in [-1, 1], each channel to about zero mean and unit
    variance.
    """

    def stretch(x: jax.Array, seen: "_Seen") -> jax.Array:
        moments = layers.linear(params["quant_conv"], _encoder(config, params["encoder"], x, seen))
        return moments[..., : config.z_dim]

    network = lambda x: _in_stretches(stretch, x, ENCODE, options.chunk_latents)  # noqa: E731
    mean = over_space(network, video_THW3, options.space, ENCODE)
    return (mean - np.array(config.latents_mean, np.float32)) / np.array(config.latents_std, np.float32)


def decode(
    config: WanVaeConfig, options: WanVaeOptions, params: Mapping[str, Any], latents_FHWC: jax.Array
) -> jax.Array:
    """The frames [1 + 4n, H, W, 3] of one video's latents, clipped to [-1, 1] as the original does."""

    def stretch(z: jax.Array, seen: "_Seen") -> jax.Array:
        return _decoder(config, params["decoder"], layers.linear(params["post_quant_conv"], z), seen)

    network = lambda z: _in_stretches(stretch, z, DECODE, options.chunk_latents)  # noqa: E731
    wide = latents_FHWC * np.array(config.latents_std, np.float32) + np.array(config.latents_mean, np.float32)
    return jnp.clip(over_space(network, wide.astype(latents_FHWC.dtype), options.space, DECODE), -1.0, 1.0)


class _Seen:
    """What each layer has seen of the stretch before, in the order in which layers ask; `now` is for the stretch
    after.
    """

    def __init__(self, before: list[jax.Array] | None):
        self.first = before is None
        self._before: Iterator[jax.Array] = iter(before or ())
        self.now: list[jax.Array] = []

    def prepend(self, x_THWC: jax.Array, frames: int) -> jax.Array:
        """`x` after the last `frames` frames that this layer saw before it, zeros at the start of a video."""
        before = jnp.zeros((frames, *x_THWC.shape[1:]), x_THWC.dtype) if self.first else next(self._before)
        joined = jnp.concatenate([before, x_THWC])
        self.now.append(joined[-frames:])
        return joined

    def start_with(self, before_THWC: jax.Array) -> None:
        """Of a layer that the first frame skips: what it is to find before the second."""
        self.now.append(before_THWC)


def _in_stretches(
    network: Callable[[jax.Array, _Seen], jax.Array], x_THWC: jax.Array, direction: Direction, chunk_latents: int
) -> jax.Array:
    """`network` over the first frame, then over stretches of `chunk_latents` latents, then over what is left."""

    def advance(before: list[jax.Array] | None, x: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        seen = _Seen(before)
        y = network(x, seen)
        return seen.now, y

    seen, first = advance(None, x_THWC[:1])
    made, rest = [first], x_THWC[1:]
    length = chunk_latents * direction.frame_stride(into=True)
    whole = len(rest) // length
    if whole:
        stretches = rest[: whole * length].reshape(whole, length, *rest.shape[1:])
        seen, y = jax.lax.scan(advance, seen, stretches)
        made.append(y.reshape(-1, *y.shape[2:]))
    if len(rest) > whole * length:
        made.append(advance(seen, rest[whole * length :])[1])
    return jnp.concatenate(made)


def _conv(params: Mapping[str, Any], x: jax.Array, seen: _Seen) -> jax.Array:
    """A causal convolution of 3 x 3 x 3, zeros around a frame and before the first."""
    return layers.conv3d(params, seen.prepend(x, _KEPT), padding=((0, 0), (1, 1), (1, 1)))


def _norm(params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """Unit root mean square over the channels of a pixel, float32 inside."""
    wide = x.astype(jnp.float32)
    length = jnp.sqrt(jnp.square(wide).sum(axis=-1, keepdims=True))
    return (wide / jnp.maximum(length, 1e-12) * x.shape[-1] ** 0.5 * params["gamma"]).astype(x.dtype)


def _resnet(params: Mapping[str, Any], x: jax.Array, seen: _Seen) -> jax.Array:
    h = _conv(params["conv1"], jax.nn.silu(_norm(params["norm1"], x)), seen)
    h = _conv(params["conv2"], jax.nn.silu(_norm(params["norm2"], h)), seen)
    return h + (layers.linear(params["conv_shortcut"], x) if "conv_shortcut" in params else x)


def _attention(params: Mapping[str, Any], x_THWC: jax.Array) -> jax.Array:
    """Within a frame, frame by frame."""
    _, height, width, channels = x_THWC.shape

    def of_frame(x_HWC: jax.Array) -> jax.Array:
        tokens = _norm(params["norm"], x_HWC).reshape(height * width, channels)
        q, k, v = jnp.split(layers.linear(params["to_qkv"], tokens), 3, axis=-1)
        return layers.linear(params["proj"], layers.attend(q, k, v)).reshape(x_HWC.shape)

    return x_THWC + jax.lax.map(of_frame, x_THWC)


def _middle(params: Mapping[str, Any], x: jax.Array, seen: _Seen) -> jax.Array:
    x = _resnet(params["resnets_0"], x, seen)
    x = _attention(params["attention"], x)
    return _resnet(params["resnets_1"], x, seen)


def _shrink(block: Mapping[str, Any], x: jax.Array, seen: _Seen) -> jax.Array:
    """Half the rows and columns; then pairs of frames become one, but for the first frame."""
    x = layers.conv2d(block["sampler"], x, stride=2, padding=(0, 1))
    if "time_conv" not in block:
        return x
    if seen.first:
        seen.start_with(x)
        return x
    return layers.conv3d(block["time_conv"], seen.prepend(x, 1), stride=(2, 1, 1))


def _grow(block: Mapping[str, Any], x: jax.Array, seen: _Seen) -> jax.Array:
    """Every frame but the first becomes two; then twice the rows and columns."""
    if "time_conv" in block and seen.first:
        seen.start_with(jnp.zeros((_KEPT, *x.shape[1:]), x.dtype))  # it never sees the first frame
    elif "time_conv" in block:
        frames, height, width, channels = x.shape
        pairs = layers.conv3d(block["time_conv"], seen.prepend(x, _KEPT)).reshape(frames, height, width, 2, channels)
        x = jnp.moveaxis(pairs, 3, 1).reshape(2 * frames, height, width, channels)
    wide = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return layers.conv2d(block["sampler"], wide, stride=1, padding=(1, 1))


def _encoder(config: WanVaeConfig, params: Mapping[str, Any], x: jax.Array, seen: _Seen) -> jax.Array:
    x = _conv(params["conv_in"], x, seen)
    for i in range(len(config.dim_mult)):
        block = params[f"block_{i}"]
        for j in range(config.num_res_blocks):
            x = _resnet(block[f"resnets_{j}"], x, seen)
        if "sampler" in block:
            x = _shrink(block, x, seen)
    x = _middle(params["mid_block"], x, seen)
    return _conv(params["conv_out"], jax.nn.silu(_norm(params["norm_out"], x)), seen)


def _decoder(config: WanVaeConfig, params: Mapping[str, Any], x: jax.Array, seen: _Seen) -> jax.Array:
    x = _middle(params["mid_block"], _conv(params["conv_in"], x, seen), seen)
    for i in range(len(config.dim_mult)):
        block = params[f"block_{i}"]
        for j in range(config.num_res_blocks + 1):
            x = _resnet(block[f"resnets_{j}"], x, seen)
        if "sampler" in block:
            x = _grow(block, x, seen)
    return _conv(params["conv_out"], jax.nn.silu(_norm(params["norm_out"], x)), seen)
