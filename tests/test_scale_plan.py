"""`omnihuman plan --topology`: what it prints and writes, by formula here; compiled for described TPUs in the slow tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from omnihuman_jax import plan as plan_command
from omnihuman_jax import scale_plan
from omnihuman_jax.config import load_config
from omnihuman_jax.scale.hardware import parse_topology
from omnihuman_jax.scale.step_plan import advice, format_plan, load_plan

ROOT = Path(__file__).resolve().parent.parent
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
        "15.11 B", "fits; ", "joint attention", "all-to-all         context", "predicted   step", "MFU", "HFU", "assumed",
        "maxtext.readthedocs.io", "not compiled: everything here is formula",
    ):  # fmt: skip
        assert expected in text
    data = json.loads(path.read_text())
    assert data["chips"] == 128 and data["hosts"] == 32 and data["memory"]["fits"] and data["estimated"]
    assert data["config"]["data"]["plan"]["sequences_per_step"] == 16
    again = load_plan(data)
    assert format_plan(again) == text.strip()
    assert again.roofline is not None and 0.2 < again.roofline.mfu < 0.5


def test_gpus_are_planned_by_formula(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--topology", "h100:128", "--micro-batch", "1") == 0
    text = capsys.readouterr().out
    assert "no compiler for GPUs works without one" in text and "of nvlink" in text and "16 hosts" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--topology", "v5p:3x3x3"], "the nearest are 2x4x4"),
        (["--topology", "v5p:4x4x8", "--slices", "0"], "at least 1"),
        (["--sweep"], "--sweep belongs to the scale plan: add --topology"),
        (["--slices", "2"], "--slices belongs to the scale plan"),
        (["--topology", "v5p:2x4x4", "--estimate"], "32 devices are not a multiple of 64"),
        (["--topology", "v5p:4x4x8", "--estimate", "--config.data.plan.sequences_per_step=17"], "17, split 16 ways"),
    ],
)
def test_what_cannot_be_says_why(arguments: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        run(*arguments)


def test_the_sweep_ranks_what_fits_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--topology", "v6e:16x16", "--sweep", "--estimate") == 0
    assert "layouts" in capsys.readouterr().out
    found = scale_plan.candidates(load_config(CONFIG), parse_topology("v6e:16x16"))
    fits = [c.estimate.costs.memory.fits for c in found]
    assert fits == sorted(fits, reverse=True) and True in fits and False in fits
    rates = [c.estimate.roofline.mfu for c in found if c.estimate.costs.memory.fits and c.estimate.roofline]
    assert rates == sorted(rates, reverse=True)
    for candidate in found:
        assert 24 % candidate.estimate.mesh["context"] == 0


def test_what_does_not_fit_names_the_knobs() -> None:
    config = load_config(CONFIG, ["--config.mesh.fsdp=1", "--config.mesh.context=1", "--config.model.remat=none"])
    topology = parse_topology("v5e:4x4")
    config = scale_plan.with_layout(config, topology, micro_batch=2)
    plan = scale_plan.plan(config, topology, compile_step=False)
    assert not plan.costs.memory.fits
    for knob in (
        "step.micro_batches",
        "mesh.fsdp up to 16",
        "optimizer.moments_dtype=bfloat16",
        "model.remat=block",
        "mesh.context",
    ):
        assert knob in advice(plan)


def test_rematerialised_work_costs_time_and_is_not_useful() -> None:
    config, topology = load_config(CONFIG), parse_topology("v5p:4x4x8")
    plans = {}
    for remat in ("block", "attention"):
        config.model.remat = remat
        plans[remat] = scale_plan.plan(scale_plan.with_layout(config, topology, micro_batch=1), topology, compile_step=False)
    block, attention = plans["block"], plans["attention"]
    assert block.useful_flops == attention.useful_flops and block.costs.flops > 1.15 * attention.costs.flops
    assert block.roofline is not None and attention.roofline is not None and block.roofline.mfu < attention.roofline.mfu
    assert block.costs.memory.peak < attention.costs.memory.peak


SMALL = [
    "--config.model.width=256", "--config.model.num_heads=2", "--config.model.num_dual_layers=2",
    "--config.model.num_single_layers=3",
    "--config.model.num_refiner_layers=1", "--config.model.audio.width=256", "--config.model.audio.num_heads=2",
    "--config.data.plan.latent_tokens=2048", "--config.data.plan.text_tokens=256",
    "--config.mesh.fsdp=2", "--config.mesh.context=2",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x4", "v5p:2x2x2"])
def test_compiled_for_described_chips(topology: str, tmp_path: Path) -> None:
    """The real step, in a process of its own: it fits, its operations are the formula's, its collectives the scheme's."""
    path = tmp_path / "plan.json"
    command = [
        sys.executable,
        "-m",
        "omnihuman_jax.cli",
        "plan",
        "--config",
        str(ROOT / "configs" / "omnihuman_13b.py:720p"),
        *SMALL,
    ]
    command += ["--topology", topology, "--micro-batch", "1", "--json", str(path)]
    environment = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "fits" in done.stdout and "Pallas kernels" in done.stdout
    plan = load_plan(json.loads(path.read_text()))
    assert plan.costs.memory.fits and plan.costs.kernels > 0 and not plan.estimated
    # Attention runs on blocks of 1024, the formula on the tokens: 2,304 against 3,072 of them.
    counted, formula = (
        {kind: sum(w.flops for w in c.works if w.kind == kind) for kind in ("matmul", "attention_backward")}
        for c in (plan.costs, plan.formula)
    )
    assert 0.8 < counted["matmul"] / formula["matmul"] < 1.5
    assert 0.95 < counted["attention_backward"] / formula["attention_backward"] < 2.0
    assert 1.0 <= plan.costs.xla_flops / plan.costs.xla_flops_matched < 1.3
    assert any(c.kind == "all-to-all" and c.axes == ("context",) for c in plan.costs.communications)
