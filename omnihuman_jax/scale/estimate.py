"""Memory and work of a train step by formula, in microseconds: to choose what is worth compiling, and where nothing compiles.

Close, not exact: XLA decides what stays alive. What a compiled program says (`program_costs.py`) always comes first.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

from omnihuman_jax.models import mmdit
from omnihuman_jax.scale import flops, interconnect
from omnihuman_jax.scale.hardware import Topology
from omnihuman_jax.scale.program_costs import Memory, ProgramCosts
from omnihuman_jax.scale.roofline import Communication, Work
from omnihuman_jax.typing import PackedShape

BF16, FP32 = 2, 4
# Bytes a parameter, at rest: master copy, EMA, two moments; and its gradient while a step runs.
_MASTER_AND_EMA, _GRADIENT = 2 * FP32, FP32
# Arrays of [tokens, width] in bfloat16 that live at the same time in a block's backward pass; calibrated on compiled steps.
_WORKING_SET = 26
# What a layer keeps for its backward pass under each remat policy, in rows of the model's width.
KEPT_ROWS = {
    "block": 1.0, "attention": 3.0, "dots": 12.0, "products": 14.0, "none": 30.0, "block_offload": 0.0, "attention_offload": 0.0,
}  # fmt: skip
# Policies under which the attention kernel, or the matrix products, run a second time in the backward pass.
_KERNEL_AGAIN, _PRODUCTS_AGAIN = ("block", "dots", "block_offload"), ("block", "attention", "block_offload", "attention_offload")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What a sweep varies: mesh, remat, sequences that a data-parallel group computes at a time, how often in a step."""

    mesh: Mapping[str, int]
    remat: str
    sequences: int = 1
    micro_batches: int = 1
    moment_bytes: int = FP32
    offload: str = "none"

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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Of a model and a packed sequence: what every layout shares."""

    parameters: int
    forward_flops: int
    attention_flops: int
    largest_block: int


def sizes(config: mmdit.MMDiTConfig, shape: PackedShape) -> Sizes:
    """Counted once a model and shape: a sweep asks for hundreds of layouts."""
    config = dataclasses.replace(config, remat="none")
    return _sizes(_Key((repr(config), repr(shape)), config, shape))


class _Key(NamedTuple):
    """A config that hashes and compares by what it says."""

    text: tuple[str, str]
    config: mmdit.MMDiTConfig
    shape: PackedShape

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.text == other.text

    def __ne__(self, other: object) -> bool:
        return not self == other


@functools.lru_cache(maxsize=32)
def _sizes(key: _Key) -> Sizes:
    shapes, _ = mmdit.abstract_params(key.config)
    kinds = (("dual_blocks", key.config.num_dual_layers), ("single_blocks", key.config.num_single_layers))
    return Sizes(
        parameters=flops.count_parameters(shapes),
        forward_flops=flops.forward_flops(key.config, key.shape),
        attention_flops=flops.joint_attention_flops(key.config, key.shape),
        largest_block=max(flops.count_parameters(shapes[name]) // count for name, count in kinds if count),
    )


def estimate(config: mmdit.MMDiTConfig, shape: PackedShape, layout: Layout, topology: Topology) -> ProgramCosts:
    """Costs on one device of a step with fully sharded parameters and Ulysses over `context`."""
    parameters = sizes(config, shape).parameters
    return ProgramCosts(
        memory=_memory(config, shape, layout, topology, parameters),
        works=tuple(_works(config, shape, layout, topology, parameters)),
        communications=tuple(_communications(config, shape, layout, topology, parameters)),
    )


def _memory(config: mmdit.MMDiTConfig, shape: PackedShape, layout: Layout, topology: Topology, parameters: int) -> Memory:
    shards = layout.mesh["fsdp"] * layout.ways
    moments = 0 if layout.offload != "none" else 2 * layout.moment_bytes
    kept = _MASTER_AND_EMA - (FP32 if layout.offload == "moments_ema" else 0) + moments
    state = parameters * kept // shards
    tokens = layout.sequences * (shape.latent_tokens / layout.mesh["context"] + shape.text_tokens)
    row = tokens * config.width * BF16
    layers = config.num_dual_layers + config.num_single_layers
    per_layer = KEPT_ROWS[layout.remat]
    largest = sizes(config, shape).largest_block * BF16
    working = _WORKING_SET * row + 3 * largest
    return Memory(
        arguments=int(state),
        temporaries=int(parameters * _GRADIENT // shards + layers * per_layer * row + working),
        limit=topology.accelerator.hbm_bytes * topology.chips // layout.devices,
    )


def _works(config: mmdit.MMDiTConfig, shape: PackedShape, layout: Layout, topology: Topology, parameters: int) -> list[Work]:
    times = layout.sequences * layout.micro_batches
    found = sizes(config, shape)
    attention = found.attention_flops * times / layout.ways
    linear = found.forward_flops * times / layout.ways - attention
    two_kernels = topology.accelerator.platform == "tpu" and not config.attention_fused_backward
    again, kernel_again = layout.remat in _PRODUCTS_AGAIN, layout.remat in _KERNEL_AGAIN
    tokens = times * (shape.latent_tokens / layout.mesh["context"] + shape.text_tokens)
    layers = config.num_dual_layers + config.num_single_layers
    # Norms, modulation, rotations, gates: reads and writes of float32 rows that no product hides; forward, again, backward.
    elementwise = layers * tokens * config.width * FP32 * 24 * (2 + again)
    optimizer = parameters * 2 * (_MASTER_AND_EMA + 2 * layout.moment_bytes + _GRADIENT) / (layout.mesh["fsdp"] * layout.ways)
    return [
        Work(kind="attention_forward", flops=attention * (1 + kernel_again), bytes=0),
        # Splash: two kernels, seven products a block where the forward pass has two, or one of five. On GPU one of five.
        Work(kind="attention_backward", flops=attention * (3.5 if two_kernels else 2.5), bytes=0),
        Work(kind="matmul", flops=linear * (3 + again), bytes=0),
        Work(kind="memory", flops=0, bytes=elementwise + optimizer),
    ]


def _communications(
    config: mmdit.MMDiTConfig, shape: PackedShape, layout: Layout, topology: Topology, parameters: int
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
        ("all-to-all", ("context",), row * layers, layout.micro_batches * 4 * (2 + again)),
        ("all-reduce", ("data",), FP32 * share / fsdp, 1),
        ("all-reduce", ("tensor",), row * layout.mesh["tensor"] * layers, layout.micro_batches * 4),
    ]
    found = []
    for kind, axes, size, count in plans:
        ways = math.prod(layout.mesh[axis] for axis in axes)
        if ways > 1:
            path = _path(axes, layout, topology)
            time = count * interconnect.seconds(topology, kind, size, path)
            found.append(
                Communication(
                    kind=kind, axes=axes, network=path.network, count=count, bytes=count * size,
                    sent_bytes=count * interconnect.sent_bytes(kind, size, ways), seconds=time, hidden=kind != "all-to-all",
                )
            )  # fmt: skip
    if layout.remat.endswith("_offload"):
        rows = (1 if layout.remat == "block_offload" else 2) * layers * row * layout.micro_batches
        time = 2 * rows / topology.accelerator.host_bandwidth
        found.append(
            Communication(
                kind="copy", axes=("host",), network="pcie", count=2 * layers, bytes=2 * rows, sent_bytes=rows, seconds=time,
                hidden=True,
            )
        )  # fmt: skip
    return found


def _path(axes: tuple[str, ...], layout: Layout, topology: Topology) -> interconnect.Path:
    """Links of mesh axes laid out in order, the last axis innermost; on a torus its dims are filled one after the other."""
    order = ("data", "fsdp", "context", "tensor")
    inner = math.prod(layout.mesh[axis] for axis in order[order.index(axes[-1]) + 1 :])
    ways = math.prod(layout.mesh[axis] for axis in axes)
    per_slice = topology.chips_per_slice * layout.devices // topology.chips
    if topology.accelerator.platform == "gpu":
        hosts = (
            math.ceil(ways * inner / topology.accelerator.chips_per_host)
            if inner * ways > topology.accelerator.chips_per_host
            else 1
        )
        return interconnect.Path(devices=ways, hosts=min(hosts, ways))
    slices = max(1, ways * inner // per_slice)
    rings, left, skip = [], ways // slices, inner
    for dim, size in sorted(enumerate(topology.dims), key=lambda item: -item[1]):
        free = size
        if skip > 1:
            used = math.gcd(skip, size)
            skip, free = skip // used, size // used
        taken = math.gcd(left, free)
        if taken > 1:
            rings.append((taken, taken == size and topology.has_wrap(dim)))
            left //= taken
    return interconnect.Path(devices=ways, rings=tuple(rings) or ((2, False),), slices=slices)
