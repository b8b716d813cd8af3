"""wav2vec 2.0 in JAX gives the hidden states of `transformers`' classes, from their own folders, in both norms."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2ForPreTraining, Wav2Vec2Model

from omnihuman_jax.encoders import wav2vec2
from omnihuman_jax.encoders.pretrained import PretrainedFolder, Weights, open_pretrained
from omnihuman_jax.encoders.speech import load_speech_encoder

TOLERANCE = 1e-5
BASE = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


def tiny(**changes) -> Wav2Vec2Config:
    """Sizes that share no factor where they need not."""
    values = {
        "hidden_size": 30,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 44,
        "conv_dim": (9, 8, 7, 9, 10, 13, 11),
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 5,
        "vocab_size": 12,
        "num_codevectors_per_group": 4,
        "codevector_dim": 6,
        "proj_codevector_dim": 6,
    }
    return Wav2Vec2Config(**(values | changes))


CASES = {
    "base: group norm": (Wav2Vec2Model, tiny(**BASE)),
    "base, as pretrained, odd positional kernel, 1 layer": (
        Wav2Vec2ForPreTraining,
        tiny(**BASE, num_conv_pos_embeddings=7, num_hidden_layers=1, layer_norm_eps=1e-3),
    ),
    "large: layer norm, before": (Wav2Vec2ForCTC, tiny(**LARGE)),
    "layer norm in the convolutions, after in the transformer": (
        Wav2Vec2Model,
        tiny(
            **(LARGE | {"do_stable_layer_norm": False}),
            hidden_size=42,
            num_attention_heads=7,
            num_conv_pos_embedding_groups=6,
        ),
    ),
}


def network(case: str) -> torch.nn.Module:
    torch.manual_seed(0)
    kind, config = CASES[case]
    model = kind(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_((0.02 if name.endswith("original1") else 0.2) * torch.randn_like(weight))
    return model


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory) -> tuple[torch.nn.Module, Path]:
    """(transformers' model, the folder that it saved)."""
    model = network(request.param)
    folder = tmp_path_factory.mktemp("wav2vec2")
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return model, folder


def sound(samples: int) -> np.ndarray:
    """Louder and softer noise about a constant."""
    rng = np.random.default_rng(samples)
    envelope = 0.05 + np.abs(np.sin(np.arange(samples) / 3000))
    return (0.1 + 0.3 * envelope * rng.standard_normal(samples)).astype(np.float32)


def theirs(model: torch.nn.Module, wave: np.ndarray, folder: Path) -> np.ndarray:
    values = Wav2Vec2FeatureExtractor.from_pretrained(folder)(
        wave, sampling_rate=16_000, return_tensors="pt"
    ).input_values
    with torch.no_grad():
        out = getattr(model, "wav2vec2", model)(values, output_hidden_states=True)
    # The last one is what leaves the network, after the final norm where there is one (5.x records it before).
    return np.stack([state[0].numpy() for state in [*out.hidden_states[:-1], out.last_hidden_state]])


def ours(folder: Path, wave: np.ndarray) -> np.ndarray:
    opened = open_pretrained(folder)
    config = wav2vec2.Wav2Vec2Config.from_folder(opened)
    params = wav2vec2.wav2vec2_params(config, opened)
    return wav2vec2.hidden_states(
        config, params, wav2vec2.normalised(config, wave), tuple(range(config.num_layers + 1))
    )


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("samples", [400, 11_111])
def test_hidden_states_are_those_of_transformers(pair, samples, measured):
    model, folder = pair
    expected, found = theirs(model, sound(samples), folder), ours(folder, sound(samples))
    assert found.shape == expected.shape
    for layer, (mine, reference) in enumerate(zip(found, expected, strict=True)):
        assert reference.std() > 0.1, layer
        measured("wav2vec 2.0, every hidden state against transformers", relative_error(mine, reference), TOLERANCE)


def test_the_old_names_of_the_weight_norm_are_read(pair, tmp_path):
    _, folder = pair
    renamed = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in load_file(folder / "model.safetensors").items()
    }
    assert any(name.endswith("weight_g") for name in renamed)
    save_file(renamed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    np.testing.assert_array_equal(ours(tmp_path, sound(4000)), ours(folder, sound(4000)))


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (Wav2Vec2Config(), 94_371_712),
        (
            Wav2Vec2Config(
                **LARGE, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
            ),
            315_438_720,
        ),
    ],
    ids=["base", "large"],
)
def test_full_size_is_complete(config, parameters):
    """Every tensor of transformers' class on the meta device is read once, in its shape; nothing is allocated there."""
    with torch.device("meta"):
        model = Wav2Vec2Model(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    here = wav2vec2.Wav2Vec2Config.from_folder(_folder_of(config))
    zeros = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    params = wav2vec2.unstacked_params(here, Weights(zeros), "meta")
    # A weight norm's direction counts as the kernel that it is folded into; its magnitude and the mask are theirs
    # alone.
    magnitude = sum(np.prod(shape, dtype=int) for name, shape in shapes.items() if name.endswith("original0"))
    biases = sum(int(leaf.size) for conv in params["convolutions"] for leaf in [conv["bias"]]) * (not config.conv_bias)
    count = sum(int(leaf.size) for leaf in jax.tree.leaves(params))
    assert count == sum(w.numel() for w in model.parameters()) - magnitude - config.hidden_size + biases
    assert sum(w.numel() for w in model.parameters()) == parameters
    del zeros["encoder.layers.3.attention.k_proj.bias"]
    with pytest.raises(ValueError, match=r"encoder\.layers\.3\.attention\.k_proj\.bias is missing \(1 in all\)"):
        wav2vec2.unstacked_params(here, Weights(zeros), "meta")


def _folder_of(config: Wav2Vec2Config) -> PretrainedFolder:
    return PretrainedFolder(ref="", path=Path("none"), config=json.loads(config.to_json_string(use_diff=False)))


def test_what_is_unknown_or_of_another_shape_is_listed(pair, tmp_path):
    _, folder = pair
    tensors = load_file(folder / "model.safetensors")
    prefix = "wav2vec2." if any(name.startswith("wav2vec2.") for name in tensors) else ""
    tensors[f"{prefix}encoder.layer_norm.weight"] = np.ones(2, np.float32)
    tensors[f"{prefix}encoder.extra"] = np.ones(2, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(
        ValueError, match=r"layer_norm\.weight has shape \(2,\).*encoder\.extra is unknown \(2 in all\)"
    ):
        load_speech_encoder(tmp_path)
