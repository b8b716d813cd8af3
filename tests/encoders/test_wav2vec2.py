"""wav2vec 2.0 on the clock of the frames: alignment, chunks of long sound, and configs that are refused."""

import itertools
import json

import numpy as np
import pytest

from omnihuman_jax.encoders import wav2vec2
from omnihuman_jax.encoders.pretrained import open_pretrained
from omnihuman_jax.encoders.speech import load_speech_encoder
from tests.encoders import tiny_networks


@pytest.fixture(scope="module", params=["group", "layer"])
def folder(request, tmp_path_factory):
    return tiny_networks.write_wav2vec2(tmp_path_factory.mktemp("networks") / request.param, norm=request.param)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * 16_000))).astype(np.float32)


def test_features_are_centred_on_their_frames(folder):
    """A click in the middle of frame 12 moves the features of frame 12 most and its neighbours alike; at its end, also
    13's.
    """
    encoder = load_speech_encoder(folder, layers=(0,))
    quiet = np.zeros(25 * 640, np.float32)

    def moved(sample: int) -> np.ndarray:
        # Only the convolutions' own reach is looked at: the positional convolution and the norms see more.
        config, params = encoder.config, encoder.params
        click = quiet.copy()
        click[sample] = 1.0
        padded = [np.pad(wave, 40) for wave in (click, quiet)]
        silent = params | {"positions": {name: 0 * value for name, value in params["positions"].items()}}
        statistics = np.stack([np.zeros(config.conv_widths[0]), np.ones(config.conv_widths[0])]).astype(np.float32)
        a, b = (
            np.asarray(wav2vec2.chunk_hidden_states(config, silent, w, statistics, np.int32(50)))[0] for w in padded
        )
        return np.abs(a - b).max(-1)

    # 50 states for 25 frames; state 2i + k is made of the samples 640 i + 320 k - 40 .. 640 i + 320 k + 359.
    for sample, states in (
        (12 * 640 + 160, {24}),
        (12 * 640 + 480, {25}),
        (12 * 640 + 320, {24, 25}),
        (13 * 640, {25, 26}),
    ):
        assert set(np.flatnonzero(moved(sample) > 1e-6)) == states, sample


def test_features_have_unit_variance_and_the_right_shape(folder):
    encoder = load_speech_encoder(folder)
    assert (encoder.layers, encoder.width) == ((0, 1, 2), 24)
    features = encoder.features(noise(1.5), 37)
    assert features.shape == (37, 72) and features.dtype == np.float32
    layers = features.reshape(37, 3, 24)
    np.testing.assert_allclose(layers.mean(-1), 0, atol=1e-4)
    np.testing.assert_allclose(layers.std(-1), 1, rtol=1e-2)
    only = load_speech_encoder(folder, layers=(2,)).features(noise(1.5), 37)
    np.testing.assert_allclose(layers[:, 2], only, atol=1e-5)
    assert encoder.features(np.zeros(0, np.float32), 1).shape == (1, 72)
    assert np.isfinite(encoder.features(np.zeros(3000, np.float32), 3)).all(), "digital silence"


def test_loudness_does_not_matter_where_the_folder_normalises(folder, tmp_path):
    encoder = load_speech_encoder(folder)
    np.testing.assert_allclose(encoder.features(0.3 * noise(1.0), 25), encoder.features(noise(1.0), 25), atol=2e-3)
    opened = open_pretrained(folder)
    assert wav2vec2.Wav2Vec2Config.from_folder(opened).normalise
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, "sampling_rate": 16_000}))
    try:
        config = wav2vec2.Wav2Vec2Config.from_folder(opened)
        assert not config.normalise
        np.testing.assert_array_equal(wav2vec2.normalised(config, noise(1.0)), noise(1.0))
        (folder / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 8000}))
        with pytest.raises(ValueError, match="sampling_rate 8000"):
            load_speech_encoder(folder)
    finally:
        (folder / "preprocessor_config.json").unlink()


@pytest.mark.parametrize("steps", [1, 50, 1000, 1001, 1499, 1500, 1501, 2500, 6250])
def test_chunks_tile_the_sound_with_context(steps):
    spans = wav2vec2.chunk_spans(steps)
    assert spans[0][2] == 0 and spans[-1][3] == steps
    assert all(before[3] == after[2] for before, after in itertools.pairwise(spans))
    for start, end, first, until in spans:
        assert 0 <= start <= first < until <= end <= steps and end - start == min(steps, 1000)
        assert first == 0 or first - start >= 250
        assert until == steps or end - until == 250


def test_chunk_bounds_do_not_show_beyond_attention(folder, monkeypatch, measured):
    """A long sound in chunks against the whole at once: the convolutions and their norm agree to rounding, and the
    layers to what they make of sound more than the context away."""
    config = wav2vec2.Wav2Vec2Config.from_folder(open_pretrained(folder))
    params = wav2vec2.wav2vec2_params(config, open_pretrained(folder))
    # Louder from the middle on: a norm over a chunk alone would differ from chunk to chunk.
    wave = noise(5.0) * np.linspace(0.2, 2, 80_000).astype(np.float32)
    layers = (0, 1, 2)
    whole = wav2vec2.hidden_states(config, params, wave, layers)
    spans = wav2vec2.chunk_spans(whole.shape[1], 100, 30)
    assert len(spans) > 3
    monkeypatch.setattr(wav2vec2, "chunk_spans", lambda steps: spans)
    chunked = wav2vec2.hidden_states(config, params, wave, layers)
    first = np.abs(chunked[0] - whole[0]).max() / np.abs(whole[0]).max()
    measured("wav2vec 2.0 in chunks against the whole: what enters the layers", first, 1e-5)
    for layer in (1, 2):
        assert np.abs(chunked[layer] - whole[layer]).mean() < 0.1 * np.abs(whole[layer]).mean()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "relu"),
        ({"feat_extract_norm": "batch"}, "'group' or 'layer'"),
        ({"add_adapter": True}, "add_adapter True"),
        ({"conv_stride": [5, 2, 2, 2, 2, 2, 1]}, "every 160 samples; it must be every 320"),
        ({"num_attention_heads": 7}, "24 is not divisible by 7 heads"),
        ({"hidden_size": 48}, r"expected \(48,"),
    ],
)
def test_an_unsupported_config_is_refused(tmp_path, change, message):
    folder = tiny_networks.write_wav2vec2(tmp_path / "wav2vec2", norm="group")
    (folder / "config.json").write_text(json.dumps(tiny_networks.wav2vec2_config("group") | change))
    with pytest.raises(ValueError, match=message):
        load_speech_encoder(folder)


def test_sound_shorter_than_the_receptive_field(folder):
    config = wav2vec2.Wav2Vec2Config.from_folder(open_pretrained(folder))
    assert (config.stride, config.receptive_field, config.steps_of(400), config.steps_of(719)) == (320, 400, 1, 1)
    with pytest.raises(ValueError, match=r"399 samples of sound are too few: wav2vec 2\.0 needs at least 400"):
        wav2vec2.hidden_states(config, {}, np.zeros(399, np.float32), (0,))
