"""What a spec's accelerator is: hosts, devices a host, and what the clouds call it.

The shapes of TPU slices are `omnihuman_jax.scale.topologies`'; here are GKE's labels and machine types and the GPU
machines.
"""

import dataclasses
import difflib
from collections.abc import Mapping

from omnihuman_jax.scale.topologies import GENERATIONS, TpuSlice, tpu_slice


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """A machine type of Compute Engine: its name, vCPUs, memory in GB."""

    machine: str
    cpus: int
    memory_gb: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TpuNames:
    """What Google calls a generation.

    label: GKE's selector value
    hosts: the machine by its chips
    vm_runtime: of the Cloud TPU API ("": not served)
    image_family: of Compute Engine's TPU images ("": not served)
    """

    label: str
    hosts: Mapping[int, Host]
    vm_runtime: str = ""
    image_family: str = ""


# Of project ubuntu-os-accelerator-images.
_UBUNTU = "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"
TPU_NAMES: dict[str, TpuNames] = {
    "v4": TpuNames(
        label="tpu-v4-podslice",
        hosts={4: Host(machine="ct4p-hightpu-4t", cpus=240, memory_gb=407)},
        vm_runtime="tpu-ubuntu2204-base",
    ),
    "v5e": TpuNames(
        label="tpu-v5-lite-podslice",
        hosts={
            1: Host(machine="ct5lp-hightpu-1t", cpus=24, memory_gb=48),
            4: Host(machine="ct5lp-hightpu-4t", cpus=112, memory_gb=192),
            8: Host(machine="ct5lp-hightpu-8t", cpus=224, memory_gb=384),
        },
        vm_runtime="v2-alpha-tpuv5-lite",
    ),
    "v5p": TpuNames(
        label="tpu-v5p-slice",
        hosts={4: Host(machine="ct5p-hightpu-4t", cpus=208, memory_gb=448)},
        vm_runtime="v2-alpha-tpuv5",
        image_family=_UBUNTU,
    ),
    "v6e": TpuNames(
        label="tpu-v6e-slice",
        hosts={
            1: Host(machine="ct6e-standard-1t", cpus=44, memory_gb=176),
            4: Host(machine="ct6e-standard-4t", cpus=180, memory_gb=720),
            8: Host(machine="ct6e-standard-8t", cpus=180, memory_gb=1440),
        },
        vm_runtime="v2-alpha-tpuv6e",
        image_family=_UBUNTU,
    ),
    "tpu7x": TpuNames(
        label="tpu7x",
        hosts={
            1: Host(machine="tpu7x-standard-1t", cpus=56, memory_gb=240),
            4: Host(machine="tpu7x-standard-4t", cpus=224, memory_gb=960),
        },
        image_family="ubuntu-accel-2404-amd64-tpu-tpu7x",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GpuMachine:
    """A node: GKE's selector value, the machine, its GPUs, and whether its processors are ARM's."""

    label: str
    host: Host
    gpus: int
    arm: bool = False


GPU_MACHINES: dict[str, GpuMachine] = {
    "h100": GpuMachine(label="nvidia-h100-80gb", host=Host(machine="a3-highgpu-8g", cpus=208, memory_gb=1872), gpus=8),
    "h100-mega": GpuMachine(
        label="nvidia-h100-mega-80gb", host=Host(machine="a3-megagpu-8g", cpus=208, memory_gb=1872), gpus=8
    ),
    "h200": GpuMachine(
        label="nvidia-h200-141gb", host=Host(machine="a3-ultragpu-8g", cpus=224, memory_gb=2952), gpus=8
    ),
    "b200": GpuMachine(label="nvidia-b200", host=Host(machine="a4-highgpu-8g", cpus=224, memory_gb=3968), gpus=8),
    "gb200": GpuMachine(
        label="nvidia-gb200", host=Host(machine="a4x-highgpu-4g", cpus=140, memory_gb=884), gpus=4, arm=True
    ),
    "gb300": GpuMachine(
        label="nvidia-gb300", host=Host(machine="a4x-maxgpu-4g-metal", cpus=144, memory_gb=960), gpus=4, arm=True
    ),
}
# An NVLink domain of GB200 and GB300 has so many nodes.
NVLINK_NODES = 18
TYPES = (*TPU_NAMES, *GPU_MACHINES, "cpu")


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
    def host(self) -> Host | None:
        """The machine type; None for `cpu`, which may be any."""
        if self.kind == "tpu":
            return TPU_NAMES[self.type].hosts[self.chips]
        return GPU_MACHINES[self.type].host if self.kind == "gpu" else None

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


def machines(
    kind: str, *, topology: str = "", slices: int = 1, nodes: int = 1, devices: int = 1, one_host: bool = False
) -> Machines:
    """Hosts and devices of an accelerator as a spec names it; ValueError, with the cure, on a combination that does not
    exist.
    """
    if one_host and not (kind in ("v5e", "v6e") and topology == "2x4"):
        raise ValueError(f"accelerator.one_host is for v5e and v6e 2x4, whose 8 chips one machine has; not for {kind}")
    if kind in GENERATIONS and kind not in TPU_NAMES:
        raise ValueError(
            f"accelerator.type {kind} is announced, and no cloud's name for it is known: nothing can be submitted;"
            f" `omnihuman plan --topology {kind}:{GENERATIONS[kind].small[-1]} --estimate` plans it by formula"
        )
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
        one = tpu_slice(kind, topology, one_host=one_host)
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
