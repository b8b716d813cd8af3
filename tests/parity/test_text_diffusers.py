"""Large text encoders give what diffusers' own pipelines compute from the same folders: HunyuanVideo's two, Wan's
UMT5.
"""

import builtins
import dataclasses
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import HunyuanVideoPipeline, WanPipeline
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, CLIPTextModel, LlamaModel, T5EncoderModel, UMT5EncoderModel

from omnihuman_jax.encoders.text import load_text_encoder
from omnihuman_jax.serving import text_encoders_omnihuman
from tests.encoders import tiny_transformers
from tests.encoders.tiny_transformers import TEXTS

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def hunyuan(tmp_path_factory):
    return tiny_transformers.write_hunyuan(tmp_path_factory.mktemp("pipelines") / "hunyuan")


def cropped(folder: Path) -> text_encoders_omnihuman.HunyuanTextEncoder:
    """The encoder of a folder, cutting what the template's beginning is for a tokenizer of words; the real one's is 95
    tokens.
    """
    encoder = load_text_encoder(folder)
    beginning = encoder.tokenizer(text_encoders_omnihuman.HUNYUAN_TEMPLATE.split("{}")[0]).input_ids
    return dataclasses.replace(encoder, crop=len(beginning))


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_the_template_is_diffusers_own():
    theirs = pipeline_hunyuan_video.DEFAULT_PROMPT_TEMPLATE
    assert theirs == {
        "template": text_encoders_omnihuman.HUNYUAN_TEMPLATE,
        "crop_start": text_encoders_omnihuman.HUNYUAN_CROP,
    }


@pytest.mark.parametrize("max_tokens", [128, 21])
def test_hunyuan_videos_tokens_and_pooled(hunyuan, max_tokens, measured):
    """All prompts in one batch there, padded and masked; alone here, with what is masked left out."""
    pipeline = types.SimpleNamespace(
        tokenizer=AutoTokenizer.from_pretrained(hunyuan / "tokenizer"),
        text_encoder=LlamaModel.from_pretrained(hunyuan / "text_encoder").eval(),
        tokenizer_2=AutoTokenizer.from_pretrained(hunyuan / "tokenizer_2"),
        text_encoder_2=CLIPTextModel.from_pretrained(hunyuan / "text_encoder_2").eval(),
        _execution_device="cpu",
    )
    encoder = cropped(hunyuan)
    template = {"template": text_encoders_omnihuman.HUNYUAN_TEMPLATE, "crop_start": encoder.crop}
    with torch.no_grad():
        states, mask = HunyuanVideoPipeline._get_llama_prompt_embeds(
            pipeline, list(TEXTS), template, max_sequence_length=max_tokens
        )
        pooled = HunyuanVideoPipeline._get_clip_prompt_embeds(pipeline, list(TEXTS)).numpy()
    assert (encoder.width, encoder.pooled_width) == (24, 15)
    found = encoder.encode(TEXTS, max_tokens)
    lengths = [len(tokens) for tokens in found.tokens]
    assert len(set(lengths)) > 2 and (max(lengths) == 21) == (max_tokens == 21)
    for tokens, reference, real in zip(found.tokens, states.numpy(), mask.numpy().astype(bool), strict=True):
        measured(
            "text tokens, HunyuanVideo's Llama against diffusers' pipeline",
            relative_error(tokens, reference[real]),
            TOLERANCE,
        )
    measured(
        "pooled text, HunyuanVideo's CLIP against diffusers' pipeline", relative_error(found.pooled, pooled), TOLERANCE
    )


def test_a_llava_is_its_language_model(tmp_path):
    """The two forms that the weights are published in give the same."""
    folder = tiny_transformers.write_hunyuan(tmp_path / "llava", llava=True)
    encoder = cropped(folder)
    before = encoder.encode(TEXTS)
    encoder.model.save_pretrained(tmp_path / "language")
    (folder / "text_encoder").rename(tmp_path / "old")
    (tmp_path / "language").rename(folder / "text_encoder")
    for a, b in zip(before.tokens, cropped(folder).encode(TEXTS).tokens, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("max_tokens", [64, 9])
def test_wans_tokens(tmp_path, max_tokens, measured):
    folder = tiny_transformers.write_t5(tmp_path / "wan", "umt5", inside=True)
    pipeline = types.SimpleNamespace(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(folder / "text_encoder").eval(),
        _execution_device="cpu",
    )
    with torch.no_grad():
        expected = WanPipeline._get_t5_prompt_embeds(pipeline, list(TEXTS), max_sequence_length=max_tokens).numpy()
    encoder = load_text_encoder(folder)
    found = encoder.encode(TEXTS, max_tokens)
    assert (encoder.width, encoder.pooled_width, found.pooled.shape) == (20, 0, (len(TEXTS), 0))
    for tokens, reference in zip(found.tokens, expected, strict=True):
        error = relative_error(tokens, reference[: len(tokens)])
        measured("text tokens, UMT5 against diffusers' Wan pipeline", error, TOLERANCE)
        assert not reference[len(tokens) :].any(), "what we leave out is padding there"


def test_t5s_tokens(tmp_path, measured):
    folder = tiny_transformers.write_t5(tmp_path / "t5", "t5", inside=False)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), T5EncoderModel.from_pretrained(folder).eval()
    batch = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(batch.input_ids, batch.attention_mask).last_hidden_state.numpy()
    encoder = load_text_encoder(folder)
    assert encoder.ref == str(folder.resolve()) and encoder.sha256.keys() >= {"model.safetensors", "config.json"}
    for tokens, reference, real in zip(
        encoder.encode(TEXTS).tokens, expected, batch.attention_mask.numpy() > 0, strict=True
    ):
        measured(
            "text tokens, T5 against transformers, padded and masked",
            relative_error(tokens, reference[real]),
            TOLERANCE,
        )


def test_what_is_wrong_is_one_line(hunyuan, tmp_path, monkeypatch):
    encoder = load_text_encoder(hunyuan)
    parts = ("text_encoder", "text_encoder_2")
    assert encoder.sha256.keys() >= {
        f"{part}/{name}" for part in parts for name in ("model.safetensors", "config.json")
    }
    assert any(name.startswith("tokenizer_2/") for name in encoder.sha256)
    with pytest.raises(ValueError, match=r"a prompt of \d+ tokens, template included; expected more than 999"):
        dataclasses.replace(encoder, crop=999).encode(["a man"])
    folder = tiny_transformers.write_t5(tmp_path / "wan", "umt5", inside=True)
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    lost = tensors.pop("encoder.final_layer_norm.weight")
    save_file(tensors | {"encoder.extra": lost}, weights, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"final_layer_norm\.weight is missing; encoder\.extra is unknown \(2 in all\)"
    ):
        load_text_encoder(folder)
    save_file(tensors | {"encoder.final_layer_norm.weight": lost[:3]}, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"final_layer_norm\.weight has shape \(3,\), expected .* \(1 in all\)"):
        load_text_encoder(folder)
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle, which is refused.*safe_serialization"):
        load_text_encoder(folder)
    (hunyuan / "text_encoder_2").rename(tmp_path / "clip")
    try:
        with pytest.raises(ValueError, match="model_type 'llama'; supported: t5, umt5, or llama"):
            load_text_encoder(hunyuan)
    finally:
        (tmp_path / "clip").rename(hunyuan / "text_encoder_2")
    real = builtins.__import__

    def without_transformers(name, *arguments, **named):
        if name == "transformers":
            raise ImportError("no", name="transformers")
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without_transformers)
    with pytest.raises(ValueError, match=r"needs transformers; pip install -e '\.\[text\]'"):
        load_text_encoder(hunyuan)


@pytest.mark.parametrize(
    ("network", "name"),
    [("text_encoder", "layers.0.mlp.up_proj.weight"), ("text_encoder_2", "encoder.layers.0.mlp.fc1.weight")],
)
def test_weights_of_a_chat_model_and_of_clip_that_do_not_fit_are_named(tmp_path, network, name):
    folder = tiny_transformers.write_hunyuan(tmp_path / "hunyuan")
    weights = folder / network / "model.safetensors"
    tensors = load_file(weights)
    (full,) = [key for key in tensors if key.endswith(name)]
    other = next(key for key in tensors if key.endswith("layers.0.self_attn.q_proj.weight"))
    lost = tensors.pop(full)
    tensors |= {other: tensors[other][:3], f"{full}.extra": lost}
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError) as error:
        load_text_encoder(folder)
    for part in (
        f"{name} is missing",
        f"{name}.extra is unknown",
        "self_attn.q_proj.weight has shape (3,",
        "(3 in all)",
    ):
        assert part in str(error.value)
