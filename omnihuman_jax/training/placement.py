"""From numpy batches of one host to arrays of the mesh."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from omnihuman_jax import sharding
from omnihuman_jax.typing import PackedBatch


def local_rows(mesh: Mesh, batch: int) -> range:
    """The sequences of a global batch that this process's devices hold; hosts that split tokens share theirs."""
    place = sharding.named_sharding(mesh, ("batch",), (batch,))
    slices = [index[0] for index in place.addressable_devices_indices_map((batch,)).values() if index is not None]
    rows = sorted({row for part in slices for row in range(*part.indices(batch))})
    if rows != list(range(rows[0], rows[-1] + 1)) or batch % len(rows) or rows[0] % len(rows):
        raise ValueError(
            f"this process's devices hold the rows {rows} of {batch}, which is no even share; reorder the mesh"
        )
    return range(rows[0], rows[-1] + 1)


def place_batch(
    batch: PackedBatch[np.ndarray], shardings: PackedBatch[NamedSharding], rows: range, total: int
) -> PackedBatch[jax.Array]:
    """Global arrays of `total` sequences from this process's `rows` of them; one transfer a device and array."""
    if len(rows) == total:
        return jax.device_put(batch, shardings)

    def place(array: np.ndarray, where: NamedSharding) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # a slice a dim: the callback is asked for what this process's devices hold
            first, last, _ = index[0].indices(total)
            return array[(slice(first - rows.start, last - rows.start), *index[1:])]

        return jax.make_array_from_callback((total, *array.shape[1:]), where, shard)

    return jax.tree.map(place, batch, shardings)
