"""HunyuanVideo's autoencoder against `diffusers`' AutoencoderKLHunyuanVideo, the same random weights, fp32 on CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from omnihuman_jax.codecs import hunyuan_vae
from tests.parity import vae_cases

KIND = "AutoencoderKLHunyuanVideo"
WHOLE = {"tile_height": 0, "tile_width": 0, "tile_frames": 0}
ODD = {"block_out_channels": (4, 8, 8, 12), "norm_num_groups": 2, "layers_per_block": 1, "latent_channels": 3}
TILES = {
    "tile_height": 32,
    "tile_width": 48,
    "tile_frames": 8,
    "stride_height": 24,
    "stride_width": 32,
    "stride_frames": 4,
}


def tiled(model, tiles: dict):
    """diffusers' own name for each of our options."""
    names = {
        f"tile_{dim}": f"tile_sample_min_{'num_' * (dim == 'frames')}{dim}" for dim in ("height", "width", "frames")
    }
    names |= {
        f"stride_{dim}": f"tile_sample_stride_{'num_' * (dim == 'frames')}{dim}"
        for dim in ("height", "width", "frames")
    }
    model.enable_tiling(**{names[name]: value for name, value in tiles.items()})
    return model


@pytest.mark.parametrize(("frames", "height", "width"), [(9, 16, 40), (1, 24, 8)])
def test_whole(tmp_path, measured, frames, height, width):
    model = vae_cases.oracle("hunyuan", ODD)
    codec = vae_cases.ours(model, tmp_path, **WHOLE)
    vae_cases.check(measured, "whole, non-square videos and a single frame", model, codec, frames, height, width)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [
        {"block_out_channels": (6, 9, 12, 15), "norm_num_groups": 3, "layers_per_block": 2, "latent_channels": 5},
        {
            "block_out_channels": (8, 8, 16),
            "norm_num_groups": 4,
            "layers_per_block": 3,
            "latent_channels": 2,
            "down_block_types": ("HunyuanVideoDownBlock3D",) * 3,
            "up_block_types": ("HunyuanVideoUpBlock3D",) * 3,
        },
        ODD | {"mid_block_add_attention": False},
    ],
    ids=["widths of threes", "three blocks", "no attention in the middle"],
)
def test_other_depths_and_widths(tmp_path, measured, sizes):
    model = vae_cases.oracle("hunyuan", sizes)
    codec = vae_cases.ours(model, tmp_path, **WHOLE)
    vae_cases.check(measured, "other depths and widths", model, codec, 5, 24, 16)


@pytest.mark.slow
def test_stretches_in_time_alone(tmp_path, measured):
    """21 frames are above diffusers' threshold of 16, which is on by default."""
    model = vae_cases.oracle("hunyuan", ODD)
    codec = vae_cases.ours(model, tmp_path)
    vae_cases.check(measured, "above the threshold in time", model, codec, 21, 16, 24)


@pytest.mark.slow
@pytest.mark.parametrize(("frames", "height", "width"), [(13, 56, 88), (1, 24, 104)], ids=["video", "picture"])
def test_tiles_in_time_and_space(tmp_path, measured, frames, height, width):
    """Edges of every kind: both far edges are short, and so is the last stretch; a picture whose rows fit a tile."""
    model = tiled(vae_cases.oracle("hunyuan", ODD), TILES)
    codec = vae_cases.ours(model, tmp_path, **TILES)
    vae_cases.check(measured, "tiled in time and space", model, codec, frames, height, width)


class Pooling(torch.nn.Module):
    """Stands in for a network where only the tiles are looked at: cheap, but every value depends on its whole tile."""

    def __init__(self, encode: bool):
        super().__init__()
        self.encode = encode

    def forward(self, x):
        level = (x * x).mean()
        if self.encode:
            frames = torch.cat([x[:, :, :1], x[:, :, 1:].unflatten(2, (-1, 4)).mean(3)], 2)
            x = torch.nn.functional.avg_pool3d(frames, (1, 8, 8))
            x = torch.cat([x, -x], 1)
        else:
            x = torch.cat([x[:, :, :1], x[:, :, 1:].repeat_interleave(4, 2)], 2)
            x = x.repeat_interleave(8, 3).repeat_interleave(8, 4)
        ramp = torch.arange(x.shape[3])[:, None] - 0.5 * torch.arange(x.shape[4])
        return x * level + 0.01 * ramp


def pooled_encoder(config, params, x):
    frames = jnp.concatenate([x[:1], x[1:].reshape(-1, 4, *x.shape[1:]).mean(1)])
    t, h, w, c = frames.shape
    y = frames.reshape(t, h // 8, 8, w // 8, 8, c).mean((2, 4))
    return jnp.concatenate([y, -y], -1) * (x * x).mean() + _ramp(h // 8, w // 8)


def pooled_decoder(config, params, x):
    y = jnp.concatenate([x[:1], jnp.repeat(x[1:], 4, axis=0)])
    y = jnp.repeat(jnp.repeat(y, 8, axis=1), 8, axis=2)
    return y * (x * x).mean() + _ramp(y.shape[1], y.shape[2])


def _ramp(height: int, width: int) -> np.ndarray:
    return np.float32(0.01) * (np.arange(height)[:, None] - np.float32(0.5) * np.arange(width))[..., None]


@pytest.mark.parametrize(
    ("size", "tiles"),
    [
        ((13, 56, 88), TILES),
        ((25, 32, 40), TILES),  # a last stretch of one latent; rows fit a tile, columns do too: not cut
        ((9, 24, 56), TILES),  # rows fit a tile, and are cut because columns do not
        ((9, 40, 48), TILES | {"stride_height": 8, "stride_width": 32}),  # several short tiles in a row
        ((29, 16, 16), TILES | {"tile_frames": 16, "stride_frames": 4}),  # several short stretches
        ((21, 40, 64), TILES | {"stride_height": 32, "stride_width": 48, "stride_frames": 8}),  # no overlap
    ],
)
def test_tiles_are_cut_and_blended_as_in_diffusers(tmp_path, measured, monkeypatch, size, tiles):
    model = tiled(vae_cases.oracle("hunyuan", {**ODD, "block_out_channels": (2, 2, 2, 2), "latent_channels": 3}), tiles)
    codec = vae_cases.ours(model, tmp_path, **tiles)
    model.encoder, model.decoder = Pooling(True), Pooling(False)
    monkeypatch.setattr(hunyuan_vae, "_encoder", pooled_encoder)
    monkeypatch.setattr(hunyuan_vae, "_decoder", pooled_decoder)
    jax.clear_caches()  # programs of the real network
    try:
        vae_cases.check(measured, "the tiles alone", model, codec, *size)
    finally:
        jax.clear_caches()


def test_full_size_has_every_key_and_shape(measured):
    with torch.device("meta"):
        model = vae_cases.CLASSES["hunyuan"]()
    config = hunyuan_vae.HunyuanVaeConfig()
    vae_cases.check_names(measured, model, config)
    assert sum(weight.numel() for weight in model.parameters()) == 246_478_803
