"""A compiled program's text: its instructions, how often each of them runs, and what one run costs a device.

XLA's own totals see the body of a loop once and a Pallas kernel not at all. Here bodies count as often as their loops
turn, and matrix products and bytes are counted from the shapes after partitioning: what one device really does, with
everything that is computed twice or on every device.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

DTYPE_BYTES = {
    "pred": 1, "s4": 1, "u4": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4,
    "f32": 4,
    "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
HBM, VMEM, HOST = 0, 1, 5  # memory spaces in a layout, as libtpu writes them: S(1), S(5)

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Nothing is read or written for these: names for values, control, or the second half of a pair.
_FREE = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all",
    "iota",
    "partition-id", "replica-id", "opt-barrier", "add-dependency", "get-dimension-size", "domain", "recv-done",
    "send-done",
    "copy-done", "all-gather-done", "all-reduce-done", "collective-permute-done", "slice-done", "async-done",
    "async-update", "async-start",
})  # fmt: skip

_UNFOLD = re.compile(r"\{\n\s*\}")  # a kernel's metadata goes over two lines
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEADER = re.compile(r"^(ENTRY )?%([\w.\-]+) .*\{\s*$")
_CALLS = re.compile(r"(?:calls|to_apply)=%([\w.\-]+)")


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """One array: dtype, dims, memory space."""

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> int:
        """Of its values, without the padding of tiles."""
        return math.prod(self.dims) * DTYPE_BYTES.get(self.dtype, 1 if self.dtype.startswith("f8") else 0)


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
    """One line. `shapes` has several entries for a tuple; `rest` is what follows the operands."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    def attribute(self, name: str) -> str:
        """Text of `name=...` up to the comma behind it, braces balanced; "" without one."""
        match = re.search(rf"(?:^|[ ,]){name}=", self.rest)
        return _balanced(self.rest, match.end()) if match else ""

    @property
    def op_name(self) -> str:
        """Where in the traced function it comes from."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match.group(1) if match else ""


@dataclasses.dataclass(frozen=True, slots=True)
class Computation:
    """Instructions in order, and by name."""

    name: str
    instructions: tuple[Instruction, ...]
    by_name: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The result."""
        return next((i for i in self.instructions if i.is_root), self.instructions[-1])

    def operand_shapes(self, instruction: Instruction) -> list[tuple[Shape, ...]]:
        """Of each operand that is known here."""
        return [self.by_name[name].shapes for name in instruction.operands if name in self.by_name]


@dataclasses.dataclass(frozen=True)
class Program:
    """A module: its computations and the entry's name."""

    computations: dict[str, Computation]
    entry: str

    @classmethod
    def parse(cls, text: str) -> "Program":
        """From `compiled.as_text()`; ValueError if that is no module."""
        computations: dict[str, Computation] = {}
        entry, name = "", ""
        lines: list[Instruction] = []
        for line in _UNFOLD.sub("{}", text).splitlines():
            if not name and (header := _HEADER.match(line)):
                name, lines = header.group(2), []
                entry = name if header.group(1) else entry
            elif name and line.rstrip() == "}":
                parsed = tuple(lines)
                computations[name] = Computation(name, parsed, {i.name: i for i in parsed})
                name = ""
            elif name and (instruction := parse_instruction(line)):
                lines.append(instruction)
        if entry not in computations:
            raise ValueError("no ENTRY computation in the compiled text")
        return cls(computations, entry)

    @functools.cached_property
    def runs(self) -> dict[str, int]:
        """How often each computation that is executed on its own runs in one step; fused ones are part of their
        fusion.
        """
        counts: dict[str, int] = {}

        def visit(name: str, times: int) -> None:
            if name not in self.computations:
                return
            counts[name] = counts.get(name, 0) + times
            for instruction in self.computations[name].instructions:
                for callee, factor in self._callees(self.computations[name], instruction):
                    visit(callee, times * factor)

        visit(self.entry, 1)
        return counts

    def executed(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Every instruction that is executed on its own, with how often it runs."""
        for name, times in self.runs.items():
            for instruction in self.computations[name].instructions:
                yield self.computations[name], instruction, times

    def fused(self, instruction: Instruction) -> Computation | None:
        """What a fusion computes."""
        match = _CALLS.search(instruction.rest) if instruction.opcode == "fusion" else None
        return self.computations.get(match.group(1)) if match else None

    def inside(self, computation: Computation, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
        """The instruction itself, or all that are fused into it, however deep."""
        fused = self.fused(instruction)
        if fused is None:
            yield computation, instruction
            return
        for inner in fused.instructions:
            yield from self.inside(fused, inner)

    def flops(self, computation: Computation, instruction: Instruction) -> int:
        """Operations of its matrix products; 0 without one. Pallas kernels are not seen."""
        return sum(product_flops(where, inner) for where, inner in self.inside(computation, instruction))

    def hbm_bytes(self, computation: Computation, instruction: Instruction) -> int:
        """Read from and written to device memory: operands and results, of sliced operands only the slice."""
        if instruction.opcode in _FREE or instruction.opcode.removesuffix("-start") in COLLECTIVES:
            return 0
        written = sum(shape.bytes for shape in instruction.shapes if shape.space == HBM)
        operands = [computation.by_name.get(name) for name in instruction.operands]
        if instruction.opcode == "copy-start":
            return sum(shape.bytes for shape in instruction.shapes[:2] if shape.space == HBM)
        if instruction.opcode == "slice-start":  # ((operand), slice, context)
            part = instruction.shapes[1]
            return part.bytes * sum(shape.space == HBM for shape in instruction.shapes[:2])
        if instruction.opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * written
        if instruction.opcode == "dynamic-update-slice":
            update = operands[1]
            return 2 * sum(shape.bytes for shape in update.shapes) if update else 0
        fused = self.fused(instruction)
        if fused is None:
            return written + sum(_hbm(operand) for operand in operands)
        parameters = {_index(inner): inner for inner in fused.instructions if inner.opcode == "parameter"}
        updated = _updates_in_place(fused)
        read = 0
        for index, operand in enumerate(operands):
            if operand is None or index not in parameters or not _hbm(operand):
                continue
            name = parameters[index].name
            users = [inner for inner in fused.instructions if name in inner.operands]
            if users and all(u.opcode in ("dynamic-slice", "slice", "gather") and u.operands[0] == name for u in users):
                read += sum(shape.bytes for inner in users for shape in inner.shapes)
            elif name not in updated:
                read += _hbm(operand)
        # A result that is an update in place writes the update alone.
        return read + max(0, written - sum(whole - part for whole, part in updated.values()))

    def _callees(self, computation: Computation, instruction: Instruction) -> Iterator[tuple[str, int]]:
        match instruction.opcode:
            case "while":
                yield instruction.attribute("body").lstrip("%"), self.trip_count(computation, instruction)
            case "call" | "async-start":
                yield from ((name, 1) for name in _CALLS.findall(instruction.rest)[:1])
            case "conditional":
                branches = instruction.attribute("branch_computations") or " ".join(
                    instruction.attribute(f"{side}_computation") for side in ("true", "false")
                )
                yield from ((name, 1) for name in _NAME.findall(branches))

    def trip_count(self, computation: Computation, instruction: Instruction) -> int:
        """Turns of a `while` of `computation` that counts up to a constant; ValueError for another."""
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', instruction.rest):
            return int(known.group(1))
        condition = self.computations[instruction.attribute("condition").lstrip("%")]
        limits = [int(i.rest) for i in _constants(condition)]
        for where, inner in self.inside(condition, condition.root):
            if inner.opcode == "compare":
                own = [int(i.rest) for i in _constants(where)] or limits
                if len(set(own)) == 1 and "direction=LT" in inner.rest:
                    turns = own[0] - _first_turn(computation, instruction, condition)
                    return -(-turns // self._step(computation, instruction, condition))
        raise ValueError(
            f"cannot tell the trip count of the loop %{instruction.name}: its condition {condition.name} "
            f"has the constants {limits}"
        )

    def _step(self, computation: Computation, loop: Instruction, condition: Computation) -> int:
        """What a turn adds to the counter: 1, or more where XLA unrolls (its products beside permutes, on tpu7x: 2)."""
        body = self.computations[loop.attribute("body").lstrip("%")]
        index = _counter(condition)
        if index is None or body.root.opcode != "tuple":
            return 1
        where, counter = body, _through_copies(body, body.root.operands[index])
        if counter is not None and (fused := self.fused(counter)) is not None:
            where, counter = fused, fused.root
        if counter is None or counter.opcode != "add":
            return 1
        start = computation.by_name.get(loop.operands[0])
        for name in counter.operands:
            value = _through_copies(where, name)
            if value is not None and value.opcode == "get-tuple-element" and start is not None and start.operands:
                at = int(value.attribute("index"))
                value = None if at == index else _through_copies(computation, start.operands[at])
            if value is not None and value.opcode == "constant" and value.rest.isdigit():
                return max(int(value.rest), 1)
        return 1


def _counter(condition: Computation) -> int | None:
    """Which part of a loop's state its condition reads; None if several."""
    read = [i for i in condition.instructions if i.opcode == "get-tuple-element"]
    return int(read[0].attribute("index")) if len(read) == 1 else None


def _through_copies(computation: Computation, name: str) -> Instruction | None:
    value = computation.by_name.get(name)
    while value is not None and value.opcode in ("copy", "bitcast") and value.operands:
        value = computation.by_name.get(value.operands[0])
    return value


def _first_turn(computation: Computation, loop: Instruction, condition: Computation) -> int:
    """Where the counter starts: 0, or 1 where XLA computes the first turn ahead of the loop."""
    index, start = _counter(condition), computation.by_name.get(loop.operands[0])
    if index is None or start is None or start.opcode != "tuple":
        return 0
    value = _through_copies(computation, start.operands[index])
    return int(value.rest) if value is not None and value.opcode == "constant" and value.rest.isdigit() else 0


def parse_instruction(line: str) -> Instruction | None:
    """`  %name = type opcode(operands), rest`; None for any other line."""
    head, equals, tail = line.strip().partition(" = ")
    if not equals or "%" not in head:
        return None
    type_text = _balanced(tail, 0, stop=" ")
    opcode, bracket, _ = tail[len(type_text) :].strip().partition("(")
    if not bracket or not re.fullmatch(r"[a-z][\w\-]*", opcode):
        return None
    start = tail.index(opcode + "(", len(type_text)) + len(opcode)
    operands = _balanced(tail, start, stop=",")
    rest = tail[start + len(operands) :].lstrip(", ")
    shapes = tuple(
        Shape(dtype, tuple(map(int, dims.split(","))) if dims else (), _space(layout))
        for dtype, dims, layout in _SHAPE.findall(type_text)
    )
    names = tuple(_NAME.findall(operands))
    if opcode == "constant":
        rest = operands.strip("()")
    if opcode == "parameter":
        rest = operands.strip("()")
    return Instruction(head.removeprefix("ROOT ").lstrip("%"), opcode, shapes, names, rest, head.startswith("ROOT "))


def product_flops(computation: Computation, instruction: Instruction) -> int:
    """Of a dot or convolution, two a multiply-add; 0 for anything else."""
    if instruction.opcode not in ("dot", "convolution"):
        return 0
    lhs, rhs = (shapes[0].dims for shapes in computation.operand_shapes(instruction)[:2])
    out = instruction.shapes[0].dims
    if instruction.opcode == "dot":
        contracting = _integers(instruction.attribute("lhs_contracting_dims"))
        return 2 * math.prod(out) * math.prod(lhs[i] for i in contracting)
    left, right = instruction.attribute("dim_labels").split("_")
    right, result = right.split("->")
    window = instruction.attribute("window").strip("{}")
    spatial = sorted(label for label in right if label.isdigit())
    pairs = math.prod(
        _valid_pairs(lhs[left.index(label)], rhs[right.index(label)], out[result.index(label)], _window(window, i))
        for i, label in enumerate(spatial)
    )
    return 2 * out[result.index("b")] * out[result.index("f")] * rhs[right.index("i")] * pairs


@dataclasses.dataclass(frozen=True, slots=True)
class _Window:
    stride: int = 1
    low: int = 0
    lhs_dilate: int = 1
    rhs_dilate: int = 1


def _window(text: str, dim: int) -> _Window:
    fields = dict(part.split("=") for part in text.split() if "=" in part)
    of = lambda name, default: int(fields[name].split("x")[dim].split("_")[0]) if name in fields else default  # noqa: E731
    return _Window(of("stride", 1), of("pad", 0), of("lhs_dilate", 1), of("rhs_dilate", 1))


def _valid_pairs(size: int, kernel: int, out: int, window: _Window) -> int:
    """Pairs of (output, kernel) positions that meet a value and not padding: batched products are written that way."""
    if kernel == 1 and window == _Window():
        return min(out, size)
    extent = (size - 1) * window.lhs_dilate + 1
    total = 0
    for k in range(kernel):
        at = k * window.rhs_dilate - window.low
        positions = range(at, at + out * window.stride, window.stride)
        total += sum(1 for x in positions if 0 <= x < extent and x % window.lhs_dilate == 0)
    return total


def _updates_in_place(fused: Computation) -> dict[str, tuple[int, int]]:
    """Parameter that a dynamic-update-slice changes -> (its bytes, 2 x the update's bytes)."""
    found = {}
    for inner in fused.instructions:
        if inner.opcode == "dynamic-update-slice":
            target, update = (fused.by_name.get(name) for name in inner.operands[:2])
            while target is not None and target.opcode in ("bitcast", "copy", "convert") and target.operands:
                target = fused.by_name.get(target.operands[0])
            if target is not None and update is not None and target.opcode == "parameter":
                found[target.name] = (inner.shapes[0].bytes, 2 * update.shapes[0].bytes)
    return found


def _hbm(instruction: Instruction | None) -> int:
    return sum(shape.bytes for shape in instruction.shapes if shape.space == HBM) if instruction else 0


def _constants(computation: Computation) -> list[Instruction]:
    return [i for i in computation.instructions if i.opcode == "constant" and i.rest.lstrip("-").isdigit()]


def _index(parameter: Instruction) -> int:
    return int(parameter.rest)


def _space(layout: str) -> int:
    match = re.search(r"S\((\d+)\)", layout)
    return int(match.group(1)) if match else HBM


def _integers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def _balanced(text: str, start: int, stop: str = ",") -> str:
    """From `start` to the first `stop` (or comma's end) outside of all brackets and quotes."""
    depth, quoted = 0, False
    for i in range(start, len(text)):
        char = text[i]
        if char == '"' and text[i - 1] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth < 0:
                return text[start:i]
        elif depth == 0 and char == stop:
            return text[start:i]
    return text[start:]
