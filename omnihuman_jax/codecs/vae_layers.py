"""What the video autoencoders are made of, on one video [frames, height, width, channels], over plain parameter dicts.

A network is frozen here: its parameters are numpy or jax arrays with the names of the original modules, kernels with
their channels last. `read_*` take them out of a `Weights` with the shapes that a config promises, so one description of
a network serves loading, its strict key table, and ahead-of-time compilation (`describe`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omnihuman_jax.encoders.pretrained import Weights
from omnihuman_jax.typing import Params

Padding = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
_KERNELS = ("kernel",)


class ShapesOnly(Weights):
    """Gives every tensor that is asked for, of no memory (stride 0); `shapes` is the key table."""

    def __init__(self) -> None:
        super().__init__({})
        self.shapes: dict[str, tuple[int, ...]] = {}

    def take(self, name: str, *shape: int | None) -> np.ndarray:
        self.shapes[name] = tuple(dim or 1 for dim in shape)
        return np.broadcast_to(np.float32(0), self.shapes[name])


def describe(read: Callable[[Weights], Params], dtype: Any) -> tuple[Params, dict[str, tuple[int, ...]]]:
    """(abstract parameters as they lie on a device, name -> shape of the original's tensors); allocates nothing."""
    weights = ShapesOnly()
    params = read(weights)
    abstract = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.ShapeDtypeStruct(leaf.shape, _dtype_of(path, dtype)),
        params,
    )
    return abstract, weights.shapes


def placed(params: Params, dtype: Any) -> Params:
    """Parameters on the default device: kernels in the dtype that is computed in, everything else float32."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(np.ascontiguousarray(leaf), _dtype_of(path, dtype)), params
    )


def _dtype_of(path: tuple[Any, ...], dtype: Any) -> Any:
    return dtype if path[-1].key in _KERNELS else jnp.float32


def read_conv(weights: Weights, name: str, inputs: int, outputs: int, *kernel: int) -> Params:
    """A convolution of two or three dims, [outputs, inputs, *kernel] -> [*kernel, inputs, outputs]; or a linear
    layer.
    """
    tensor = weights.take(f"{name}.weight", outputs, inputs, *kernel)
    return {"kernel": np.moveaxis(tensor, (0, 1), (-1, -2)), "bias": weights.take(f"{name}.bias", outputs)}


def read_norm(weights: Weights, name: str, channels: int) -> Params:
    """Scale and bias of a group norm."""
    return {"scale": weights.take(f"{name}.weight", channels), "bias": weights.take(f"{name}.bias", channels)}


def stacked(blocks: Sequence[Params]) -> Params:
    """Blocks of equal shapes as one, with a leading dim to scan over."""

    def stack(*leaves: np.ndarray) -> np.ndarray:
        if not any(leaves[0].strides):  # of `ShapesOnly`
            return np.broadcast_to(leaves[0].flat[0], (len(leaves), *leaves[0].shape))
        return np.stack(leaves)

    return jax.tree.map(stack, *blocks)


def _precision(x: jax.Array) -> jax.lax.Precision | None:
    # A TPU multiplies float32 in bfloat16 unless asked otherwise; operands in bfloat16 are exact either way.
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


def conv3d(
    params: Mapping[str, Any], x_THWC: jax.Array, stride: tuple[int, int, int] = (1, 1, 1), padding: Any = None
) -> jax.Array:
    """A convolution over time and space with the zero padding (front, back) of each dim; none by default."""
    y = jax.lax.conv_general_dilated(
        x_THWC[None],
        params["kernel"],
        stride,
        padding or "VALID",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        precision=_precision(x_THWC),
    )
    return y[0] + params["bias"].astype(x_THWC.dtype)


def conv2d(params: Mapping[str, Any], x_THWC: jax.Array, stride: int, padding: tuple[int, int]) -> jax.Array:
    """A convolution of every frame alone, rows and columns padded alike with zeros (front, back)."""
    y = jax.lax.conv_general_dilated(
        x_THWC,
        params["kernel"],
        (stride, stride),
        (padding, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=_precision(x_THWC),
    )
    return y + params["bias"].astype(x_THWC.dtype)


def linear(params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """A linear layer, or a convolution of kernel size 1, over the last dim."""
    kernel = params["kernel"].reshape(params["kernel"].shape[-2:])
    return jnp.matmul(x, kernel, precision=_precision(x)) + params["bias"].astype(x.dtype)


def group_norm(params: Mapping[str, Any], x: jax.Array, groups: int, eps: float) -> jax.Array:
    """Zero mean and unit variance over everything but the group of channels; statistics in float32.

    Sums are taken per channel first: channels split into [groups, size] would be the two minor dims, which a TPU pads.
    """
    channels = x.shape[-1]
    over = tuple(range(x.ndim - 1))

    def group_mean(mean_C: jax.Array) -> jax.Array:
        return jnp.repeat(mean_C.reshape(groups, -1).mean(axis=1), channels // groups)

    wide = x.astype(jnp.float32)
    mean_C = group_mean(wide.mean(axis=over))
    variance_C = group_mean(jnp.square(wide - mean_C).mean(axis=over))
    y = (wide - mean_C) * (jax.lax.rsqrt(variance_C + eps) * params["scale"]) + params["bias"]
    return y.astype(x.dtype)


def attend(q_QC: jax.Array, k_KC: jax.Array, v_KC: jax.Array, visible_QK: jax.Array | None = None) -> jax.Array:
    """Attention of one head [queries, channels], softmax in float32; every query sees a key at least."""
    scale = q_QC.shape[-1] ** -0.5
    scores = jnp.einsum("qc,kc->qk", q_QC * scale, k_KC, precision=_precision(q_QC), preferred_element_type=jnp.float32)
    if visible_QK is not None:
        scores = jnp.where(visible_QK, scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_KC.dtype)
    return jnp.matmul(weights, v_KC, precision=_precision(v_KC))
