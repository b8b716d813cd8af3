"""Fingerprints: the same wherever the array lies, another for any change of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from omnihuman_jax import sharding
from omnihuman_jax.training import fingerprint

SPECS = (PartitionSpec(), PartitionSpec("fsdp"), PartitionSpec(None, "fsdp"), PartitionSpec("data", "fsdp"))


def value(dtype: Any) -> np.ndarray:
    bits = np.random.default_rng(3).integers(0, 256, (8, 12, jnp.dtype(dtype).itemsize), np.uint8)
    return bits[..., 0] > 127 if dtype is bool else bits.view(dtype)[..., 0]


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int32, np.int8, bool])
def test_the_same_on_every_mesh_and_another_for_every_flipped_bit(dtype: Any) -> None:
    mesh, whole = sharding.create_mesh(sharding.MeshConfig(data=2, fsdp=4)), value(dtype)
    arrays = {str(spec): jax.device_put(whole, NamedSharding(mesh, spec)) for spec in SPECS} | {"one": jnp.asarray(whole)}
    found = fingerprint.sums(arrays)
    assert list(found) == list(arrays) and len(set(found.values())) == 1
    expected = found["one"]
    if dtype is bool:
        return
    run = jax.jit(fingerprint.weighted_sum)
    for bit in range(8 * whole.itemsize):
        changed = whole.copy()
        changed.reshape(-1).view(np.uint8)[37 * whole.itemsize + bit // 8] ^= 1 << bit % 8
        assert int(run(changed)) != expected, bit
    assert int(run(whole[::-1].copy())) != expected and int(run(np.roll(whole, 1, axis=1))) != expected  # values that moved


def test_arrays_in_host_memory() -> None:
    mesh = sharding.create_mesh(sharding.MeshConfig(data=2, fsdp=4))
    place = NamedSharding(mesh, PartitionSpec("fsdp"))
    waiting = jax.device_put(value(np.float32), place.with_memory_kind(sharding.HOST_MEMORY))
    assert fingerprint.sums({"a": waiting}) == fingerprint.sums({"a": jax.device_put(value(np.float32), place)})
