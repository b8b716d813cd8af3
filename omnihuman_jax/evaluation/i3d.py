"""I3D (Inception-v1 in three dims) as FVD means it: clips of frames -> 400 logits of Kinetics.

Every convolution and pool pads with zeros to "same", more behind than in front. Weights: the public
`i3d_pretrained_400.pt` of the Frechet video distance in PyTorch (docs/evaluation.md), never shipped here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import jax
import jax.numpy as jnp

from omnihuman_jax.evaluation.convolutions import Unit, convolve, max_pool, open_weights, take_unit
from omnihuman_jax.typing import Array

SIZE = 224
CLIP_FRAMES = 16
LOGITS = 400
I3D: TypeAlias = dict[str, Unit]

_BLOCKS: dict[str, tuple[int, ...]] = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}
"""Widths of each block: what comes in, and the outputs of its six convolutions."""
_POOLS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}
"""(window, stride) of the pool before a block."""


def _units() -> dict[str, tuple[int, ...]]:
    units: dict[str, tuple[int, ...]] = {
        "Conv3d_1a_7x7": (64, 3, 7, 7, 7),
        "Conv3d_2b_1x1": (64, 64, 1, 1, 1),
        "Conv3d_2c_3x3": (192, 64, 3, 3, 3),
    }
    for name, (inputs, b0, b1a, b1b, b2a, b2b, b3b) in _BLOCKS.items():
        units |= {
            f"{name}.b0": (b0, inputs, 1, 1, 1),
            f"{name}.b1a": (b1a, inputs, 1, 1, 1),
            f"{name}.b1b": (b1b, b1a, 3, 3, 3),
            f"{name}.b2a": (b2a, inputs, 1, 1, 1),
            f"{name}.b2b": (b2b, b2a, 3, 3, 3),
            f"{name}.b3b": (b3b, inputs, 1, 1, 1),
        }
    return units


UNITS = _units()
"""Convolutions by the public file's names, (out, in, time, height, width); a BatchNorm after each."""


def load_i3d(path: Path) -> I3D:
    """The network of a .safetensors file with the public names; ValueError lists all that is missing, wrong or
    unknown.
    """
    weights = open_weights(path)
    params = {
        name: take_unit(weights, f"{name}.conv3d", shape, norm=f"{name}.bn", epsilon=1e-5)
        for name, shape in UNITS.items()
    }
    params["logits"] = take_unit(weights, "logits.conv3d", (LOGITS, 1024, 1, 1, 1), bias=True)
    weights.check(str(path), promised_by="I3D")
    return params


def prepare(frames_BTHW3: Array) -> jax.Array:
    """RGB in 0 .. 255 -> [B, T, 224, 224, 3] in [-1, 1]: bilinear between pixel centres, without smoothing before."""
    x = jnp.asarray(frames_BTHW3, jnp.float32)
    resized = jax.image.resize(x, (*x.shape[:2], SIZE, SIZE, 3), "bilinear", antialias=False)
    return 2.0 * resized / 255.0 - 1.0


def trunk(params: I3D, x_BTHW3: Array) -> jax.Array:
    """[B, T / 8, H / 32, W / 32, 1024] (rounded up): everything below the last pool."""
    x = _convolve(params, "Conv3d_1a_7x7", x_BTHW3, (2, 2, 2))
    x = _pool(x, (1, 3, 3), (1, 2, 2))
    x = _convolve(params, "Conv3d_2b_1x1", x)
    x = _convolve(params, "Conv3d_2c_3x3", x)
    for name in _BLOCKS:
        if name in _POOLS:
            x = _pool(x, *_POOLS[name])
        branches = [
            _convolve(params, f"{name}.b0", x),
            _convolve(params, f"{name}.b1b", _convolve(params, f"{name}.b1a", x)),
            _convolve(params, f"{name}.b2b", _convolve(params, f"{name}.b2a", x)),
            _convolve(params, f"{name}.b3b", _pool(x, (3, 3, 3), (1, 1, 1))),
        ]
        x = jnp.concatenate(branches, -1)
    return x


def head(params: I3D, x_BTHWC: Array) -> jax.Array:
    """[B, 400] logits of what `trunk` gives for pictures of 224 pixels and 9 frames or more."""
    summed = jax.lax.reduce_window(jnp.asarray(x_BTHWC), 0.0, jax.lax.add, (1, 2, 7, 7, 1), (1, 1, 1, 1, 1), "VALID")
    logits = convolve(params["logits"], summed / (2 * 7 * 7), relu=False)
    return logits[:, :, 0, 0].mean(1)


def features(params: I3D, frames_BTHW3: Array) -> jax.Array:
    """[B, 400] float32 logits of clips of RGB frames in 0 .. 255: what a Frechet video distance is taken of."""
    if jnp.shape(frames_BTHW3)[1] < 9:
        raise ValueError(f"I3D needs clips of 9 frames or more, not {jnp.shape(frames_BTHW3)[1]}")
    return head(params, trunk(params, prepare(frames_BTHW3)))


def clips(frames_THW3: Array, frames: int = CLIP_FRAMES) -> list[Array]:
    """A video cut into clips of `frames`, one after another; what is left over is dropped."""
    return [frames_THW3[i : i + frames] for i in range(0, len(frames_THW3) - frames + 1, frames)]


def _same(sizes: Sequence[int], window: Sequence[int], stride: Sequence[int]) -> list[tuple[int, int]]:
    pads = []
    for size, wide, step in zip(sizes, window, stride):
        whole = max(wide - (size % step or step), 0)
        pads.append((whole // 2, whole - whole // 2))
    return pads


def _convolve(params: I3D, name: str, x: Array, stride: Sequence[int] = (1, 1, 1)) -> jax.Array:
    return convolve(params[name], x, stride, _same(x.shape[1:4], UNITS[name][2:], stride))


def _pool(x: Array, window: Sequence[int], stride: Sequence[int]) -> jax.Array:
    """Padded with zeros, which win over nothing: all that is pooled went through a rectifier."""
    return max_pool(x, window, stride, _same(x.shape[1:4], window, stride))
