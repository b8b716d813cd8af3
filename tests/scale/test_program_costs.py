"""Costs read out of compiled texts."""

import pytest

from omnihuman_jax.scale.hardware import parse_topology
from omnihuman_jax.scale.hlo import Program
from omnihuman_jax.scale.program_costs import between_slices_of, refused_memory, words_of

# A gradient's shard that crosses to the other slice, in each of 5 turns, as libtpu writes it.
TRANSFER = """HloModule m

%cond (p: (s32[], bf16[64,1024])) -> pred[] {
  %p = (s32[], bf16[64,1024]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (p.1: (s32[], bf16[64,1024])) -> (s32[], bf16[64,1024]) {
  %p.1 = (s32[], bf16[64,1024]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %x = bf16[64,1024]{1,0} get-tuple-element(%p.1), index=1
  %token = token[] after-all()
  %sent = (bf16[64,1024]{1,0}, u32[], token[]) send(%x, %token), is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent-done = token[] send-done(%sent), is_host_transfer=true
  ROOT %out = (s32[], bf16[64,1024]{1,0}) tuple(%i.1, %x)
}

ENTRY %main (a: (s32[], bf16[64,1024])) -> (s32[], bf16[64,1024]) {
  %a = (s32[], bf16[64,1024]{1,0}) parameter(0)
  ROOT %loop = (s32[], bf16[64,1024]{1,0}) while(%a), condition=%cond, body=%body
}
"""


def test_what_crosses_between_slices_is_found_though_it_is_no_collective() -> None:
    topology = parse_topology("v6e:16x16", 2)
    (found,) = between_slices_of(Program.parse(TRANSFER), topology)
    size = 5 * 2 * 64 * 1024
    assert (found.kind, found.axes, found.network, found.count, found.bytes) == (
        "all-reduce",
        ("slices",),
        "dcn",
        5,
        size,
    )
    assert found.sent_bytes == size and found.hidden
    assert found.seconds == pytest.approx(size / topology.accelerator.dcn_bandwidth)


def test_other_transfers_do_not() -> None:
    text = TRANSFER.replace(', frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}', "")
    assert between_slices_of(Program.parse(text), parse_topology("v6e:16x16", 2)) == []


# What libtpu 0.0.52 says, shortened in the middle.
HBM_IS_FULL = """RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO \
temporaries (24.00G) exceeds available HBM (15.75G). HLO module: jit__lambda.
See https://openxla.org/xla/errors/error_1000 for more details."""
HBM_IS_FULL_WITH_REPORT = """RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom:
Ran out of memory in memory space hbm. Used 20.13G of 15.75G hbm. Exceeded hbm capacity by 4.38G. HLO module: jit_step. Memory \
usage report: 32.00G of sums over sums"""
VMEM_IS_FULL = """RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom:
Ran out of memory in memory space vmem while allocating on stack for %splash_mha_fwd_segmented_residuals.1 = (f32[4096,128]{1,0}) \
custom-call(%fusion.5), custom_call_target="tpu_custom_call", \
operand_layout_constraints={s8[1,2,2]{2,1,0}, bf16[1,8192,128]{2,1,0}}, \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 4096, \\"block_kv\\": 4096, \\"block_kv_compute\\": 4096, \\"block_q_dkv\\": null}"
}}, metadata={op_name="jit(f)/splash_mha_fwd_segmented_residuals/pallas_call" stack_frame_id=56}. Scoped allocation with size \
73.37M and limit 16.00M exceeded scoped vmem limit by 57.37M. It should not be possible to run out of scoped vmem -
See https://openxla.org/xla/errors/error_1001 for more details."""


@pytest.mark.parametrize(("text", "needed"), [(HBM_IS_FULL, 24.0), (HBM_IS_FULL_WITH_REPORT, 20.13)])
def test_full_hbm_is_an_answer(text: str, needed: float) -> None:
    memory = refused_memory(RuntimeError(text), int(15.75 * 2**30))
    assert memory is not None and memory.peak == int(needed * 2**30) and not memory.fits


@pytest.mark.parametrize(
    "text", [VMEM_IS_FULL, "RESOURCE_EXHAUSTED: 2.0G of something", "INTERNAL: Ran out of memory on HBM 24.0G"]
)
def test_full_vmem_is_none(text: str) -> None:
    assert refused_memory(RuntimeError(text), int(15.75 * 2**30)) is None


def test_the_compilers_words_fit_a_line() -> None:
    words = words_of(RuntimeError(VMEM_IS_FULL))
    assert (
        len(words) < 420
        and "\n" not in words
        and "CompileTimeScopedVmemOom" in words
        and "scoped vmem limit by 57.37M" in words
    )
