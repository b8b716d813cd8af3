"""The small layers that every block is made of, and `param`, the only maker of parameters.

Parameters are float32; a layer computes in the dtype of its input, except norms and modulation, which compute in
float32. Every kernel is stored [in..., out...], so that its logical axes read like its shape.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from omnihuman_jax.sharding import RULES, constrain, partition_spec, platform

Init = Callable[[jax.Array, Sequence[int], DTypeLike], jax.Array]

NORM_EPS = 1e-6
TIME_FEATURES = 256
TIME_SCALE = 1000.0  # t in [0, 1] -> the 0..1000 that HunyuanVideo's time embedding is trained on


def zeros(key: jax.Array, shape: Sequence[int], dtype: DTypeLike) -> jax.Array:
    """All zeros: biases, and the last layer of whatever must start out as the identity."""
    del key
    return jnp.zeros(shape, dtype)


def ones(key: jax.Array, shape: Sequence[int], dtype: DTypeLike) -> jax.Array:
    """All ones: the scales of norms."""
    del key
    return jnp.ones(shape, dtype)


def normal(stddev: float) -> Init:
    """A normal distribution, truncated at two standard deviations."""

    def init(key: jax.Array, shape: Sequence[int], dtype: DTypeLike) -> jax.Array:
        return stddev * jax.random.truncated_normal(key, -2.0, 2.0, tuple(shape), dtype)

    return init


def param(
    rngs: nnx.Rngs, shape: Sequence[int], axes: Sequence[str | None], init: Init, dtype: DTypeLike = jnp.float32
) -> nnx.Param:
    """A parameter of `shape` with one logical axis (or None: never split) a dim.

    Raises:
        ValueError: a dim without an axis, or an axis that `sharding.RULES` does not have. Flax and jax would take
            either in silence and replicate the parameter.
    """
    if len(axes) != len(shape):
        raise ValueError(f"parameter of shape {tuple(shape)} needs {len(shape)} logical axes, got {tuple(axes)}")
    for axis in axes:
        if axis is not None and axis not in RULES:
            raise ValueError(f"unknown logical axis {axis!r}; the table in sharding.py has {', '.join(RULES)}")
    return nnx.Param(init(rngs.params(), shape, dtype), logical_axes=tuple(axes))


class Linear(nnx.Module):
    """`x [B, ..., in...] -> [B, ..., out...]`: kernel [in..., out...], bias [out...].

    Nothing about its sharding is left to the partitioner. The kernel is gathered over the axes that `embed` stores it
    on (fully sharded data parallelism), inputs and outputs keep their batch rows where they are, and so, transposed, do
    their gradients. Left alone, XLA:CPU (JAX 0.10.2 and 0.12.0.1, `tests/integration/xla_faults.py`) may instead move
    an activation from [(data, fsdp), ..., -] to [data, ..., fsdp]; where the mesh has data, fsdp and tensor > 1 that
    swaps rows of the batch without a word: wrong gradients, no error.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        axes: Sequence[str | None],
        *,
        bias: bool = True,
        init: Init | None = None,
    ):
        self.num_in = len(in_shape)
        # `embed` says where a weight is stored; in use, and in activations, that dim is whole.
        self.axes = tuple(None if axis == "embed" else axis for axis in axes)
        self.stored_axes = tuple(axes)
        init = init or normal(1.0 / math.sqrt(math.prod(in_shape)))
        self.kernel = param(rngs, (*in_shape, *out_shape), axes, init)
        # The bias of an `embed` output is small and read everywhere: replicated.
        bias_axes = ["features" if axis == "embed" else axis for axis in axes[self.num_in :]]
        self.bias = param(rngs, out_shape, bias_axes, zeros) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = gathered(self.kernel[...].astype(x.dtype), self.stored_axes, self.axes)
        y = product(self.num_in, pin(x, *self.axes[: self.num_in]), kernel)
        y = pin(y, *self.axes[self.num_in :])
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gathered(kernel: jax.Array, stored: tuple[str | None, ...], used: tuple[str | None, ...]) -> jax.Array:
    """`kernel` brought from where the logical axes `stored` keep it to where `used` need it; its gradient goes straight
    back.

    The transpose of a constraint is that constraint again: plain autodiff would make a gradient whole on every device
    before it is cut, and XLA does not see that a reduce-scatter is all that is wanted.
    """
    return constrain(kernel, *used)


gathered.defvjp(
    lambda kernel, stored, used: (gathered(kernel, stored, used), None),
    lambda stored, used, _, grad: (constrain(grad, *stored),),
)


def product(num_in: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x [..., in...] @ kernel [in..., out...]`, `num_in` dims of `in`."""
    return _ordered_product(num_in, x, kernel) if platform() == "cpu" else jnp.tensordot(x, kernel, axes=num_in)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ordered_product(num_in: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Its gradients are the products that jax derives, with their operands in an order that leaves the result as it is
    stored.

    XLA on CPU transposes whole kernels otherwise, once a block; other compilers choose their own layouts.
    """
    return jnp.tensordot(x, kernel, axes=num_in)


def _product_forward(num_in: int, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return jnp.tensordot(x, kernel, axes=num_in), (x, kernel)


def _product_backward(num_in: int, kept: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    rows, outs = x.ndim - num_in, kernel.ndim - num_in
    leading, last = tuple(range(rows)), tuple(range(rows, grad.ndim))
    grad_kernel = jax.lax.dot_general(x, grad, ((leading, leading), ((), ())))
    out_dims = tuple(range(num_in, kernel.ndim))
    if outs > 1 and math.prod(x.shape[:rows]) < math.prod(kernel.shape[:num_in]):
        # Fewer rows than the kernel has (modulation): it is they that are transposed.
        grad_x = jax.lax.dot_general(kernel, grad, ((out_dims, last), ((), ())))
        grad_x = jnp.moveaxis(grad_x, tuple(range(num_in)), tuple(range(-num_in, 0)))
    else:
        grad_x = jax.lax.dot_general(grad, kernel, ((last, out_dims), ((), ())))
    return grad_x, grad_kernel


_ordered_product.defvjp(_product_forward, _product_backward)


def pin(x: jax.Array, *last_axes: str | None) -> jax.Array:
    """`x` [B, ..., last...] with its batch rows and last dims where their logical axes say; the dims between are
    free.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    between = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1 - len(last_axes))
    return jax.lax.with_sharding_constraint(
        x, PartitionSpec(*partition_spec(["batch"]), *between, *partition_spec(last_axes))
    )


class MLP(nnx.Module):
    """Linear, activation, Linear."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        in_width: int,
        hidden: int,
        out_width: int,
        activation: str,
        axes: Sequence[str | None] = ("embed", "mlp", "embed"),
        *,
        init_in: Init | None = None,
    ):
        self.activation = activation
        self.fc_in = Linear(rngs, (in_width,), (hidden,), axes[:2], init=init_in)
        self.fc_out = Linear(rngs, (hidden,), (out_width,), axes[1:])

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc_out(activate(self.fc_in(x), self.activation))


def activate(x: jax.Array, name: str) -> jax.Array:
    """`gelu` (the tanh form, HunyuanVideo's) or `silu`."""
    if name == "gelu":
        return jax.nn.gelu(x, approximate=True)
    if name == "silu":
        return jax.nn.silu(x)
    raise ValueError(f"unknown activation {name!r}; there are gelu and silu")


def layer_norm(x: jax.Array) -> jax.Array:
    """`x` with zero mean and unit variance over its last dim, no affine; float32 out."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + NORM_EPS)


class LayerNorm(nnx.Module):
    """`layer_norm` with scale and bias; computes in float32, returns the dtype of its input."""

    def __init__(self, rngs: nnx.Rngs, width: int):
        self.scale = param(rngs, (width,), ("features",), ones)
        self.bias = param(rngs, (width,), ("features",), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        return (layer_norm(x) * self.scale[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square norm of each head, with a scale; computes in float32 and stays there (RoPE comes next)."""

    def __init__(self, rngs: nnx.Rngs, width: int):
        self.scale = param(rngs, (width,), ("head_dim",), ones)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + NORM_EPS) * self.scale[...]


class TimestepEmbedder(nnx.Module):
    """t in [0, 1] (or a guidance scale) -> sinusoid of 256 (cosines first) on t * 1000 -> Linear, SiLU, Linear."""

    def __init__(self, rngs: nnx.Rngs, width: int):
        self.mlp = MLP(rngs, TIME_FEATURES, width, width, "silu", ("features", "mlp", "embed"))

    def __call__(self, t: jax.Array) -> jax.Array:
        half = TIME_FEATURES // 2
        # float32 exponents, exact exponentials: what the checkpoints were trained with. Angles reach thousands of
        # radians, where an ulp of a frequency shows in the velocity.
        exponents = np.float32(-math.log(10_000.0)) * np.arange(half, dtype=np.float32) / np.float32(half)
        frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
        angles = (t.astype(jnp.float32) * TIME_SCALE)[..., None] * frequencies
        return self.mlp(jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1))


class Modulation(nnx.Module):
    """Conditioning of each row -> `num_chunks` vectors each: a table that tokens read by row (adaLN-Zero: starts at
    0).
    """

    def __init__(self, rngs: nnx.Rngs, width: int, num_chunks: int):
        # [D, chunks, D], not [D, chunks * D]: splitting a sharded fused dim makes XLA rematerialise in the backward
        # pass.
        self.linear = Linear(rngs, (width,), (num_chunks, width), ("embed", None, "mlp"), init=zeros)

    def __call__(self, embedding_BRD: jax.Array) -> jax.Array:
        """float32 [B, R, D] -> float32 [B, R, chunks, D]."""
        return pin(self.linear(jax.nn.silu(embedding_BRD)), None)


def one_hot(index: jax.Array, size: int) -> jax.Array:
    """float32 [..., size]; all zeros where `index` is negative."""
    return (index[..., None] == jnp.arange(size)).astype(jnp.float32)


def look_up(one_hot_BLR: jax.Array, table_BRD: jax.Array) -> jax.Array:
    """The table's row of every token, zeros for tokens without one.

    A product with a one-hot matrix: exact (HIGHEST keeps every bit of a float32 row), splits over tokens like any other
    product, and its backward pass is a product too, where a gather's would be a scatter-add.
    """
    return jnp.einsum(
        "blr,brd->bld", one_hot_BLR.astype(table_BRD.dtype), table_BRD, precision=jax.lax.Precision.HIGHEST
    )


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """`layer_norm(x) * (1 + scale) + shift` in float32, returned in the dtype of `x`."""
    return (layer_norm(x) * (1.0 + scale) + shift).astype(x.dtype)


def add_gated(x: jax.Array, gate: jax.Array, y: jax.Array) -> jax.Array:
    """`x + gate * y` in float32, returned in the dtype of `x`."""
    return (x.astype(jnp.float32) + gate * y.astype(jnp.float32)).astype(x.dtype)
