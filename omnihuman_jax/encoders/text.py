"""Text encoders: a prompt to token-level embeddings and one pooled embedding. BERT (MiniLM, BGE, ...) in JAX.

The embeddings are computed once, offline. Weights and tokenizer come from a folder in Hugging Face layout. Large
encoders (HunyuanVideo's, T5, UMT5) run through `transformers`: see `serving/text_encoders_omnihuman.py`.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from omnihuman_jax.encoders.pretrained import PretrainedFolder, Weights, open_pretrained
from omnihuman_jax.serving.folders_omnihuman import network_sha256
from omnihuman_jax.serving.text_encoders_omnihuman import (
    MAX_TOKENS,
    EncodedText,
    is_transformers_folder,
    load_transformers_text_encoder,
    parts_of,
)

_BATCH = 8
_PAD_TO = 16
# Heads, and buffers that old versions saved.
_BERT_UNUSED = ("pooler.", "cls.", "embeddings.position_ids")


class TextEncoder(Protocol):
    """What `load_text_encoder` returns."""

    @property
    def ref(self) -> str:
        """What loads it again: the absolute path of its folder, or its hub id."""

    @property
    def sha256(self) -> Mapping[str, str]:
        """File name -> sha256 of each file that it is made of."""

    @property
    def width(self) -> int:
        """E of the tokens."""

    @property
    def pooled_width(self) -> int:
        """E of the pooled embedding; 0 for an encoder without one."""

    def encode(self, texts: Sequence[str], max_tokens: int = MAX_TOKENS) -> EncodedText:
        """Embeds `texts`, each alone, cut to `max_tokens` tokens (the tokenizer's special ones included)."""


def load_text_encoder(dir_or_hub_id: str | os.PathLike[str]) -> TextEncoder:
    """The text encoder in a folder or on the hub; ValueError if it is of a kind that is not supported."""
    path = Path(dir_or_hub_id)
    if path.is_dir() and is_transformers_folder(path):
        return _load_large(path)
    folder = open_pretrained(dir_or_hub_id)
    kind = folder.config.get("model_type")
    if is_transformers_folder(folder.path):
        return _load_large(folder.path, folder.ref)
    if kind != "bert":
        raise ValueError(
            f"{folder.path}: a text encoder of model_type {kind!r}; supported: 'bert' (MiniLM, BGE, ...), 't5', 'umt5',"
            " and the folder of a HunyuanVideo or Wan pipeline (text_encoder, tokenizer, ...)"
        )
    return _load_bert(folder)


def _load_large(folder: Path, ref: str | None = None) -> TextEncoder:
    _, networks, tokenizers = parts_of(folder)
    return load_transformers_text_encoder(folder, ref=ref, sha256=network_sha256(folder, networks, tokenizers))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BertConfig:
    """Sizes of a BERT encoder, from its `config.json`."""

    width: int
    num_layers: int
    num_heads: int
    max_positions: int
    epsilon: float

    @classmethod
    def from_folder(cls, folder: PretrainedFolder) -> "BertConfig":
        width, layers, heads, positions = folder.require(
            "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"
        )
        for key, value in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
            if folder.config.get(key, value) != value:
                raise ValueError(
                    f"{folder.path / 'config.json'}: {key} {folder.config[key]!r}; only {value!r} is supported"
                )
        if width % heads:
            raise ValueError(f"{folder.path / 'config.json'}: hidden_size {width} is not divisible by {heads} heads")
        epsilon = folder.config.get("layer_norm_eps", 1e-12)
        return cls(width=width, num_layers=layers, num_heads=heads, max_positions=positions, epsilon=epsilon)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class BertTextEncoder:
    """A BERT encoder. tokens: its last hidden states. pooled: their mean over real tokens.

    Where the folder says that its sentence embedding is normalised (sentence-transformers' `modules.json`), pooled is
    that embedding times sqrt(width): the linear layer that reads it is initialised for entries of unit variance, not
    1/sqrt(width).
    """

    ref: str
    sha256: Mapping[str, str]
    config: BertConfig
    params: Mapping[str, Any]
    tokenizer: Any
    normalise: bool

    @property
    def width(self) -> int:
        return self.config.width

    @property
    def pooled_width(self) -> int:
        return self.config.width

    def encode(self, texts: Sequence[str], max_tokens: int = MAX_TOKENS) -> EncodedText:
        """Embeds `texts`, each alone, cut to `max_tokens` tokens, the two special ones included.

        Raises:
            ValueError: max_tokens is below 2 or above what the network has positions for.
        """
        if not 2 <= max_tokens <= self.config.max_positions:
            raise ValueError(f"max_tokens {max_tokens} must be in [2, {self.config.max_positions}] for {self.ref}")
        ids = [encoding.ids for encoding in self._tokenize(texts, max_tokens)]
        tokens: list[np.ndarray] = []
        for start in range(0, len(ids), _BATCH):
            rows = ids[start : start + _BATCH]
            # Padded to a few fixed shapes, so that a data set of captions compiles a few times and not once a length.
            length = min(self.config.max_positions, -(-max(map(len, rows)) // _PAD_TO) * _PAD_TO)
            padded = np.zeros((_BATCH, length), np.int32)
            mask = np.zeros((_BATCH, length), bool)
            for row, values in enumerate(rows):
                padded[row, : len(values)] = values
                mask[row, : len(values)] = True
            states = np.asarray(bert_encode(self.config, self.params, padded, mask))
            tokens += [states[row, : len(values)] for row, values in enumerate(rows)]
        pooled = (
            np.stack([states.mean(axis=0) for states in tokens]) if tokens else np.zeros((0, self.width), np.float32)
        )
        if self.normalise:
            pooled = pooled * (np.sqrt(self.width) / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12))
        return EncodedText(tokens, pooled.astype(np.float32))

    def _tokenize(self, texts: Sequence[str], max_tokens: int) -> list[Any]:
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_tokens)
        return self.tokenizer.encode_batch(list(texts))


def _load_bert(folder: PretrainedFolder) -> BertTextEncoder:
    from tokenizers import Tokenizer

    config = BertConfig.from_folder(folder)
    file = folder.path / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: missing; write it with transformers: AutoTokenizer.from_pretrained(DIR,"
            " use_fast=True).save_pretrained(DIR)"
        )
    return BertTextEncoder(
        ref=folder.ref,
        sha256=folder.sha256(),
        config=config,
        params=bert_params(config, folder.tensors(""), str(folder.path)),
        tokenizer=Tokenizer.from_file(str(file)),
        normalise=_says_normalise(folder),
    )


def _says_normalise(folder: PretrainedFolder) -> bool:
    file = folder.path / "modules.json"
    return file.is_file() and any(
        str(module.get("type", "")).endswith("Normalize") for module in json.loads(file.read_text())
    )


def bert_params(config: BertConfig, tensors: Mapping[str, np.ndarray], where: str) -> dict[str, Any]:
    """Hugging Face's tensors -> a plain dict, layers stacked; ValueError names what is missing or of another shape."""
    weights = Weights({name.removeprefix("bert."): tensor for name, tensor in tensors.items()})
    d = config.width

    def linear(name: str, inputs: int | None = d, outputs: int | None = d) -> dict[str, np.ndarray]:
        return {
            "weight": weights.take(f"{name}.weight", outputs, inputs).T,
            "bias": weights.take(f"{name}.bias", outputs),
        }

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": weights.take(f"{name}.weight", d), "bias": weights.take(f"{name}.bias", d)}

    def layer(index: int) -> dict[str, Any]:
        at = f"encoder.layer.{index}"
        return {
            **{part: linear(f"{at}.attention.self.{part}") for part in ("query", "key", "value")},
            "attention_out": linear(f"{at}.attention.output.dense"),
            "attention_norm": norm(f"{at}.attention.output.LayerNorm"),
            "mlp_in": linear(f"{at}.intermediate.dense", outputs=None),
            "mlp_out": linear(f"{at}.output.dense", inputs=None),
            "mlp_norm": norm(f"{at}.output.LayerNorm"),
        }

    layers = [layer(index) for index in range(config.num_layers)]
    params = {
        "words": weights.take("embeddings.word_embeddings.weight", None, d),
        "positions": weights.take("embeddings.position_embeddings.weight", config.max_positions, d),
        # Every token is of the first segment.
        "segment": weights.take("embeddings.token_type_embeddings.weight", None, d)[:1],
        "norm": norm("embeddings.LayerNorm"),
    }
    weights.check(where, unused=_BERT_UNUSED)
    return params | {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}


def _norm(x: jax.Array, params: Mapping[str, Any], epsilon: float) -> jax.Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return (
        centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + epsilon) * params["scale"]
        + params["bias"]
    )


def _linear(x: jax.Array, params: Mapping[str, Any]) -> jax.Array:
    return x @ params["weight"] + params["bias"]


@functools.partial(jax.jit, static_argnums=0)
def bert_encode(config: BertConfig, params: Mapping[str, Any], ids_BS: jax.Array, mask_BS: jax.Array) -> jax.Array:
    """The last hidden states [B, S, width] float32 of token ids int32 [B, S]; `mask_BS` is True on real tokens."""
    x = params["words"][ids_BS] + params["positions"][: ids_BS.shape[1]] + params["segment"]
    x = _norm(x, params["norm"], config.epsilon)

    def block(x: jax.Array, layer: Mapping[str, Any]) -> tuple[jax.Array, None]:
        b, s, d = x.shape
        q, k, v = (_linear(x, layer[name]).reshape(b, s, config.num_heads, -1) for name in ("query", "key", "value"))
        attended = jax.nn.dot_product_attention(q, k, v, mask=mask_BS[:, None, None, :])
        x = _norm(
            x + _linear(attended.reshape(b, s, d), layer["attention_out"]), layer["attention_norm"], config.epsilon
        )
        hidden = jax.nn.gelu(_linear(x, layer["mlp_in"]), approximate=False)
        return _norm(x + _linear(hidden, layer["mlp_out"]), layer["mlp_norm"], config.epsilon), None

    with jax.default_matmul_precision("highest"):
        return jax.lax.scan(block, x, params["layers"])[0]
