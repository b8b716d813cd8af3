"""Fingerprints: the same wherever the array lies, another for any change of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from omnihuman_jax import sharding
from omnihuman_jax.checkpoint import fingerprint

SPECS = (PartitionSpec(), PartitionSpec("fsdp"), PartitionSpec(None, "fsdp"), PartitionSpec("data", "fsdp"))


def value(dtype: Any) -> np.ndarray:
    bits = np.random.default_rng(3).integers(0, 256, (8, 12, jnp.dtype(dtype).itemsize), np.uint8)
    return bits[..., 0] > 127 if dtype is bool else bits.view(dtype)[..., 0]


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int32, np.int8, bool])
def test_the_same_on_every_mesh_and_another_for_every_flipped_bit(dtype: Any) -> None:
    mesh, whole = sharding.create_mesh(sharding.MeshConfig(data=2, fsdp=4)), value(dtype)
    arrays = {str(spec): jax.device_put(whole, NamedSharding(mesh, spec)) for spec in SPECS} | {
        "one": jnp.asarray(whole)
    }
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
    assert (
        int(run(whole[::-1].copy())) != expected and int(run(np.roll(whole, 1, axis=1))) != expected
    )  # values that moved


def test_arrays_in_host_memory() -> None:
    mesh = sharding.create_mesh(sharding.MeshConfig(data=2, fsdp=4))
    place = NamedSharding(mesh, PartitionSpec("fsdp"))
    waiting = jax.device_put(value(np.float32), place.with_memory_kind(sharding.HOST_MEMORY))
    assert fingerprint.sums({"a": waiting}) == fingerprint.sums({"a": jax.device_put(value(np.float32), place)})


@pytest.mark.parametrize("shape", [(1600,), (8, 4, 12, 20)])
def test_large_arrays_are_summed_in_runs_of_rows_to_the_same(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    mesh = sharding.create_mesh(sharding.MeshConfig(data=2, fsdp=4))
    whole = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    expected = int(jax.jit(fingerprint.weighted_sum)(whole))
    specs = [
        PartitionSpec(),
        PartitionSpec(("data", "fsdp")),
        *([PartitionSpec(None, "fsdp")] if len(shape) > 1 else []),
    ]
    arrays = {str(spec): jax.device_put(whole, NamedSharding(mesh, spec)) for spec in specs} | {
        "one": jnp.asarray(whole)
    }
    fingerprint._program.cache_clear()
    monkeypatch.setattr(
        fingerprint, "_RUN_ELEMENTS", 70
    )  # with rows left over, and cuts in the first dim and behind it
    try:
        assert set(fingerprint.sums(arrays).values()) == {expected}
    finally:
        fingerprint._program.cache_clear()


def test_a_sum_takes_no_memory_of_its_arrays_size() -> None:
    mesh = sharding.create_mesh(sharding.MeshConfig(data=2, fsdp=4))
    place = NamedSharding(mesh, PartitionSpec(None, None, "fsdp"))
    stack = jax.ShapeDtypeStruct((4, 1024, 4096), jnp.float32, sharding=place)  # 16 MB a device
    needs = fingerprint._program((place,)).lower([stack]).compile().memory_analysis()
    assert needs.argument_size_in_bytes == 1 << 24 and needs.temp_size_in_bytes < 1 << 22
