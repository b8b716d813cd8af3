"""Tiny BERT and Whisper folders in Hugging Face layout, with weights that a seed determines. Used by several tests.

`python tests/encoders/make_encoder_goldens.py` computes with `transformers` what they must give.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

# What `transformers` makes of these networks, TEXTS and wave(30), and where in time it was sampled.
GOLDENS = Path(__file__).parent / "encoder_goldens.npz"
# What it makes of the networks of `omnihuman sample-media`: every 16th channel, and every 40th step of wave(9).
REAL_GOLDENS = Path(__file__).parent / "sample_encoder_goldens.npz"
REAL_TEXTS = (
    "A man is talking to the camera.",
    "A person speaks in front of a bookshelf",
    "a train crosses the bridge at night",
    "",
)
SPEECH_STEPS = (0, 1, 17, 60, 333, 1499)
MEL_FRAMES = (0, 1, 55, 120, 800, 2999)

WORDS = ("a", "man", "talks", "to", "the", "camera", "woman", "##s", "speak", ".")
TEXTS = ("a man talks to the camera .", "the woman speaks", "", "a zebra talks " * 12)
BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 160,
    "type_vocab_size": 2,
    "vocab_size": 5 + len(WORDS),
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
WHISPER = {
    "model_type": "whisper",
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
    "activation_function": "gelu",
    "scale_embedding": False,
}


def _normal(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Scales near 1, biases and embeddings of some size: nothing that a wrong port could hide behind."""
    values = rng.standard_normal(shape).astype(np.float32)
    if "orm.weight" in name:
        return 1 + 0.3 * values
    return values * (0.5 if len(shape) == 1 else 1 / np.sqrt(np.prod(shape[1:])))


def bert_tensors() -> dict[str, np.ndarray]:
    d, mlp = BERT["hidden_size"], BERT["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (BERT["vocab_size"], d),
        "embeddings.position_embeddings.weight": (BERT["max_position_embeddings"], d),
        "embeddings.token_type_embeddings.weight": (BERT["type_vocab_size"], d),
        "embeddings.LayerNorm.weight": (d,),
        "embeddings.LayerNorm.bias": (d,),
    }
    for layer in range(BERT["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        linear = {f"attention.self.{part}": (d, d) for part in ("query", "key", "value")} | {
            "attention.output.dense": (d, d)
        }
        linear |= {"intermediate.dense": (mlp, d), "output.dense": (d, mlp)}
        for name, shape in linear.items():
            shapes |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{at}.{name}.weight": (d,), f"{at}.{name}.bias": (d,)}
    rng = np.random.default_rng(1)
    return {name: _normal(rng, name, shape) for name, shape in shapes.items()}


def whisper_tensors() -> dict[str, np.ndarray]:
    d, mlp = WHISPER["d_model"], WHISPER["encoder_ffn_dim"]
    shapes = {
        "conv1.weight": (d, WHISPER["num_mel_bins"], 3),
        "conv1.bias": (d,),
        "conv2.weight": (d, d, 3),
        "conv2.bias": (d,),
        "embed_positions.weight": (WHISPER["max_source_positions"], d),
        "layer_norm.weight": (d,),
        "layer_norm.bias": (d,),
    }
    for layer in range(WHISPER["encoder_layers"]):
        at = f"layers.{layer}"
        linear = {f"self_attn.{part}_proj": (d, d) for part in ("q", "k", "v", "out")} | {
            "fc1": (mlp, d),
            "fc2": (d, mlp),
        }
        for name, shape in linear.items():
            shapes[f"{at}.{name}.weight"] = shape
            if name != "self_attn.k_proj":
                shapes[f"{at}.{name}.bias"] = shape[:1]
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"{at}.{name}.weight": (d,), f"{at}.{name}.bias": (d,)}
    rng = np.random.default_rng(2)
    return {f"model.encoder.{name}": _normal(rng, name, shape) for name, shape in shapes.items()}


def write_bert(folder: Path) -> Path:
    """A text encoder: config, weights and a word-piece tokenizer."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(BERT))
    save_file(bert_tensors(), folder / "model.safetensors")
    vocabulary = {word: index for index, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=32)  # published tokenizers often come with padding switched on
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_whisper(folder: Path) -> Path:
    """A speech encoder: config and weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(WHISPER))
    save_file(whisper_tensors(), folder / "model.safetensors")
    return folder


def wav2vec2_config(norm: str) -> dict:
    """config.json of a tiny wav2vec 2.0 with the norm `group` (as base) or `layer` (as large)."""
    return {
        "model_type": "wav2vec2",
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 20,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "feat_extract_activation": "gelu",
        "feat_extract_norm": norm,
        "do_stable_layer_norm": norm == "layer",
        "conv_bias": norm == "layer",
        "conv_dim": [5, 6, 7, 5, 6, 7, 8],
        "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
    }


def write_wav2vec2(folder: Path, *, norm: str) -> Path:
    """A speech encoder of the other kind: config and weights."""
    config = wav2vec2_config(norm)
    d, mlp, widths = config["hidden_size"], config["intermediate_size"], config["conv_dim"]
    shapes: dict[str, tuple[int, ...]] = {}

    def module(name: str, *shape: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    for i, (inputs, outputs) in enumerate(zip([1, *widths], widths)):
        module(
            f"feature_extractor.conv_layers.{i}.conv",
            outputs,
            inputs,
            config["conv_kernel"][i],
            bias=config["conv_bias"],
        )
        if i == 0 or norm == "layer":
            module(f"feature_extractor.conv_layers.{i}.layer_norm", outputs)
    module("feature_projection.layer_norm", widths[-1])
    module("feature_projection.projection", d, widths[-1])
    kernel = config["num_conv_pos_embeddings"]
    shapes["encoder.pos_conv_embed.conv.bias"] = (d,)
    shapes["encoder.pos_conv_embed.conv.weight_g"] = (1, 1, kernel)
    shapes["encoder.pos_conv_embed.conv.weight_v"] = (d, d // config["num_conv_pos_embedding_groups"], kernel)
    module("encoder.layer_norm", d)
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layers.{i}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            module(f"{at}.attention.{name}", d, d)
        module(f"{at}.feed_forward.intermediate_dense", mlp, d)
        module(f"{at}.feed_forward.output_dense", d, mlp)
        module(f"{at}.layer_norm", d)
        module(f"{at}.final_layer_norm", d)
    rng = np.random.default_rng(4)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: _normal(rng, name, shape) for name, shape in shapes.items()}, folder / "model.safetensors")
    return folder


def wave(seconds: float) -> np.ndarray:
    """A sweep with a silent gap, float32 mono at 16 kHz: every mel band is hit, and the floor too."""
    t = np.arange(round(seconds * 16_000)) / 16_000
    sweep = 0.3 * np.sin(2 * np.pi * (100 + 300 * (t % 12)) * (t % 12))
    return np.where((t > 1.0) & (t < 1.5), 0.0, sweep).astype(np.float32)
