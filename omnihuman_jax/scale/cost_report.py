"""What a train step at scale costs: what was asked, what one device does, the roofline; as text and as JSON."""

import dataclasses
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from omnihuman_jax.scale.hardware import GIB, Topology, parse_topology
from omnihuman_jax.scale.program_costs import Memory, ProgramCosts
from omnihuman_jax.scale.roofline import Roofline, roofline


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostReport:
    """A config on a topology: what was asked, what one device does, and the roofline that follows.

    estimated: the costs are formulas, not a compiled program. note: why, or what else must be known.
    """

    name: str
    topology: Topology
    devices: int
    mesh: Mapping[str, int]
    remat: str
    sequences: int
    micro_batches: int
    latent_tokens: int
    text_tokens: int
    width: int
    parameters: int
    model_flops: int
    attention_flops: int
    costs: ProgramCosts
    formula: ProgramCosts
    estimated: bool = False
    note: str = ""

    @property
    def mesh_text(self) -> str:
        """`data 2 x fsdp 8`."""
        return " x ".join(f"{axis} {ways}" for axis, ways in self.mesh.items() if ways > 1) or "one device"

    @property
    def useful_flops(self) -> float:
        """The model's own operations of a step, a device."""
        return self.model_flops / self.devices

    @property
    def roofline(self) -> Roofline | None:
        """None where only memory is known."""
        if not self.costs.works:
            return None
        return roofline(
            self.topology.accelerator,
            self.costs.works,
            self.costs.communications,
            useful_flops=self.useful_flops,
            devices_per_chip=self.devices // self.topology.chips,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; `load_report` reads them."""
        values = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("topology", "costs", "formula")
        }
        line = self.roofline
        return values | {
            "topology": self.topology.name,
            "slices": self.topology.num_slices,
            "chips": self.topology.chips,
            "hosts": self.topology.hosts,
            "mesh": dict(self.mesh),
            "memory": (
                dataclasses.asdict(self.costs.memory) | {"peak": self.costs.memory.peak, "fits": self.costs.memory.fits}
            ),
            "roofline": None if line is None else dataclasses.asdict(line),
            "assumptions": dataclasses.asdict(self.topology.accelerator.efficiencies),
            "costs": self.costs.to_json(),
            "formula": self.formula.to_json(),
            "versions": {name: metadata.version(name) for name in ("jax", "libtpu")},
        }


def load_report(data: Mapping[str, Any]) -> CostReport:
    """What `CostReport.to_json` wrote; the roofline is computed anew from the table of today."""
    names = {field.name for field in dataclasses.fields(CostReport)}
    values = {name: value for name, value in data.items() if name in names}
    values["topology"] = parse_topology(data["topology"], data["slices"])
    values["costs"], values["formula"] = (ProgramCosts.from_json(data[name]) for name in ("costs", "formula"))
    return CostReport(**values)


def format_report(report: CostReport) -> str:
    """All of it, for people."""
    return "\n".join(_lines(report))


def _lines(report: CostReport) -> Iterator[str]:
    topology, costs = report.topology, report.costs
    slices = f"{topology.num_slices} slices of " if topology.num_slices > 1 else ""
    machines = f"{topology.chips} chips, {topology.hosts} hosts, {report.devices} devices"
    yield f"{report.name} on {slices}{topology.name}: {machines}; {report.mesh_text}"
    yield (
        f"  step        {report.sequences} sequences of {report.latent_tokens:,} + {report.text_tokens:,} tokens in"
        f" {report.micro_batches} micro-batch{'es' if report.micro_batches > 1 else ''}, remat {report.remat}"
    )
    shards = report.mesh["fsdp"] * report.mesh["context"] * report.mesh["tensor"]
    yield (
        f"  parameters  {report.parameters / 1e9:.2f} B; a device holds {report.parameters / shards / 1e6:,.1f} M of"
        f" them: {4 * report.parameters / shards / GIB:.2f} GiB in float32,"
        f" {report.formula.memory.arguments / GIB:.2f} GiB with EMA and moments"
        f"{' (those that are not offloaded)' if report.formula.memory.host else ''}"
    )
    yield f"  memory      {_memory(costs.memory)}"
    yield f"              {'fits' if costs.memory.fits else 'DOES NOT FIT'}; {advice(report)}"
    if hint := torus_hint(report):
        yield f"  note        {hint}"
    if report.note:
        yield f"  note        {report.note}"
    line = report.roofline
    if line is None:
        return
    share = report.attention_flops / report.model_flops
    yield (
        f"  FLOPs       {report.model_flops:.3e} a step by formula ({share:.0%} joint attention),"
        f" {report.useful_flops:.3e} a device"
    )
    more = costs.flops / report.useful_flops
    yield f"              {costs.flops:.3e} executed a device, {more:.2f} x the useful ones{_check(report)}"
    yield "  collectives  a device and step" + ("" if costs.communications else ": none")
    for c in sorted(costs.communications, key=lambda c: -c.seconds):
        yield (
            f"    {c.kind:<18} {' x '.join(c.axes):<16} {c.count:>6} times {c.sent_bytes / GIB:>9.3f} GiB sent "
            f"{c.seconds:>8.3f} s of {c.network}{', can hide' if c.hidden else ''}"
        )
    yield "  roofline    seconds a step: " + ", ".join(
        f"{kind.replace('_', ' ')} {s:.2f}" for kind, s in line.compute_s.items()
    )
    yield (
        f"              computation {line.busy_s:.2f}, ICI {line.ici_s:.2f}, DCN {line.dcn_s:.2f}, host"
        f" {line.host_s:.2f}; all memory traffic {line.hbm_s:.2f}"
    )
    yield (
        f"  predicted   step {line.as_compiled_s:.2f} s, MFU {line.mfu:.1%} (HFU {line.hfu:.1%}); everything overlapped"
        f" {line.overlapped_s:.2f} s, {line.mfu_overlapped:.1%}; nothing overlapped {line.serial_s:.2f} s,"
        f" {line.mfu_serial:.1%}"
    )
    used = topology.accelerator.efficiencies
    yield (
        f"  assumed     of the peak of {topology.accelerator.peak_flops / 1e12:.0f} TFLOP/s: matrix products"
        f" {used.matmul:.0%}, attention kernel {used.attention_forward:.0%} forward, {used.attention_backward:.0%}"
        " backward"
    )
    yield f"              {used.source}"
    if not report.estimated:
        yield (
            f"  compiled    in {costs.compile_s:.0f} s after {costs.lower_s:.0f} s of tracing; {costs.kernels} Pallas"
            " kernels"
        )


def _memory(memory: Memory) -> str:
    if memory.needed:
        return f"{memory.needed / GIB:.2f} GiB a device would be needed, {memory.limit / GIB:.2f} are there"
    parts = ("arguments", "temporaries", "output", "alias", "code")
    text = ", ".join(f"{name} {getattr(memory, name) / GIB:.2f}" for name in parts)
    share = (
        f" of its share of {memory.host_limit / GIB:.2f}" if memory.host_limit else ", whose memory is not known here"
    )
    host = f"; {memory.host / GIB:.2f} on the host{share}" if memory.host else ""
    return f"GiB a device: {text}; peak {memory.peak / GIB:.2f} of {memory.limit / GIB:.2f}{host}"


def _check(report: CostReport) -> str:
    """How the formula for what such a step executes compares with the compiled program."""
    if report.estimated:
        return ""
    counted, formula = (sum(w.flops for w in costs.works) for costs in (report.costs, report.formula))
    text = f"; counted in the program / by formula {counted / formula:.3f}"
    if report.costs.xla_flops:
        text += f"; XLA's own count, bodies once, / ours {report.costs.xla_flops / report.costs.xla_flops_matched:.3f}"
    return text


def torus_hint(report: CostReport) -> str:
    """Where every chip of a three-dimensional torus shares the weights; "" where none does.

    XLA then gathers a weight by an all-reduce of buffers that are zero but for a device's own shard: twice the bytes.
    Seen with libtpu's compiler on v5p:4x4x4 and 4x4x8, for shards of any size; not on 2x2x2 and 2x4x4, not on the flat
    v5e and v6e, and not where `data` leaves smaller groups.
    """
    shards, dims = report.mesh["fsdp"] * report.mesh["context"], report.topology.dims
    if report.topology.accelerator.platform != "tpu" or shards < report.devices or len(dims) < 3 or min(dims) < 4:
        return ""
    return (
        f"mesh.fsdp x mesh.context = {shards} are all chips of a torus: XLA gathers weights among them by an"
        f" all-reduce, twice the bytes; with mesh.data=2, mesh.fsdp={max(1, report.mesh['fsdp'] // 2)} they would be"
        " gathered"
    )


def advice(report: CostReport) -> str:
    """Which knob to turn: what fills the memory, or what the room that is left could buy."""
    memory, formula = report.costs.memory, report.formula.memory
    state = memory.arguments or formula.arguments
    spare = memory.limit - memory.peak
    kept = report.sequences // (report.mesh["data"] * report.mesh["fsdp"] * report.micro_batches)
    if not memory.fits_host:
        return (
            f"the hosts' memory is full, {(memory.host - memory.host_limit) / GIB:.1f} GiB a device too much; turn: "
            "step.offload=moments or none, execution.remat=block or attention (without _offload), "
            "optimizer.moments_dtype=bfloat16, or more hosts"
        )
    if not memory.fits:
        knobs = []
        if kept > 1:
            knobs.append("step.micro_batches up (one sequence a group at a time)")
        if report.mesh["data"] > 1:
            data, fsdp = report.mesh["data"], report.mesh["fsdp"]
            knobs.append(f"mesh.fsdp up to {fsdp * data} instead of data {data}")
        if state > 0.4 * memory.limit:
            knobs.append("step.offload=moments, optimizer.moments_dtype=bfloat16 (4 bytes a parameter less)")
        if report.remat not in ("block", "block_offload", "attention_offload"):
            knobs.append("execution.remat=block")
        elif report.remat == "block":
            knobs.append("execution.remat=block_offload")
        knobs.append(f"mesh.context beyond {report.mesh['context']} (activations are split over it), or a larger slice")
        return "turn: " + "; ".join(knobs)
    free = f"{spare / GIB:.1f} GiB are free"
    if report.remat in ("block", "block_offload"):
        free += ": execution.remat=attention spares a forward pass of the attention kernel"
    return free
