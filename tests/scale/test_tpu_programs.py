"""The whole train step, compiled ahead of time for two described TPU slices: what CPU cannot show.

Block inputs, moments and EMA lie in the hosts' memory (a CPU has one memory under all names); `context` and `tensor`
stay inside a slice, and only gradients cross.
"""

import math

import jax
import pytest

from omnihuman_jax import sharding
from omnihuman_jax.models import mmdit
from omnihuman_jax.models.execution import ExecutionConfig
from omnihuman_jax.scale import described_devices
from omnihuman_jax.scale.collectives import collectives
from omnihuman_jax.scale.hardware import parse_topology
from omnihuman_jax.scale.hlo import Program
from omnihuman_jax.training.train_step import StepConfig
from tests.scale.compile_cost import lower_step
from tests.training import tiny

pytestmark = pytest.mark.slow

LAYERS = 6


def test_a_mesh_over_two_described_slices() -> None:
    devices = described_devices.describe(parse_topology("v5e:2x4", 2))
    config = sharding.MeshConfig(fsdp=2, context=2, tensor=2)
    mesh = sharding.create_mesh(config, devices[::-1])
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "context": 2, "tensor": 2}
    assert [{d.slice_index for d in part.flat} for part in mesh.devices] == [{0}, {1}]
    crossing = sharding.MeshConfig(data=1, fsdp=4, tensor=2, dcn_data=1, dcn_fsdp=2)
    assert [{d.slice_index for d in part.flat} for part in sharding.create_mesh(crossing, devices).devices[0]] == 4 * [
        {0}
    ] + 4 * [{1}]


@pytest.mark.parametrize("name", ["tpu8t:2x2x1", "tpu8i:4"])
def test_what_is_planned_has_no_described_slice_yet(name: str) -> None:
    """Once this fails, libtpu knows it: compile its rows of docs/scale.md."""
    with pytest.raises(ValueError, match=r"it is announced, and libtpu .* describes no slice of it; use --estimate"):
        described_devices.describe(parse_topology(name))


def test_what_lies_in_the_hosts_memory_and_what_is_sent() -> None:
    devices = described_devices.describe(parse_topology("v5e:2x2", 2))
    trainer = tiny.Trainer(
        sharding.MeshConfig(fsdp=4),
        config=tiny.model_config(dual=LAYERS),
        execution=ExecutionConfig(remat="block_offload"),
        step=StepConfig(offload="moments_ema"),
        devices=devices,
    )
    compiled = lower_step(trainer).compile()
    memory = compiled.memory_analysis()

    # Two moments and the EMA wait on the host between steps, and go back there.
    shapes, axes = mmdit.abstract_params(trainer.config)
    places = zip(jax.tree.leaves(shapes), jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple)), strict=True)
    share = sum(4 * math.prod(leaf.shape) // (4 if "embed" in axis else 1) for leaf, axis in places)
    assert memory.host_argument_size_in_bytes >= 3 * share and memory.host_output_size_in_bytes >= 3 * share
    # On the device: one copy of the parameters and a little more (tiles pad small arrays there and on the host alike).
    assert memory.host_argument_size_in_bytes > 2 * memory.argument_size_in_bytes
    # Both streams of every block wait on the host for the backward pass.
    streams = LAYERS * trainer.config.width * 4 * (tiny.packed_shape().latent_tokens + tiny.packed_shape().text_tokens)
    assert memory.host_temp_size_in_bytes >= streams

    found = [
        item
        for item in collectives(Program.parse(compiled.as_text()), dict(trainer.mesh.shape))
        if item.operand_bytes >= 512
    ]
    kinds = {(item.kind, item.axes) for item in found}
    assert ("all-gather", ("fsdp",)) in kinds and ("reduce-scatter", ("fsdp",)) in kinds
    assert all(item.axes in (("fsdp",), ("data",), ("data", "fsdp")) for item in found), kinds
    # Weights are gathered inside a slice; only gradients cross.
    assert {item.kind for item in found if "data" in item.axes} <= {"all-reduce", "reduce-scatter"}
