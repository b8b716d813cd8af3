"""The reader of compiled text: against XLA's own count where that one is right, and by hand where it is not."""

import jax
import jax.numpy as jnp
import pytest

from omnihuman_jax.scale.hlo import Program, parse_instruction, product_flops
from omnihuman_jax.scale.program_costs import works_of


def flops_of(program: Program) -> int:
    return sum(
        times * program.flops(computation, instruction) for computation, instruction, times in program.executed()
    )


def test_loops_count_as_often_as_they_turn() -> None:
    """XLA counts the body once; here 5 x 3 turns of two products and one product outside."""

    def step(x, w):
        def inner(x, _):
            return jnp.tanh(x @ w @ w), None

        def outer(x, _):
            return jax.lax.scan(inner, x, None, length=3)[0], None

        return jax.lax.scan(outer, x, None, length=5)[0] @ w

    shapes = jax.ShapeDtypeStruct((64, 96), jnp.float32), jax.ShapeDtypeStruct((96, 96), jnp.float32)
    compiled = jax.jit(step).lower(*shapes).compile()
    product = 2 * 64 * 96 * 96
    assert flops_of(Program.parse(compiled.as_text())) == (5 * 3 * 2 + 1) * product
    assert compiled.cost_analysis()["flops"] < 5 * product


PEELED = """HloModule m

%turns (state.1: (s32[], f32[8,8])) -> pred[] {
  %state.1 = (s32[], f32[8,8]{1,0}) parameter(0)
  %limit = s32[] constant(20)
  %at = s32[] get-tuple-element(%state.1), index=0
  ROOT %more = pred[] compare(%at, %limit), direction=LT
}

%turn (state.2: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %state.2 = (s32[], f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state.2), index=0
  %x = f32[8,8]{1,0} get-tuple-element(%state.2), index=1
  %y = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %next = (s32[], f32[8,8]{1,0}) tuple(%i, %y)
}

ENTRY %main (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  %first = s32[] constant(START)
  %copied = s32[] copy(%first)
  %state = (s32[], f32[8,8]{1,0}) tuple(%copied, %p)
  %loop = (s32[], f32[8,8]{1,0}) while(%state), condition=%turns, body=%turn
  ROOT %out = f32[8,8]{1,0} get-tuple-element(%loop), index=1
}
"""


@pytest.mark.parametrize("start", [0, 1])
def test_a_loop_whose_first_turn_runs_ahead_of_it(start: int) -> None:
    assert flops_of(Program.parse(PEELED.replace("START", str(start)))) == (20 - start) * 2 * 8**3


def test_batched_products_and_gradients_as_xla_counts_them() -> None:
    def loss(q, k):
        return jnp.sum(jnp.einsum("bmnk,bsnk->bnms", q, k))

    shapes = jax.ShapeDtypeStruct((2, 32, 4, 16), jnp.float32), jax.ShapeDtypeStruct((2, 48, 4, 16), jnp.float32)
    compiled = jax.jit(jax.grad(lambda q, k: loss(q, k) ** 2, argnums=(0, 1))).lower(*shapes).compile()
    ours, xla = flops_of(Program.parse(compiled.as_text())), compiled.cost_analysis()["flops"]
    assert 0.9 < ours / xla <= 1.0  # XLA counts the square and the sum as well


LINE = (
    "  ROOT %convolution.7 = f32[8,16,64]{2,1,0:T(8,128)S(1)} convolution(%a, %b), window={size=8 stride=7 pad=0_0"
    ' lhs_dilate=8}, dim_labels=0bf_0io->0bf, metadata={op_name="jit(f)/dot, (x)" stack_frame_id=3}'
)


def test_a_line_of_a_tpu_program() -> None:
    instruction = parse_instruction(LINE)
    assert instruction is not None
    assert (instruction.name, instruction.opcode, instruction.operands, instruction.is_root) == (
        "convolution.7", "convolution", ("a", "b"), True,
    )  # fmt: skip
    assert instruction.shapes[0].dims == (8, 16, 64) and instruction.shapes[0].space == 1
    assert instruction.attribute("dim_labels") == "0bf_0io->0bf" and instruction.op_name == "jit(f)/dot, (x)"
    assert parse_instruction("}") is None and parse_instruction("HloModule jit_f, is_scheduled=true") is None


BATCHED = """HloModule m

ENTRY %main (a: f32[8,16,32], b: f32[8,32,64]) -> f32[8,16,64] {
  %a = f32[8,16,32]{2,1,0} parameter(0)
  %b = f32[8,32,64]{2,1,0} parameter(1)
  ROOT %c = f32[8,16,64]{2,1,0} convolution(%a, %b), window={size=8 stride=7 pad=0_0 lhs_dilate=8}, dim_labels=0bf_0io->0bf
}
"""


def test_a_batched_product_written_as_a_convolution() -> None:
    """Each of the 8 outputs along the dilated dim meets one of 8 kernels, not all of them."""
    program = Program.parse(BATCHED)
    main = program.computations["main"]
    assert product_flops(main, main.root) == 2 * 8 * 16 * 32 * 64


SLICED = """HloModule m

%fused_read (p0: f32[10,256], p1: s32[]) -> f32[1,256] {
  %p0 = f32[10,256]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,256]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,256}
  ROOT %negated = f32[1,256]{1,0} negate(%slice)
}

%fused_write (p0.1: f32[10,256], p1.1: f32[1,256], p2.1: s32[]) -> f32[10,256] {
  %p0.1 = f32[10,256]{1,0} parameter(0)
  %p1.1 = f32[1,256]{1,0} parameter(1)
  %p2.1 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %update = f32[10,256]{1,0} dynamic-update-slice(%p0.1, %p1.1, %p2.1, %zero.1)
}

%body (state: (s32[], f32[10,256])) -> (s32[], f32[10,256]) {
  %state = (s32[], f32[10,256]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[10,256]{1,0} get-tuple-element(%state), index=1
  %row = f32[1,256]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused_read
  %in_vmem = f32[1,256]{1,0:S(1)} copy(%row)
  %new = f32[10,256]{1,0} fusion(%x, %in_vmem, %i), kind=kLoop, calls=%fused_write
  ROOT %out = (s32[], f32[10,256]{1,0}) tuple(%i, %new)
}

%condition (state.1: (s32[], f32[10,256])) -> pred[] {
  %state.1 = (s32[], f32[10,256]{1,0}) parameter(0)
  %ten = s32[] constant(10)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%i.1, %ten), direction=LT
}

ENTRY %main (start: (s32[], f32[10,256])) -> (s32[], f32[10,256]) {
  %start = (s32[], f32[10,256]{1,0}) parameter(0)
  ROOT %loop = (s32[], f32[10,256]{1,0}) while(%start), condition=%condition, body=%body
}
"""


def test_bytes_of_slices_updates_and_on_chip_memory() -> None:
    """A turn reads a row (1 KiB) and writes it, reads it into on-chip memory, and writes a row of the array."""
    program = Program.parse(SLICED)
    assert program.runs == {"main": 1, "body": 10}
    body = program.computations["body"]
    costs = {i.name: program.hbm_bytes(body, i) for i in body.instructions}
    # The index is read too: 4 bytes. Of an update in place, the written row is counted as read and written (2 KiB).
    assert costs == {"state": 0, "i": 0, "x": 0, "row": 2048 + 4, "in_vmem": 1024, "new": 2048 + 4, "out": 0}


PREFETCHED = """HloModule m

ENTRY %main (x: f32[64,1024]) -> f32[8,1024] {
  %x = f32[64,1024]{1,0:T(8,128)} parameter(0)
  %start = ((f32[64,1024]{1,0:T(8,128)}), f32[8,1024]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:8], [0:1024]}
  ROOT %done = f32[8,1024]{1,0:T(8,128)S(1)} slice-done(%start)
}
"""


def test_of_what_is_prefetched_only_the_slice_is_read() -> None:
    program = Program.parse(PREFETCHED)
    main = program.computations["main"]
    assert {i.name: program.hbm_bytes(main, i) for i in main.instructions} == {"x": 0, "start": 4 * 8 * 1024, "done": 0}


COUNTED = SLICED.replace("tuple(%i, %new)", "tuple(%next, %new)").replace(
    "  ROOT %out = ", "  %by = s32[] constant(STEP)\n  %next = s32[] add(%i, %by)\n  ROOT %out = "
)


@pytest.mark.parametrize(("step", "turns"), [(1, 10), (2, 5), (4, 3)])
def test_a_counter_that_goes_up_by_more_than_one(step: int, turns: int) -> None:
    """XLA unrolls its loops of products beside permutes, and says so by the counter's step alone."""
    assert Program.parse(COUNTED.replace("STEP", str(step))).runs["body"] == turns
    # The step may also come with the loop's state.
    handed_in = (
        COUNTED.replace("  %by = s32[] constant(STEP)\n", "  %by = s32[] get-tuple-element(%state), index=2\n")
        .replace("  %start = (s32[], f32[10,256]{1,0}) parameter(0)\n", (
            f"  %zero.9 = s32[] constant(0)\n  %two.9 = s32[] constant({step})\n  %rows = f32[10,256]{{1,0}} parameter(0)\n"
            "  %start = (s32[], f32[10,256]{1,0}, s32[]) tuple(%zero.9, %rows, %two.9)\n"))
    )  # fmt: skip
    assert Program.parse(handed_in).runs["body"] == turns


def test_a_loop_of_unknown_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="cannot tell the trip count of the loop %loop"):
        _ = Program.parse(SLICED.replace("direction=LT", "direction=NE")).runs
    with pytest.raises(ValueError, match="no ENTRY"):
        Program.parse("HloModule m\n")


FOLDED = SLICED.replace(
    "  %in_vmem = ", '  %kernel = f32[1,256]{1,0} custom-call(%row), custom_call_target="tpu_custom_call", '
    "frontend_attributes={kernel_metadata={\n}}, metadata={op_name=\"jit(f)/splash_mha_fwd\"}\n  %in_vmem = ",
)  # fmt: skip


def test_a_kernels_metadata_over_two_lines_does_not_end_its_computation() -> None:
    program = Program.parse(FOLDED)
    body = program.computations["body"]
    assert {"in_vmem", "new", "out"} <= set(body.by_name) and body.by_name["kernel"].op_name == "jit(f)/splash_mha_fwd"


KERNELS = """HloModule m

ENTRY %main (q: bf16[3,1024,128]) -> bf16[3,1024,128] {
  %walk = s8[1,4,4]{2,1,0} parameter(1)
  %q = bf16[3,1024,128]{2,1,0} parameter(0)
  %k = bf16[3,2048,128]{2,1,0} parameter(2)
  %splash_mha_fwd_segmented.1 = bf16[3,1024,128]{2,1,0} custom-call(%walk, %q, %k), custom_call_target="tpu_custom_call"
  %splash_mha_dq_segmented.1 = bf16[3,1024,128]{2,1,0} custom-call(%walk, %q, %k), custom_call_target="tpu_custom_call"
  ROOT %splash_mha_dkv_segmented.1 = bf16[3,2048,128]{2,1,0} custom-call(%walk, %q, %k), custom_call_target="tpu_custom_call"
}
"""


def test_attention_kernels_are_counted_from_their_shapes() -> None:
    """Two products a pair of blocks forward, three and four in the two backward kernels."""
    works = works_of(Program.parse(KERNELS))
    product = 2 * 3 * 1024 * 2048 * 128
    assert sum(work.flops for work in works if work.kind == "attention_forward") == 2 * product
    assert sum(work.flops for work in works if work.kind == "attention_backward") == (3 + 4) * product
    fused = KERNELS.replace(
        "dkv_segmented.1 = bf16[3,2048,128]{2,1,0} custom", "dkv_segmented.1 = bf16[2,3,1024,128]{3,2,1,0} custom"
    )
    works = works_of(Program.parse(fused))
    assert sum(work.flops for work in works if work.kind == "attention_backward") == (3 + 5) * product


INSIDE_A_FUSION = """HloModule m

%with_its_slices (p0: s8[1,4,4], p1: bf16[3,1024,128], p2: bf16[3,2048,128]) -> bf16[1,1024,128] {
  %p0 = s8[1,4,4]{2,1,0} parameter(0)
  %p1 = bf16[3,1024,128]{2,1,0} parameter(1)
  %p2 = bf16[3,2048,128]{2,1,0} parameter(2)
  %q = bf16[1,1024,128]{2,1,0} slice(%p1), slice={[0:1], [0:1024], [0:128]}
  %k = bf16[1,2048,128]{2,1,0} slice(%p2), slice={[0:1], [0:2048], [0:128]}
  ROOT %splash_mha_fwd_segmented.1 = bf16[1,1024,128]{2,1,0} custom-call(%p0, %q, %k), custom_call_target="tpu_custom_call"
}

ENTRY %main (walk: s8[1,4,4], q: bf16[3,1024,128], k: bf16[3,2048,128]) -> bf16[1,1024,128] {
  %walk = s8[1,4,4]{2,1,0} parameter(0)
  %qs = bf16[3,1024,128]{2,1,0} parameter(1)
  %ks = bf16[3,2048,128]{2,1,0} parameter(2)
  ROOT %one_head = bf16[1,1024,128]{2,1,0} fusion(%walk, %qs, %ks), kind=kCustom, calls=%with_its_slices
}
"""


def test_a_kernel_inside_a_fusion_is_counted() -> None:
    """XLA fuses the kernels of single heads with the slices that they read and write."""
    works = works_of(Program.parse(INSIDE_A_FUSION))
    assert sum(work.flops for work in works if work.kind == "attention_forward") == 2 * 2 * 1024 * 2048 * 128
