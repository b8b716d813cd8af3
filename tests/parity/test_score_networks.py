"""Inception-v3, I3D and SyncNet against the originals: random weights, BatchNorm's statistics among them, odd sizes."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from omnihuman_jax.evaluation import i3d, inception, mfcc, sync_offsets, syncnet
from tests.parity import oracles

LIMIT = 1e-4


def randomised(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Statistics of BatchNorm, gains and offsets unlike those at the start; convolutions that keep a signal's size."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.weight.data.uniform_(0.5, 1.5, generator=generator)
            part.bias.data.normal_(0, 0.3, generator=generator)
            part.running_mean.normal_(0, 0.3, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
        elif isinstance(part, torch.nn.Conv2d | torch.nn.Conv3d | torch.nn.Linear):
            fan_in = part.weight[0].numel()
            part.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            if part.bias is not None:
                part.bias.data.normal_(0, 0.1, generator=generator)
    return module.eval()


def saved(module: torch.nn.Module, path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path)
    return path


def relative(found: np.ndarray, expected: torch.Tensor) -> float:
    there = expected.detach().numpy()
    assert found.shape == there.shape and np.linalg.norm(there) > 0
    return float(np.linalg.norm(found - there) / np.linalg.norm(there))


def pictures(seed: int, *shape: int) -> np.ndarray:
    """Noise over soft gradients, uint8."""
    rng = np.random.default_rng(seed)
    ramps = sum(np.sin(np.linspace(0, rng.uniform(1, 9), n)).reshape([-1 if a == i else 1 for a in range(len(shape))])
                for i, n in enumerate(shape[:-1]))  # fmt: skip
    return np.clip(128 + 30 * ramps + 25 * rng.standard_normal(shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def original_inception(tmp_path_factory):
    network = oracles.load("torch_fidelity.feature_extractor_inceptionv3", ["torch-fidelity"])
    folder = tmp_path_factory.mktemp("inception")
    # Its constructor wants a file of its own weights: a subclass of it, before they are looked at, is the network.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *args, **kwargs: {})
        patch.setattr(network.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        module = network.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], "none")
    return randomised(module, 0), saved(module, folder / "inception.safetensors")


@pytest.mark.parametrize(
    ("size", "height", "width"), [(107, 45, 61), pytest.param(299, 241, 319, marks=pytest.mark.slow)]
)
def test_inception(original_inception, size, height, width, measured):
    module, path = original_inception
    shown = pictures(1, 2, height, width, 3)
    module.INPUT_IMAGE_SIZE = size
    (expected,) = module(torch.from_numpy(shown).permute(0, 3, 1, 2))
    found = jax.jit(inception.features, static_argnums=2)(inception.load_inception(path), shown, size)
    measured("Inception-v3 features, random weights, relative", relative(np.asarray(found), expected), LIMIT)


def test_pictures_are_resized_as_tensorflow_did(measured):
    theirs = oracles.load("torch_fidelity.interpolate_compat_tensorflow", ["torch-fidelity"])
    for height, width in ((37, 411), (299, 299), (1, 2)):
        shown = pictures(2, 1, height, width, 3)
        expected = theirs.interpolate_bilinear_2d_like_tensorflow1x(
            torch.from_numpy(shown).permute(0, 3, 1, 2).float(), size=(299, 299), align_corners=False
        )
        found = np.asarray(inception.resize(shown)).transpose(0, 3, 1, 2)
        measured("pictures for Inception, resized, of 255", np.abs(found - expected.numpy()).max() / 255, 1e-6)


@pytest.fixture(scope="module")
def original_i3d(tmp_path_factory):
    network = oracles.load("pytorch_i3d", ["cd-fvd"])
    module = randomised(network.InceptionI3d(400, in_channels=3), 3)
    return module, saved(module, tmp_path_factory.mktemp("i3d") / "i3d.safetensors")


@pytest.mark.parametrize("shape", [(11, 45, 61), (9, 32, 33)])
def test_i3d_below_its_last_pool(original_i3d, shape, measured):
    module, path = original_i3d
    x = pictures(4, 1, *shape, 3).astype(np.float32) / 127.5 - 1
    with torch.no_grad():
        expected = module.extract_pre_pool_features(torch.from_numpy(x).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
    found = jax.jit(i3d.trunk)(i3d.load_i3d(path), x)
    measured("I3D features, random weights, relative", relative(np.asarray(found), expected), LIMIT)


def test_i3d_above_it(original_i3d, measured):
    module, path = original_i3d
    x = np.abs(np.random.default_rng(5).standard_normal((2, 3, 7, 7, 1024))).astype(np.float32)
    with torch.no_grad():
        pooled = module.avg_pool(torch.from_numpy(x).permute(0, 4, 1, 2, 3))
        expected = module.logits(pooled).squeeze(3).squeeze(3).mean(2)
    measured("I3D logits, random weights, relative", relative(np.asarray(i3d.head(i3d.load_i3d(path), x)), expected),
             LIMIT)  # fmt: skip


@pytest.mark.slow
def test_i3d_from_frames_to_logits(original_i3d, measured):
    """The whole of it, odd frames resized: what a Frechet video distance is taken of."""
    module, path = original_i3d
    frames = pictures(6, 1, i3d.CLIP_FRAMES, 131, 173, 3)
    with torch.no_grad():
        resized = torch.nn.functional.interpolate(
            torch.from_numpy(frames[0]).permute(0, 3, 1, 2).float(), size=(224, 224), mode="bilinear"
        )
        expected = module((2 * resized / 255 - 1).permute(1, 0, 2, 3)[None])
    found = jax.jit(i3d.features)(i3d.load_i3d(path), frames)
    measured("I3D logits, random weights, relative", relative(np.asarray(found), expected), LIMIT)


def speech(seed: int, seconds: float) -> np.ndarray:
    """Syllables of noise and tones with pauses between them, float32 in [-1, 1]."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * 16_000)) / 16_000
    gate = np.clip(np.sin(2 * np.pi * 4.3 * t) + 0.2, 0, 1)
    tone = sum(np.sin(2 * np.pi * f * t) / k for k, f in enumerate((170, 620, 2300), 1))
    return (0.2 * gate * (tone + 0.3 * rng.standard_normal(len(t)))).astype(np.float32)


@pytest.mark.parametrize("samples", [16_000, 12_345, 401, 400, 399, 7])
def test_cepstra(samples, measured):
    theirs = oracles.load("python_speech_features", ["python_speech_features"])
    wave = speech(7, 1.0)[:samples]
    wave[samples // 2 :][:900] = 0  # digital silence: no energy at all
    expected = theirs.mfcc(np.rint(wave * 32768).astype(np.int16), 16_000)
    found = mfcc.mfcc(wave)
    assert found.shape == expected.shape
    measured("cepstra, absolute", np.abs(found - expected).max(), 1e-9)


@pytest.fixture(scope="module")
def original_syncnet(tmp_path_factory):
    network = oracles.load("syncnet_python.SyncNetModel", ["syncnet-python", "python_speech_features"])
    module = randomised(network.S(), 8)
    return module, saved(module, tmp_path_factory.mktemp("syncnet") / "syncnet.safetensors")


@pytest.mark.parametrize("size", [(224, 224), pytest.param((229, 225), marks=pytest.mark.slow)])
def test_syncnet(original_syncnet, size, measured):
    """The network takes what its last convolution leaves one place of: 224 pixels, and a few sizes beside it."""
    module, path = original_syncnet
    params = syncnet.load_syncnet(path)
    faces = pictures(9, 1, 5, *size, 3).astype(np.float32)
    pieces = np.random.default_rng(10).standard_normal((3, 13, 20)).astype(np.float32) * 10
    with torch.no_grad():
        face = module.forward_lip(torch.from_numpy(faces).permute(0, 4, 1, 2, 3))
        sound = module.forward_aud(torch.from_numpy(pieces)[:, None])
    for found, expected in (
        (syncnet.face_features(params, faces), face),
        (syncnet.sound_features(params, pieces), sound),
    ):
        measured("SyncNet features, random weights, relative", relative(np.asarray(found), expected), LIMIT)


def test_distances_offset_and_confidence(measured):
    """The reference's own distances; the rest as it takes it from them. The voice is 3 frames early here."""
    theirs = oracles.load("syncnet_python.SyncNetInstance", ["syncnet-python", "python_speech_features"])
    rng = np.random.default_rng(11)
    face = rng.standard_normal((40, 64)).astype(np.float32)
    sound = np.roll(face, -3, 0) + 0.3 * rng.standard_normal((40, 64)).astype(np.float32)
    expected = torch.stack(theirs.calc_pdist(torch.from_numpy(face), torch.from_numpy(sound), vshift=15), 1).mean(1)
    found = sync_offsets.mean_distances(face, sound)
    measured("SyncNet's mean distances, relative", relative(found, expected), 1e-6)
    lowest, place = expected.min(0)
    sync = sync_offsets.sync_of(face, sound)
    assert sync.offset == 15 - int(place) == 3
    assert sync.distance == pytest.approx(float(lowest), rel=1e-6)
    assert sync.confidence == pytest.approx(float(expected.median() - lowest), rel=1e-5)


@pytest.mark.slow
def test_syncnet_from_frames_and_sound(original_syncnet, tmp_path, measured):
    """The reference reads pictures and a sound file, runs its network, and says offset, confidence and distance."""
    import argparse
    import wave as wave_file

    import cv2

    module, path = original_syncnet
    theirs = oracles.load("syncnet_python.SyncNetInstance", ["syncnet-python", "python_speech_features"])
    frames, sound = pictures(12, 12, 224, 224, 3), speech(13, 12 / 25)
    for i, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / f"{i:03d}.jpg"), frame[..., ::-1])
    shown = np.stack([cv2.imread(str(tmp_path / f"{i:03d}.jpg"))[..., ::-1] for i in range(len(frames))])
    with wave_file.open(str(tmp_path / "audio.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.rint(sound * 32768).astype(np.int16).tobytes())
    options = argparse.Namespace(tmp_dir=str(tmp_path), batch_size=4, vshift=15)
    offset, confidence, distance = theirs.SyncNetInstance(module, device="cpu").evaluate(options)
    found = syncnet.measure_sync(syncnet.load_syncnet(path), shown, sound, batch=4)
    assert found.offset == offset
    measured("Sync-D from frames and sound, relative", abs(found.distance - distance) / distance, LIMIT)
    measured("Sync-C from frames and sound, relative to Sync-D", abs(found.confidence - confidence) / distance, LIMIT)


@pytest.mark.slow
def test_syncnet_in_onnx_as_curate_runs_it(original_syncnet, tmp_path, measured):
    """The public network, exported as docs/data.md says, against ours."""
    from data_pipelines.curate.sync_network import SyncNetwork

    module, path = original_syncnet

    class BothTowers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = module

        def forward(self, faces, cepstra):
            return self.network.forward_lip(faces), self.network.forward_aud(cepstra)

    inputs = torch.zeros(2, 3, 5, 224, 224), torch.zeros(2, 1, 13, 20)
    axes = {"faces": {0: "N"}, "cepstra": {0: "N"}}
    file = str(tmp_path / "syncnet.onnx")
    torch.onnx.export(
        BothTowers().eval(), inputs, file, input_names=[*axes], dynamic_axes=axes, dynamo=False
    )  # fmt: skip
    faces, sound = pictures(14, 20, 224, 224, 3), speech(15, 20 / 25)
    expected = syncnet.measure_sync(syncnet.load_syncnet(path), faces, sound)
    found = SyncNetwork.load(file).measure(faces, sound)
    assert found.offset == expected.offset
    measured("Sync-D by ONNX, relative", abs(found.distance - expected.distance) / expected.distance, LIMIT)
    measured("Sync-C by ONNX, relative to Sync-D", abs(found.confidence - expected.confidence) / found.distance, LIMIT)


def test_a_file_of_another_network_is_refused_with_what_is_wrong(original_syncnet, tmp_path):
    _, path = original_syncnet
    with pytest.raises(ValueError, match=r"do not fit Inception-v3: .* is missing.*in all\)"):
        inception.load_inception(path)
    with pytest.raises(ValueError, match=r"do not fit I3D"):
        i3d.load_i3d(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        syncnet.load_syncnet(tmp_path / "none.safetensors")
    (tmp_path / "syncnet_v2.model").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match=r"give weights as \.safetensors"):
        syncnet.load_syncnet(tmp_path / "syncnet_v2.model")
