"""The scale plan: the real train step of a config, compiled for chips that are not here, and what that says. See
`plan.py`.
"""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from omnihuman_jax import assembly, sharding
from omnihuman_jax.attention import context_parallel
from omnihuman_jax.config import ExperimentConfig, compute_dtype, planned_shape, to_json
from omnihuman_jax.models.execution import REMAT_POLICIES
from omnihuman_jax.runtime import files
from omnihuman_jax.runtime.progress import progress_bar
from omnihuman_jax.scale import described_devices
from omnihuman_jax.scale.cost_report import CostReport, format_report
from omnihuman_jax.scale.estimate import StepLayout, attention_kernel, estimate, sizes
from omnihuman_jax.scale.hardware import Topology, parse_topology
from omnihuman_jax.scale.program_costs import (
    ProgramCosts,
    device_memory,
    read_program,
    refused_memory,
    text_of,
    words_of,
)
from omnihuman_jax.training import train_state
from omnihuman_jax.training.splits import check_splits


def with_layout(
    config: ExperimentConfig, topology: Topology, *, micro_batch: int = 0, accumulate: int = 0
) -> ExperimentConfig:
    """The config with as many sequences a step as `micro_batch` a data-parallel group, `accumulate` times; 0: as it
    says.
    """
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, plan=dataclasses.replace(config.data.plan)),
        step=dataclasses.replace(config.step),
    )
    if accumulate:
        config.step.micro_batches = accumulate
    if micro_batch:
        ways = dict(zip(sharding.MESH_AXES, config.mesh.shape(topology.devices, topology.num_slices), strict=True))
        config.data.plan.sequences_per_step = micro_batch * ways["data"] * ways["fsdp"] * config.step.micro_batches
    return config


def with_execution(config: ExperimentConfig, **changes: Any) -> ExperimentConfig:
    """The config, computed in another way."""
    return dataclasses.replace(config, execution=dataclasses.replace(config.execution, **changes))


def check(config: ExperimentConfig, topology: Topology) -> None:
    """ValueError, with the nearest that can, where the mesh cannot split the model or the batch on that topology."""
    check_splits(
        config.mesh, config.model, config.execution.attention, config.data.plan, config.step.micro_batches,
        num_devices=topology.devices, slices=topology.num_slices,
    )  # fmt: skip


def plan(config: ExperimentConfig, topology: Topology, *, compile_step: bool = True, keep_text: str = "") -> CostReport:
    """Compiles the step of `config` for `topology` and reads the program; ValueError where they do not fit together.

    `keep_text`: a file for the compiled text.
    """
    config.validate()
    check(config, topology)
    if topology.accelerator.platform == "gpu":
        note = "no compiler for GPUs works without one: everything here is formula"
        if _kernel(config, topology) == "triton":
            note += (
                "; packed attention is our own Triton kernel, never measured, taken to be as efficient as the kernels"
                " named below"
            )
        return _estimated(
            config, topology, note=f"{note}; {lowered_for_cuda(config, topology)}" if compile_step else note
        )
    if not compile_step:
        planned = f"; {topology.accelerator.name} is announced only: what is published of it, and assumptions"
        note = "not compiled: everything here is formula" + (planned if topology.accelerator.planned else "")
        return _estimated(config, topology, note=note)
    mesh = sharding.create_mesh(config.mesh, described_devices.describe(topology))
    parts = assembly.assemble_step(config, mesh, planned_shape(config))
    started = time.monotonic()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        state = train_state.abstract_train_state(config.model, parts.optimizer, parts.state_shardings)
        lowered = assembly.lower_step(parts, state)
    lower_s = time.monotonic() - started
    started = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        memory = refused_memory(error, device_memory(topology, mesh))
        if memory is None:
            raise ValueError(f"the compiler refuses this step for {topology.name}: {words_of(error)}") from error
        costs = ProgramCosts(memory=memory, lower_s=lower_s, compile_s=time.monotonic() - started)
        return _plan(config, topology, mesh.shape, costs, note=f"the compiler refused it: {words_of(error)}")
    compile_s, text = time.monotonic() - started, text_of(compiled)
    if keep_text:
        files.write_text(keep_text, text)
    costs = read_program(compiled, text, mesh, topology, lower_s=lower_s, compile_s=compile_s)
    note = "" if costs.works else "libtpu gives no text of this program: no collectives, no roofline"
    return _plan(config, topology, mesh.shape, costs, note=note)


def _kernel(config: ExperimentConfig, topology: Topology) -> str:
    mesh = dict(zip(sharding.MESH_AXES, config.mesh.shape(topology.devices, topology.num_slices), strict=True))
    return attention_kernel(planned_shape(config), layout_of(config, mesh), topology)


def lowered_for_cuda(config: ExperimentConfig, topology: Topology) -> str:
    """Lowers the step for cuda on a mesh of GPUs that has sizes only, and says so in a sentence.

    cuDNN's calls are lowered only where cuDNN is installed, and for devices that are there: the Triton kernel takes
    their place.
    """
    instead = ""
    if _kernel(config, topology) == "cudnn":
        config = with_execution(config, attention=dataclasses.replace(config.execution.attention, kernel="triton"))
        instead = " with our Triton kernel in the place of cuDNN's, which only a machine with cuDNN lowers"
    # The device's name as JAX has it: from 0.12 on, Pallas looks up there what to lower for.
    kind = f"NVIDIA {topology.accelerator.name.upper()}"
    gpu = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
    auto = (jax.sharding.AxisType.Auto,) * len(sharding.MESH_AXES)
    ways = config.mesh.shape(topology.devices, topology.num_slices)
    mesh: Any = jax.sharding.AbstractMesh(ways, sharding.MESH_AXES, auto, abstract_device=gpu)
    parts = assembly.assemble_step(config, mesh, planned_shape(config))
    with jax.sharding.use_abstract_mesh(mesh):
        state = train_state.abstract_train_state(config.model, parts.optimizer, parts.state_shardings)
        text = assembly.lower_step(parts, state, ("cuda",)).as_text()
    kernels = text.count("__gpu$xla.gpu.triton")
    return f"the step lowers for cuda{instead}, with {kernels} calls of attention kernels"


def _estimated(config: ExperimentConfig, topology: Topology, note: str) -> CostReport:
    mesh = dict(zip(sharding.MESH_AXES, config.mesh.shape(topology.devices, topology.num_slices), strict=True))
    costs = estimate(config.model, planned_shape(config), layout_of(config, mesh), topology)
    return _plan(config, topology, mesh, costs, note=note, estimated=True)


def layout_of(config: ExperimentConfig, mesh: Mapping[str, int]) -> StepLayout:
    """What the config does on a mesh."""
    groups = mesh["data"] * mesh["fsdp"] * config.step.micro_batches
    sequences = config.data.plan.sequences_per_step
    if sequences % groups:
        raise ValueError(
            f"data.plan.sequences_per_step is {sequences}, split {groups} ways (data x fsdp x micro-batches): make it a"
            " multiple, or give --micro-batch"
        )
    return StepLayout(
        mesh=dict(mesh),
        execution=config.execution,
        sequences=sequences // groups,
        micro_batches=config.step.micro_batches,
        moment_bytes=2 if config.optimizer.moments_dtype == "bfloat16" else 4,
        offload=config.step.offload,
        # No plan is for a CPU: `auto` is what it is on accelerators.
        compute_dtype=jnp.dtype(compute_dtype(config, "tpu")).name,
    )


def _plan(
    config: ExperimentConfig,
    topology: Topology,
    mesh: Mapping[str, int],
    costs: ProgramCosts,
    *,
    note: str,
    estimated: bool = False,
) -> CostReport:
    shape, sequences = planned_shape(config), config.data.plan.sequences_per_step
    found = sizes(config.model, shape)
    return CostReport(
        name=config.name,
        topology=topology,
        devices=topology.devices if estimated else math.prod(mesh.values()),
        mesh=dict(mesh),
        remat=config.execution.remat,
        sequences=sequences,
        micro_batches=config.step.micro_batches,
        latent_tokens=shape.latent_tokens,
        text_tokens=shape.text_tokens,
        width=config.model.width,
        parameters=found.parameters,
        # A backward pass costs twice the forward pass (`flops.train_step_flops`).
        model_flops=3 * sequences * found.forward_flops,
        attention_flops=3 * sequences * found.attention_flops,
        costs=costs,
        formula=costs if estimated else estimate(config.model, shape, layout_of(config, mesh), topology),
        estimated=estimated,
        note=note,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One layout of a sweep, with what the formulas say of it."""

    config: ExperimentConfig
    estimate: CostReport

    @property
    def text(self) -> str:
        """Short."""
        per_group = self.estimate.sequences // (self.estimate.mesh["data"] * self.estimate.mesh["fsdp"])
        return f"{self.estimate.mesh_text}, remat {self.estimate.remat}, {per_group} a group"


def candidates(
    config: ExperimentConfig, topology: Topology, *, micro_batches: Sequence[int] = (1, 2), keep_batch: bool = False
) -> list[Candidate]:
    """Every mesh x remat x micro-batch that is possible, those that should fit and be fastest first.

    `micro_batches`: sequences of a data-parallel group at a time. `keep_batch`: the step keeps the config's sequences,
    in as many micro-batches as that takes; otherwise it has one. What should not fit comes last, smallest first.
    """
    found = []
    for mesh in _meshes(config, topology):
        for remat in REMAT_POLICIES:
            for per_group in micro_batches:
                tried = with_execution(dataclasses.replace(config, mesh=mesh), remat=remat)
                accumulate = _micro_batches(tried, topology, per_group) if keep_batch else 1
                if not accumulate:
                    continue
                tried = with_layout(tried, topology, micro_batch=per_group, accumulate=accumulate)
                found.append(Candidate(config=tried, estimate=_estimated(tried, topology, note="")))

    def rank(candidate: Candidate) -> tuple[bool, float]:
        memory, line = candidate.estimate.costs.memory, candidate.estimate.roofline
        assert line is not None
        return (not memory.fits, -line.mfu if memory.fits else memory.peak)

    if not found and keep_batch:
        raise ValueError(
            f"no mesh of {topology.devices} devices splits {config.data.plan.sequences_per_step} sequences a step, or "
            "the model; another data.plan.sequences_per_step may"
        )
    if not found:
        raise ValueError(
            f"no mesh of {topology.devices} devices ({topology.num_slices} slices) with mesh.tensor"
            f" {config.mesh.tensor} and mesh.dcn_fsdp {config.mesh.dcn_fsdp} splits width {config.model.width},"
            f" {config.model.num_heads} heads and {config.data.plan.latent_tokens} tokens; try mesh.tensor=1,"
            " mesh.dcn_fsdp=1"
        )
    return sorted(found, key=rank)


def _micro_batches(config: ExperimentConfig, topology: Topology, per_group: int) -> int:
    """Micro-batches of a step of the config's own sequences; 0 where groups and `per_group` do not divide them."""
    ways = dict(zip(sharding.MESH_AXES, config.mesh.shape(topology.devices, topology.num_slices), strict=True))
    parts, rest = divmod(config.data.plan.sequences_per_step, per_group * ways["data"] * ways["fsdp"])
    return 0 if rest else parts


def _meshes(config: ExperimentConfig, topology: Topology) -> Iterator[sharding.MeshConfig]:
    """fsdp x context over a slice beside the config's `tensor`, what is left as data, slices as the config says.

    Heads, tokens and width must divide, heads where `execution.attention.context_parallel` shares them out.
    """
    mesh, model, tokens = config.mesh, config.model, config.data.plan.latent_tokens
    devices, tensor = topology.devices // topology.num_slices, max(mesh.tensor, 1)
    if devices % tensor or model.num_heads % tensor:
        raise ValueError(
            f"mesh.tensor {tensor} does not divide both the {devices} devices of a slice and model.num_heads"
            f" {model.num_heads}; {sharding.nearest_divisors(math.gcd(devices, model.num_heads), tensor)}"
        )
    _, dcn_fsdp = mesh.across(topology.num_slices)
    for context in _divisors(devices // tensor):
        if tokens % context or not _heads_go(config, context, tensor):
            continue
        for fsdp in _divisors(devices // tensor // context):
            data = devices // (tensor * context * fsdp)
            if model.width % (fsdp * dcn_fsdp * context) == 0 and (dcn_fsdp == 1 or data == 1):
                yield dataclasses.replace(mesh, data=data, fsdp=fsdp, context=context, tensor=tensor)


def _divisors(number: int) -> list[int]:
    return [ways for ways in range(1, number + 1) if number % ways == 0]


def _heads_go(config: ExperimentConfig, context: int, tensor: int) -> bool:
    """Whether the exchange of attention can share the heads out, or need not."""
    attention, heads = config.execution.attention, config.model.num_heads // tensor
    try:
        context_parallel.heads_ways(attention.context_parallel, heads, context, attention.ulysses_ways)
    except ValueError:
        return False
    return True


@dataclasses.dataclass(kw_only=True)
class Sweep:
    """What a sweep found so far: all candidates by formula, best first; those compiled, best first; those refused, and
    why.
    """

    found: list[Candidate]
    plans: list[CostReport] = dataclasses.field(default_factory=list)
    failed: list[tuple[Candidate, str]] = dataclasses.field(default_factory=list)

    @property
    def best(self) -> CostReport:
        """Compiled, if anything was."""
        return self.plans[0] if self.plans else self.found[0].estimate

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "compiled": [plan.to_json() for plan in self.plans],
            "failed": [
                {"layout": candidate.text, "mesh": dict(candidate.estimate.mesh), "error": e}
                for candidate, e in self.failed
            ],
            "by_formula": [candidate.estimate.to_json() for candidate in self.found[:20]],
        }


def sweep(
    config: ExperimentConfig,
    topology: Topology,
    *,
    compiles: int,
    micro_batches: Sequence[int] = (1, 2),
    on_compile: Callable[[int, Candidate], None] = lambda done, candidate: None,
    on_result: Callable[[Sweep], None] = lambda so_far: None,
) -> Sweep:
    """All candidates by formula, and the best `compiles` of them compiled, those that fit and are fastest first.

    A candidate that the compiler refuses for another reason than memory is noted with its words, and the next one
    follows.
    """
    so_far = Sweep(found=candidates(config, topology, micro_batches=micro_batches))
    for done, candidate in enumerate(_different(so_far.found)[:compiles]):
        on_compile(done, candidate)
        try:
            so_far.plans.append(plan(candidate.config, topology))
        except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
            so_far.failed.append((candidate, words_of(error)))
        so_far.plans.sort(key=_rank)
        on_result(so_far)
    return so_far


def _rank(compiled: CostReport) -> tuple[bool, float]:
    line = compiled.roofline
    return (not compiled.costs.memory.fits, -line.mfu if line else 0.0)


def _different(found: Sequence[Candidate]) -> list[Candidate]:
    """The best of each (context, remat): neighbours in fsdp or micro-batch differ by less than the formulas can
    tell.
    """
    seen: dict[tuple[int, str], Candidate] = {}
    for candidate in found:
        seen.setdefault((candidate.estimate.mesh["context"], candidate.estimate.remat), candidate)
    return list(seen.values())


def format_sweep(result: Sweep, shown: int = 10) -> str:
    """Two tables, the best by formula and what was compiled; and what the compiler refused."""
    found, plans = result.found, result.plans
    fitting = [c for c in found if c.estimate.costs.memory.fits]
    lines = [f"{len(found)} layouts, {len(fitting)} should fit; the best {min(shown, len(found))} by formula:"]
    for candidate in found[:shown]:
        lines.append(f"  {candidate.text:<58} {_figures(candidate.estimate)}")
    lines.append(f"compiled ({len(plans)}), best first:")
    for compiled in plans:
        candidate = Candidate(config=ExperimentConfig(), estimate=compiled)
        lines.append(f"  {candidate.text:<58} {_figures(compiled)}")
    for candidate, error in result.failed:
        lines.append(f"  {candidate.text:<58} failed: {error}")
    return "\n".join(lines)


def _figures(plan: CostReport) -> str:
    memory, line = plan.costs.memory, plan.roofline
    rate = f"MFU {line.mfu:.1%}, {line.as_compiled_s:.1f} s" if line else "no roofline"
    return (
        f"{memory.peak / 2**30:6.1f} of {memory.limit / 2**30:.1f} GiB {'fits' if memory.fits else 'DOES NOT FIT'},"
        f" {rate}"
    )


def run(config: ExperimentConfig, options: Any) -> int:
    """`omnihuman plan --topology`: prints, and writes `--json`."""
    topology = parse_topology(options.topology, options.slices)
    if options.sweep:
        compiles = 0 if options.estimate else options.compile
        with _progress(compiles) as on_compile:
            result = sweep(
                config, topology, compiles=compiles, on_compile=on_compile,
                micro_batches=(options.micro_batch,) if options.micro_batch else (1, 2),
                on_result=lambda so_far: _write(options.json, so_far.to_json()),
            )  # fmt: skip
        _write(options.json, result.to_json())
        print(format_sweep(result))
        print(format_report(result.best))
        return 0
    config = with_layout(config, topology, micro_batch=options.micro_batch)
    with _progress(1) as on_compile:
        if not options.estimate:
            on_compile(0, None)
        best = plan(config, topology, compile_step=not options.estimate, keep_text=options.text)
    print(format_report(best))
    _write(options.json, best.to_json() | {"config": to_json(config)})
    return 0


def _write(name: str | None, data: Mapping[str, Any]) -> None:
    """JSON, whole or not at all."""
    if not name:
        return
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    files.write_text(name, json.dumps(data, indent=1) + "\n")


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int, Candidate | None], None]]:
    """Yields `f(finished compilations, the next candidate)`: a bar with the time left, from the compilations so far."""
    with progress_bar() as bar:
        task = bar.add_task("compiling", total=total, text="(minutes for a large model)")
        yield lambda done, candidate: bar.update(task, completed=done, text=candidate.text if candidate else "the step")
