"""Adam's moments in bfloat16 at rest: half the memory, float32 arithmetic.

A bfloat16 has 8 bits of mantissa, so a change below 1/512 of a value is lost when it is rounded to the nearest: at
beta2 = 0.999 the second moment would never shrink. Rounded at random, up with the probability of the part that is cut
off, it is right on average.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

DTYPES = ("float32", "bfloat16")
ROUNDINGS = ("stochastic", "nearest")

_STREAM = 3  # beside train_step's streams of random numbers


def in_bfloat16(adam: optax.GradientTransformation, seed: int, rounding: str) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with its moments kept in bfloat16.

    Args:
        adam: computes in float32.
        seed: with the number of updates and the leaf's place in the tree it keys the random bits: a resume draws the
            same.
        rounding: one of `ROUNDINGS`.
    """

    def init(params: Any) -> Any:
        return jax.tree.map(_to_bfloat16, adam.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf, state)
        updates, wide = adam.update(updates, wide, params)
        if rounding == "nearest":
            return updates, jax.tree.map(_to_bfloat16, wide)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STREAM), wide.count)
        leaves, tree = jax.tree.flatten(wide)
        rounded = [
            round_stochastically(jax.random.fold_in(key, i), leaf) if leaf.dtype == jnp.float32 else leaf
            for i, leaf in enumerate(leaves)
        ]
        return updates, jax.tree.unflatten(tree, rounded)

    return optax.GradientTransformation(init, update)


def round_stochastically(key: jax.Array, x: jax.Array) -> jax.Array:
    """float32 -> bfloat16, to either neighbour with the probability that makes the mean `x`; what is not finite stays
    that.

    The random bits of an element depend on its index alone, not on how the array is sharded.
    """
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
    rounded = jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def _to_bfloat16(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.bfloat16) if leaf.dtype == jnp.float32 else leaf
