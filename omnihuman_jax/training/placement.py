"""From numpy batches of one host to arrays of the mesh."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from omnihuman_jax import sharding


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
    batch: Mapping[str, np.ndarray], shardings: Mapping[str, NamedSharding], rows: range, total: int
) -> dict[str, jax.Array]:
    """Global arrays of `total` sequences from this process's `rows` of them; one transfer a device and array."""
    if len(rows) == total:
        return jax.device_put(dict(batch), dict(shardings))

    def place(name: str, array: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # a slice a dim: the callback is asked for what this process's devices hold
            first, last, _ = index[0].indices(total)
            return array[(slice(first - rows.start, last - rows.start), *index[1:])]

        return jax.make_array_from_callback((total, *array.shape[1:]), shardings[name], shard)

    return {name: place(name, array) for name, array in batch.items()}
