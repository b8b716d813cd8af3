"""Reading collectives out of HLO text: every spelling of groups, loops in loops, what a device sends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from omnihuman_jax import sharding
from omnihuman_jax.scale.collectives import by_kind, collectives
from omnihuman_jax.scale.hlo import Program

MESH = {"data": 1, "fsdp": 2, "context": 2, "tensor": 2}


def program(instruction: str) -> Program:
    return Program.parse(f"""HloModule m
%sum (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}}

ENTRY %main (p: f32[16,4], /*index=1*/q: bf16[8]) -> f32[16,4] {{
  %p = f32[16,4]{{1,0:T(8,128)}} parameter(0)
  %q = bf16[8]{{0}} parameter(1)
  {instruction}
  ROOT %r = f32[16,4]{{1,0}} copy(%p)
}}
""")


@pytest.mark.parametrize(
    ("instruction", "kind", "axes", "groups", "operand", "wire"),
    [
        ("%x = f32[64,4]{1,0} all-gather(%p), replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}",
         "all-gather", ("fsdp", "context"), ((0, 2, 4, 6), (1, 3, 5, 7)), 256, 768),
        ("%x = f32[16,4]{1,0} all-reduce(%p), replica_groups=[4,2]<=[8], to_apply=%sum",
         "all-reduce", ("tensor",), ((0, 1), (2, 3), (4, 5), (6, 7)), 256, 256),
        ("%x = (f32[16,4]{1,0:T(8,128)}, bf16[8]{0}) all-reduce(%p, %q), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%sum",
         "all-reduce", ("fsdp",), ((0, 4), (1, 5), (2, 6), (3, 7)), 272, 272),
        ("%x = f32[8,4]{1,0} reduce-scatter(%p), replica_groups=mesh['a'=4,'b'=2] {'a'}, dimensions={0}, to_apply=%sum",
         "reduce-scatter", ("fsdp", "context"), ((0, 2, 4, 6), (1, 3, 5, 7)), 256, 192),
        ("%x = f32[16,4]{1,0} all-to-all(%p), replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}, dimensions={0}",
         "all-to-all", ("context",), ((0, 2), (1, 3), (4, 6), (5, 7)), 256, 128),
        ("%x = f32[16,4]{1,0} all-to-all(%p), replica_groups=mesh['a'=4,'b'=2], device_ids=([8]<=[2,4]T(1,0)) {'b'}",
         "all-to-all", ("fsdp",), ((0, 4), (1, 5), (2, 6), (3, 7)), 256, 128),
        ("%x = f32[16,4]{1,0} all-to-all(%p), replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}",
         "all-to-all", ("fsdp",), ((0, 4), (1, 5), (2, 6), (3, 7)), 256, 128),
        ("%x = (f32[16,4], f32[16,4], u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,2},{2,0},{1,3},{3,1}}",
         "collective-permute", ("context",), ((0, 2), (2, 0), (1, 3), (3, 1)), 256, 256),
        ("%x = f32[16,4]{1,0} all-reduce(%p), replica_groups={}, to_apply=%sum",
         "all-reduce", ("fsdp", "context", "tensor"), (tuple(range(8)),), 256, 448),
    ],
)  # fmt: skip
def test_spellings(instruction: str, kind: str, axes: tuple, groups: tuple, operand: int, wire: int) -> None:
    (found,) = collectives(program(instruction), MESH)
    assert (found.kind, found.axes, found.groups) == (kind, axes, groups)
    assert (found.operand_bytes, found.wire_bytes, found.trips) == (operand, wire, 1)


def test_what_is_no_program_and_what_is_no_collective() -> None:
    assert collectives(program("%x = f32[16,4]{1,0} all-gather-done(%p)"), MESH) == []
    assert collectives(program("%x = f32[16,4]{1,0} all-reduce(%p), replica_groups=[8,1]<=[8]"), MESH) == []
    with pytest.raises(ValueError, match="no ENTRY"):
        Program.parse("stablehlo")
    with pytest.raises(ValueError, match="8 devices on a mesh of"):
        collectives(program("%x = f32[16,4]{1,0} all-reduce(%p), replica_groups={{0,7}}"), {"data": 4})


def test_loops_multiply() -> None:
    """A scan in a scan on 8 devices, compiled: 3 x 5 all-reduces over `tensor`, one gather of the weights outside."""
    mesh = Mesh(
        np.asarray(jax.devices()).reshape(tuple(MESH.values())), sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 4
    )

    def run(x: jax.Array, w: jax.Array) -> jax.Array:
        w = jax.lax.with_sharding_constraint(w, PartitionSpec(None, "tensor"))

        def inner(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jax.lax.with_sharding_constraint(jnp.tanh(jnp.tanh(x @ w) @ w.T), PartitionSpec("fsdp", None)), None

        outer = lambda x, _: (jax.lax.scan(inner, x, None, length=5)[0] + 1, None)  # noqa: E731
        return jax.lax.scan(outer, x, None, length=3)[0]

    places = NamedSharding(mesh, PartitionSpec("fsdp", None)), NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    shapes = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 32), jnp.float32)
    with jax.set_mesh(mesh):
        text = jax.jit(run, in_shardings=places, out_shardings=places[0]).lower(*shapes).compile().as_text()
    found = collectives(Program.parse(text), dict(mesh.shape))
    (gather,), (reduce,) = ([item for item in found if item.kind == kind] for kind in ("all-gather", "all-reduce"))
    assert (gather.axes, gather.trips, gather.operand_bytes) == (("fsdp",), 1, 8 * 16 * 4)
    assert (reduce.axes, reduce.trips, reduce.operand_bytes) == (("tensor",), 15, 4 * 16 * 4)
    assert by_kind(found) == {("all-gather", ("fsdp",)): 512, ("all-reduce", ("tensor",)): 15 * 256}
    assert by_kind(found, least_bytes=257) == {("all-gather", ("fsdp",)): 512}
