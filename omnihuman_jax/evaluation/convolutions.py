"""Convolutions with batch statistics that are long settled: what Inception, I3D and SyncNet are made of.

Channels last. BatchNorm of a trained network is a scale and a shift of each channel, worked out once in float64.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from omnihuman_jax.encoders.pretrained import Weights
from omnihuman_jax.typing import Array

Unit: TypeAlias = dict[str, np.ndarray]
"""kernel [*K, I, O]; scale [O] and shift [O] of what comes out, float32."""
Padding: TypeAlias = str | Sequence[tuple[int, int]]


def open_weights(path: Path) -> Weights:
    """The tensors of a .safetensors file; the counters of BatchNorm, which no number depends on, are left out.

    Raises:
        FileNotFoundError, ValueError: no such file, or one of another kind: a pickle runs code when it is loaded.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: give weights as .safetensors; docs/evaluation.md has the line that converts a .pth")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: no safetensors file ({error}); fetch it again") from error
    return Weights({name: array for name, array in tensors.items() if not name.endswith("num_batches_tracked")})


def take_unit(
    weights: Weights,
    conv: str,
    shape: tuple[int, ...],
    *,
    norm: str = "",
    epsilon: float = 1e-5,
    bias: bool = False,
) -> Unit:
    """A convolution (or a linear layer: no dims of a kernel) and the BatchNorm after it, out of PyTorch's names.

    Args:
        conv: name of the convolution's module.
        shape: PyTorch's, (out, in, *kernel).
        norm: name of the BatchNorm's module; none without one.
        bias: whether the convolution has one.
    """
    kernel, out = weights.take(f"{conv}.weight", *shape), shape[0]
    scale, shift = np.ones(out), np.zeros(out)
    if bias:
        shift = weights.take(f"{conv}.bias", out).astype(np.float64)
    if norm:
        gain, offset, mean, variance = (
            weights.take(f"{norm}.{name}", out).astype(np.float64)
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gain / np.sqrt(variance + epsilon)
        shift = (shift - mean) * scale + offset
    return {
        "kernel": np.ascontiguousarray(np.moveaxis(kernel, (0, 1), (-1, -2)), np.float32),
        "scale": scale.astype(np.float32),
        "shift": shift.astype(np.float32),
    }


def convolve(
    unit: Unit, x: Array, stride: Sequence[int] = (), padding: Padding = "VALID", relu: bool = True
) -> jax.Array:
    """[B, *space, C] -> [B, *space, O] float32: the convolution, its scale and shift, and a rectifier."""
    kernel = jnp.asarray(unit["kernel"])
    dims = kernel.ndim - 2
    names = "DHW"[3 - dims :]
    out = jax.lax.conv_general_dilated(
        jnp.asarray(x, jnp.float32),
        kernel,
        tuple(stride) or (1,) * dims,
        padding,
        dimension_numbers=(f"N{names}C", f"{names}IO", f"N{names}C"),
        precision=jax.lax.Precision.HIGHEST,
    )
    out = out * unit["scale"] + unit["shift"]
    return jax.nn.relu(out) if relu else out


def dense(unit: Unit, x_BC: Array, relu: bool = False) -> jax.Array:
    """[B, C] -> [B, O] float32."""
    out = jnp.matmul(jnp.asarray(x_BC, jnp.float32), unit["kernel"], precision=jax.lax.Precision.HIGHEST)
    out = out * unit["scale"] + unit["shift"]
    return jax.nn.relu(out) if relu else out


def max_pool(x: Array, window: Sequence[int], stride: Sequence[int], padding: Padding = "VALID") -> jax.Array:
    """The largest of each window; what is padded never is."""
    return _reduce(x, -jnp.inf, jax.lax.max, window, stride, padding)


def mean_pool(x: Array, window: Sequence[int], padding: Padding = "VALID") -> jax.Array:
    """The mean of each window at stride 1, over what is inside the picture alone."""
    ones = (1,) * len(window)
    total = _reduce(x, 0.0, jax.lax.add, window, ones, padding)
    return total / _reduce(jnp.ones_like(jnp.asarray(x)), 0.0, jax.lax.add, window, ones, padding)


def _reduce(
    x: Array,
    start: float,
    operation: Callable[..., Any],
    window: Sequence[int],
    stride: Sequence[int],
    padding: Padding,
) -> jax.Array:
    if not isinstance(padding, str):
        padding = ((0, 0), *padding, (0, 0))
    result: jax.Array = jax.lax.reduce_window(
        jnp.asarray(x), start, operation, (1, *window, 1), (1, *stride, 1), padding
    )
    return result
