"""wav2vec 2.0 in JAX: 16 kHz sound -> hidden states of every layer at 50 Hz.

Weights are those of `transformers`' `Wav2Vec2Model`, `Wav2Vec2ForCTC` or `Wav2Vec2ForPreTraining`, base and large, with
either norm in the feature extractor. Sound of any length: see `hidden_states`.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omnihuman_jax.encoders.pretrained import PretrainedFolder, Weights
from omnihuman_jax.typing import SAMPLE_RATE_HZ

CHUNK_STEPS = 1000  # 20 s: a little more than the longest sound that the public models were trained on
CONTEXT_STEPS = 250  # 5 s of real sound on both sides of what is kept of a chunk
_BUCKET_STEPS = 100  # chunks are compiled for multiples of 2 s
_NORM_EPS = 1e-5  # of the feature extractor's norms, whatever layer_norm_eps says

# Parts of the three classes that hidden states do not depend on.
_UNUSED = ("masked_spec_embed", "lm_head.", "quantizer.", "project_q.", "project_hid.")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Wav2Vec2Config:
    """Sizes of a wav2vec 2.0 network, from its `config.json`, and whether its sound is normalised.

    group_norm  the feature extractor's norm: one over time in its first layer (base), or one over channels in each
    (large)
    pre_norm    the transformer's: `do_stable_layer_norm` (large)
    normalise   `do_normalize` of preprocessor_config.json; true without that file, as in `transformers`
    """

    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    epsilon: float
    conv_widths: tuple[int, ...]
    conv_kernels: tuple[int, ...]
    conv_strides: tuple[int, ...]
    conv_bias: bool
    group_norm: bool
    pre_norm: bool
    position_kernel: int
    position_groups: int
    normalise: bool = True

    @property
    def stride(self) -> int:
        """Samples from one hidden state to the next."""
        return math.prod(self.conv_strides)

    @property
    def receptive_field(self) -> int:
        """Samples that the first hidden state's features are made of."""
        field = 1
        for kernel, stride in zip(reversed(self.conv_kernels), reversed(self.conv_strides), strict=True):
            field = (field - 1) * stride + kernel
        return field

    def steps_of(self, samples: int) -> int:
        """Hidden states of `samples` samples."""
        return max(0, (samples - self.receptive_field) // self.stride + 1)

    @classmethod
    def from_folder(cls, folder: PretrainedFolder) -> "Wav2Vec2Config":
        width, layers, heads, mlp, epsilon = folder.require(
            "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps"
        )
        widths, kernels, strides, bias, norm, pre_norm = folder.require(
            "conv_dim", "conv_kernel", "conv_stride", "conv_bias", "feat_extract_norm", "do_stable_layer_norm"
        )
        kernel, groups = folder.require("num_conv_pos_embeddings", "num_conv_pos_embedding_groups")
        where = folder.path / "config.json"
        for key, value in (
            ("feat_extract_activation", "gelu"),
            ("hidden_act", "gelu"),
            ("add_adapter", False),
            ("adapter_attn_dim", None),
        ):
            if folder.config.get(key, value) != value:
                raise ValueError(f"{where}: {key} {folder.config[key]!r}; only {value!r} is supported")
        if norm not in ("group", "layer"):
            raise ValueError(f"{where}: feat_extract_norm {norm!r}; it is 'group' or 'layer'")
        if not len(widths) == len(kernels) == len(strides) > 0:
            raise ValueError(
                f"{where}: conv_dim, conv_kernel, conv_stride have {len(widths)}, {len(kernels)}, {len(strides)} layers"
            )
        if width % heads or width % groups:
            raise ValueError(f"{where}: hidden_size {width} is not divisible by {heads} heads and {groups} groups")
        return cls(
            width=width,
            num_layers=layers,
            num_heads=heads,
            mlp_width=mlp,
            epsilon=epsilon,
            conv_widths=tuple(widths),
            conv_kernels=tuple(kernels),
            conv_strides=tuple(strides),
            conv_bias=bias,
            group_norm=norm == "group",
            pre_norm=pre_norm,
            position_kernel=kernel,
            position_groups=groups,
            normalise=_says_normalise(folder),
        )


def _says_normalise(folder: PretrainedFolder) -> bool:
    file = folder.path / "preprocessor_config.json"
    if not file.is_file():
        return True
    values = json.loads(file.read_text())
    if values.get("sampling_rate", SAMPLE_RATE_HZ) != SAMPLE_RATE_HZ:
        raise ValueError(f"{file}: sampling_rate {values['sampling_rate']}; only {SAMPLE_RATE_HZ} is supported")
    return bool(values.get("do_normalize", True))


def wav2vec2_params(config: Wav2Vec2Config, folder: PretrainedFolder) -> dict[str, Any]:
    """The folder's tensors -> a plain dict, layers stacked; ValueError lists what is missing, unknown or of another
    shape.
    """
    tensors = {name.removeprefix("wav2vec2."): tensor for name, tensor in folder.tensors("").items()}
    params = unstacked_params(config, Weights(tensors), str(folder.path))
    return params | {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), *params["layers"])}


def unstacked_params(config: Wav2Vec2Config, weights: Weights, where: str) -> dict[str, Any]:
    """The same from the tensors of a `Wav2Vec2Model` by name, with a list of layers."""
    d, mlp = config.width, config.mlp_width

    def linear(name: str, inputs: int = d, outputs: int = d) -> dict[str, np.ndarray]:
        return {
            "weight": weights.take(f"{name}.weight", outputs, inputs).T,
            "bias": weights.take(f"{name}.bias", outputs),
        }

    def norm(name: str, width: int = d) -> dict[str, np.ndarray]:
        return {"scale": weights.take(f"{name}.weight", width), "bias": weights.take(f"{name}.bias", width)}

    def convolution(index: int) -> dict[str, Any]:
        at = f"feature_extractor.conv_layers.{index}"
        inputs, outputs = (1, *config.conv_widths)[index : index + 2]
        kernel = weights.take(f"{at}.conv.weight", outputs, inputs, config.conv_kernels[index]).transpose(2, 1, 0)
        bias = weights.take(f"{at}.conv.bias", outputs) if config.conv_bias else np.zeros(outputs, np.float32)
        has_norm = index == 0 or not config.group_norm
        return {"weight": kernel, "bias": bias} | ({"norm": norm(f"{at}.layer_norm", outputs)} if has_norm else {})

    def layer(index: int) -> dict[str, Any]:
        at = f"encoder.layers.{index}"
        return {
            "attention_norm": norm(f"{at}.layer_norm"),
            **{part: linear(f"{at}.attention.{part[0]}_proj") for part in ("query", "key", "value")},
            "attention_out": linear(f"{at}.attention.out_proj"),
            "mlp_norm": norm(f"{at}.final_layer_norm"),
            "mlp_in": linear(f"{at}.feed_forward.intermediate_dense", outputs=mlp),
            "mlp_out": linear(f"{at}.feed_forward.output_dense", inputs=mlp),
        }

    params = {
        "convolutions": [convolution(index) for index in range(len(config.conv_widths))],
        "projection_norm": norm("feature_projection.layer_norm", config.conv_widths[-1]),
        "projection": linear("feature_projection.projection", inputs=config.conv_widths[-1]),
        "positions": {
            "weight": _position_kernel(config, weights),
            "bias": weights.take("encoder.pos_conv_embed.conv.bias", d),
        },
        "norm": norm("encoder.layer_norm"),
        "layers": [layer(index) for index in range(config.num_layers)],
    }
    weights.check(where, unused=_UNUSED)
    return params


def _position_kernel(config: Wav2Vec2Config, weights: Weights) -> np.ndarray:
    """[K, width / groups, width] of the positional convolution: its weight norm folded in.

    The norm is over everything but the place in the kernel. Folders name magnitude and direction in an old and a new
    way.
    """
    at = "encoder.pos_conv_embed.conv"
    magnitude, direction = f"{at}.parametrizations.weight.original0", f"{at}.parametrizations.weight.original1"
    if f"{at}.weight_g" in weights or f"{at}.weight_v" in weights:
        magnitude, direction = f"{at}.weight_g", f"{at}.weight_v"
    length = config.position_kernel
    v = weights.take(direction, config.width, config.width // config.position_groups, length)
    g = weights.take(magnitude, 1, 1, length)
    size = np.sqrt(np.square(v.astype(np.float64)).sum(axis=(0, 1), keepdims=True))
    return (g * v / np.where(size == 0, 1, size)).astype(np.float32).transpose(2, 1, 0)


def normalised(config: Wav2Vec2Config, wave_N: np.ndarray) -> np.ndarray:
    """The sound as the network wants it, float32: of zero mean and unit variance where its folder says so."""
    wave = np.asarray(wave_N, np.float32)
    if not config.normalise or not wave.size:
        return wave
    wide = wave.astype(np.float64)
    return ((wide - wide.mean()) / np.sqrt(wide.var() + 1e-7)).astype(np.float32)


def _norm(x: jax.Array, params: Mapping[str, Any], epsilon: float) -> jax.Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return (
        centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + epsilon) * params["scale"]
        + params["bias"]
    )


def _linear(x: jax.Array, params: Mapping[str, Any]) -> jax.Array:
    return x @ params["weight"] + params["bias"]


def _convolve(
    x_TC: jax.Array, params: Mapping[str, Any], stride: int = 1, padding: Any = "VALID", groups: int = 1
) -> jax.Array:
    y = jax.lax.conv_general_dilated(
        x_TC[None],
        params["weight"],
        (stride,),
        padding,
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )
    return y[0] + params["bias"]


@functools.partial(jax.jit, static_argnums=0)
def _first_layer_sums(
    config: Wav2Vec2Config, layer: Mapping[str, Any], wave_N: jax.Array, shift_C: jax.Array, steps: jax.Array
) -> jax.Array:
    """Sums [2, C] of the first convolution less `shift`, and of its square, over the first `steps` steps."""
    with jax.default_matmul_precision("highest"):
        x = _convolve(wave_N[:, None], layer, config.conv_strides[0]) - shift_C
    x = jnp.where(jnp.arange(len(x))[:, None] < steps, x, 0)
    return jnp.stack([x.sum(0), jnp.square(x).sum(0)])


def first_layer_statistics(config: Wav2Vec2Config, params: Mapping[str, Any], wave_N: np.ndarray) -> np.ndarray:
    """Mean and variance [2, C] of the first convolution over the whole sound: what the group norm divides by.

    Summed piece by piece, so that the norm is the whole sound's however it is cut into chunks. The sums are taken about
    the convolution of a constant, the mean of the sound.
    """
    layer, stride, kernel = params["convolutions"][0], config.conv_strides[0], config.conv_kernels[0]
    wave = np.asarray(wave_N, np.float32)
    shift = np.asarray(layer["weight"], np.float64).sum(axis=(0, 1)) * wave.mean(dtype=np.float64) + layer["bias"]
    count = (len(wave) - kernel) // stride + 1
    piece = CHUNK_STEPS * config.stride // stride
    total = np.zeros((2, config.conv_widths[0]), np.float64)
    for start in range(0, count, piece):
        steps = min(piece, count - start)
        part = wave[start * stride : (start + steps - 1) * stride + kernel]
        bucket = piece * _BUCKET_STEPS // CHUNK_STEPS
        part = np.pad(part, (0, (-(-steps // bucket) * bucket - 1) * stride + kernel - len(part)))
        sums = _first_layer_sums(config, layer, part, shift.astype(np.float32), np.int32(steps))
        total += np.asarray(sums, np.float64)
    mean = total[0] / count
    return np.stack([mean + shift, np.maximum(total[1] / count - mean**2, 0)]).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def chunk_hidden_states(
    config: Wav2Vec2Config, params: Mapping[str, Any], wave_N: jax.Array, statistics_2C: jax.Array, steps: jax.Array
) -> jax.Array:
    """Hidden states [num_layers + 1, S, width] float32 of one chunk; those from `steps` on are padding and mean
    nothing.

    As in `transformers`: 0 enters the first layer, i leaves layer i, the last one after the final norm where there is
    one.
    """
    with jax.default_matmul_precision("highest"):
        x = wave_N[:, None]
        for layer, stride in zip(params["convolutions"], config.conv_strides, strict=True):
            x = _convolve(x, layer, stride)
            if config.group_norm and "norm" in layer:
                x = (x - statistics_2C[0]) * jax.lax.rsqrt(statistics_2C[1] + _NORM_EPS) * layer["norm"]["scale"]
                x = x + layer["norm"]["bias"]
            elif "norm" in layer:
                x = _norm(x, layer["norm"], _NORM_EPS)
            x = jax.nn.gelu(x, approximate=False)
        x = _linear(_norm(x, params["projection_norm"], config.epsilon), params["projection"])
        real_S = jnp.arange(x.shape[0]) < steps
        x = jnp.where(real_S[:, None], x, 0)
        before = config.position_kernel // 2
        padding = [(before, config.position_kernel - 1 - before)]
        x = x + jax.nn.gelu(
            _convolve(x, params["positions"], padding=padding, groups=config.position_groups), approximate=False
        )
        if not config.pre_norm:
            x = _norm(x, params["norm"], config.epsilon)

        def attend(x: jax.Array, layer: Mapping[str, Any]) -> jax.Array:
            s, d = x.shape
            q, k, v = (_linear(x, layer[name]).reshape(s, config.num_heads, -1) for name in ("query", "key", "value"))
            return _linear(
                jax.nn.dot_product_attention(q, k, v, mask=real_S[None, None, :]).reshape(s, d), layer["attention_out"]
            )

        def mlp(x: jax.Array, layer: Mapping[str, Any]) -> jax.Array:
            return _linear(jax.nn.gelu(_linear(x, layer["mlp_in"]), approximate=False), layer["mlp_out"])

        def block(x: jax.Array, layer: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
            attention_norm, mlp_norm = (
                lambda y, at=at: _norm(y, layer[at], config.epsilon) for at in ("attention_norm", "mlp_norm")
            )
            if config.pre_norm:
                x = x + attend(attention_norm(x), layer)
                x = x + mlp(mlp_norm(x), layer)
            else:
                x = attention_norm(x + attend(x, layer))
                x = mlp_norm(x + mlp(x, layer))
            return x, x

        last, states = jax.lax.scan(block, x, params["layers"])
        if config.pre_norm:
            last = _norm(last, params["norm"], config.epsilon)
        return jnp.concatenate([x[None], states[:-1], last[None]])


def chunk_spans(
    num_steps: int, chunk: int = CHUNK_STEPS, context: int = CONTEXT_STEPS
) -> list[tuple[int, int, int, int]]:
    """(first step of a chunk, end of the chunk, first step kept, end of the steps kept).

    The kept spans tile 0 .. num_steps; each has `context` steps of its chunk on both sides, but for the ends of the
    sound. All chunks of a long sound are of one length: the last one ends with it.
    """
    if num_steps <= chunk:
        return [(0, num_steps, 0, num_steps)]
    spans, kept = [], 0
    while True:
        start = min(max(0, kept - context), num_steps - chunk)
        end = start + chunk
        until = num_steps if end == num_steps else end - context
        spans.append((start, end, kept, until))
        if until == num_steps:
            return spans
        kept = until


def hidden_states(
    config: Wav2Vec2Config, params: Mapping[str, Any], wave_N: np.ndarray, layers: tuple[int, ...]
) -> np.ndarray:
    """Hidden states [len(layers), steps_of(N), width] float32 of mono sound at 16 kHz of any length, one at least.

    State j is made of samples stride * j .. stride * j + receptive_field - 1, and of attention to all the others. Up to
    20 s it is exactly the network's. Longer sound is cut into chunks of 20 s that overlap, of which only what has 5 s
    on both sides is kept; the group norm of the feature extractor is the whole sound's all the same. So a bound shows
    only as far as a state depends on what is more than 5 s away from it.
    """
    steps = config.steps_of(len(wave_N))
    if steps < 1:
        raise ValueError(
            f"{len(wave_N)} samples of sound are too few: wav2vec 2.0 needs at least {config.receptive_field}"
        )
    wave = np.asarray(wave_N, np.float32)
    statistics = np.zeros((2, config.conv_widths[0]), np.float32)
    if config.group_norm:
        statistics = first_layer_statistics(config, params, wave)
    kept = []
    for start, end, first, until in chunk_spans(steps):
        padded = -(-(end - start) // _BUCKET_STEPS) * _BUCKET_STEPS
        samples = (padded - 1) * config.stride + config.receptive_field
        chunk = wave[start * config.stride :][: (end - start - 1) * config.stride + config.receptive_field]
        chunk = np.pad(chunk, (0, samples - len(chunk)))
        states = chunk_hidden_states(config, params, chunk, statistics, np.int32(end - start))
        kept.append(np.asarray(states[np.array(layers), first - start : until - start]))
    return np.concatenate(kept, axis=1)
