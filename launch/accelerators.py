"""What a spec's accelerator is: hosts, devices a host, and what the clouds call it.

The shapes of TPU slices are `omnihuman_jax.scale.topologies`'; here are GKE's labels and machine types and the GPU
machines.
"""

import dataclasses
import difflib

from omnihuman_jax.scale.topologies import GENERATIONS, TpuSlice, tpu_slice


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TpuNames:
    """GKE's selector value, machine type (of hosts with 4 chips, and with 1), and the runtime of TPU VMs ("": GKE
    only).
    """

    label: str
    machine: str
    machine_of_one: str = ""
    vm_runtime: str = ""


TPU_NAMES: dict[str, TpuNames] = {
    "v4": TpuNames(label="tpu-v4-podslice", machine="ct4p-hightpu-4t", vm_runtime="tpu-ubuntu2204-base"),
    "v5e": TpuNames(
        label="tpu-v5-lite-podslice",
        machine="ct5lp-hightpu-4t",
        machine_of_one="ct5lp-hightpu-1t",
        vm_runtime="v2-alpha-tpuv5-lite",
    ),
    "v5p": TpuNames(label="tpu-v5p-slice", machine="ct5p-hightpu-4t", vm_runtime="v2-alpha-tpuv5"),
    "v6e": TpuNames(
        label="tpu-v6e-slice",
        machine="ct6e-standard-4t",
        machine_of_one="ct6e-standard-1t",
        vm_runtime="v2-alpha-tpuv6e",
    ),
    "tpu7x": TpuNames(label="tpu7x", machine="tpu7x-standard-4t", machine_of_one="tpu7x-standard-1t"),
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GpuMachine:
    """A node: GKE's selector value and machine type, and its GPUs."""

    label: str
    machine: str
    gpus: int


GPU_MACHINES: dict[str, GpuMachine] = {
    "h100": GpuMachine(label="nvidia-h100-80gb", machine="a3-highgpu-8g", gpus=8),
    "h100-mega": GpuMachine(label="nvidia-h100-mega-80gb", machine="a3-megagpu-8g", gpus=8),
    "h200": GpuMachine(label="nvidia-h200-141gb", machine="a3-ultragpu-8g", gpus=8),
    "b200": GpuMachine(label="nvidia-b200", machine="a4-highgpu-8g", gpus=8),
    "gb200": GpuMachine(label="nvidia-gb200", machine="a4x-highgpu-4g", gpus=4),
}
TYPES = (*GENERATIONS, *GPU_MACHINES, "cpu")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Machines:
    """The hosts of a job, one process each.

    kind: tpu, gpu or cpu
    groups: TPU slices; 1 for nodes
    hosts: of one group
    chips: of a host, as its scheduler counts them
    devices_per_host: as JAX counts them
    slice: one slice, if it is a TPU
    """

    kind: str
    type: str
    groups: int
    hosts: int
    chips: int
    devices_per_host: int
    slice: TpuSlice | None = None

    @property
    def processes(self) -> int:
        return self.groups * self.hosts

    @property
    def devices(self) -> int:
        """Of the whole job."""
        return self.processes * self.devices_per_host

    def __str__(self) -> str:
        if self.slice is not None:
            slices = f"{self.groups} x {self.type} {self.slice.topology} ({self.slice.name})"
            return f"{slices}: {self.processes} hosts, {self.devices} devices"
        return f"{self.hosts} x {self.type}: {self.devices} devices"


def machines(kind: str, *, topology: str = "", slices: int = 1, nodes: int = 1, devices: int = 1) -> Machines:
    """Hosts and devices of an accelerator as a spec names it; ValueError, with the cure, on a combination that does not
    exist.
    """
    if kind not in TYPES:
        near = difflib.get_close_matches(kind, TYPES, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"accelerator.type {kind!r} is unknown: it is one of {', '.join(TYPES)}{hint}")
    for name, value in (("slices", slices), ("nodes", nodes), ("devices", devices)):
        if value < 1:
            raise ValueError(f"accelerator.{name} must be >= 1, not {value}")
    if kind in GENERATIONS:
        if nodes != 1 or devices != 1:
            raise ValueError(f"accelerator: a TPU ({kind}) is named by topology and slices, not by nodes or devices")
        if not topology:
            raise ValueError(
                f"accelerator.topology is missing; {kind} has {', '.join(GENERATIONS[kind].small)} and larger"
            )
        one = tpu_slice(kind, topology)
        if slices > 1 and one.hosts == 1:
            raise ValueError(
                f"accelerator: {slices} slices of {kind} {topology}, a single host; several slices need 2 hosts each"
            )
        return Machines(
            kind="tpu", type=kind, groups=slices, hosts=one.hosts, chips=one.chips_per_host,
            devices_per_host=one.devices // one.hosts, slice=one,
        )  # fmt: skip
    if topology or slices != 1:
        raise ValueError(f"accelerator: {kind} is named by nodes; topology and slices are for TPUs")
    if kind == "cpu":
        return Machines(kind="cpu", type=kind, groups=1, hosts=nodes, chips=0, devices_per_host=devices)
    if devices != 1:
        raise ValueError(f"accelerator.devices is for cpu; a {kind} node has {GPU_MACHINES[kind].gpus} GPUs")
    gpus = GPU_MACHINES[kind].gpus
    return Machines(kind="gpu", type=kind, groups=1, hosts=nodes, chips=gpus, devices_per_host=gpus)
