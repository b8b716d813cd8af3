"""A step's batch in micro-batches: gradient accumulation inside the one jit.

Every device splits the rows that it holds, so nothing moves: micro-batch i is the i-th part of each device's rows, not
the i-th part of the batch. The windows' draws are keyed on their slots (`train_step.py`), so it does not matter which
is which.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from omnihuman_jax import sharding
from omnihuman_jax.typing import Batch, PackedShape


def split_rows(batch: Batch, *, mesh: Mesh, shape: PackedShape, num: int) -> Batch:
    """[B, ...] -> [num, B / num, ...] for every array of a packed batch, each device's rows on that device."""
    specs = jax.tree.map(lambda spec: sharding.partition_spec(spec.axes), shape.arrays(1))
    cut = jax.shard_map(
        lambda rows: jax.tree.map(lambda x: x.reshape(num, x.shape[0] // num, *x.shape[1:]), rows),
        mesh=mesh,
        in_specs=(specs,),
        out_specs=jax.tree.map(lambda spec: PartitionSpec(None, *spec), specs),
        check_vma=False,
    )
    return cut(batch)


def merge_rows(parts: Any, *, mesh: Mesh) -> Any:
    """[num, B / num, ...] -> [B, ...] for every leaf, in the order that the batch had before `split_rows`."""
    rows = sharding.partition_spec(["batch"])
    join = jax.shard_map(
        lambda tree: jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree),
        mesh=mesh,
        in_specs=(PartitionSpec(None, *rows),),
        out_specs=rows,
        check_vma=False,
    )
    return join(parts)


def accumulate(one: Callable[[Batch], tuple[Any, Any]], parts: Batch, shardings: Any) -> tuple[Any, Any]:
    """Sum of `one`'s first results over micro-batches, and its second results stacked.

    Args:
        one: micro-batch -> (tree to be summed, tree to be kept).
        parts: arrays [num, ...], as `split_rows` gives them.
        shardings: of the sums (a prefix tree will do): left to the partitioner, sums of gradients may lie whole
            everywhere.
    """
    pin = lambda tree: jax.lax.with_sharding_constraint(tree, shardings)  # noqa: E731

    def add(total: Any, rows: Batch) -> tuple[Any, Any]:
        value, kept = one(rows)
        return pin(jax.tree.map(jnp.add, total, value)), kept

    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), parts)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one, first)[0])
    return jax.lax.scan(add, pin(zeros), parts)
