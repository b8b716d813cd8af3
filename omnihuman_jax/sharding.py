"""Mesh axes, the one table from logical axes to mesh axes, and `constrain`.

Every parameter and every activation constraint names *logical* axes; this table alone says which mesh axes they are
split over. An unknown logical axis is an error, because both flax and jax would replicate it in silence.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from omnihuman_jax.typing import PackedShape

MESH_AXES = ("data", "fsdp", "context", "tensor")

HOST_MEMORY = "pinned_host"
"""jax's name for the page-locked memory of a device's host, the only one that a running program reads and writes."""

# Logical axis -> mesh axes. `embed` is the long axis of every matrix that `tensor` does not split: fsdp shards it.
RULES: dict[str, tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "tokens": ("context",),
    "embed": ("fsdp", "context"),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "head_dim": None,
    "layers": None,
    "features": None,
}


@dataclasses.dataclass(kw_only=True, slots=True)
class MeshConfig:
    """Ways of each mesh axis; -1 on at most one axis takes what is left of the devices."""

    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1

    def shape(self, num_devices: int) -> tuple[int, int, int, int]:
        """The mesh shape for `num_devices`; ValueError with the numbers if they do not fit."""
        ways = [getattr(self, axis) for axis in MESH_AXES]
        free = [i for i, way in enumerate(ways) if way == -1]
        fixed = math.prod(way for way in ways if way != -1)
        if len(free) > 1 or any(way < 1 and way != -1 for way in ways):
            raise ValueError(f"mesh {dict(zip(MESH_AXES, ways))}: each axis is >= 1, or -1 on one axis at most")
        if free:
            if num_devices % fixed:
                raise ValueError(f"mesh {dict(zip(MESH_AXES, ways))}: {num_devices} devices are not a multiple of {fixed}")
            ways[free[0]] = num_devices // fixed
        elif fixed != num_devices:
            raise ValueError(f"mesh {dict(zip(MESH_AXES, ways))} needs {fixed} devices, there are {num_devices}")
        return ways[0], ways[1], ways[2], ways[3]


def create_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (all of the job's, if None) with the four axes, in Auto mode for logical-axis code."""
    devices = list(devices if devices is not None else jax.devices())
    shape = config.shape(len(devices))
    auto = (AxisType.Auto,) * len(MESH_AXES)
    if devices[0].platform == "cpu":
        return Mesh(np.asarray(devices).reshape(shape), MESH_AXES, axis_types=auto)
    return jax.make_mesh(shape, MESH_AXES, axis_types=auto, devices=devices)


def partition_spec(logical_axes: Sequence[str | None]) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes; KeyError-like ValueError on an unknown one."""
    entries: list[tuple[str, ...] | None] = []
    for axis in logical_axes:
        if axis is not None and axis not in RULES:
            raise ValueError(f"unknown logical axis {axis!r}; the table in sharding.py has {', '.join(RULES)}")
        entries.append(None if axis is None else RULES[axis])
    used = [mesh_axis for entry in entries if entry for mesh_axis in entry]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {tuple(logical_axes)} use a mesh axis twice: {used}")
    return PartitionSpec(*entries)


def named_sharding(mesh: Mesh, logical_axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
    """The sharding of an array of `shape`; dims that their mesh axes do not divide are an error with the numbers."""
    spec = partition_spec(logical_axes)
    for dim, axis in zip(shape, logical_axes, strict=True):
        # The table, not the spec: PartitionSpec turns ("tensor",) into "tensor".
        mesh_axes = RULES[axis] if axis is not None else None
        ways = math.prod(mesh.shape[mesh_axis] for mesh_axis in mesh_axes or ())
        if dim % ways:
            raise ValueError(f"dim {dim} ({axis}) of shape {tuple(shape)} is not divisible by {ways} ways of mesh axes {mesh_axes}")
    return NamedSharding(mesh, spec)


def batch_shardings(mesh: Mesh, shape: PackedShape, batch: int) -> dict[str, NamedSharding]:
    """The sharding of every array of a packed batch."""
    return {name: named_sharding(mesh, axes, dims) for name, (dims, _, axes) in shape.arrays(batch).items()}


def require_host_memory(mesh: Mesh, why: str) -> None:
    """ValueError where the devices of `mesh` have no pinned host memory; devices that are only described are believed."""
    device = mesh.devices.flat[0]
    if not hasattr(device, "addressable_memories"):
        return
    try:
        kinds = [memory.kind for memory in device.addressable_memories()]
    except (NotImplementedError, RuntimeError, AttributeError):
        return
    if kinds and HOST_MEMORY not in kinds:
        raise ValueError(f"{why} needs {HOST_MEMORY} memory; {device.platform} devices here have {', '.join(kinds)}: switch it off")


def constrain(x: jax.Array, *logical_axes: str | None) -> jax.Array:
    """`x` with the sharding of its logical axes; the identity outside of a mesh (`jax.set_mesh`)."""
    spec = partition_spec(logical_axes)
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec)
