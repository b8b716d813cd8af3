"""BERT in JAX against `transformers`, and what a folder must hold."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from omnihuman_jax.encoders.text import load_text_encoder
from tests.encoders import tiny_networks
from tests.encoders.tiny_networks import GOLDENS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_networks.write_bert(tmp_path_factory.mktemp("networks") / "bert")


@pytest.fixture
def damaged(folder, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(folder, tmp_path / "bert")


def test_tokens_are_those_of_transformers(folder):
    tokens, _ = load_text_encoder(folder).encode(tiny_networks.TEXTS, max_tokens=32)
    with np.load(GOLDENS) as goldens:
        for index, mine in enumerate(tokens):
            np.testing.assert_allclose(mine, goldens[f"text_{index}"], atol=2e-5)
    assert [len(states) for states in tokens] == [9, 6, 2, 32]  # with [CLS] and [SEP]; nothing padded; cut at 32


def test_texts_do_not_depend_on_each_other(folder):
    encoder = load_text_encoder(folder)
    many = encoder.encode([*tiny_networks.TEXTS] * 3)
    assert len(many.tokens) == 12 and many.pooled.shape == (12, 16)
    for index, text in enumerate(tiny_networks.TEXTS):
        alone = encoder.encode([text])
        np.testing.assert_allclose(many.tokens[index + 4], alone.tokens[0], atol=1e-5)
        np.testing.assert_allclose(many.pooled[index + 4], alone.pooled[0], atol=1e-5)


def test_pooled_is_the_mean_over_tokens(folder):
    tokens, pooled = load_text_encoder(folder).encode(tiny_networks.TEXTS)
    np.testing.assert_allclose(pooled, [states.mean(0) for states in tokens], atol=1e-6)


def test_pooled_of_a_normalised_sentence_embedding_has_unit_variance(folder, damaged):
    (damaged / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Normalize"}]))
    plain, normalised = (load_text_encoder(path).encode(tiny_networks.TEXTS).pooled for path in (folder, damaged))
    np.testing.assert_allclose(np.square(normalised).mean(axis=1), 1, rtol=1e-5)
    cosine = (plain * normalised).sum(1) / np.linalg.norm(plain, axis=1) / np.linalg.norm(normalised, axis=1)
    np.testing.assert_allclose(cosine, 1, rtol=1e-5)


def test_no_texts_give_nothing(folder):
    tokens, pooled = load_text_encoder(folder).encode([])
    assert tokens == [] and pooled.shape == (0, 16)


@pytest.mark.parametrize("max_tokens", [1, 161])
def test_max_tokens_out_of_range(folder, max_tokens):
    with pytest.raises(ValueError, match=rf"max_tokens {max_tokens}.* \[2, 160\]"):
        load_text_encoder(folder).encode(["a man"], max_tokens)


def test_weights_saved_with_a_head_are_read(damaged, folder):
    save_file({f"bert.{k}": v for k, v in tiny_networks.bert_tensors().items()}, damaged / "model.safetensors")
    headed, plain = (load_text_encoder(path).encode(["a man"]).pooled for path in (damaged, folder))
    np.testing.assert_array_equal(headed, plain)


def test_a_missing_weight_is_named(damaged):
    tensors = load_file(damaged / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.bias"]
    save_file(tensors, damaged / "model.safetensors")
    with pytest.raises(ValueError, match=r"encoder\.layer\.1\.output\.dense\.bias is missing \(1 in all\)"):
        load_text_encoder(damaged)


def test_an_unknown_weight_is_named(damaged):
    tensors = load_file(damaged / "model.safetensors")
    save_file(tensors | {"encoder.layer.9.extra": tensors["embeddings.LayerNorm.bias"]}, damaged / "model.safetensors")
    with pytest.raises(ValueError, match=r"encoder\.layer\.9\.extra is unknown \(1 in all\)"):
        load_text_encoder(damaged)


def test_a_weight_of_another_shape_is_named(damaged):
    config = json.loads((damaged / "config.json").read_text()) | {"max_position_embeddings": 64}
    (damaged / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"position_embeddings\.weight has shape \(160, 16\), expected \(64, 16\)"):
        load_text_encoder(damaged)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "'gpt2'; supported: 'bert'"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"num_attention_heads": 3}, "16 is not divisible by 3"),
    ],
)
def test_an_unsupported_config_is_refused(damaged, change, message):
    (damaged / "config.json").write_text(json.dumps(tiny_networks.BERT | change))
    with pytest.raises(ValueError, match=message):
        load_text_encoder(damaged)


def test_a_missing_tokenizer_says_how_to_make_one(damaged):
    (damaged / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: missing; .*save_pretrained"):
        load_text_encoder(damaged)
