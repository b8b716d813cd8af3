"""Arrays written slice by slice: the same checkpoint as Orbax's own, byte for byte of what it says and of what is read
back.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from omnihuman_jax import sharding
from omnihuman_jax.checkpoint import orbax_slices
from omnihuman_jax.checkpoint import parts as checkpoint_parts
from omnihuman_jax.checkpoint.parts import context_for

SHAPES = {
    "blocks/kernel": ((3, 64, 96), np.float32, PartitionSpec(None, "fsdp")),
    "blocks/inner": ((2, 24, 5, 40), jnp.bfloat16, PartitionSpec(None, None, None, "fsdp")),
    "both": ((16, 24), np.float32, PartitionSpec("data", "fsdp")),
    "copies": ((10, 7), np.float32, PartitionSpec()),
    "scalar": ((), np.int32, PartitionSpec()),
}


def tree() -> dict[str, jax.Array]:
    mesh = sharding.create_mesh(sharding.MeshConfig(data=2, fsdp=4))
    rng = np.random.default_rng(0)
    return {
        name: jax.device_put(rng.standard_normal(shape).astype(dtype), NamedSharding(mesh, spec))
        for name, (shape, dtype, spec) in SHAPES.items()
    }


def saved(folder: Path, arrays: dict[str, jax.Array], *, sliced: bool) -> None:
    context = context_for(folder)
    context.array.saving.min_slice_bytes_for_replica_parallel = 64  # copies share the work, as for large arrays
    if sliced:
        orbax_slices.use(context)
    with context:
        ocp.save_checkpointables(folder, {"params": arrays})


def stored(folder: Path) -> dict[bytes, bytes]:
    """Every key of the merged store: metadata and chunks."""
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{folder / 'params'}/"}).result()
    return {key: store.read(key).result().value for key in store.list().result()}


@pytest.fixture(params=["one slice", "many slices"])
def sizes(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many slices":
        monkeypatch.setattr(orbax_slices, "SLICE_BYTES", 600)
        monkeypatch.setattr(orbax_slices, "COMMIT_BYTES", 2000)
        monkeypatch.setattr(checkpoint_parts, "MIN_CHUNK_BYTES", 256)
        monkeypatch.setattr(checkpoint_parts, "MAX_CHUNK_BYTES", 1024)


def test_nobody_can_tell_who_wrote_it(sizes: None, tmp_path: Path) -> None:
    arrays = tree()
    for name, sliced in (("orbax", False), ("ours", True)):
        saved(tmp_path / name, arrays, sliced=sliced)
    assert stored(tmp_path / "ours") == stored(tmp_path / "orbax")
    for file in ("_CHECKPOINT_METADATA", "params/_METADATA", "params/array_metadatas/process_0", "params/_sharding"):
        ours, theirs = (json.loads((tmp_path / name / file).read_text()) for name in ("ours", "orbax"))
        for value in (ours, theirs):
            if file == "_CHECKPOINT_METADATA":
                value.update(dict.fromkeys([key for key in value if key.endswith("nsecs")], 0))
        assert ours == theirs, file
    with context_for(tmp_path):
        back = ocp.load_checkpointables(tmp_path / "ours", {"params": arrays})["params"]
    for name, array in arrays.items():
        assert back[name].sharding == array.sharding
        assert np.asarray(back[name]).tobytes() == np.asarray(array).tobytes(), name


def test_a_slice_is_whole_chunks_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orbax_slices, "SLICE_BYTES", 4000)
    assert orbax_slices._slice_shape((40, 64, 30), (1, 8, 30), 4) == (1, 32, 30)
    assert orbax_slices._slice_shape((40, 8, 30), (1, 8, 30), 4) == (4, 8, 30)
    assert orbax_slices._slice_shape((40, 64, 3000), (1, 8, 3000), 4) == (1, 8, 3000)
    assert orbax_slices._slice_shape((), (), 4) == ()


def test_a_device_gives_its_slices_alone() -> None:
    data = jnp.arange(5 * 6 * 7.0).reshape(5, 6, 7)
    expected = np.asarray(data)[1:3, 2:6, 3:7]
    np.testing.assert_array_equal(orbax_slices._to_host(data, (1, 2, 3), (2, 4, 4)), expected)
    np.testing.assert_array_equal(orbax_slices._cut(data, np.array([1, 2, 3], np.int32), (2, 4, 4)), expected)
    held = orbax_slices._to_host(data, (1, 2, 3), (2, 4, 4))
    assert not held.flags.owndata and np.shares_memory(held, np.asarray(data))  # on a CPU nothing is copied
