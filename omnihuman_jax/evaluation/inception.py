"""Inception-v3 as FID means it: TensorFlow's network of 2015, with its own resizing and its own pooling.

Three things differ from torchvision's: pictures are resized with the corner of a pixel, not its centre, as its place;
average pooling leaves padding out; the last block pools by the largest. Weights: the public file of pytorch-fid and
torch-fidelity, pt_inception-2015-12-05 (docs/evaluation.md), never shipped here.
"""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from omnihuman_jax.evaluation.convolutions import Unit, convolve, max_pool, mean_pool, open_weights, take_unit
from omnihuman_jax.typing import Array

SIZE = 299
WIDTH = 2048
CLASSES = 1008
_EPSILON = 1e-3
_SAME = ((1, 1), (1, 1))
Inception: TypeAlias = dict[str, Unit]
Apply: TypeAlias = Callable[..., jax.Array]
"""(name of a unit, x, stride, same) -> what comes out."""


def _block_a(name: str, inputs: int, pool: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.branch1x1": (64, inputs, 1, 1),
        f"{name}.branch5x5_1": (48, inputs, 1, 1),
        f"{name}.branch5x5_2": (64, 48, 5, 5),
        f"{name}.branch3x3dbl_1": (64, inputs, 1, 1),
        f"{name}.branch3x3dbl_2": (96, 64, 3, 3),
        f"{name}.branch3x3dbl_3": (96, 96, 3, 3),
        f"{name}.branch_pool": (pool, inputs, 1, 1),
    }


def _block_c(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.branch1x1": (192, 768, 1, 1),
        f"{name}.branch7x7_1": (width, 768, 1, 1),
        f"{name}.branch7x7_2": (width, width, 1, 7),
        f"{name}.branch7x7_3": (192, width, 7, 1),
        f"{name}.branch7x7dbl_1": (width, 768, 1, 1),
        f"{name}.branch7x7dbl_2": (width, width, 7, 1),
        f"{name}.branch7x7dbl_3": (width, width, 1, 7),
        f"{name}.branch7x7dbl_4": (width, width, 7, 1),
        f"{name}.branch7x7dbl_5": (192, width, 1, 7),
        f"{name}.branch_pool": (192, 768, 1, 1),
    }


def _block_e(name: str, inputs: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.branch1x1": (320, inputs, 1, 1),
        f"{name}.branch3x3_1": (384, inputs, 1, 1),
        f"{name}.branch3x3_2a": (384, 384, 1, 3),
        f"{name}.branch3x3_2b": (384, 384, 3, 1),
        f"{name}.branch3x3dbl_1": (448, inputs, 1, 1),
        f"{name}.branch3x3dbl_2": (384, 448, 3, 3),
        f"{name}.branch3x3dbl_3a": (384, 384, 1, 3),
        f"{name}.branch3x3dbl_3b": (384, 384, 3, 1),
        f"{name}.branch_pool": (192, inputs, 1, 1),
    }


UNITS: dict[str, tuple[int, ...]] = {
    "Conv2d_1a_3x3": (32, 3, 3, 3),
    "Conv2d_2a_3x3": (32, 32, 3, 3),
    "Conv2d_2b_3x3": (64, 32, 3, 3),
    "Conv2d_3b_1x1": (80, 64, 1, 1),
    "Conv2d_4a_3x3": (192, 80, 3, 3),
    **_block_a("Mixed_5b", 192, 32),
    **_block_a("Mixed_5c", 256, 64),
    **_block_a("Mixed_5d", 288, 64),
    "Mixed_6a.branch3x3": (384, 288, 3, 3),
    "Mixed_6a.branch3x3dbl_1": (64, 288, 1, 1),
    "Mixed_6a.branch3x3dbl_2": (96, 64, 3, 3),
    "Mixed_6a.branch3x3dbl_3": (96, 96, 3, 3),
    **_block_c("Mixed_6b", 128),
    **_block_c("Mixed_6c", 160),
    **_block_c("Mixed_6d", 160),
    **_block_c("Mixed_6e", 192),
    "Mixed_7a.branch3x3_1": (192, 768, 1, 1),
    "Mixed_7a.branch3x3_2": (320, 192, 3, 3),
    "Mixed_7a.branch7x7x3_1": (192, 768, 1, 1),
    "Mixed_7a.branch7x7x3_2": (192, 192, 1, 7),
    "Mixed_7a.branch7x7x3_3": (192, 192, 7, 1),
    "Mixed_7a.branch7x7x3_4": (192, 192, 3, 3),
    **_block_e("Mixed_7b", 1280),
    **_block_e("Mixed_7c", 2048),
}
"""Convolutions by the public file's names, (out, in, height, width); a BatchNorm after each."""


def load_inception(path: Path) -> Inception:
    """The network of a .safetensors file with the public names; ValueError lists all that is missing, wrong or
    unknown.
    """
    weights = open_weights(path)
    params = {
        name: take_unit(weights, f"{name}.conv", shape, norm=f"{name}.bn", epsilon=_EPSILON)
        for name, shape in UNITS.items()
    }
    take_unit(weights, "fc", (CLASSES, WIDTH), bias=True)  # of no use here; the file has it
    weights.check(str(path), promised_by="Inception-v3")
    return params


def resize(pictures_BHWC: Array, size: int = SIZE) -> jax.Array:
    """Bilinear, as TensorFlow 1 did it: pixel i of the result is at i * (old / new) of the source; float32."""
    x = jnp.asarray(pictures_BHWC, jnp.float32)
    for axis in (1, 2):
        count = x.shape[axis]
        at = jnp.arange(size, dtype=jnp.float32) * np.float32(count / size)
        low = at.astype(jnp.int32)
        share = (at - low).reshape([-1 if a == axis else 1 for a in range(4)])
        below, above = jnp.take(x, low, axis), jnp.take(x, jnp.minimum(low + 1, count - 1), axis)
        x = below + (above - below) * share
    return x


def features(params: Inception, pictures_BHW3: Array, size: int = SIZE) -> jax.Array:
    """[B, 2048] float32 ("pool3") of RGB pictures in 0 .. 255, of any size."""
    x = (resize(pictures_BHW3, size) - 128.0) / 128.0
    unit = functools.partial(_unit, params)
    x = unit("Conv2d_1a_3x3", x, stride=2)
    x = unit("Conv2d_2a_3x3", x)
    x = unit("Conv2d_2b_3x3", x, same=True)
    x = max_pool(x, (3, 3), (2, 2))
    x = unit("Conv2d_3b_1x1", x)
    x = unit("Conv2d_4a_3x3", x)
    x = max_pool(x, (3, 3), (2, 2))
    for name in ("5b", "5c", "5d"):
        x = _a(unit, f"Mixed_{name}.", x)
    x = _b(unit, "Mixed_6a.", x)
    for name in ("6b", "6c", "6d", "6e"):
        x = _c(unit, f"Mixed_{name}.", x)
    x = _d(unit, "Mixed_7a.", x)
    x = _e(unit, "Mixed_7b.", x, mean_pool(x, (3, 3), _SAME))
    x = _e(unit, "Mixed_7c.", x, max_pool(x, (3, 3), (1, 1), _SAME))
    return x.mean((1, 2))


def _unit(params: Inception, name: str, x: Array, stride: int = 1, same: bool = False) -> jax.Array:
    height, width = UNITS[name][2:]
    padding = ((height // 2, height // 2), (width // 2, width // 2)) if same else ((0, 0), (0, 0))
    return convolve(params[name], x, (stride, stride), padding)


def _in_turn(unit: Apply, x: Array, names: Iterable[str]) -> jax.Array:
    """Convolutions one after another, each of the size of what it is given."""
    for name in names:
        x = unit(name, x, same=True)
    return jnp.asarray(x)


def _a(unit: Apply, at: str, x: Array) -> jax.Array:
    branches = [
        _in_turn(unit, x, [f"{at}branch1x1"]),
        _in_turn(unit, x, [f"{at}branch5x5_{i}" for i in (1, 2)]),
        _in_turn(unit, x, [f"{at}branch3x3dbl_{i}" for i in (1, 2, 3)]),
        unit(f"{at}branch_pool", mean_pool(x, (3, 3), _SAME)),
    ]
    return jnp.concatenate(branches, -1)


def _b(unit: Apply, at: str, x: Array) -> jax.Array:
    double = _in_turn(unit, x, [f"{at}branch3x3dbl_{i}" for i in (1, 2)])
    branches = [
        unit(f"{at}branch3x3", x, stride=2),
        unit(f"{at}branch3x3dbl_3", double, stride=2),
        max_pool(x, (3, 3), (2, 2)),
    ]
    return jnp.concatenate(branches, -1)


def _c(unit: Apply, at: str, x: Array) -> jax.Array:
    branches = [
        _in_turn(unit, x, [f"{at}branch1x1"]),
        _in_turn(unit, x, [f"{at}branch7x7_{i}" for i in (1, 2, 3)]),
        _in_turn(unit, x, [f"{at}branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)]),
        unit(f"{at}branch_pool", mean_pool(x, (3, 3), _SAME)),
    ]
    return jnp.concatenate(branches, -1)


def _d(unit: Apply, at: str, x: Array) -> jax.Array:
    branches = [
        unit(f"{at}branch3x3_2", unit(f"{at}branch3x3_1", x), stride=2),
        unit(f"{at}branch7x7x3_4", _in_turn(unit, x, [f"{at}branch7x7x3_{i}" for i in (1, 2, 3)]), stride=2),
        max_pool(x, (3, 3), (2, 2)),
    ]
    return jnp.concatenate(branches, -1)


def _e(unit: Apply, at: str, x: Array, pooled: Array) -> jax.Array:
    single = unit(f"{at}branch3x3_1", x)
    double = _in_turn(unit, x, [f"{at}branch3x3dbl_{i}" for i in (1, 2)])
    branches = [
        unit(f"{at}branch1x1", x),
        *(unit(f"{at}branch3x3_2{side}", single, same=True) for side in "ab"),
        *(unit(f"{at}branch3x3dbl_3{side}", double, same=True) for side in "ab"),
        unit(f"{at}branch_pool", pooled),
    ]
    return jnp.concatenate(branches, -1)
