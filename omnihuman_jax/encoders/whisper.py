"""Whisper's encoder in JAX: 16 kHz sound -> log-mel spectrogram -> hidden states of every layer at 50 Hz.

Weights are those of a `transformers` Whisper model (`model.encoder.*`), any size. The network sees windows of 30 s;
longer sound is cut into overlapping ones, of which only what has context on both sides is kept.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omnihuman_jax.encoders.pretrained import PretrainedFolder, Weights
from omnihuman_jax.typing import SAMPLE_RATE_HZ

CHUNK_S = 30
HOP = 160
STEP = 2 * HOP  # samples a hidden state: 50 Hz
_FFT = 400
_CONTEXT_S = 5
_CHUNK = CHUNK_S * SAMPLE_RATE_HZ
_CHUNK_STEPS = _CHUNK // STEP


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WhisperConfig:
    """Sizes of a Whisper encoder, from its `config.json`."""

    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    num_mel_bins: int

    @classmethod
    def from_folder(cls, folder: PretrainedFolder) -> "WhisperConfig":
        width, layers, heads, mlp, mels = folder.require(
            "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins"
        )
        for key, value in (
            ("activation_function", "gelu"),
            ("max_source_positions", _CHUNK_STEPS),
            ("scale_embedding", False),
        ):
            if folder.config.get(key, value) != value:
                raise ValueError(
                    f"{folder.path / 'config.json'}: {key} {folder.config[key]!r}; only {value!r} is supported"
                )
        return cls(width=width, num_layers=layers, num_heads=heads, mlp_width=mlp, num_mel_bins=mels)


# The rest of the whole model.
_UNUSED = ("decoder.", "proj_out.")


def whisper_params(config: WhisperConfig, folder: PretrainedFolder) -> dict[str, Any]:
    """The folder's tensors -> a plain dict, layers stacked; ValueError names what is missing or of another shape."""
    tensors = {name.removeprefix("model."): tensor for name, tensor in folder.tensors("").items()}
    weights = Weights({name.removeprefix("encoder."): tensor for name, tensor in tensors.items()})
    d, mlp = config.width, config.mlp_width

    def linear(name: str, inputs: int = d, outputs: int = d, bias: bool = True) -> dict[str, np.ndarray]:
        column = weights.take(f"{name}.bias", outputs) if bias else np.zeros(outputs, np.float32)
        return {"weight": weights.take(f"{name}.weight", outputs, inputs).T, "bias": column}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": weights.take(f"{name}.weight", d), "bias": weights.take(f"{name}.bias", d)}

    def convolution(name: str, inputs: int) -> dict[str, np.ndarray]:
        kernel = weights.take(f"{name}.weight", d, inputs, 3)
        return {"weight": kernel.transpose(2, 1, 0), "bias": weights.take(f"{name}.bias", d)}

    def layer(index: int) -> dict[str, Any]:
        at = f"layers.{index}"
        return {
            "attention_norm": norm(f"{at}.self_attn_layer_norm"),
            "query": linear(f"{at}.self_attn.q_proj"),
            "key": linear(f"{at}.self_attn.k_proj", bias=False),
            "value": linear(f"{at}.self_attn.v_proj"),
            "attention_out": linear(f"{at}.self_attn.out_proj"),
            "mlp_norm": norm(f"{at}.final_layer_norm"),
            "mlp_in": linear(f"{at}.fc1", outputs=mlp),
            "mlp_out": linear(f"{at}.fc2", inputs=mlp),
        }

    layers = [layer(index) for index in range(config.num_layers)]
    params = {
        "conv1": convolution("conv1", config.num_mel_bins),
        "conv2": convolution("conv2", d),
        "positions": weights.take("embed_positions.weight", _CHUNK_STEPS, d),
        "norm": norm("layer_norm"),
    }
    weights.check(str(folder.path), unused=_UNUSED)
    return params | {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}


def mel_filters(num_mel_bins: int) -> np.ndarray:
    """Slaney's triangular mel filters, each of unit area, [201, num_mel_bins] float64, 0 .. 8 kHz."""
    linear_hz, log_step, break_hz = 200 / 3, np.log(6.4) / 27, 1000.0

    def to_hz(mel: np.ndarray) -> np.ndarray:
        above = break_hz * np.exp(log_step * np.maximum(mel - break_hz / linear_hz, 0))
        return np.where(mel < break_hz / linear_hz, mel * linear_hz, above)

    top = break_hz / linear_hz + np.log(SAMPLE_RATE_HZ / 2 / break_hz) / log_step
    edges = to_hz(np.linspace(0, top, num_mel_bins + 2))
    slopes = edges[None] - np.linspace(0, SAMPLE_RATE_HZ / 2, _FFT // 2 + 1)[:, None]
    widths = np.diff(edges)
    triangles = np.minimum(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:])
    return np.maximum(triangles, 0) * 2 / (edges[2:] - edges[:-2])


def log_mel(wave_N: jax.Array, num_mel_bins: int) -> jax.Array:
    """The log-mel spectrogram [N / 160, num_mel_bins] float32 of mono sound at 16 kHz, as Whisper was trained on it.

    Frame j is centred on sample 160 j; 8 orders of magnitude below the loudest bin are kept, mapped to about [-1, 1].
    """
    padded = jnp.pad(wave_N, _FFT // 2, mode="reflect")
    count = wave_N.shape[0] // HOP
    frames = padded[np.arange(count)[:, None] * HOP + np.arange(_FFT)]
    window = np.hanning(_FFT + 1)[:-1].astype(np.float32)
    power = jnp.square(jnp.abs(jnp.fft.rfft(frames * window)))
    mel = jnp.matmul(power, mel_filters(num_mel_bins).astype(np.float32), precision=jax.lax.Precision.HIGHEST)
    log = jnp.log10(jnp.maximum(mel, 1e-10))
    return (jnp.maximum(log, log.max() - 8.0) + 4.0) / 4.0


def _norm(x: jax.Array, params: Mapping[str, Any]) -> jax.Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return (
        centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + 1e-5) * params["scale"]
        + params["bias"]
    )


def _linear(x: jax.Array, params: Mapping[str, Any]) -> jax.Array:
    return x @ params["weight"] + params["bias"]


def _convolve(x_TD: jax.Array, params: Mapping[str, Any], stride: int) -> jax.Array:
    y = jax.lax.conv_general_dilated(
        x_TD[None], params["weight"], (stride,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC")
    )
    return jax.nn.gelu(y[0] + params["bias"], approximate=False)


@functools.partial(jax.jit, static_argnums=0)
def chunk_hidden_states(config: WhisperConfig, params: Mapping[str, Any], wave_N: jax.Array) -> jax.Array:
    """Hidden states [num_layers + 1, 1500, width] float32 of one chunk of 480 000 samples.

    As in `transformers`: i is what leaves layer i, the last one after the final norm. But 0 is what enters the first
    layer without the position embedding, which says where in the file a sound is and nothing about the sound.
    """
    with jax.default_matmul_precision("highest"):
        x = _convolve(log_mel(wave_N, config.num_mel_bins), params["conv1"], 1)
        convolved = _convolve(x, params["conv2"], 2)

        def block(x: jax.Array, layer: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
            t, d = x.shape
            h = _norm(x, layer["attention_norm"])
            q, k, v = (_linear(h, layer[name]).reshape(t, config.num_heads, -1) for name in ("query", "key", "value"))
            x = x + _linear(jax.nn.dot_product_attention(q, k, v).reshape(t, d), layer["attention_out"])
            hidden = jax.nn.gelu(_linear(_norm(x, layer["mlp_norm"]), layer["mlp_in"]), approximate=False)
            x = x + _linear(hidden, layer["mlp_out"])
            return x, x

        last, states = jax.lax.scan(block, convolved + params["positions"], params["layers"])
        return jnp.concatenate([convolved[None], states[:-1], _norm(last, params["norm"])[None]])


def chunk_spans(num_steps: int) -> list[tuple[int, int, int]]:
    """(first step of the chunk, first step kept, end of the steps kept) of every 30-second chunk, steps at 50 Hz.

    The kept spans tile 0 .. num_steps, and each has 5 s of its chunk on both sides, but for the ends of the sound.
    """
    context = _CONTEXT_S * SAMPLE_RATE_HZ // STEP
    spans, start = [], 0
    while start + _CHUNK_STEPS < num_steps:
        spans.append((start, start + context if start else 0, start + _CHUNK_STEPS - context))
        start += _CHUNK_STEPS - 2 * context
    return [*spans, (start, start + context if start else 0, num_steps)]


def hidden_states(
    config: WhisperConfig, params: Mapping[str, Any], wave_N: np.ndarray, layers: tuple[int, ...]
) -> np.ndarray:
    """Hidden states [len(layers), ceil(N / 320), width] float32 of mono sound at 16 kHz of any length.

    State j is centred on sample 320 j. Silence is appended up to a whole chunk, as Whisper was trained.
    """
    num_steps = -(-len(wave_N) // STEP)
    kept = []
    for start, first, end in chunk_spans(num_steps):
        chunk = wave_N[start * STEP : start * STEP + _CHUNK]
        padded = np.pad(np.asarray(chunk, np.float32), (0, _CHUNK - len(chunk)))
        states = chunk_hidden_states(config, params, padded)
        kept.append(np.asarray(states[np.array(layers), first - start : end - start]))
    return np.concatenate(kept, axis=1)
