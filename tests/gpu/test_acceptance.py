"""The acceptance of a GPU, tiny, on this machine: the script cannot break unseen, and what fails is a row."""

import json
from pathlib import Path

import jax
import pytest

from omnihuman_jax import assembly, sharding
from omnihuman_jax.config import planned_shape
from tests.gpu import acceptance, checks
from tests.gpu.checks import CHECKS
from tests.gpu.results import Row


def test_the_limits_are_of_the_checks_and_fit() -> None:
    assert set(acceptance.LIMITS) == set(CHECKS)
    assert acceptance.TOTAL_S < 600


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_the_batch_of_the_train_step_fills_its_sequence(size: str) -> None:
    config = checks.config_of(size)
    mesh = sharding.create_mesh(config.mesh, jax.devices()[:1])
    batch = checks.batch_of(config, assembly.assemble_step(config, mesh, planned_shape(config)))
    assert (batch.segment_ids_BL > 0).mean() > 0.7


@pytest.mark.slow
def test_every_check_in_its_tiny_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert acceptance.main(["--out", str(tmp_path), "--platform", "cpu"]) == 0, capsys.readouterr().out
    stored = json.loads((tmp_path / "acceptance.json").read_text())
    assert stored["ok"] and [check["check"] for check in stored["checks"]] == list(acceptance.LIMITS)
    assert all(check["rows"] for check in stored["checks"]) and stored["versions"]["jax"]
    assert {row["what"] for check in stored["checks"] for row in check["rows"]} >= {
        "triton, three windows: forward", "Wan encode: values not finite", "measured over predicted",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "FAILED" not in printed and "all within limits" in printed


@pytest.mark.slow
def test_the_quickest_check_and_those_that_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A check that is stopped, one that cannot run without a GPU, and one that has no time left: a row each."""
    assert acceptance.main(["--out", str(tmp_path), "--platform", "cpu", "--only", "attention"]) == 0
    assert "gradients" in capsys.readouterr().out
    stopped = acceptance.run_check("attention", "tiny", tmp_path, 0.5)
    assert [(row.ok, "stopped after" in row.note) for row in stopped] == [(False, True)]
    refused = acceptance.run_check("attention", "full", tmp_path, 120)
    assert not refused[0].ok and "JAX sees no GPU" in refused[0].note
    late = acceptance.accept(tmp_path, "tiny", ["attention", "resume"], total_s=1.0)
    assert not late["ok"] and len(late["checks"]) == 2
    with pytest.raises(SystemExit):
        acceptance.main(["--out", str(tmp_path), "--only", "nothing"])


def test_a_row_without_a_number_is_not_within_a_limit() -> None:
    assert Row(what="a", value=1.0, limit=1.0).ok and Row(what="a").ok
    assert not Row(what="a", limit=1.0).ok and not Row(what="a", value=float("nan"), limit=1.0).ok
    assert not Row(what="a", value=2.0, limit=1.0).ok and not Row(what="a", failed=True).ok
