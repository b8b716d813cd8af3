"""Mesh axes, the one table from logical axes to mesh axes, and `constrain`.

Every parameter and every activation constraint names *logical* axes; this table alone says which mesh axes they are
split over. An unknown logical axis is an error, because both flax and jax would replicate it in silence.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from omnihuman_jax.typing import PackedBatch, PackedShape

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
    """Ways of each mesh axis inside a slice, and across slices; -1 takes what is left, on one axis of each at most.

    data, fsdp, context, tensor: inside a slice, over its own interconnect (ICI, NVLink). A CPU, a machine of GPUs, a
        cluster of them and a TPU slice are one slice.
    slices: slices that the data-centre network (DCN) joins; 0: as many as the TPU devices say they come from, else 1.
    dcn_data, dcn_fsdp: ways of `data` and `fsdp` across slices. The mesh's axis is the product of both, with the
        devices of a slice next to each other; `context` and `tensor` never leave a slice.
    """

    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1
    slices: int = 0
    dcn_data: int = -1
    dcn_fsdp: int = 1

    def validate(self) -> None:
        """ValueError on ways that no number of devices fits; `shape` knows the number."""
        if self.slices < 0:
            raise ValueError(f"mesh.slices is {self.slices}; it must be 0 (as the devices say) or more")
        for axes in (MESH_AXES, ("dcn_data", "dcn_fsdp")):
            _check_ways({axis: getattr(self, axis) for axis in axes})

    def inside(self, num_devices: int) -> tuple[int, int, int, int]:
        """Ways of each axis inside a slice of `num_devices`; ValueError with the numbers if they do not fit."""
        found = _fill({axis: getattr(self, axis) for axis in MESH_AXES}, num_devices, "devices")
        return found[0], found[1], found[2], found[3]

    def across(self, slices: int) -> tuple[int, int]:
        """Ways of `data` and `fsdp` over `slices`; ValueError with the numbers if they do not fit."""
        found = _fill({axis: getattr(self, axis) for axis in ("dcn_data", "dcn_fsdp")}, slices, "slices")
        return found[0], found[1]

    def shape(self, num_devices: int, slices: int | None = None) -> tuple[int, int, int, int]:
        """The mesh shape for `num_devices` in all, of `slices` (`self.slices`, if None) of equal size.

        Raises:
            ValueError: they do not fit, with the numbers and the nearest values that do.
        """
        slices = slices if slices is not None else max(self.slices, 1)
        if self.slices < 0 or slices < 1:
            raise ValueError(f"mesh.slices is {self.slices}; it must be 0 (as the devices say) or more")
        if self.slices and self.slices != slices:
            raise ValueError(
                f"mesh.slices is {self.slices}, the devices come from {slices}: set it to {slices}, or to 0"
            )
        if num_devices % slices:
            raise ValueError(
                f"mesh.slices is {slices}, which does not divide {num_devices} devices;"
                f" {nearest_divisors(num_devices, slices)}"
            )
        data, fsdp, context, tensor = self.inside(num_devices // slices)
        dcn_data, dcn_fsdp = self.across(slices)
        if dcn_fsdp > 1 and data > 1:
            raise ValueError(
                f"mesh.dcn_fsdp is {dcn_fsdp} and mesh.data is {data}: the axis that crosses slices must be "
                f"the outermost; set mesh.data=1 and mesh.fsdp={data * fsdp}, or mesh.dcn_fsdp=1"
            )
        return data * dcn_data, fsdp * dcn_fsdp, context, tensor


def _check_ways(ways: dict[str, int]) -> None:
    """ValueError unless each is >= 1, but for one that may be -1."""
    if list(ways.values()).count(-1) > 1 or any(way < 1 and way != -1 for way in ways.values()):
        text = ", ".join(f"{axis}={way}" for axis, way in ways.items())
        raise ValueError(f"mesh {text}: each axis must be >= 1, and at most one may be -1 (the rest of the devices)")


def _fill(ways: dict[str, int], total: int, unit: str) -> list[int]:
    """The ways, with the -1 among them replaced so that they multiply to `total`."""
    _check_ways(ways)
    text = ", ".join(f"{axis}={way}" for axis, way in ways.items())
    free = [axis for axis, way in ways.items() if way == -1]
    fixed = math.prod(way for way in ways.values() if way != -1)
    if (total % fixed if free else total != fixed) or fixed > total:
        cures = []
        for axis, way in ways.items():
            rest = fixed // way if way != -1 else 0
            if rest and total % rest == 0 and (not free or way > 1):
                fits = total // rest
                cures.append(nearest_divisors(fits, way, f"mesh.{axis}") if free else f"mesh.{axis}={fits}")
        cure = " or ".join(cures) or f"their product must divide {total}" + ("" if free else f" and be {total}")
        wants = f"is a multiple of {fixed}" if free else f"needs {fixed}"
        raise ValueError(f"mesh {text} {wants} {unit}, there are {total}: {cure}")
    return [total // fixed if axis in free else way for axis, way in ways.items()]


def nearest_divisors(size: int, way: int, name: str = "") -> str:
    """The divisors of `size` next to `way`, in words."""
    divisors = [n for n in range(1, size + 1) if size % n == 0]
    below = max((n for n in divisors if n <= way), default=divisors[0])
    above = min((n for n in divisors if n >= way), default=divisors[-1])
    found = str(below) if below == above else f"{below} or {above}"
    return f"{name}={found}" if name else f"the nearest that do: {found}"


def slices_of(config: MeshConfig, devices: Sequence[Any]) -> list[list[Any]]:
    """The devices of each slice, in order: as TPU devices say, else in equal shares of neighbours (or `config.slices`
    of them).

    GPUs and simulated devices know no slices; `mesh.slices` makes them by hand, of the devices that are next to each
    other.
    """
    found: dict[int, list[Any]] = {}
    for device in devices:
        found.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    if devices[0].platform == "tpu":
        return [found[index] for index in sorted(found)]
    count = max(config.slices, 1)
    if len(devices) % count:
        return [list(devices)]  # `shape` says what is wrong
    share = len(devices) // count
    return [list(devices[i * share : (i + 1) * share]) for i in range(count)]


def create_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (all of the job's, if None) with the four axes, in Auto mode for logical-axis code.

    Real or only described devices (ahead-of-time compilation), one slice or several: the same layout.
    """
    devices = list(devices if devices is not None else jax.devices())
    slices = slices_of(config, devices)
    shape = config.shape(len(devices), max(config.slices, 1) if len(slices) == 1 else len(slices))
    auto = (AxisType.Auto,) * len(MESH_AXES)
    if len(slices) > 1:
        return Mesh(hybrid_layout(config, slices), MESH_AXES, axis_types=auto)
    if devices[0].platform == "cpu":
        return Mesh(np.asarray(devices).reshape(shape), MESH_AXES, axis_types=auto)
    # An axis takes whole dims of the torus where it can, and shares one where no subset of them has its size.
    layout = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(layout, MESH_AXES, axis_types=auto)


def hybrid_layout(config: MeshConfig, slices: Sequence[Sequence[Any]]) -> np.ndarray:
    """Devices as an array of the mesh's shape: an axis's ways across slices are outermost.

    Where devices know their slice, jax's own layout (which knows the torus of a slice); else the same by construction.
    """
    inside, across = config.inside(len(slices[0])), (*config.across(len(slices)), 1, 1)
    if slices[0][0].platform == "tpu":
        joined = [device for part in slices for device in part]
        return mesh_utils.create_hybrid_device_mesh(inside, across, joined, allow_split_physical_axes=True)
    blocks = np.empty(len(slices) * len(slices[0]), object)
    blocks[:] = [device for part in slices for device in part]
    apart = blocks.reshape(*across, *inside)  # (data, fsdp, 1, 1) of slices, then (data, fsdp, context, tensor) in each
    together = apart.transpose(*(axis for i in range(len(inside)) for axis in (i, i + len(inside))))
    return together.reshape([outer * inner for outer, inner in zip(across, inside, strict=True)])


def platform_of(mesh: Mesh | AbstractMesh) -> str:
    """`cpu`, `gpu` or `tpu`: of its devices, which may be described only, or have sizes only."""
    device = mesh.abstract_mesh.abstract_device
    assert device is not None
    return device.platform


def platform() -> str:
    """`cpu`, `gpu` or `tpu`: of the mesh's devices (a program for TPUs may be compiled on a CPU), else the default
    backend.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


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
            raise ValueError(
                f"dim {dim} ({axis}) of shape {tuple(shape)} is not divisible by {ways} ways of mesh axes {mesh_axes}"
            )
    return NamedSharding(mesh, spec)


def batch_shardings(mesh: Mesh, shape: PackedShape, batch: int) -> PackedBatch[NamedSharding]:
    """The sharding of every array of a packed batch."""
    return jax.tree.map(lambda spec: named_sharding(mesh, spec.axes, spec.dims), shape.arrays(batch))


def require_host_memory(mesh: Mesh, why: str) -> None:
    """ValueError where the devices of `mesh` have no pinned host memory; devices that are only described are
    believed.
    """
    if isinstance(mesh, AbstractMesh):
        return
    device = mesh.devices.flat[0]
    if not hasattr(device, "addressable_memories"):
        return
    try:
        kinds = [memory.kind for memory in device.addressable_memories()]
    except (NotImplementedError, RuntimeError, AttributeError):
        return
    if kinds and HOST_MEMORY not in kinds:
        raise ValueError(
            f"{why} needs {HOST_MEMORY} memory; {device.platform} devices here have {', '.join(kinds)}: switch it off"
        )


def constrain(x: jax.Array, *logical_axes: str | None) -> jax.Array:
    """`x` with the sharding of its logical axes; the identity outside of a mesh (`jax.set_mesh`)."""
    spec = partition_spec(logical_axes)
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec)
