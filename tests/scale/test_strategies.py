"""What the step of each sharding strategy sends: only what the scheme asks for, and no more of it than it asks for.

Compiled for 8 simulated devices. XLA:CPU knows no reduce-scatter of gradients: it writes an all-reduce of which each
device keeps its part. What the attention strategies exchange along `context` inside their `shard_map` is tested with
them.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from omnihuman_jax import sharding
from omnihuman_jax.attention.dispatch import AttentionStrategy
from omnihuman_jax.models import mmdit
from omnihuman_jax.models.execution import ExecutionConfig
from omnihuman_jax.scale.collectives import Collective, collectives
from omnihuman_jax.scale.hlo import Program
from tests import quick_xla
from tests.scale.compile_cost import lower_step
from tests.training import tiny

pytestmark = pytest.mark.slow
Measured: TypeAlias = Callable[[str, float, float], None]

CONFIG = tiny.model_config(dual=2, single=2)
SMALL = 512  # bytes; below: sums for the log, the gradient norm, indices
PHRASE = "nvoluntary full rematerialization"

GATHER, REDUCE, PERMUTE = "all-gather", "all-reduce", "collective-permute"
WEIGHTS, GRADIENTS, ACTIVATIONS, TABLES = "weights", "gradients", "activations", "modulation tables"
CUT = "gradients that are cut already"

# Mesh -> (kind, axes) -> what it carries. Nothing else may be there, and each of these must be.
STRATEGIES: dict[str, tuple[dict[str, int], dict[tuple[str, tuple[str, ...]], str]]] = {
    "data": ({"data": 8}, {(REDUCE, ("data",)): GRADIENTS}),
    "fsdp": ({"data": 1, "fsdp": 8}, {(GATHER, ("fsdp",)): WEIGHTS, (REDUCE, ("fsdp",)): GRADIENTS}),
    "tensor": (
        {"data": 4, "tensor": 2},
        {(REDUCE, ("data",)): GRADIENTS, (REDUCE, ("tensor",)): ACTIVATIONS, (GATHER, ("tensor",)): TABLES},
    ),
    "context": (
        {"data": 1, "fsdp": 2, "context": 4},
        {
            (GATHER, ("fsdp", "context")): WEIGHTS, (REDUCE, ("fsdp",)): GRADIENTS, (REDUCE, ("context",)): GRADIENTS,
            (REDUCE, ("fsdp", "context")): GRADIENTS,
        },
    ),
    "data x fsdp x tensor": (
        {"data": 2, "fsdp": 2, "tensor": 2},
        {
            # Matrices over fsdp first, of which each device keeps its part; biases over both. The last: a few small
            # matrices, cut in another order.
            (GATHER, ("fsdp",)): WEIGHTS, (REDUCE, ("fsdp",)): GRADIENTS, (REDUCE, ("data",)): CUT,
            (REDUCE, ("data", "fsdp")): GRADIENTS, (PERMUTE, ("fsdp", "tensor")): CUT,
            (REDUCE, ("tensor",)): ACTIVATIONS, (GATHER, ("tensor",)): TABLES,
        },
    ),
}  # fmt: skip
# The other ways in which attention exchanges along `context`: outside of it they change nothing.
STRATEGIES |= {f"context, {mode}": STRATEGIES["context"] for mode in ("ring", "ulysses", "ulysses_ring")}


def parameter_bytes(mesh: dict[str, int], *, gathered: bool) -> float:
    """Of all parameters as one device uses them (its share of `tensor`), or of those alone that have to be gathered."""
    shapes, axes = mmdit.abstract_params(CONFIG)
    total = 0.0
    for leaf, axis in zip(
        jax.tree.leaves(shapes), jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple)), strict=True
    ):
        split = mesh.get("tensor", 1) if {"heads", "mlp"} & set(axis) else 1
        total += 4 * math.prod(leaf.shape) / split * (not gathered or "embed" in axis)
    return total


@pytest.mark.parametrize("name", STRATEGIES)
def test_only_what_the_scheme_asks_for(
    name: str, capfd: pytest.CaptureFixture, measured: Callable[[str, float, float], None]
) -> None:
    mesh, expected = STRATEGIES[name]
    mode = name.partition(", ")[2] or "gather"
    config = CONFIG
    execution = ExecutionConfig(remat="block", attention=AttentionStrategy(context_parallel=mode))
    if mode == "ulysses":
        config = dataclasses.replace(config, num_heads=4, rope_axes=(2, 2, 4))  # a head for each of `context`
    trainer = tiny.Trainer(sharding.MeshConfig(**mesh), config=config, execution=execution)
    text = lower_step(trainer).compile(compiler_options=quick_xla.OPTIONS).as_text()
    assert PHRASE not in capfd.readouterr().err
    found = [
        item
        for item in collectives(Program.parse(text), dict(trainer.mesh.shape))
        if item.operand_bytes >= SMALL and not exchanged(item)
    ]
    seen = {(item.kind, item.axes) for item in found}
    assert seen == set(expected), f"not asked for: {seen - set(expected)}; missing: {set(expected) - seen}"

    def carried(kind: str, what: str) -> float:
        return sum(
            item.operand_bytes * item.trips * (item.group_size if kind == GATHER else 1)
            for item in found
            if item.kind == kind and expected[item.kind, item.axes] == what
        )

    if WEIGHTS in expected.values():
        # Forward, and again where the backward pass computes a block anew; never more often.
        passes = carried(GATHER, WEIGHTS) / parameter_bytes(mesh, gathered=True)
        assert passes > 1.5, "weights that are not gathered are not sharded"
        measured(f"weights gathered a step, {name}: share of two passes over the sharded weights", passes / 2, 1.0)
    # Once an axis that splits rows or tokens. The time embedding's parameters have two uses, each reduced on its own.
    reduced = [item for item in found if item.kind == REDUCE and expected[item.kind, item.axes] in (GRADIENTS, CUT)]
    ways = {GRADIENTS: 1, CUT: mesh.get("fsdp", 1) * mesh.get("context", 1)}
    axes = {axis for item in reduced for axis in item.axes}
    sent = sum(
        item.operand_bytes * item.trips * len(item.axes) * ways[expected[item.kind, item.axes]] for item in reduced
    )
    share = sent / len(axes) / parameter_bytes(mesh, gathered=False)
    measured(f"gradients reduced a step and axis, {name}: share of the parameters", share, 1.3)
    assert share > 0.9
    if TABLES in expected.values():
        assert carried(GATHER, TABLES) <= 4 * table_bytes(mesh)  # forward and anew in the backward pass, of two streams


def exchanged(item: Collective) -> bool:
    """Whether it is an attention strategy's own, written out inside its `shard_map`."""
    return "/shard_map/" in item.source and "context" in item.axes


def table_bytes(mesh: dict[str, int]) -> float:
    """Of the modulation tables of all blocks on a device: [B, 2G, 6 or 3, D] float32."""
    rows = tiny.SEQUENCES / mesh.get("data", 1) / mesh.get("fsdp", 1) * 2 * tiny.packed_shape().windows
    return 4 * rows * CONFIG.width * (6 * CONFIG.num_dual_layers + 3 * CONFIG.num_single_layers + 2)


def test_the_phrase_is_what_xla_logs(capfd: pytest.CaptureFixture) -> None:
    """A reshape that its shardings do not fit: without this, no log at all would pass for a clean one."""
    mesh = Mesh(np.asarray(jax.devices()).reshape(4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    pin = jax.lax.with_sharding_constraint

    def misfit(x: jax.Array) -> jax.Array:
        x = pin(x * 2, PartitionSpec(("a", "b"), None)).reshape(2, 4, 8).transpose(2, 1, 0).reshape(4, 2, 8)
        return pin(x * 3, PartitionSpec("a", "b", None))

    with jax.set_mesh(mesh):
        jax.jit(misfit).lower(jnp.ones((8, 8))).compile()
    assert PHRASE in capfd.readouterr().err
