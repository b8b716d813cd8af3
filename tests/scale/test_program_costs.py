"""Costs read out of compiled texts."""

import pytest

from omnihuman_jax.scale.hardware import parse_topology
from omnihuman_jax.scale.hlo import Program
from omnihuman_jax.scale.program_costs import between_slices_of

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
"""  # noqa: E501


def test_what_crosses_between_slices_is_found_though_it_is_no_collective() -> None:
    topology = parse_topology("v6e:16x16", 2)
    (found,) = between_slices_of(Program.parse(TRANSFER), topology)
    size = 5 * 2 * 64 * 1024
    assert (found.kind, found.axes, found.network, found.count, found.bytes) == ("all-reduce", ("slices",), "dcn", 5, size)
    assert found.sent_bytes == size and found.hidden
    assert found.seconds == pytest.approx(size / topology.accelerator.dcn_bandwidth)


def test_other_transfers_do_not() -> None:
    text = TRANSFER.replace(', frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}', "")
    assert between_slices_of(Program.parse(text), parse_topology("v6e:16x16", 2)) == []
