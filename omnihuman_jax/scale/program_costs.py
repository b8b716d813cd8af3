"""What a compiled train step holds, computes and sends on one device: the facts that a plan is made of, as plain
numbers.

A `ProgramCosts` is read from a compiled program once (minutes of compilation) and kept as JSON; rooflines and tables
are computed from it (instantly) for any efficiencies.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from omnihuman_jax.scale import interconnect
from omnihuman_jax.scale.collectives import Collective, collectives
from omnihuman_jax.scale.hardware import GIB, Topology
from omnihuman_jax.scale.hlo import HOST, Computation, Instruction, Program
from omnihuman_jax.scale.roofline import Communication, Work

PALLAS = "tpu_custom_call"
# Products of the size (queries x keys x head) that a pass of the attention kernel computes in each block, and whose
# work it is.
_PASSES = {"fwd": ("attention_forward", 2), "dkv": ("attention_backward", 4), "dq": ("attention_backward", 3)}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on one device, as XLA planned them. `needed` is what the program would take where it was refused.

    host, host_limit: in the memory of its host, and a device's share of what a host has (0: unknown).
    """

    arguments: int = 0
    temporaries: int = 0
    output: int = 0
    alias: int = 0
    code: int = 0
    host: int = 0
    limit: int
    host_limit: int = 0
    needed: int = 0

    @property
    def peak(self) -> int:
        """Arguments, outputs that are not written over them, temporaries and code."""
        return self.needed or self.arguments + self.output - self.alias + self.temporaries + self.code

    @property
    def fits(self) -> bool:
        """Into what the chip and its host have."""
        return self.peak <= self.limit and self.fits_host

    @property
    def fits_host(self) -> bool:
        """Into what its host has, if that is known."""
        return not self.host_limit or self.host <= self.host_limit


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ProgramCosts:
    """Of one device and step: memory, work by kind and intensity, collectives by kind and axes, what XLA counted
    itself.
    """

    memory: Memory
    works: tuple[Work, ...] = ()
    communications: tuple[Communication, ...] = ()
    xla_flops: float = 0.0
    xla_flops_matched: float = 0.0
    kernels: int = 0
    lower_s: float = 0.0
    compile_s: float = 0.0

    @property
    def flops(self) -> float:
        """Executed on one device in a step: with everything that is computed again."""
        return sum(work.flops for work in self.works)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ProgramCosts":
        """The inverse."""
        values = dict(data) | {
            "memory": Memory(**data["memory"]),
            "works": tuple(Work(**work) for work in data["works"]),
            "communications": tuple(Communication(**c | {"axes": tuple(c["axes"])}) for c in data["communications"]),
        }
        return cls(**values)


def memory_of(compiled: Any, limit: int, host_limit: int = 0) -> Memory:
    """From `compiled.memory_analysis()`."""
    found = compiled.memory_analysis()
    host = sum(getattr(found, f"host_{name}_size_in_bytes", 0) for name in ("argument", "temp"))
    return Memory(
        arguments=found.argument_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        output=found.output_size_in_bytes,
        alias=found.alias_size_in_bytes,
        code=found.generated_code_size_in_bytes,
        host=host,
        limit=limit,
        host_limit=host_limit,
    )


def refused_memory(error: Exception, limit: int) -> Memory | None:
    """What the compiler says that a program would take which does not fit into HBM; None if the error is another.

    Also None where on-chip memory is full (VMEM: a kernel's blocks are too large): no larger slice or shorter batch
    mends that.
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text or not _HBM.search(text):
        return None
    if used := _USED.search(text):
        return Memory(limit=limit, needed=max(int(float(used[1]) * _UNITS[used[2]]), limit + 1))
    sizes = [float(number) * _UNITS[unit] for number, unit in _SIZES.findall(text)]
    return Memory(limit=limit, needed=max(int(max(sizes, default=0)), limit + 1))


_HBM = re.compile(r"HbmOom|ran out of memory (?:on|in memory space) hbm|hbm capacity by", re.IGNORECASE)
_USED = re.compile(r"Used (\d+(?:\.\d+)?)([KMGT])(?:i?B)? of \S+ hbm", re.IGNORECASE)
_UNITS = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
_SIZES = re.compile(r"(\d+(?:\.\d+)?)\s?([KMGT])(?:i?B)?\b")


def words_of(error: Exception, most: int = 400) -> str:
    """What the compiler says, on one line: its beginning and its end, where it says what is too large."""
    text = " ".join(re.sub(r"See https?://\S+ for more details\.", "", str(error)).split())
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-(most - most // 2) :]}"


def works_of(program: Program) -> list[Work]:
    """All executed work, summed by kind and intensity (in steps of a quarter power of two: rooflines change little
    within).
    """
    sums: dict[tuple[str, int], list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for computation, instruction, times in program.executed():
        kind, flops = kind_and_flops(program, computation, instruction)
        moved = program.hbm_bytes(computation, instruction)
        if not flops and not moved:
            continue
        bucket = round(4 * math.log2((flops + 1) / (moved + 1)))
        total = sums[kind, bucket]
        total[0] += times * flops
        total[1] += times * moved
    return [Work(kind=kind, flops=flops, bytes=moved) for (kind, _), (flops, moved) in sorted(sums.items())]


def kind_and_flops(program: Program, computation: Computation, instruction: Instruction) -> tuple[str, float]:
    """What an instruction is, and its operations: the attention kernels by the shapes of queries and keys, nothing
    skipped.
    """
    for where, inner in program.inside(
        computation, instruction
    ):  # XLA fuses a kernel with the slices that it reads and writes
        if inner.opcode == "custom-call" and PALLAS in inner.attribute("custom_call_target"):
            return attention_pass(where, inner)
    flops = program.flops(computation, instruction)
    return ("matmul" if flops else "memory"), flops


def attention_pass(computation: Computation, instruction: Instruction) -> tuple[str, float]:
    """Kind and operations of a splash kernel, from its name and its queries [N, M, K] and keys [N, S, K]."""
    name = f"{instruction.name} {instruction.op_name} {instruction.attribute('kernel_name')}"
    found = next((key for key in ("dkv", "dq", "fwd") if re.search(rf"splash\w*_{key}", name)), None)
    if found is None:
        return "memory", 0.0
    kind, products = _PASSES[found]
    if found == "dkv" and any(len(shape.dims) == 4 for shape in instruction.shapes):
        products += 1  # the fused kernel: the queries' gradient too, once a block of keys
    floats = ("bf16", "f16", "f32")
    arrays = [
        s.dims
        for shapes in computation.operand_shapes(instruction)
        for s in shapes
        if len(s.dims) == 3 and s.dtype in floats
    ]
    (heads, queries, size), (_, keys, _) = arrays[:2]
    return kind, 2.0 * products * heads * queries * keys * size


def communications_of(found: Iterable[Collective], mesh: Mesh, topology: Topology) -> list[Communication]:
    """Collectives summed by kind, axes and whether they can hide, with the time on the links between their devices."""
    places = [_place(device, topology) for device in mesh.devices.flat]
    sums: dict[tuple[str, tuple[str, ...], str, bool], list[float]] = collections.defaultdict(lambda: [0.0] * 4)
    paths: dict[tuple[tuple[int, ...], ...], interconnect.Path] = {}
    for item in found:
        group = next((group for group in item.groups if len(set(group)) > 1), item.groups[0])
        members = item.groups if item.kind == "collective-permute" else (group,)
        if members not in paths:
            if item.kind == "collective-permute":
                pairs = [(places[source], places[target]) for source, target in item.groups]
                paths[members] = interconnect.permute_path(topology, pairs)
            else:
                paths[members] = interconnect.path_between(topology, [places[i] for i in group])
        path = paths[members]
        size = item.operand_bytes * (item.group_size if item.kind == "all-gather" else 1)
        total = sums[item.kind, item.axes, path.network, item.asynchronous]
        total[0] += item.trips
        total[1] += item.trips * size
        total[2] += item.step_bytes
        total[3] += item.trips * interconnect.seconds(topology, item.kind, size, path)
    return [
        Communication(
            kind=kind,
            axes=axes,
            network=network,
            hidden=hidden,
            count=int(count),
            bytes=size,
            sent_bytes=sent,
            seconds=seconds,
        )
        for (kind, axes, network, hidden), (count, size, sent, seconds) in sorted(sums.items())
    ]


def host_copies_of(program: Program, topology: Topology) -> list[Communication]:
    """Copies between a device and its host's memory, as one entry; none where nothing is offloaded."""
    count, moved = 0, 0
    for _, instruction, times in program.executed():
        spaces = [shape.space for shape in instruction.shapes]
        if instruction.opcode in ("copy-start", "copy") and HOST in spaces[:2]:
            count += times
            moved += times * instruction.shapes[0].bytes
    if not count:
        return []
    seconds = moved / topology.accelerator.host_bandwidth
    return [
        Communication(
            kind="copy",
            axes=("host",),
            network="pcie",
            count=count,
            bytes=moved,
            sent_bytes=moved,
            seconds=seconds,
            hidden=True,
        )
    ]


def between_slices_of(program: Program, topology: Topology) -> list[Communication]:
    """What crosses the data-centre network: XLA writes it as transfers through the host, apart from the collectives of
    a slice.
    """
    sums: dict[str, list[float]] = collections.defaultdict(lambda: [0.0] * 3)
    path = interconnect.Path(devices=topology.num_slices, slices=topology.num_slices)
    for _, instruction, times in program.executed():
        if instruction.opcode == "send" and (found := _TRANSFER.search(instruction.rest)):
            kind, size = _TRANSFERS.get(found[1], found[1].lower().replace("_", "-")), instruction.shapes[0].bytes
            total = sums[kind]
            total[0] += times
            total[1] += times * size
            total[2] += times * interconnect.seconds(topology, kind, size, path)
    return [
        Communication(
            kind=kind, axes=("slices",), network="dcn", count=int(count), bytes=size, seconds=seconds, hidden=True,
            sent_bytes=interconnect.sent_bytes(kind, size, topology.num_slices),
        )
        for kind, (count, size, seconds) in sorted(sums.items())
    ]  # fmt: skip


_TRANSFERS = {"ONE_TO_ONE": "collective-permute"}
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


def text_of(compiled: Any) -> str:
    """The compiled text; "" where libtpu gives none (tpu7x)."""
    try:
        return compiled.as_text()
    except (jax.errors.JaxRuntimeError, NotImplementedError):
        return ""


def read_program(
    compiled: Any, text: str, mesh: Mesh, topology: Topology, *, lower_s: float = 0.0, compile_s: float = 0.0
) -> ProgramCosts:
    """Everything about a compiled step with the text `text`. Without one, memory alone."""
    memory = memory_of(compiled, device_memory(topology, mesh), host_memory(topology, mesh.size))
    if not text:
        return ProgramCosts(memory=memory, lower_s=lower_s, compile_s=compile_s)
    program = Program.parse(text)
    once = sum(
        program.flops(program.computations[name], i)
        for name in program.runs
        for i in program.computations[name].instructions
    )
    return ProgramCosts(
        memory=memory,
        works=tuple(works_of(program)),
        communications=(
            *communications_of(collectives(program, mesh.shape), mesh, topology),
            *between_slices_of(program, topology),
            *host_copies_of(program, topology),
        ),
        xla_flops=compiled.cost_analysis()["flops"],
        xla_flops_matched=once,
        kernels=text.count(PALLAS),
        lower_s=lower_s,
        compile_s=compile_s,
    )


def device_memory(topology: Topology, mesh: Mesh) -> int:
    """Usable bytes of one device: a chip's, shared where a chip is several devices."""
    return topology.accelerator.hbm_bytes * topology.chips // mesh.size


def host_memory(topology: Topology, devices: int) -> int:
    """A device's share of its host's memory; 0 where the table does not know."""
    return topology.accelerator.host_ram_bytes // topology.accelerator.chips_per_host * topology.chips // devices


def _place(device: Any, topology: Topology) -> tuple[int, tuple[int, ...]]:
    """Slice (on GPU: machine) and coordinates of a described device."""
    if topology.accelerator.platform == "gpu":
        return device.id // topology.accelerator.chips_per_host, (device.id,)
    return getattr(device, "slice_index", None) or 0, tuple(device.coords)
