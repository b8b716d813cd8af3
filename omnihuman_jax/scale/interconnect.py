"""How long a collective takes on the links that its devices have between them: rings and lines of a torus, NVLink, DCN.

Formulas for large messages, without latency [jax-ml.github.io/scaling-book/sharding]. `bytes` is the larger side of the
collective on one device: what an all-gather gives, what a reduce-scatter or all-reduce takes, what an all-to-all holds.
"""

import collections
import dataclasses
from collections.abc import Sequence

from omnihuman_jax.scale.hardware import Topology

Coords = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Path:
    """The links between the devices of one group.

    rings: (chips along a torus dim, whether its ring is closed) of every dim that the group spans.
    slices: how many slices it spans. hosts: on GPU, machines. devices: of the group.
    on_chip: how many of the group share a chip, where a chip is several devices.
    flat: without rings: `nvlink`, or `ici` where all chips of a slice are joined with each other.
    """

    devices: int
    rings: tuple[tuple[int, bool], ...] = ()
    slices: int = 1
    hosts: int = 1
    on_chip: int = 1
    flat: str = "nvlink"

    @property
    def network(self) -> str:
        """`ici`, `nvlink`, `chip` or `dcn`: the slowest link that it needs."""
        if self.slices > 1 or self.hosts > 1:
            return "dcn"
        if self.rings:
            return "ici"
        return "chip" if self.devices == self.on_chip > 1 else self.flat


def path_between(topology: Topology, members: Sequence[tuple[int, Coords]]) -> Path:
    """Of a group of devices given as (slice, coordinates); on GPU (machine, (index,))."""
    slices = len({at for at, _ in members})
    if topology.accelerator.platform == "gpu":
        return Path(devices=len(members), hosts=slices)
    on_chip = len(members) // len(set(members))
    rings = []
    for dim, size in enumerate(topology.dims):
        found = len({coords[dim] for _, coords in members})
        if found > 1:
            rings.append((found, found == size and topology.has_wrap(dim)))
    return Path(devices=len(members), rings=tuple(rings), slices=slices, on_chip=on_chip)


def permute_path(topology: Topology, pairs: Sequence[tuple[tuple[int, Coords], tuple[int, Coords]]]) -> Path:
    """Of a collective-permute, whose pairs all send at once: the busiest of its links, between slices if any does."""
    loads = collections.Counter((source, target) for source, target in pairs if source != target)
    if not loads:
        return path_between(topology, pairs[0])
    (source, target), load = max(loads.items(), key=lambda item: (item[0][0][0] != item[0][1][0], item[1]))
    a_chip = topology.devices // topology.chips
    return dataclasses.replace(path_between(topology, (source, target)), on_chip=max(a_chip // load, 1))


def seconds(topology: Topology, kind: str, size: float, path: Path) -> float:
    """Time of one collective of `kind` with `size` bytes on each device."""
    accelerator, n = topology.accelerator, path.devices
    if n <= 1 or not size:
        return 0.0
    # A chip's links serve all its devices: those of the group, and those of other groups that send at the same time.
    a_chip = topology.devices // topology.chips
    others = a_chip // path.on_chip
    if path.network == "chip":
        return _passes(kind) * size * _share(kind, n) / (accelerator.chip_bandwidth or accelerator.link_bandwidth)
    if path.network != "dcn" and not path.rings:
        return _passes(kind) * size * _share(kind, n) * others / accelerator.link_bandwidth
    if path.network == "dcn":
        across = max(path.slices, path.hosts)
        inner = n // across
        if kind in ("all-to-all", "collective-permute"):
            return size * (across - 1) / across / accelerator.dcn_bandwidth
        # Hierarchical: the devices inside each take their part of what crosses.
        beyond = _passes(kind) * size / inner * (across - 1) / across / accelerator.dcn_bandwidth
        return beyond + seconds(topology, kind, size, dataclasses.replace(path, devices=inner, slices=1, hosts=1))
    if kind == "all-to-all":
        # The narrowest cut, in the middle of the longest dim: half of all data crosses it, half of that each way.
        widest = max(size * count / (8 if closed else 4) for count, closed in path.rings)
        return widest * a_chip / accelerator.link_bandwidth
    if kind == "collective-permute":
        return size * others / accelerator.link_bandwidth
    width = sum(2 if closed else 1 for _, closed in path.rings) * accelerator.link_bandwidth
    return _passes(kind) * size * _share(kind, n) * others / width


def sent_bytes(kind: str, size: float, devices: int) -> float:
    """What one device sends in all: the usual figure for comparing programs, whatever the links."""
    return _passes(kind) * size * _share(kind, devices)


def _passes(kind: str) -> int:
    return 2 if kind == "all-reduce" else 1


def _share(kind: str, devices: int) -> float:
    return 1.0 if kind == "collective-permute" else (devices - 1) / devices
