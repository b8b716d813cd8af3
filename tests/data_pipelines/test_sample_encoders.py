"""The networks of the sample media, in JAX, against what `transformers` computed with them (see
make_encoder_goldens.py).
"""

import numpy as np

from data_pipelines.sample_media import SampleMedia
from omnihuman_jax.encoders import whisper
from omnihuman_jax.encoders.speech import load_speech_encoder
from omnihuman_jax.encoders.text import load_text_encoder
from omnihuman_jax.serving import media_omnihuman
from tests.encoders.tiny_networks import REAL_GOLDENS, REAL_TEXTS, wave


def test_minilm_is_that_of_transformers(sample_media: SampleMedia):
    encoder = load_text_encoder(sample_media.text_encoder)
    tokens, pooled = encoder.encode(REAL_TEXTS, 64)
    with np.load(REAL_GOLDENS) as goldens:
        for index, states in enumerate(tokens):
            np.testing.assert_allclose(states[:, ::16], goldens[f"text_{index}"], atol=1e-4)
    directions = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    cosine = directions @ directions.T
    assert cosine[0, 1] > 0.25 > 0.1 > cosine[0, 2]  # talking is like speaking, and not like a train
    np.testing.assert_allclose(np.square(pooled).mean(axis=1), 1, rtol=1e-4)
    assert (encoder.width, encoder.pooled_width) == (384, 384)


def test_whisper_is_that_of_transformers(sample_media: SampleMedia):
    encoder = load_speech_encoder(sample_media.speech_encoder)
    assert encoder.layers == (0, 2, 4) and encoder.width == 384
    states = whisper.hidden_states(encoder.config, encoder.params, wave(9.0), (0, 1, 2, 3, 4))
    with np.load(REAL_GOLDENS) as goldens:
        np.testing.assert_allclose(states[:, ::40, ::16], goldens["speech"], atol=2e-3)


def test_features_follow_the_speech(sample_media: SampleMedia):
    """Real speech: frames next to each other are more alike than frames half a second apart; sound that comes a second
    later moves by 25 frames and not by 24 or 26."""
    encoder = load_speech_encoder(sample_media.speech_encoder)
    sound = media_omnihuman.read_audio(sample_media.videos / "jwpIntro.mp4", required=True)
    features = encoder.features(sound, 144)
    assert features.shape == (144, 1152) and abs(features.std() - 1) < 0.01
    near, far = (np.mean(features[lag:] * features[:-lag]) for lag in (1, 12))
    assert near > far + 0.15
    later = encoder.features(np.concatenate([np.zeros(25 * 640, np.float32), sound]), 169)
    agreement = {lag: np.mean(features[2:-2] * later[lag + 2 : lag + 142]) for lag in (23, 24, 25, 26, 27)}
    assert max(agreement, key=lambda lag: agreement[lag]) == 25 and agreement[25] > 0.8
