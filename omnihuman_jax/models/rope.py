"""Rotary position embedding over (t, h, w), HunyuanVideo's: interleaved pairs, one group of pairs an axis."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Rotation(NamedTuple):
    """Cosine and sine of every token's angles, float32 [B, L, 1, K] (each pair's angle twice)."""

    cos: jax.Array
    sin: jax.Array


def rotation(positions_BL3: jax.Array, axes: Sequence[int], theta: float) -> Rotation:
    """Angles of the tokens' positions: axis i turns `axes[i] / 2` pairs with frequencies theta^(-2j / axes[i]).

    Args:
        positions_BL3: integer or float (t, h, w).
        axes: head channels of each of the three axes, even, summing to K.
        theta: base of the frequencies (256 in HunyuanVideo).
    """
    angles = []
    for i, size in enumerate(axes):
        frequencies = theta ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
        angles.append(positions_BL3[..., i, None].astype(jnp.float32) * frequencies)
    angles_BLK = jnp.repeat(jnp.concatenate(angles, axis=-1), 2, axis=-1)[..., None, :]
    return Rotation(jnp.cos(angles_BLK), jnp.sin(angles_BLK))


def rotate(x_BLNK: jax.Array, by: Rotation) -> jax.Array:
    """`x` with each pair (2j, 2j + 1) of head channels turned by its token's angle; float32."""
    x = x_BLNK.astype(jnp.float32)
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape)
    return x * by.cos + turned * by.sin
