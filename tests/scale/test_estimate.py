"""The formulas of a plan, against what the kernels and the exchanges of attention do, counted by hand."""

import dataclasses
from typing import Any

import pytest

from omnihuman_jax.attention.dispatch import AttentionStrategy
from omnihuman_jax.attention.tpu import Splash
from omnihuman_jax.models.execution import ExecutionConfig
from omnihuman_jax.models.mmdit_config import MMDiTConfig
from omnihuman_jax.scale.estimate import StepLayout, attention_kernel, estimate
from omnihuman_jax.scale.hardware import parse_topology
from omnihuman_jax.scale.program_costs import Memory, ProgramCosts
from tests.training import tiny

SHAPE = dataclasses.replace(tiny.packed_shape(), latent_tokens=15360, text_tokens=1024)
MODEL = MMDiTConfig(width=1024, num_heads=8, num_dual_layers=3, num_single_layers=2, num_refiner_layers=0)
ROW = 15360 // 8 * 1024 * 2  # bytes of a device's video queries, 8-way context
LAYERS = 5


def costs(
    topology: str = "v5p:2x2x2",
    *,
    windows: int = 2,
    remat: str = "attention",
    layout: dict[str, Any] | None = None,
    **attention: Any,
) -> ProgramCosts:
    target = parse_topology(topology)
    mesh = {"data": 1, "fsdp": target.devices // 8, "context": 8, "tensor": 1}
    execution = ExecutionConfig(remat=remat, attention=AttentionStrategy(**attention))
    used = StepLayout(mesh=mesh, execution=execution, **(layout or {}))
    shape = dataclasses.replace(SHAPE, windows=windows)
    return estimate(MODEL, shape, used, target)


@pytest.mark.parametrize(
    ("topology", "windows", "dtype", "attention", "kernel", "products"),
    [
        ("h100:8", 2, "bfloat16", {}, "triton", 7),
        ("h100:8", 1, "bfloat16", {}, "cudnn", 5),
        ("h100:8", 1, "float32", {}, "triton", 7),
        ("h100:8", 1, "bfloat16", {"kernel": "triton"}, "triton", 7),
        ("h100:8", 2, "bfloat16", {"fused_backward": True}, "triton", 7),
        ("v5p:2x2x2", 1, "bfloat16", {}, "splash", 7),
        ("v5p:2x2x2", 2, "bfloat16", {"fused_backward": True}, "splash", 5),
        ("v5p:2x2x2", 2, "bfloat16", {"kernel": "blocked"}, "blocked", 5),
    ],
)
def test_the_backward_pass_is_counted_by_the_kernel_that_runs(
    topology: str, windows: int, dtype: str, attention: dict[str, Any], kernel: str, products: int
) -> None:
    found = costs(topology, windows=windows, layout={"compute_dtype": dtype}, **attention)
    work = {w.kind: w.flops for w in found.works}
    assert work["attention_backward"] / work["attention_forward"] == products / 2
    execution = ExecutionConfig(remat="attention", attention=AttentionStrategy(**attention))
    mesh = {"data": 1, "fsdp": 1, "context": 8, "tensor": 1}
    layout = StepLayout(mesh=mesh, execution=execution, compute_dtype=dtype)
    shape = dataclasses.replace(SHAPE, windows=windows)
    assert attention_kernel(shape, layout, parse_topology(topology)) == kernel


@pytest.mark.parametrize(
    ("mode", "remat", "expected"),
    [
        # q, k, v and the output: forward, anew, backward.
        ("ulysses", "attention", {("all-to-all", 12, 1.0)}),
        ("ulysses", "none", {("all-to-all", 8, 1.0)}),
        # k and v of 8 devices: forward and anew; both gradients.
        ("gather", "attention", {("all-gather", 4, 8.0), ("reduce-scatter", 2, 8.0)}),
        ("gather", "none", {("all-gather", 2, 8.0), ("reduce-scatter", 2, 8.0)}),
        # k and v, 8 hops, forward and backward (once more where the kernel runs again); gradients in float32, and home.
        ("ring", "attention", {("collective-permute", 32, 1.0), ("collective-permute", 18, 2.0)}),
        ("ring", "block", {("collective-permute", 48, 1.0), ("collective-permute", 18, 2.0)}),
        # 4 share out heads, 2 form a ring.
        (
            "ulysses_ring",
            "attention",
            {("all-to-all", 12, 1.0), ("collective-permute", 8, 1.0), ("collective-permute", 6, 2.0)},
        ),
    ],
)
def test_attention_sends_what_its_mode_exchanges(mode: str, remat: str, expected: set[tuple[str, int, float]]) -> None:
    found = costs(remat=remat, context_parallel=mode, ulysses_ways=4 if mode == "ulysses_ring" else 0)
    assert {
        (c.kind, c.count, c.bytes / c.count / ROW / LAYERS) for c in found.communications if c.axes == ("context",)
    } == expected
    assert all(c.seconds > 0 and c.sent_bytes > 0 for c in found.communications)


def test_keys_that_are_whole_or_travel_take_memory() -> None:
    peaks = {mode: costs(context_parallel=mode).memory.peak for mode in ("ulysses", "ring", "gather")}
    assert peaks["ring"] - peaks["ulysses"] == pytest.approx(20 * ROW, abs=2)
    assert peaks["gather"] - peaks["ulysses"] == pytest.approx(4 * 8 * ROW, abs=2)


def test_the_fused_backward_kernel_takes_memory() -> None:
    """Beyond the two kernels', as libtpu plans it: `python docs/scale/attention_memory.py`, v5p."""
    splash = Splash(fused_backward=True)
    # One head at a time and blocks of 2048 keys; three heads and blocks of 1024.
    for tokens, one, two in ((123904, 2.53, 0.24), (33792, 0.85, 0.04)):
        assert splash.fused_backward_bytes(3, tokens, tokens, 128) / 2**30 == pytest.approx(one - two, rel=0.03)
    plain, fused = (costs(context_parallel="ulysses", fused_backward=on).memory.peak for on in (False, True))
    assert fused - plain == splash.fused_backward_bytes(1, 16384, 16384, 128)
    on_gpu = [costs("h100:8", context_parallel="ulysses", fused_backward=on).memory.peak for on in (False, True)]
    assert on_gpu[0] == on_gpu[1], "splash alone"


def test_what_is_offloaded_has_to_fit_the_hosts() -> None:
    kept, moments, both = (costs(layout={"offload": offload}).memory for offload in ("none", "moments", "moments_ema"))
    assert kept.host == 0 and both.host == pytest.approx(1.5 * moments.host, abs=2)
    assert kept.arguments == pytest.approx(moments.arguments + moments.host, abs=2)
    inputs = costs(remat="attention_offload").memory
    assert inputs.host == pytest.approx(2 * LAYERS * (15360 / 8 + 1024) * 1024 * 2, abs=2)
    assert inputs.host_limit == 448 * 2**30 // 4 and inputs.fits
    assert not dataclasses.replace(inputs, host=inputs.host_limit + 1).fits
    assert Memory(limit=1, host=2**50).fits, "a machine whose memory is not known"
