"""Wan 2.1's autoencoder against `diffusers`' AutoencoderKLWan, the same random weights, fp32 on CPU."""

import numpy as np
import pytest
import torch

from omnihuman_jax.codecs import wan_vae
from tests.parity import vae_cases

ODD = {
    "base_dim": 6,
    "decoder_base_dim": 10,
    "z_dim": 3,
    "dim_mult": [1, 2, 3, 3],
    "num_res_blocks": 1,
    "latents_mean": [0.1, 0.2, -0.3],
    "latents_std": [1.0, 2.0, 0.5],
}
TILES = {"tile_height": 32, "tile_width": 48, "stride_height": 24, "stride_width": 32}


@pytest.mark.parametrize(("frames", "height", "width"), [pytest.param(13, 24, 16, marks=pytest.mark.slow), (1, 8, 40)])
def test_whole(tmp_path, measured, frames, height, width):
    model = vae_cases.oracle("wan", ODD)
    codec = vae_cases.ours(model, tmp_path)
    seen = vae_cases.check(measured, "whole, non-square videos and a single frame", model, codec, frames, height, width)
    assert frames == 1 or np.abs(seen["decode"].original).max() == 1, "no value was clipped"


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [2, 3, 5])
def test_stretches_of_several_latents(tmp_path, measured, chunk):
    """diffusers goes latent by latent; 21 frames are 1 + 5 latents: 2 + 2 + 1, 3 + 2, and 5 at once."""
    model = vae_cases.oracle("wan", ODD)
    codec = vae_cases.ours(model, tmp_path, chunk_latents=chunk)
    vae_cases.check(measured, "several latents at once", model, codec, 21, 16, 24)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [
        ODD | {"base_dim": 8, "decoder_base_dim": None, "num_res_blocks": 2, "dim_mult": [1, 2, 4, 4]},
        ODD | {"temperal_downsample": [True, True, False], "dim_mult": [1, 1, 2, 2]},
        ODD | {"base_dim": 4, "decoder_base_dim": None},
    ],
    ids=["deeper", "time first", "four channels"],
)
def test_other_depths_and_widths(tmp_path, measured, sizes):
    model = vae_cases.oracle("wan", sizes)
    codec = vae_cases.ours(model, tmp_path)
    vae_cases.check(measured, "other depths and widths", model, codec, 9, 24, 16)


@pytest.mark.slow
@pytest.mark.parametrize(("frames", "height", "width"), [(9, 56, 88), (1, 24, 104)], ids=["video", "picture"])
def test_tiles(tmp_path, measured, frames, height, width):
    model = vae_cases.oracle("wan", ODD)
    model.enable_tiling(32, 48, 24, 32)
    codec = vae_cases.ours(model, tmp_path, **TILES)
    vae_cases.check(measured, "tiled in space", model, codec, frames, height, width)


def test_full_size_has_every_key_and_shape(measured):
    with torch.device("meta"):
        model = vae_cases.CLASSES["wan"]()
    config = wan_vae.WanVaeConfig()
    vae_cases.check_names(measured, model, config)
    assert sum(weight.numel() for weight in model.parameters()) == 126_892_531
    assert np.allclose(config.latents_mean, model.config.latents_mean)
    assert np.allclose(config.latents_std, model.config.latents_std)
