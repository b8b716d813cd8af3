"""Autoencoders as codecs: folders that are read, refused and why; what a codec promises about time."""

import hashlib
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from safetensors.numpy import save_file

from omnihuman_jax.codecs import vae_codec
from omnihuman_jax.codecs.codec import VideoCodec, load_codec, parse_options
from omnihuman_jax.codecs.vae_tiling import Tile
from tests.codecs import vae_folders

KINDS = list(vae_folders.CONFIGS)


def video(frames: int, height: int = 16, width: int = 24) -> np.ndarray:
    return np.random.default_rng(frames).uniform(-1, 1, (frames, height, width, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def wan(tmp_path_factory) -> VideoCodec:
    return load_codec(str(vae_folders.write_vae(tmp_path_factory.mktemp("wan"))))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_a_codec(tmp_path, kind):
    folder = vae_folders.write_vae(tmp_path / "vae", kind)
    codec = load_codec(str(folder), {"dtype": "float32"})
    assert isinstance(codec, VideoCodec)
    assert codec.name == str(folder) and codec.options["dtype"] == "float32"
    files = [folder / "diffusion_pytorch_model.safetensors", folder / "config.json"]
    assert codec.sha256 == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert codec.latent_channels == vae_folders.CONFIGS[kind].latent_channels
    # Options are recorded as a whole, and give the same codec again.
    assert load_codec(codec.name, json.loads(json.dumps(codec.options))).options == codec.options


def test_a_batch_is_its_windows(wan):
    pictures = np.stack([video(5), video(5)[::-1]])[:, None]
    latents = np.asarray(wan.encode(pictures))
    assert latents.shape == (2, 1, 2, 2, 3, 4) and latents.dtype == np.float32
    np.testing.assert_allclose(latents[1, 0], wan.encode(pictures[1, 0]), atol=1e-5)
    frames = np.asarray(wan.decode(latents))
    assert frames.shape == pictures.shape and frames.dtype == np.float32


def test_wans_latents_see_no_later_frame(wan):
    """Latent i of a longer window is that of the window which ends with frame 4i."""
    pictures = video(9)
    whole, first = np.asarray(wan.encode(pictures)), np.asarray(wan.encode(pictures[:5]))
    np.testing.assert_allclose(whole[:2], first, atol=1e-5)
    changed = np.concatenate([pictures[:5], -pictures[5:]])
    again = np.asarray(wan.encode(changed))
    np.testing.assert_allclose(again[:2], whole[:2], atol=1e-6)
    assert np.abs(again[2] - whole[2]).max() > 1e-2


def test_hunyuans_latents_see_later_frames_only_in_their_scale(tmp_path):
    """What the interface says of it: not strictly causal. Were it so one day, its text would be wrong."""
    codec = load_codec(str(vae_folders.write_vae(tmp_path, "AutoencoderKLHunyuanVideo")))
    pictures = video(5)
    changed = np.concatenate([pictures[:1], 0.1 * pictures[1:]])
    difference = np.abs(np.asarray(codec.encode(changed))[0] - np.asarray(codec.encode(pictures))[0]).max()
    assert difference > 1e-4


def test_weights_that_do_not_fit_are_listed(tmp_path):
    changed = {
        "encoder.conv_in.bias": None,
        "decoder.norm_out.gamma": np.zeros((5, 1, 1, 1), np.float32),
        "quant_conv.extra": np.zeros(3, np.float32),
    }
    folder = vae_folders.write_vae(tmp_path, changed=changed)
    with pytest.raises(ValueError, match=r"\(3 in all\)") as error:
        load_codec(str(folder))
    for part in (
        "encoder.conv_in.bias is missing",
        "decoder.norm_out.gamma has shape (5, 1, 1, 1)",
        "quant_conv.extra is unknown",
    ):
        assert part in str(error.value)


def test_sharded_weights_are_read(tmp_path):
    whole = load_codec(str(vae_folders.write_vae(tmp_path / "whole")))
    folder = vae_folders.write_vae(tmp_path / "shards")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    names = sorted(every := vae_folders.tensors("AutoencoderKLWan"))
    files = {f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, part in files.items():
        save_file({name: every[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    codec = load_codec(str(folder))
    assert sorted(codec.sha256) == sorted([*files, "config.json"])
    np.testing.assert_array_equal(codec.params["quant_conv"]["kernel"], whole.params["quant_conv"]["kernel"])


def test_pickled_weights_are_refused_and_never_opened(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    folder = vae_folders.write_vae(tmp_path / "vae")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(
        ValueError, match=r"diffusion_pytorch_model.bin is a pickle, which is refused.*diffusers.*save_pretrained"
    ):
        load_codec(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "AutoencoderKL"}, r"'AutoencoderKL'; supported: AutoencoderKLHunyuanVideo, AutoencoderKLWan"),
        ({"is_residual": True}, r"config\.json: is_residual True; only False"),
        ({"patch_size": 2}, r"patch_size 2; only None"),
        ({"new_key": 1}, r"unknown keys new_key"),
        ({"temperal_downsample": [True, True, True]}, r"4 x 8 x 8"),
        ({"latents_std": [1.0]}, r"4 and 1 values, but z_dim is 4"),
    ],
)
def test_a_network_that_is_not_supported_is_refused(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        load_codec(str(vae_folders.write_vae(tmp_path, **config)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_size": 8}, r"codec option tile_size: AutoencoderKLWan has dtype, tile_height"),
        ({"tile_height": 100}, r"tile_height 100, stride_height 192: multiples of 8"),
        ({"tile_height": 64}, r"stride <= tile"),
        ({"tile_height": "big"}, r"tile_height=big: give a whole number"),
        ({"dtype": "float16"}, r"dtype=float16: auto, float32 or bfloat16"),
        ({"chunk_latents": 0}, r"chunk_latents must be at least 1, not 0"),
        ({"tile_frames": 16}, r"codec option tile_frames"),
    ],
)
def test_options_that_a_codec_does_not_have_are_refused(tmp_path, options, message):
    folder = vae_folders.write_vae(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_codec(str(folder), options)


def test_options_of_a_command_line():
    assert parse_options(["tile_height=0", "dtype=bfloat16"]) == {"tile_height": 0, "dtype": "bfloat16"}
    with pytest.raises(ValueError, match="'tile_height': give NAME=VALUE"):
        parse_options(["tile_height"])


@pytest.mark.parametrize(
    ("shape", "message"),
    [((4, 16, 16, 3), "1 \\+ 4n"), ((5, 12, 16, 3), "12"), ((5, 16, 16, 4), "3"), ((16, 16, 3), "frames")],
)
def test_wrong_videos_are_named(wan, shape, message):
    with pytest.raises(ValueError, match=message):
        wan.encode(np.zeros(shape, np.float32))


def test_wrong_latents_are_named(wan):
    with pytest.raises(ValueError, match="4"):
        wan.decode(np.zeros((1, 2, 2, 16), np.float32))


def test_bfloat16_is_near(wan):
    half = load_codec(wan.name, {"dtype": "bfloat16"})
    pictures = video(1)
    np.testing.assert_allclose(half.encode(pictures), wan.encode(pictures), atol=0.1)


def test_a_tile_falls_on_latents():
    assert Tile.of_pixels("height", 256, 192, 8) == Tile(size=32, stride=24)
    assert Tile.of_pixels("height", 0, 192, 8).size == 0


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("kind", KINDS)
def test_tiled_programs_lower_for_accelerators_in_bfloat16(kind, platform):
    """As far as a machine without them can go: every convolution is one of bfloat16, which `auto` chooses there."""
    config = vae_folders.CONFIGS[kind]
    tiles = {"tile_height": 32, "tile_width": 32, "stride_height": 24, "stride_width": 24}
    settings = vae_codec.options_of(kind, tiles | {"dtype": "bfloat16"})
    params, _ = vae_codec.describe(kind, config, jnp.bfloat16)
    for method, shape in (("encode", (5, 32, 56, 3)), ("decode", (2, 4, 7, config.latent_channels))):
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        lowered = vae_codec.run.trace(method, kind, config, settings, params, x).lower(lowering_platforms=(platform,))
        convolutions = [line for line in lowered.as_text().splitlines() if "stablehlo.convolution" in line]
        assert convolutions
        assert not [line for line in convolutions if "f32" in line.rsplit(" : ", 1)[1]]


@pytest.mark.parametrize("kind", KINDS)
def test_devices_share_a_batch_and_each_makes_what_it_makes_alone(tmp_path, kind):
    """The weights are on each of them."""
    codec = load_codec(str(vae_folders.write_vae(tmp_path / "vae", kind)))
    shared = codec.over(Mesh(np.array(jax.local_devices()[:4]), ("data",)))
    windows = np.stack([video(5) * scale for scale in (1, 0.9, 0.8, 0.7)])
    latents = shared.encode(windows)
    assert len(latents.sharding.device_set) == 4
    assert np.array_equal(latents, np.concatenate([codec.encode(window[None]) for window in windows]))
    assert np.array_equal(shared.decode(latents), np.concatenate([codec.decode(one[None]) for one in latents]))
