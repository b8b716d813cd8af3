"""Tiny BERT and Whisper folders in Hugging Face layout, with weights that a seed determines. Used by several tests.

`python tests/models/make_encoder_goldens.py` computes with `transformers` what they must give.
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
        linear = {f"attention.self.{part}": (d, d) for part in ("query", "key", "value")} | {"attention.output.dense": (d, d)}
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
        linear = {f"self_attn.{part}_proj": (d, d) for part in ("q", "k", "v", "out")} | {"fc1": (mlp, d), "fc2": (d, mlp)}
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


def wave(seconds: float) -> np.ndarray:
    """A sweep with a silent gap, float32 mono at 16 kHz: every mel band is hit, and the floor too."""
    t = np.arange(round(seconds * 16_000)) / 16_000
    sweep = 0.3 * np.sin(2 * np.pi * (100 + 300 * (t % 12)) * (t % 12))
    return np.where((t > 1.0) & (t < 1.5), 0.0, sweep).astype(np.float32)
