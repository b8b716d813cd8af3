"""Meshes over slices: jax's own layout and ours agree, a slice stays together, and one slice is the mesh it always
was.
"""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.experimental import mesh_utils

from omnihuman_jax import sharding
from omnihuman_jax.sharding import MeshConfig


def described(slices: int, share: int, platform: str = "gpu") -> list[SimpleNamespace]:
    """Devices as jax describes them, slice after slice."""
    return [
        SimpleNamespace(id=i, platform=platform, device_kind="x", slice_index=i // share, process_index=i // 2)
        for i in range(slices * share)
    ]


@pytest.mark.parametrize(
    ("config", "across"),
    [
        (MeshConfig(fsdp=2, tensor=2, slices=4), (4, 1, 1, 1)),
        (MeshConfig(data=1, fsdp=4, context=2, slices=4, dcn_fsdp=4), (1, 4, 1, 1)),
        (MeshConfig(data=1, fsdp=-1, tensor=2, slices=4, dcn_data=2, dcn_fsdp=2), (2, 2, 1, 1)),
    ],
)
def test_the_layout_is_jaxs(config: MeshConfig, across: tuple[int, ...]) -> None:
    devices = described(4, 8)
    ours = sharding.hybrid_layout(config, sharding.slices_of(config, devices))
    theirs = mesh_utils.create_hybrid_device_mesh(config.inside(8), across, devices)
    assert ours.shape == config.shape(32) and np.array_equal(np.vectorize(id)(ours), np.vectorize(id)(theirs))
    # What exchanges most, context and tensor, never leaves a slice.
    slices = np.vectorize(lambda device: device.slice_index)(ours)
    assert (slices == slices[:, :, :1, :1]).all()


def test_slices_as_tpu_devices_say_them_and_by_hand() -> None:
    tpus = described(2, 4, "tpu")
    shuffled = [tpus[i] for i in (4, 0, 5, 1, 6, 2, 7, 3)]
    assert [[d.id for d in part] for part in sharding.slices_of(MeshConfig(), shuffled)] == [
        [4, 5, 6, 7],
        [0, 1, 2, 3],
    ][::-1]
    assert len(sharding.slices_of(MeshConfig(), described(2, 4))) == 1  # GPUs: unless the config says
    assert len(sharding.slices_of(MeshConfig(slices=2), described(2, 4))) == 2
    with pytest.raises(ValueError, match=r"mesh.slices is 4, the devices come from 2: set it to 2, or to 0"):
        sharding.create_mesh(MeshConfig(slices=4), tpus)


def test_simulated_slices_on_the_devices_here() -> None:
    one = sharding.create_mesh(MeshConfig(data=4, tensor=2))
    two = sharding.create_mesh(MeshConfig(data=2, tensor=2, slices=2))
    assert dict(two.shape) == dict(one.shape) == {"data": 4, "fsdp": 1, "context": 1, "tensor": 2}
    assert [d.id for d in two.devices.flat] == [d.id for d in jax.devices()]
    with pytest.raises(
        ValueError, match=r"mesh.slices is 3, which does not divide 8 devices; the nearest that do: 2 or 4"
    ):
        sharding.create_mesh(MeshConfig(slices=3))
