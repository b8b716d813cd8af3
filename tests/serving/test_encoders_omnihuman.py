"""Video autoencoders in the exported pipeline are the trainer's codec: same folder, same options, same latents and
frames.
"""

import functools
from pathlib import Path

import encoders_omnihuman as encoders
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from omnihuman_jax.codecs.codec import load_codec
from tests.encoders import tiny_networks
from tests.parity import vae_cases

TOLERANCE = 1e-5
HUNYUAN = {"block_out_channels": (8, 8, 16), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 6}
HUNYUAN |= {"down_block_types": ("HunyuanVideoDownBlock3D",) * 3, "up_block_types": ("HunyuanVideoUpBlock3D",) * 3}
WAN = {"base_dim": 8, "z_dim": 6, "num_res_blocks": 1, "latents_mean": [0.1] * 6, "latents_std": [1.5] * 6}
TILES = {"tile_height": 32, "tile_width": 32, "stride_height": 24, "stride_width": 24}
CASES = {
    "hunyuan": ("hunyuan", HUNYUAN, {}, (9, 32, 48)),
    "hunyuan, tiles of 32 x 32 and 8 frames": (
        "hunyuan",
        HUNYUAN,
        TILES | {"tile_frames": 8, "stride_frames": 4},
        (13, 40, 56),
    ),
    "hunyuan, no tiles": ("hunyuan", HUNYUAN, {"tile_height": 0, "tile_width": 0, "tile_frames": 0}, (1, 24, 16)),
    "wan": ("wan", WAN, {}, (5, 16, 40)),
    "wan, tiles of 32 x 32": ("wan", WAN, TILES, (5, 40, 48)),
}


@functools.cache
def network(name: str, sizes: tuple) -> torch.nn.Module:
    return vae_cases.oracle(name, dict(sizes))


def saved(name: str, sizes: dict, folder: Path) -> str:
    frozen = tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in sizes.items())
    network(name, frozen).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "case", ["hunyuan", *(pytest.param(case, marks=pytest.mark.slow) for case in CASES if case != "hunyuan")]
)
def test_an_autoencoder_is_the_trainers_codec(case, tmp_path, measured):
    name, sizes, options, shape = CASES[case]
    folder = saved(name, sizes, tmp_path)
    codec = load_codec(folder, options)
    there = encoders.load_codec(folder, Path("none"), torch.device("cpu"), codec.options)
    video = vae_cases.video(*shape)
    latents = np.asarray(codec.encode(video))
    with torch.no_grad():
        theirs = there.encode(torch.from_numpy(video)).numpy()
        frames = there.decode(torch.from_numpy(np.array(latents))).numpy()
    claim = "video autoencoder of a folder, pipeline against the trainer's codec"
    measured(f"{claim}: latents", np.abs(theirs - latents).max() / np.abs(latents).max(), TOLERANCE)
    expected = np.asarray(codec.decode(latents))
    measured(f"{claim}: frames", np.abs(frames - expected).max() / np.abs(expected).max(), TOLERANCE)


def test_tensors_that_do_not_fit_are_listed(tmp_path):
    """As the trainer does: a library's warning about missing or unknown tensors is an error here."""
    cpu = torch.device("cpu")
    folders = {
        "bert": (tiny_networks.write_bert(tmp_path / "bert"), lambda at: encoders.load_text_encoder(at, cpu)),
        "whisper": (
            tiny_networks.write_whisper(tmp_path / "whisper"),
            lambda at: encoders.load_speech_encoder(at, (0,), cpu),
        ),
        "wav2vec2": (
            tiny_networks.write_wav2vec2(tmp_path / "wav2vec2", norm="group"),
            lambda at: encoders.load_speech_encoder(at, (0,), cpu),
        ),
        "vae": (
            Path(saved("wan", WAN, tmp_path / "vae")),
            lambda at: encoders.load_codec(str(at), Path("none"), cpu, {}),
        ),
    }
    for name, (folder, load) in folders.items():
        load(folder)
        (file,) = folder.glob("*.safetensors")
        tensors = load_file(file)
        lost = next(key for key in sorted(tensors) if key.lower().endswith(("norm.weight", "gamma")))
        extra = f"{lost.rpartition('.')[0]}.lora"
        value = tensors.pop(lost)
        save_file(tensors | {extra: value}, file)
        with pytest.raises(
            ValueError, match=r"do not fit config\.json: \S+ is missing; \S+ is unknown \(2 in all\)"
        ) as error:
            load(folder)
        assert "lora is unknown" in str(error.value) and str(folder) in str(error.value), name


def test_a_hub_id_is_looked_up_or_the_option_named(tmp_path, monkeypatch):
    import huggingface_hub

    def download(repository: str, allow_patterns: list[str]) -> str:
        if repository != "some/pipeline" or not all(pattern.startswith("vae/") for pattern in allow_patterns):
            raise OSError("offline\nand more")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert encoders.network_folder("codec", "some/pipeline/vae") == tmp_path / "vae"
    assert encoders.network_folder("codec", str(tmp_path)) == tmp_path
    with pytest.raises(FileNotFoundError, match=r"^other/model: .* \(offline\); .* with --text-encoder$"):
        encoders.network_folder("text encoder", "other/model")
    with pytest.raises(
        FileNotFoundError, match=r"no such folder; the speech encoder .* give its folder with --speech-encoder$"
    ):
        encoders.network_folder("speech encoder", "/no/such")


def test_options_that_diffusers_cannot_do_and_other_classes_are_refused(tmp_path):
    folder = saved("wan", WAN, tmp_path)
    with pytest.raises(ValueError, match="both, or neither"):
        encoders.load_codec(
            folder, Path("none"), torch.device("cpu"), {"tile_height": 32, "stride_height": 24, "tile_width": 0}
        )
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ValueError, match="class 'AutoencoderKL'; supported"):
        encoders.load_codec(folder, Path("none"), torch.device("cpu"), {})
