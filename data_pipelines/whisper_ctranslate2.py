"""Reads a Whisper model in CTranslate2's format and writes its encoder in the layout of a Hugging Face repository."""

import json
import struct
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_FORMAT_VERSION = 6
# Head counts are stored beside the weights; everything else of the geometry is in the weights' shapes.
_SAMPLE_RATE, _HOP, _FFT, _CHUNK_S = 16_000, 160, 400, 30


def read_ctranslate2(path: Path) -> dict[str, np.ndarray]:
    """The variables of a CTranslate2 `model.bin`, by name.

    Raises:
        ValueError: not a model.bin of format version 6, or cut short.
    """
    data = path.read_bytes()
    offset = 0

    def take(form: str) -> int:
        nonlocal offset
        (value,) = struct.unpack_from("<" + form, data, offset)
        offset += struct.calcsize("<" + form)
        return value

    def text() -> str:
        nonlocal offset
        length = take("H")
        offset += length
        return data[offset - length : offset - 1].decode()

    variables: dict[str, np.ndarray] = {}
    try:
        version, specification, _revision, count = take("I"), text(), take("I"), take("I")
        if version != _FORMAT_VERSION or specification != "WhisperSpec":
            raise ValueError(
                f"{path}: CTranslate2 format {version} {specification!r}, expected {_FORMAT_VERSION} 'WhisperSpec'"
            )
        for _ in range(count):
            name = text()
            shape = [take("I") for _ in range(take("B"))]
            dtype = np.dtype(_DTYPES[take("B")])
            size = take("I")
            if offset + size > len(data):
                raise struct.error(f"{name} ends beyond the file")
            variables[name] = np.frombuffer(data, dtype, size // dtype.itemsize, offset).reshape(shape)
            offset += size
    except (struct.error, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a CTranslate2 model, or cut short ({error}); fetch it again") from error
    return variables


def encoder_state_dict(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The encoder's weights, float32, under the names of transformers' WhisperModel; every encoder weight is used
    once.
    """
    left = {
        k.removeprefix("encoder/"): v.astype(np.float32)
        for k, v in variables.items()
        if k.startswith("encoder/") and v.ndim
    }
    state: dict[str, np.ndarray] = {}

    def move(theirs: str, ours: str) -> None:
        state[f"model.encoder.{ours}"] = np.ascontiguousarray(left.pop(theirs))

    def norm(theirs: str, ours: str) -> None:
        move(f"{theirs}/gamma", f"{ours}.weight")
        move(f"{theirs}/beta", f"{ours}.bias")

    def linear(theirs: str, ours: str) -> None:
        move(f"{theirs}/weight", f"{ours}.weight")
        move(f"{theirs}/bias", f"{ours}.bias")

    linear("conv1", "conv1")
    linear("conv2", "conv2")
    move("position_encodings/encodings", "embed_positions.weight")
    norm("layer_norm", "layer_norm")
    layers = sum(name.endswith("/self_attention/linear_0/weight") for name in left)
    for i in range(layers):
        attention = f"layer_{i}/self_attention"
        for part in ("weight", "bias"):
            fused = np.split(left.pop(f"{attention}/linear_0/{part}"), 3)
            for name, value in zip("qkv", fused):
                state[f"model.encoder.layers.{i}.self_attn.{name}_proj.{part}"] = np.ascontiguousarray(value)
        # Whisper's keys have no bias; the fused layout fills the place with zeros.
        if state.pop(f"model.encoder.layers.{i}.self_attn.k_proj.bias").any():
            raise ValueError(f"encoder layer {i}: a key bias that is not zero; not a Whisper model")
        linear(f"{attention}/linear_1", f"layers.{i}.self_attn.out_proj")
        norm(f"{attention}/layer_norm", f"layers.{i}.self_attn_layer_norm")
        linear(f"layer_{i}/ffn/linear_0", f"layers.{i}.fc1")
        linear(f"layer_{i}/ffn/linear_1", f"layers.{i}.fc2")
        norm(f"layer_{i}/ffn/layer_norm", f"layers.{i}.final_layer_norm")
    if left:
        raise ValueError(f"encoder weights without a place: {', '.join(sorted(left))}")
    return state


def convert_encoder(model_bin: Path, folder: Path) -> None:
    """Writes `model.safetensors`, `config.json` and `preprocessor_config.json` of the encoder of `model_bin`."""
    variables = read_ctranslate2(model_bin)
    state = encoder_state_dict(variables)
    width, mels, _ = state["model.encoder.conv1.weight"].shape
    config = {
        "architectures": ["WhisperModel"],
        "model_type": "whisper",
        "d_model": width,
        "encoder_layers": sum(name.endswith("fc1.weight") for name in state),
        "encoder_attention_heads": int(variables["encoder/num_heads"]),
        "encoder_ffn_dim": state["model.encoder.layers.0.fc1.weight"].shape[0],
        "num_mel_bins": mels,
        "max_source_positions": state["model.encoder.embed_positions.weight"].shape[0],
        "activation_function": "gelu",
        "scale_embedding": False,
        "encoder_only": True,
    }
    preprocessor = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": mels,
        "sampling_rate": _SAMPLE_RATE,
        "hop_length": _HOP,
        "n_fft": _FFT,
        "chunk_length": _CHUNK_S,
        "n_samples": _CHUNK_S * _SAMPLE_RATE,
        "nb_max_frames": _CHUNK_S * _SAMPLE_RATE // _HOP,
        "padding_side": "right",
        "padding_value": 0.0,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
