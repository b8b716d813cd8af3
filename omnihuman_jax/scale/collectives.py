"""What a compiled program sends between devices: every collective of its HLO text, with bytes, mesh axes and trip
count.

XLA writes a program as computations that call each other. A collective in the body of a `while` (a scan over layers or
over micro-batches) runs as often as the loop turns; it is counted with the product of the trip counts around it.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from omnihuman_jax.scale.hlo import COLLECTIVES, Computation, Instruction, Program

_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:,?\s*device_ids=\((.*?)\))?\s*\{([^}]*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)")
_LISTED_GROUPS = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")
_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Collective:
    """One collective instruction of a program.

    kind: one of `hlo.COLLECTIVES`; an all-reduce of which each device keeps its part is a reduce-scatter.
    axes: mesh axes along which its devices exchange, in the mesh's order.
    groups: positions of the mesh's devices (row-major) that exchange with each other; of a collective-permute, its
        pairs.
    operand_bytes: that a device puts in, each time.
    trips: times it runs in one run of the program.
    source: where in the model it comes from, as jax named it.
    asynchronous: it starts and finishes apart, so that computation can run in between.
    """

    kind: str
    axes: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    operand_bytes: int
    trips: int
    source: str
    asynchronous: bool = False

    @property
    def group_size(self) -> int:
        """Devices that exchange with each other."""
        return len(self.groups[0])

    @property
    def wire_bytes(self) -> float:
        """What a device sends each time, by the ring algorithm (all-to-all, permute: what it must)."""
        n = self.group_size
        match self.kind:
            case "all-gather":
                return self.operand_bytes * (n - 1)
            case "all-reduce":
                return 2 * self.operand_bytes * (n - 1) / n
            case "collective-permute" | "collective-broadcast":
                return self.operand_bytes
        return self.operand_bytes * (n - 1) / n

    @property
    def step_bytes(self) -> float:
        """What a device sends in one run of the program."""
        return self.wire_bytes * self.trips


def collectives(program: Program, mesh_shape: Mapping[str, int]) -> list[Collective]:
    """Every collective of a compiled program, in the order of its text.

    Args:
        program: after partitioning (CPU, GPU or TPU).
        mesh_shape: axis -> ways of the mesh that the program was compiled for, in the order of its axes.

    Raises:
        ValueError: groups that do not fit the mesh.
    """
    found = []
    for computation, executed, trips in program.executed():
        for where, instruction in program.inside(computation, executed):
            if kind := _kind(where, instruction):
                groups = _groups(instruction.rest, math.prod(mesh_shape.values()))
                if kind == "collective-permute" or len(groups[0]) > 1:
                    found.append(
                        Collective(
                            kind=kind,
                            axes=_axes(groups, mesh_shape),
                            groups=groups,
                            operand_bytes=sum(
                                shape.bytes for shapes in where.operand_shapes(instruction) for shape in shapes
                            ),
                            trips=trips,
                            source=instruction.op_name,
                            asynchronous=instruction.opcode.endswith("-start"),
                        )
                    )
    return found


def by_kind(found: Sequence[Collective], *, least_bytes: int = 0) -> dict[tuple[str, tuple[str, ...]], float]:
    """(kind, axes) -> bytes that a device sends in one run, of collectives with operands of at least `least_bytes`."""
    total: dict[tuple[str, tuple[str, ...]], float] = collections.defaultdict(float)
    for item in found:
        if item.operand_bytes >= least_bytes:
            total[item.kind, item.axes] += item.step_bytes
    return dict(total)


def _kind(computation: Computation, instruction: Instruction) -> str | None:
    """The collective that an instruction starts, None for any other."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return None
    # TPU: a fusion of an all-reduce and the slice that a device keeps, which is how reduce-scatters are written there.
    return "reduce-scatter" if kind == "all-reduce" and "all-reduce-scatter" in computation.name else kind


def _groups(attributes: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """Which devices exchange; all with all where the text leaves it out."""
    if match := _PAIRS.search(attributes):
        return tuple(_numbers(pair) for pair in re.findall(r"\{(\d+,\d+)\}", match[1])) or ((0, 0),)
    if match := _MESH_GROUPS.search(attributes):
        return _mesh_groups(*match.groups(), devices=devices)
    if match := _IOTA_GROUPS.search(attributes):
        dims = _numbers((_IOTA.match(match[1]) or [""] * 2)[1])
        return _as_groups(_iota(match[1]).reshape(-1, dims[-1]))
    if (match := _LISTED_GROUPS.search(attributes)) and match[1]:
        return tuple(_numbers(group) for group in re.findall(r"\{([\d,]+)\}", match[1]))
    return (tuple(range(devices)),)


def _mesh_groups(dims: str, device_ids: str | None, wanted: str, *, devices: int) -> tuple[tuple[int, ...], ...]:
    """Groups along named axes of XLA's own mesh: `mesh['a'=2,'b'=4] {'b'}`; `'b':(2)2` is the part of 'b' of 2 ways
    after 2.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", dims)}
    ids = _device_ids(device_ids, devices)
    parts: list[tuple[str, int, int]] = []  # (axis, ways before the part, ways of the part)
    for name, before, ways in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", wanted):
        parts.append((name, int(before) if before else 1, int(ways) if ways else sizes[name]))
    shape, chosen = [], []
    for name, size in sizes.items():
        cuts = sorted((before, ways) for axis, before, ways in parts if axis == name)
        at = 1
        for before, ways in cuts:
            if before > at:
                shape.append(before // at)
            chosen.append(len(shape))
            shape.append(ways)
            at = before * ways
        shape.append(size // at)
    moved = np.moveaxis(ids.reshape(shape), chosen, range(-len(chosen), 0)) if chosen else ids.reshape(-1, 1)
    return _as_groups(moved.reshape(-1, math.prod(shape[i] for i in chosen)))


def _device_ids(text: str | None, devices: int) -> np.ndarray:
    """The mesh's devices in order: `[4,2]T(1,0)`, an iota over that shape, transposed; `[8]<=[4,2]T(1,0)`; or a
    list.
    """
    if text is None:
        return np.arange(devices)
    if "<=" in text:
        return _iota(text)
    if match := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        source = _numbers(match[1])
        ids = np.arange(math.prod(source)).reshape(source)
        return ids.transpose(_numbers(match[2])) if match[2] else ids
    return np.asarray(_numbers(text))


def _iota(text: str) -> np.ndarray:
    """`[4,2]<=[2,4]T(1,0)`: iota over the second shape, transposed, in the first."""
    match = _IOTA.search(text)
    assert match, text
    source = _numbers(match[2])
    ids = np.arange(math.prod(source)).reshape(source)
    return (ids.transpose(_numbers(match[3])) if match[3] else ids).reshape(_numbers(match[1]))


def _as_groups(rows: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, rows.tolist()))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _axes(groups: tuple[tuple[int, ...], ...], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    return _axes_of(groups, tuple(mesh_shape.items()))


@functools.lru_cache(maxsize=4096)
def _axes_of(groups: tuple[tuple[int, ...], ...], mesh_shape: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
    """Mesh axes along which the members of a group differ."""
    sizes = [size for _, size in mesh_shape]
    if max(map(max, groups)) >= math.prod(sizes):
        raise ValueError(f"a collective among {max(map(max, groups)) + 1} devices on a mesh of {dict(mesh_shape)}")
    places = [np.stack(np.unravel_index(np.asarray(group), sizes)) for group in groups]
    moves = np.any([(place != place[:, :1]).any(axis=1) for place in places], axis=0)
    return tuple(name for (name, _), moved in zip(mesh_shape, moves, strict=True) if moved)
