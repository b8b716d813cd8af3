"""Whisper's encoder in JAX against `transformers`, its windows over long sound, and features on the video's clock."""

import itertools
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from omnihuman_jax.encoders import whisper
from omnihuman_jax.encoders.pretrained import open_pretrained
from omnihuman_jax.encoders.speech import load_speech_encoder
from tests.encoders import tiny_networks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_networks.write_whisper(tmp_path_factory.mktemp("networks") / "whisper")


@pytest.fixture(scope="module")
def network(folder):
    opened = open_pretrained(folder)
    config = whisper.WhisperConfig.from_folder(opened)
    return config, whisper.whisper_params(config, opened)


def test_log_mel_is_that_of_transformers():
    mel = np.asarray(whisper.log_mel(tiny_networks.wave(30.0), 80))
    assert mel.shape == (3000, 80)
    with np.load(tiny_networks.GOLDENS) as goldens:
        np.testing.assert_allclose(mel[list(tiny_networks.MEL_FRAMES)], goldens["mel"], atol=2e-4)


def test_hidden_states_are_those_of_transformers(network):
    config, params = network
    states = whisper.hidden_states(config, params, tiny_networks.wave(30.0), (0, 1, 2))
    assert states.shape == (3, 1500, 16)
    states[0] += params["positions"]  # ours leaves them out of layer 0
    with np.load(tiny_networks.GOLDENS) as goldens:
        np.testing.assert_allclose(states[:, list(tiny_networks.SPEECH_STEPS)], goldens["speech"], atol=1e-3)


@pytest.mark.parametrize("seconds", [0.02, 0.5, 30, 30.02, 50, 50.02, 125])
def test_chunks_tile_the_sound_with_context(seconds):
    steps = round(seconds * 50)
    spans = whisper.chunk_spans(steps)
    assert spans[0][1] == 0 and spans[-1][2] == steps
    assert all(after[1] == before[2] for before, after in itertools.pairwise(spans))
    for start, first, end in spans:
        assert start <= first < end <= start + 1500
        assert first == 0 or first - start == 250
        assert end == steps or start + 1500 - end == 250


def test_long_sound_agrees_with_its_own_first_half_minute(network):
    """Whatever comes after its chunk cannot change a feature; the seam at 25 s changes no more than context does."""
    config, params = network
    sound = tiny_networks.wave(40.0)
    states = whisper.hidden_states(config, params, sound, (0, 2))
    assert states.shape == (2, 2000, 16)
    head = whisper.hidden_states(config, params, sound[: 30 * 16_000], (0, 2))
    np.testing.assert_allclose(states[:, :1250], head[:, :1250], atol=1e-5)
    # Layer 0 sees three mel frames, so a chunk's start does not matter to it (the sound is as loud in both chunks).
    np.testing.assert_allclose(states[0, 1250:1400], head[0, 1250:1400], atol=1e-3)


def test_features_are_on_the_clock_of_the_frames(folder):
    """A click at frame 12 moves the features of frame 12, and those of layer 0 nowhere but around it."""
    encoder = load_speech_encoder(folder, layers=(0,))
    quiet = 0.01 * np.random.default_rng(0).standard_normal(2 * 16_000).astype(np.float32)
    # The mel's floor follows its peak, so both sounds share one.
    quiet[:160] = 0.9
    click = quiet.copy()
    click[12 * 640 + 200 : 12 * 640 + 400] = 0.5
    difference = np.abs(encoder.features(click, 50) - encoder.features(quiet, 50)).max(axis=1)
    assert difference.argmax() == 12
    assert difference[:11].max() < 1e-3 and difference[14:].max() < 1e-3


def test_features_have_unit_variance_layer_by_layer(folder):
    encoder = load_speech_encoder(folder, layers=(2, 0))
    features = encoder.features(tiny_networks.wave(2.0), 50)
    assert features.shape == (50, 32) and features.dtype == np.float32
    layers = features.reshape(50, 2, 16)
    np.testing.assert_allclose(layers.mean(-1), 0, atol=1e-4)
    np.testing.assert_allclose(layers.std(-1), 1, rtol=1e-2)
    np.testing.assert_allclose(
        layers[:, 1], load_speech_encoder(folder, layers=(0,)).features(tiny_networks.wave(2.0), 50), atol=1e-5
    )


def test_short_sound_is_padded_with_silence_and_long_sound_cut(folder):
    encoder = load_speech_encoder(folder, layers=(1,))
    sound = tiny_networks.wave(1.0)
    padded = np.concatenate([sound, np.zeros(16_000, np.float32)])
    np.testing.assert_array_equal(encoder.features(sound, 50), encoder.features(padded, 50))
    np.testing.assert_array_equal(encoder.features(padded, 25), encoder.features(sound, 25))
    assert encoder.features(np.zeros(0, np.float32), 3).shape == (3, 16)


def test_default_layers_are_first_middle_and_last(folder):
    encoder = load_speech_encoder(folder)
    assert encoder.layers == (0, 1, 2) and encoder.width == 16


@pytest.mark.parametrize("layers", [(3,), (-1,), (), (1, 1)])
def test_layers_that_are_not_there(folder, layers):
    with pytest.raises(ValueError, match=r"speech layers .* 0 \.\. 2"):
        load_speech_encoder(folder, layers=layers)


@pytest.mark.parametrize(("sound", "frames"), [(np.zeros((2, 100)), 5), (np.array([np.nan]), 5), (np.zeros(640), 0)])
def test_sound_that_is_none(folder, sound, frames):
    with pytest.raises(ValueError, match="mono"):
        load_speech_encoder(folder).features(sound, frames)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "hubert"}, "'hubert'; supported: 'whisper', 'wav2vec2'"),
        ({"activation_function": "relu"}, "relu"),
        ({"max_source_positions": 750}, "750"),
        ({"d_model": 32}, r"expected \(32,\)"),
    ],
)
def test_an_unsupported_config_is_refused(tmp_path, change, message):
    folder = tiny_networks.write_whisper(tmp_path / "whisper")
    (folder / "config.json").write_text(json.dumps(tiny_networks.WHISPER | change))
    with pytest.raises(ValueError, match=message):
        load_speech_encoder(folder)


def test_every_weight_that_does_not_fit_is_named(tmp_path):
    folder = tiny_networks.write_whisper(tmp_path / "whisper")
    tensors = tiny_networks.whisper_tensors()
    lost = tensors.pop("model.encoder.layers.1.fc1.bias")
    tensors |= {
        "model.encodr.extra": lost,
        "model.encoder.layer_norm.bias": lost[:2],
        "model.decoder.layer_norm.bias": lost,
    }
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError) as error:
        load_speech_encoder(folder)
    for part in (
        "layers.1.fc1.bias is missing",
        "layer_norm.bias has shape (2,)",
        "encodr.extra is unknown",
        "(3 in all)",
    ):
        assert part in str(error.value)
