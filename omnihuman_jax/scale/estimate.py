"""Memory and work of a train step by formula, in microseconds: to choose what is worth compiling, and where nothing
compiles.

Close, not exact: XLA decides what stays alive. What a compiled program says (`program_costs.py`) always comes first.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

from omnihuman_jax.attention import context_parallel, dispatch
from omnihuman_jax.attention.tpu import Splash
from omnihuman_jax.models import flops, mmdit
from omnihuman_jax.models.execution import ExecutionConfig
from omnihuman_jax.scale import interconnect
from omnihuman_jax.scale.hardware import Topology
from omnihuman_jax.scale.program_costs import Memory, ProgramCosts, host_memory
from omnihuman_jax.scale.roofline import Communication, Work
from omnihuman_jax.typing import PackedShape

BF16, FP32 = 2, 4
# Bytes a parameter, at rest: master copy, EMA, two moments; and its gradient while a step runs.
_MASTER_AND_EMA, _GRADIENT = 2 * FP32, FP32
# Arrays of [tokens, width] in bfloat16 that live at the same time in a block's backward pass; calibrated on compiled
# steps.
_WORKING_SET = 26
# Beyond it, by what `execution.attention.context_parallel` exchanges; calibrated on the calls that docs/attention.md
# lists. `gather`: whole keys, values and both gradients. `ring`: blocks that come and go, all gradients and the output
# in float32.
_GATHERED_ROWS, _RING_ROWS = 4, 20
# Products of a block of scores in an attention kernel's backward pass, where the forward pass has two. Splash and our
# Triton kernel have two backward kernels of 3 + 4; splash's fused one, flash attention as in cuDNN, and XLA's have
# five.
_TWO_KERNELS, _ONE_KERNEL = 7, 5
# What a layer keeps for its backward pass under each remat policy, in rows of the model's width.
KEPT_ROWS = {
    "block": 1.0, "attention": 3.0, "dots": 12.0, "products": 14.0, "none": 30.0, "block_offload": 0.0,
    "attention_offload": 0.0,
}  # fmt: skip
# Policies under which the attention kernel, or the matrix products, run a second time in the backward pass.
_KERNEL_AGAIN, _PRODUCTS_AGAIN = (
    ("block", "dots", "block_offload"),
    ("block", "attention", "block_offload", "attention_offload"),
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepLayout:
    """What a sweep varies: mesh, execution, sequences that a data-parallel group computes at a time, how often in a
    step.
    """

    mesh: Mapping[str, int]
    execution: ExecutionConfig = dataclasses.field(default_factory=ExecutionConfig)
    sequences: int = 1
    micro_batches: int = 1
    moment_bytes: int = FP32
    offload: str = "none"
    compute_dtype: str = "bfloat16"

    @property
    def remat(self) -> str:
        """The policy's name."""
        return self.execution.remat

    @property
    def attention(self) -> dispatch.AttentionStrategy:
        """How attention runs, and what it exchanges."""
        return self.execution.attention

    @property
    def devices(self) -> int:
        """All ways together."""
        return math.prod(self.mesh.values())

    @property
    def groups(self) -> int:
        """Data-parallel groups."""
        return self.mesh["data"] * self.mesh["fsdp"]

    @property
    def ways(self) -> int:
        """Devices that share out one sequence."""
        return self.mesh["context"] * self.mesh["tensor"]


def attention_kernel(shape: PackedShape, layout: StepLayout, topology: Topology) -> str:
    """The kernel of the joint attention there: a key of `attention.IMPLEMENTATIONS`."""
    one = dispatch.check_one_window(layout.attention, shape.windows, layout.compute_dtype)  # type: ignore[arg-type]
    return dispatch.kernel_name(layout.attention, topology.accelerator.platform, one_window=one)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Of a model and a packed sequence: what every layout shares."""

    parameters: int
    forward_flops: int
    attention_flops: int
    largest_block: int


def sizes(config: mmdit.MMDiTConfig, shape: PackedShape) -> Sizes:
    """Counted once a model and shape: a sweep asks for hundreds of layouts."""
    return _sizes(mmdit.Frozen(repr(config), config), shape)


@functools.lru_cache(maxsize=32)
def _sizes(frozen: mmdit.Frozen, shape: PackedShape) -> Sizes:
    config = frozen.config
    shapes, _ = mmdit.abstract_params(config)
    kinds = (("dual_blocks", config.num_dual_layers), ("single_blocks", config.num_single_layers))
    return Sizes(
        parameters=flops.count_parameters(shapes),
        forward_flops=flops.forward_flops(config, shape),
        attention_flops=flops.joint_attention_flops(config, shape),
        largest_block=max(flops.count_parameters(shapes[name]) // count for name, count in kinds if count),
    )


def estimate(config: mmdit.MMDiTConfig, shape: PackedShape, layout: StepLayout, topology: Topology) -> ProgramCosts:
    """Costs on one device of a step with fully sharded parameters, and attention's exchange over `context`."""
    parameters = sizes(config, shape).parameters
    return ProgramCosts(
        memory=_memory(config, shape, layout, topology, parameters),
        works=tuple(_works(config, shape, layout, topology, parameters)),
        communications=tuple(_communications(config, shape, layout, topology, parameters)),
    )


def _memory(
    config: mmdit.MMDiTConfig, shape: PackedShape, layout: StepLayout, topology: Topology, parameters: int
) -> Memory:
    shards = layout.mesh["fsdp"] * layout.ways
    moments = 2 * layout.moment_bytes
    on_host = (moments if layout.offload != "none" else 0) + (FP32 if layout.offload == "moments_ema" else 0)
    state = parameters * (_MASTER_AND_EMA + moments - on_host) // shards
    tokens = layout.sequences * (shape.latent_tokens / layout.mesh["context"] + shape.text_tokens)
    row = tokens * config.width * BF16
    layers = config.num_dual_layers + config.num_single_layers
    per_layer = KEPT_ROWS[layout.remat]
    largest = sizes(config, shape).largest_block * BF16
    working = _WORKING_SET * row + 3 * largest + _attention_bytes(config, shape, layout, topology)
    return Memory(
        arguments=int(state),
        temporaries=int(parameters * _GRADIENT // shards + layers * per_layer * row + working),
        host=int(parameters * on_host // shards + layers * _host_rows(layout) * row),
        limit=topology.accelerator.hbm_bytes * topology.chips // layout.devices,
        host_limit=host_memory(topology, layout.devices),
    )


def _host_rows(layout: StepLayout) -> int:
    """Rows of the model's width that a layer leaves in the host's memory."""
    return {"block_offload": 1, "attention_offload": 2}.get(layout.remat, 0)


def _attention_bytes(config: mmdit.MMDiTConfig, shape: PackedShape, layout: StepLayout, topology: Topology) -> float:
    """What attention needs beyond the working set: whole or travelling keys, parts of the queries' gradient."""
    ways, tensor, mode = layout.mesh["context"], layout.mesh["tensor"], layout.attention.context_parallel
    shared, ring = _exchange_ways(config, layout)
    row = layout.sequences * shape.latent_tokens * config.width * BF16 / layout.ways
    heads, latent, text = config.num_heads // tensor // shared, shape.latent_tokens, shape.text_tokens
    queries = keys = latent + text
    extra = 0.0
    if ring > 1 and mode == "gather":
        queries, extra = latent // ways + (text if text % ways else text // ways), _GATHERED_ROWS * ways * row
        if layout.remat == "none":
            extra += 2 * ways * row * (config.num_dual_layers + config.num_single_layers)
    elif ring > 1:
        queries, keys, extra = latent // ring + text, max(latent // ring, text), _RING_ROWS * row
    if layout.attention.fused_backward and attention_kernel(shape, layout, topology) == "splash":
        kernel = dispatch.IMPLEMENTATIONS["splash"](layout.attention, "tpu")
        assert isinstance(kernel, Splash)
        extra += kernel.fused_backward_bytes(heads, queries, keys, config.head_dim, BF16)
    return extra


def _exchange_ways(config: mmdit.MMDiTConfig, layout: StepLayout) -> tuple[int, int]:
    """Devices of `context` that share out heads (Ulysses), and those that exchange keys (a ring, or all that gather
    them).
    """
    ways, heads = layout.mesh["context"], config.num_heads // layout.mesh["tensor"]
    shared = context_parallel.heads_ways(layout.attention.context_parallel, heads, ways, layout.attention.ulysses_ways)
    return shared, ways // shared


def _works(
    config: mmdit.MMDiTConfig, shape: PackedShape, layout: StepLayout, topology: Topology, parameters: int
) -> list[Work]:
    times = layout.sequences * layout.micro_batches
    found = sizes(config, shape)
    joint = found.attention_flops * times / layout.ways
    linear = found.forward_flops * times / layout.ways - joint
    kernel = attention_kernel(shape, layout, topology)
    two_kernels = kernel == "triton" or (kernel == "splash" and not layout.attention.fused_backward)
    again, kernel_again = layout.remat in _PRODUCTS_AGAIN, layout.remat in _KERNEL_AGAIN
    tokens = times * (shape.latent_tokens / layout.mesh["context"] + shape.text_tokens)
    layers = config.num_dual_layers + config.num_single_layers
    # Norms, modulation, rotations, gates: reads and writes of float32 rows that no product hides; forward, again,
    # backward.
    elementwise = layers * tokens * config.width * FP32 * 24 * (2 + again)
    optimizer = (
        parameters * 2 * (_MASTER_AND_EMA + 2 * layout.moment_bytes + _GRADIENT) / (layout.mesh["fsdp"] * layout.ways)
    )
    return [
        Work(kind="attention_forward", flops=joint * (1 + kernel_again), bytes=0),
        Work(kind="attention_backward", flops=joint * (_TWO_KERNELS if two_kernels else _ONE_KERNEL) / 2, bytes=0),
        Work(kind="matmul", flops=linear * (3 + again), bytes=0),
        Work(kind="memory", flops=0, bytes=elementwise + optimizer),
    ]


def _communications(
    config: mmdit.MMDiTConfig, shape: PackedShape, layout: StepLayout, topology: Topology, parameters: int
) -> list[Communication]:
    again = layout.remat in _PRODUCTS_AGAIN
    row = layout.sequences * shape.latent_tokens * config.width * BF16 / layout.ways
    layers = config.num_dual_layers + config.num_single_layers
    fsdp = layout.mesh["fsdp"] * layout.mesh["context"]
    share = parameters / layout.mesh["tensor"]
    plans = [
        # kind, axes, bytes each time, how often
        ("all-gather", ("fsdp", "context"), BF16 * share, layout.micro_batches * (1 + again)),
        ("reduce-scatter", ("fsdp", "context"), FP32 * share, layout.micro_batches),
        ("all-reduce", ("data",), FP32 * share / fsdp, 1),
        ("all-reduce", ("tensor",), row * layout.mesh["tensor"] * layers, layout.micro_batches * 4),
    ]
    found = [
        _communication(kind, axes, size, count, _path(axes, layout, topology), topology)
        for kind, axes, size, count in plans
    ]
    found[2:2] = _exchanges(config, layout, topology, row * layers)
    found = [c for c in found if c.sent_bytes]
    if layout.remat.endswith("_offload"):
        rows = _host_rows(layout) * layers * row * layout.micro_batches
        time = 2 * rows / topology.accelerator.host_bandwidth
        found.append(
            Communication(
                kind="copy", axes=("host",), network="pcie", count=2 * layers, bytes=2 * rows, sent_bytes=rows,
                seconds=time,
                hidden=True,
            )
        )  # fmt: skip
    return found


def _communication(
    kind: str,
    axes: tuple[str, ...],
    size: float,
    count: int,
    path: interconnect.Path,
    topology: Topology,
    *,
    hidden: bool = True,
) -> Communication:
    return Communication(
        kind=kind, axes=axes, network=path.network, count=count, bytes=count * size, hidden=hidden,
        sent_bytes=count * interconnect.sent_bytes(kind, size, path.devices) if path.devices > 1 else 0.0,
        seconds=count * interconnect.seconds(topology, kind, size, path),
    )  # fmt: skip


def _exchanges(config: mmdit.MMDiTConfig, layout: StepLayout, topology: Topology, rows: float) -> list[Communication]:
    """What attention sends over `context` (docs/attention.md); the text's few tokens are left out.

    rows: bytes of a device's video queries (keys, values, outputs are as large), of all layers.
    """
    shared, ring = _exchange_ways(config, layout)
    times, tensor = layout.micro_batches, layout.mesh["tensor"]
    again, kernel_again = layout.remat in _PRODUCTS_AGAIN, layout.remat in _KERNEL_AGAIN
    heads, keys = _links(shared, tensor, layout, topology), _links(ring, tensor * shared, layout, topology)

    def exchange(kind: str, size: float, count: int, path: interconnect.Path, *, hidden: bool = False) -> Communication:
        return _communication(kind, ("context",), size, times * count, path, topology, hidden=hidden)

    if layout.attention.context_parallel == "gather":
        # Keys and values; again for the backward pass wherever blocks are computed anew, and their gradients on the way
        # back.
        gathers = 2 if layout.remat == "none" else 4
        return [exchange("all-gather", ring * rows, gathers, keys), exchange("reduce-scatter", ring * rows, 2, keys)]
    # Queries, keys, values and the output: forward, perhaps again, and their gradients.
    found = [exchange("all-to-all", rows, 4 * (2 + again), heads)]
    if ring > 1:
        # Each hop passes keys and values on beside its computation, and backward their gradients in float32, which go
        # home last.
        found.append(exchange("collective-permute", rows, 2 * ring * (2 + kernel_again), keys, hidden=True))
        found.append(exchange("collective-permute", FP32 / BF16 * rows, 2 * (ring + 1), keys, hidden=True))
    return found


def _path(axes: tuple[str, ...], layout: StepLayout, topology: Topology) -> interconnect.Path:
    """Links of whole mesh axes, laid out in order, the last axis innermost."""
    order = ("data", "fsdp", "context", "tensor")
    inner = math.prod(layout.mesh[axis] for axis in order[order.index(axes[-1]) + 1 :])
    return _links(math.prod(layout.mesh[axis] for axis in axes), inner, layout, topology)


def _links(ways: int, inner: int, layout: StepLayout, topology: Topology) -> interconnect.Path:
    """Links of `ways` devices, each `inner` from the next; a torus's dims are filled one after the other."""
    per_slice = topology.chips_per_slice * layout.devices // topology.chips
    if topology.accelerator.platform == "gpu":
        hosts = (
            math.ceil(ways * inner / topology.accelerator.chips_per_host)
            if inner * ways > topology.accelerator.chips_per_host
            else 1
        )
        return interconnect.Path(devices=ways, hosts=min(hosts, ways))
    slices = max(1, ways * inner // per_slice)
    # The devices of a chip are each other's nearest.
    a_chip = layout.devices // topology.chips
    skipped = math.gcd(inner, a_chip)
    on_chip = math.gcd(ways // slices, a_chip // skipped)
    rings, left, skip = [], ways // slices // on_chip, inner // skipped
    if not topology.accelerator.torus_dims:
        return interconnect.Path(devices=ways, slices=slices, on_chip=on_chip, flat="ici")
    for dim, size in sorted(enumerate(topology.dims), key=lambda item: -item[1]):
        free = size
        if skip > 1:
            used = math.gcd(skip, size)
            skip, free = skip // used, size // used
        taken = math.gcd(left, free)
        if taken > 1:
            rings.append((taken, taken == size and topology.has_wrap(dim)))
            left //= taken
    if not rings and on_chip == 1:
        rings = [(2, False)]
    return interconnect.Path(devices=ways, rings=tuple(rings), slices=slices, on_chip=on_chip)
