"""`omnihuman plan --topology`: what it prints and writes, by formula here; compiled for described TPUs in the slow
tests.
"""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from omnihuman_jax.attention.dispatch import AttentionStrategy
from omnihuman_jax.commands import plan as plan_command
from omnihuman_jax.commands import plan_scale
from omnihuman_jax.config import DataConfig, ExperimentConfig, load_config, planned_shape
from omnihuman_jax.data.plan import PlanConfig
from omnihuman_jax.models import flops
from omnihuman_jax.models.execution import REMAT_POLICIES, ExecutionConfig
from omnihuman_jax.models.mmdit import MMDiTConfig
from omnihuman_jax.scale.cost_report import CostReport, advice, format_report, load_report
from omnihuman_jax.scale.estimate import KEPT_ROWS
from omnihuman_jax.scale.hardware import Topology, parse_topology
from omnihuman_jax.scale.roofline import KINDS
from omnihuman_jax.sharding import MeshConfig
from omnihuman_jax.stages import paper_stages

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "omnihuman_13b.py:720p")


def run(*arguments: str) -> int:
    return plan_command.main(["--config", CONFIG, *arguments])


def test_by_formula(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out" / "plan.json"
    assert run("--topology", "v5p:4x4x8", "--micro-batch", "1", "--estimate", "--json", str(path)) == 0
    text = capsys.readouterr().out
    for expected in (
        "omnihuman_13b_720p on v5p:4x4x8: 128 chips, 32 hosts, 128 devices; data 2 x fsdp 8 x context 8",
        "16 sequences of 122,880 + 1,024 tokens in 1 micro-batch, remat attention",
        "15.11 B; a device holds 236.1 M of them: 0.88 GiB in float32, 3.52 GiB with EMA and moments",
        "fits; ", "joint attention", "all-to-all         context", "predicted   step", "MFU", "HFU", "assumed",
        "maxtext.readthedocs.io", "not compiled: everything here is formula",
    ):  # fmt: skip
        assert expected in text
    data = json.loads(path.read_text())
    assert data["chips"] == 128 and data["hosts"] == 32 and data["memory"]["fits"] and data["estimated"]
    assert data["config"]["data"]["plan"]["sequences_per_step"] == 16
    again = load_report(data)
    assert format_report(again) == text.strip()
    assert again.roofline is not None and 0.2 < again.roofline.mfu < 0.5


def test_gpus_are_planned_by_formula(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--topology", "h100:128", "--micro-batch", "1", "--estimate") == 0
    text = capsys.readouterr().out
    assert "no compiler for GPUs works without one" in text and "of nvlink" in text and "16 hosts" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--topology", "v5p:3x3x3"], "the nearest are 2x4x4"),
        (["--topology", "v5p:4x4x8", "--slices", "0"], "at least 1"),
        (["--sweep"], "--sweep belongs to the scale plan: add --topology"),
        (
            ["--topology", "v4:4x4x4", "--micro-batch", "1"],
            "describes v4:4x4x4 as 128 devices, but a job there has 64.*--estimate",
        ),
        (["--slices", "2"], "--slices belongs to the scale plan"),
        (["--compile", "2"], "--compile belongs to the scale plan"),
        (["--text", "step.txt"], "--text belongs to the scale plan"),
        (["--topology", "v5p:4x4x8", "--compile", "2"], "--compile says how many layouts of a --sweep"),
        (["--topology", "v5p:4x4x8", "--sweep", "--text", "step.txt"], "--text .* not with --sweep"),
        (
            ["--topology", "v5p:2x4x4", "--estimate"],
            "multiple of 64 devices, there are 32: mesh.fsdp=4 or mesh.context=4",
        ),
        (["--topology", "v5p:4x4x8", "--estimate", "--config.data.plan.sequences_per_step=17"], "17"),
    ],
)
def test_what_cannot_be_says_why(arguments: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        run(*arguments)


@pytest.mark.parametrize(
    ("topology", "mesh", "pointed_out"),
    [
        ("v5p:4x4x8", ["--config.mesh.fsdp=16"], True),
        ("v5p:4x4x4", [], True),
        ("v5p:4x4x8", [], False),  # data 2
        ("v5p:2x4x4", ["--config.mesh.fsdp=4"], False),
        ("v6e:8x8", [], False),
    ],
)
def test_weights_shared_by_all_chips_of_a_torus_are_pointed_out(
    topology: str, mesh: list[str], pointed_out: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen in compiled text: gathered by an all-reduce there, and only there."""
    run("--topology", topology, "--micro-batch", "1", "--estimate", *mesh)
    assert ("are all chips of a torus" in capsys.readouterr().out) == pointed_out


def test_the_sweep_ranks_what_fits_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--topology", "v6e:16x16", "--sweep", "--estimate") == 0
    assert "layouts" in capsys.readouterr().out
    found = plan_scale.candidates(load_config(CONFIG), parse_topology("v6e:16x16"))
    fits = [c.estimate.costs.memory.fits for c in found]
    assert fits == sorted(fits, reverse=True) and True in fits and False in fits
    rates = [c.estimate.roofline.mfu for c in found if c.estimate.costs.memory.fits and c.estimate.roofline]
    assert rates == sorted(rates, reverse=True)
    assert {candidate.estimate.remat for candidate in found} == set(REMAT_POLICIES) <= set(KEPT_ROWS)
    for candidate in found:
        assert 24 % candidate.estimate.mesh["context"] == 0


@pytest.mark.parametrize(
    ("topology", "slices", "overrides"),
    [
        ("v6e:4x4", 2, []),
        ("v6e:4x4", 2, ["mesh.dcn_fsdp=2"]),
        ("v5p:2x2x2", 1, ["mesh.tensor=2"]),
        ("h100:16", 1, ["mesh.tensor=4"]),
    ],
)
def test_every_mesh_of_a_sweep_is_one_of_these_devices(topology: str, slices: int, overrides: list[str]) -> None:
    config, target = load_config(CONFIG, [f"--config.{o}" for o in overrides]), parse_topology(topology, slices)
    found = plan_scale.candidates(config, target, micro_batches=(1,))
    assert len({tuple(c.estimate.mesh.values()) for c in found}) > 1
    for candidate in found:
        assert math.prod(candidate.estimate.mesh.values()) == target.devices
        assert candidate.estimate.mesh["tensor"] == config.mesh.tensor
        plan_scale.layout_of(candidate.config, candidate.estimate.mesh)
    plan_scale.check(found[0].config, target)


def test_a_sweep_takes_ways_that_no_heads_divide_where_none_are_shared_out() -> None:
    ways = {}
    for mode in ("ulysses", "ring", "gather", "ulysses_ring"):
        config = load_config(CONFIG, [f"--config.execution.attention.context_parallel={mode}"])
        found = plan_scale.candidates(config, parse_topology("v5e:4x4"), micro_batches=(1,))
        ways[mode] = {c.estimate.mesh["context"] for c in found}
    assert ways == {
        "ulysses": {1, 2, 4, 8},
        "ring": {1, 2, 4, 8, 16},
        "gather": {1, 2, 4, 8, 16},
        "ulysses_ring": {1, 2, 4, 8, 16},
    }


def test_a_sweep_says_what_tensor_ways_would_do() -> None:
    with pytest.raises(ValueError, match=r"mesh.tensor 3 does not divide both the 16 devices.*2 or 4"):
        plan_scale.candidates(load_config(CONFIG, ["--config.mesh.tensor=3"]), parse_topology("v5e:4x4"))


def test_a_sweep_goes_on_after_a_failure_and_keeps_what_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, calls, kept = tmp_path / "sweep.json", [], []
    estimated = plan_scale.plan

    def compiled(config: ExperimentConfig, topology: Topology) -> CostReport:
        if path.is_file():
            data = json.loads(path.read_text())
            kept.append((len(data["compiled"]), len(data["failed"])))
        calls.append(config)
        if len(calls) == 2:
            raise jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed\nto compile")
        return estimated(config, topology, compile_step=False)

    monkeypatch.setattr(plan_scale, "plan", compiled)
    assert run("--topology", "v6e:4x4", "--sweep", "--compile", "3", "--micro-batch", "2", "--json", str(path)) == 0
    assert len(calls) == 3 and kept == [(1, 0), (1, 1)]
    assert "failed: INTERNAL: Mosaic failed to compile" in capsys.readouterr().out
    data = json.loads(path.read_text())
    assert len(data["compiled"]) == 2 and data["failed"][0]["error"] == "INTERNAL: Mosaic failed to compile"
    for plan in data["by_formula"]:
        assert plan["sequences"] == 2 * plan["mesh"]["data"] * plan["mesh"]["fsdp"]


def test_what_does_not_fit_names_the_knobs() -> None:
    config = load_config(CONFIG, ["--config.mesh.fsdp=1", "--config.mesh.context=1", "--config.execution.remat=none"])
    topology = parse_topology("v5e:4x4")
    config = plan_scale.with_layout(config, topology, micro_batch=2)
    plan = plan_scale.plan(config, topology, compile_step=False)
    assert not plan.costs.memory.fits
    for knob in (
        "step.micro_batches",
        "mesh.fsdp up to 16",
        "optimizer.moments_dtype=bfloat16",
        "execution.remat=block",
        "mesh.context",
    ):
        assert knob in advice(plan)


def test_rematerialised_work_costs_time_and_is_not_useful() -> None:
    config, topology = load_config(CONFIG), parse_topology("v5p:4x4x8")
    plans = {}
    for remat in ("block", "attention"):
        config.execution.remat = remat
        plans[remat] = plan_scale.plan(
            plan_scale.with_layout(config, topology, micro_batch=1), topology, compile_step=False
        )
    block, attention = plans["block"], plans["attention"]
    assert block.useful_flops == attention.useful_flops and block.costs.flops > 1.15 * attention.costs.flops
    shape = planned_shape(config)
    assert block.model_flops == flops.train_step_flops(config.model, shape, 16)
    assert block.roofline is not None and attention.roofline is not None and block.roofline.mfu < attention.roofline.mfu
    assert block.costs.memory.peak < attention.costs.memory.peak


def test_results_behind_the_docs_can_be_read() -> None:
    """docs/scale.md's tables come from these; every table has its place on the page."""
    results = sorted((ROOT / "docs" / "scale").glob("*.json"))
    assert results
    for path in results:
        plan = load_report(json.loads(path.read_text()))
        assert not plan.estimated and "GiB" in format_report(plan), path.name
    page = (ROOT / "docs" / "scale.md").read_text()
    tables = set(re.findall(r'"(\w+)": \w+_table', (ROOT / "docs" / "scale" / "tables.py").read_text()))
    assert tables == set(re.findall(r"<!-- table: (\w+) -->", page)) == set(re.findall(r"<!-- end: (\w+) -->", page))


def small_config() -> ExperimentConfig:
    """Dual-stream blocks alone: a minute of compilation. 2,048 joint tokens: two whole kernel blocks."""
    return ExperimentConfig(
        name="small",
        data=DataConfig(
            plan=PlanConfig(
                sequences_per_step=4, latent_tokens=1920, text_tokens=128, windows=2, latent_frames=8, frames=64,
            )
        ),
        model=MMDiTConfig(
            width=256, num_heads=2, num_dual_layers=3, num_single_layers=0, num_refiner_layers=0, text_width=128,
            pooled_width=0,
        ),
        execution=ExecutionConfig(
            remat="attention", attention=AttentionStrategy(context_parallel="ulysses")
        ),
        mesh=MeshConfig(data=2, fsdp=2, context=2),
        stages=paper_stages(steps=10),
    )  # fmt: skip


def test_the_step_lowers_for_gpus_that_have_sizes_only() -> None:
    """The one scanned block; before XLA removes what nothing uses, the forward kernel may stand there twice."""
    plan = plan_scale.plan(small_config(), parse_topology("h100:8"))
    assert plan.estimated and re.search(r"the step lowers for cuda, with [34] calls of attention kernels", plan.note)


def test_the_step_of_one_window_lowers_where_no_cudnn_is() -> None:
    config = small_config()
    config.data.plan.windows = 1
    plan = plan_scale.plan(config, parse_topology("h100:8"))
    assert re.search(
        r"the step lowers for cuda with our Triton kernel in the place of cuDNN's.*, with [34] calls",
        plan.note,
    )
    assert "never measured" not in plan.note


def test_the_plan_says_whose_efficiency_it_takes_for_our_kernel() -> None:
    plan = plan_scale.plan(small_config(), parse_topology("h200:8"), compile_step=False)
    assert "packed attention is our own Triton kernel, never measured" in plan.note


def test_hosts_that_are_full_are_said_to_be() -> None:
    config = load_config(
        CONFIG, ["--config.mesh.fsdp=1", "--config.mesh.context=4", "--config.step.offload=moments_ema"]
    )
    plan = plan_scale.plan(
        plan_scale.with_layout(config, parse_topology("v5e:2x2"), micro_batch=1),
        parse_topology("v5e:2x2"),
        compile_step=False,
    )
    memory = dataclasses.replace(plan.costs.memory, temporaries=0, host_limit=2**30)
    full = dataclasses.replace(plan, costs=dataclasses.replace(plan.costs, memory=memory))
    text = format_report(full)
    assert "on the host of its share of 1.00" in text and "DOES NOT FIT; the hosts' memory is full" in text
    assert full.to_json()["memory"]["fits"] is False


@pytest.mark.slow
def test_compiled_for_described_chips() -> None:
    """The real step: it fits, its operations are the formula's, its kernels run once, its collectives are the
    scheme's.
    """
    plan = plan_scale.plan(small_config(), parse_topology("v5e:2x4"))
    costs = plan.costs
    assert costs.memory.fits and not plan.estimated and 0 < costs.memory.arguments < costs.memory.peak
    counted, formula = (
        {kind: sum(w.flops for w in c.works if w.kind == kind) for kind in KINDS} for c in (costs, plan.formula)
    )  # fmt: skip
    # The attention kernels to the operation (the forward one once: remat keeps its output); products with look-ups and
    # text.
    assert counted["attention_forward"] == formula["attention_forward"]
    assert counted["attention_backward"] == formula["attention_backward"]
    assert 1.0 <= counted["matmul"] / formula["matmul"] < 1.1
    assert costs.kernels == 3 and 1.0 <= costs.xla_flops / costs.xla_flops_matched < 1.1
    found = {(c.kind, c.axes) for c in costs.communications}
    assert {("all-to-all", ("context",)), ("all-gather", ("fsdp", "context"))} <= found
    assert load_report(json.loads(json.dumps(plan.to_json()))) == plan
    assert "counted in the program / by formula 1.0" in format_report(plan)


@pytest.mark.slow
def test_from_the_command_line_where_nothing_is_set_up(tmp_path: Path) -> None:
    """A process of its own, without the tests' environment: the command finds libtpu and no TPU; and what does not fit
    says so.
    """
    small = [
        "--config.model.num_dual_layers=2", "--config.model.num_single_layers=0", "--config.model.num_refiner_layers=0",
        "--config.data.plan.latent_tokens=8192", "--config.mesh.fsdp=1", "--config.mesh.context=4",
    ]  # fmt: skip
    path = tmp_path / "plan.json"
    command = [
        sys.executable,
        "-m",
        "omnihuman_jax.cli",
        "plan",
        "--config",
        str(ROOT / "configs" / "omnihuman_7b.py:720p"),
        *small,
    ]
    command += ["--topology", "v5e:2x2", "--micro-batch", "1", "--json", str(path)]
    environment = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "v5e:2x2: 4 chips, 1 hosts, 4 devices; context 4" in done.stdout
    assert json.loads(path.read_text())["memory"]["limit"] == int(15.75 * 2**30)
