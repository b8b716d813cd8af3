"""A run without a terminal tells its story in lines: each of real runs is read here, and none is left over."""

import json
import math
import re
from pathlib import Path

import pytest

from omnihuman_jax.commands import demo
from omnihuman_jax.runtime import exit_codes
from omnihuman_jax.runtime.incidents import read_lines
from omnihuman_jax.telemetry.events import last_saved
from omnihuman_jax.telemetry.metrics import read_metrics
from tests import quick_xla
from tests.data import synthetic
from tests.training import runs

SAVES = "--config.checkpoint.interval=5"
POISONED, DAMAGED = 2, 16  # rows of the catalog that the first steps read
WHEN = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
STEP = re.compile(
    WHEN + r"step (?P<step>\d+)/12  stage (?P<stage>\w+)  loss (?P<loss>\d\.\d{4})  grad norm (?P<grad_norm>[\d.]+)"
    r"  lr (?P<learning_rate>[\d.e-]+)  (?P<step_time_s>[\d.e+]+) s/step  (?P<tokens_per_s>[\d,]+) tokens/s"
    r"  matmul peak (?P<share>[\d.]+)%  data wait (?P<wait>[\d.]+)%  left (?P<left>\d+:\d\d:\d\d)"
    r"  host memory (?P<memory>[\d.]+ [MG]B)"
)
OTHERS = (
    r"[\d,]+ parameters, 4 devices \{.*\}, step 0 of 12",
    r"stage (audio: steps 1 to 5|pose: steps 6 to 12), text 0\.8, reference 0\.6, audio 0\.5, pose 0(\.25)?",
    r"first step done [\d.]+ s after the start of its compilation, which took [\d.]+ s",
    r"saved step (5|10|12): \d\.\d MB in [\d.]+ s",
)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A dataset with a latent that is no number and a record that cannot be read."""
    dataset = runs.write_dataset(tmp_path / "damaged", poisoned=(POISONED,))
    synthetic.damage(dataset, runs.catalog(), DAMAGED)
    return dataset


@pytest.mark.slow
def test_the_demos_training_in_a_file_is_lines(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, run = runs.write_dataset(tmp_path / "dataset"), tmp_path / "run"
    monkeypatch.setenv("XLA_FLAGS", quick_xla.FLAGS)
    argv = ("--simulate-devices", "4", "train", f"--config={runs.CONFIG}", f"--run={run}", SAVES)
    argv += (f"--config.data.dataset={dataset}", "--config.logging.interval=2", "--config.logging.tensorboard=true")
    capfd.readouterr()
    demo.run_step(demo.Step(name="train", argv=argv, why=""), tmp_path)
    out, err = capfd.readouterr()
    told = [found for line in out.splitlines() if (found := STEP.fullmatch(line))]
    lines = read_metrics(run)
    assert [int(found["step"]) for found in told] == [2, 4, 5, 6, 8, 10, 12] == [line["step"] for line in lines]
    for found, line in zip(told, lines, strict=True):
        assert found["stage"] == line["stage"] and float(found["loss"]) == pytest.approx(line["loss"], abs=1e-4)
        for name in ("grad_norm", "learning_rate", "step_time_s"):
            assert float(found[name]) == pytest.approx(line[name], rel=0.01)
        assert 0 <= line["matmul_peak_share"] <= 1 and float(found["share"]) <= 100 and float(found["wait"]) <= 100
    assert told[-1]["left"] == "0:00:00"
    rest = [line for line in out.splitlines() if not STEP.fullmatch(line)]
    left_over = [line for line in rest if not any(re.fullmatch(WHEN + other, line) for other in OTHERS)]
    assert not left_over and not err, (left_over, err)
    assert len(rest) == 7  # parameters, first step, two stages, three saves


@pytest.mark.slow
def test_json_is_one_object_a_line(tmp_path: Path, damaged: Path) -> None:
    run = tmp_path / "run"
    printed = runs.train(run, damaged, "--log-format=json", SAVES).splitlines()
    lines = [json.loads(line) for line in printed]
    told = {event: [line for line in lines if line.get("event") == event] for event in ("step", "stage", "saved")}
    assert [line["step"] for line in told["step"]] == list(range(1, 13))
    for line, record in zip(told["step"], read_metrics(run), strict=True):
        assert {name: line[name] for name in record} == record  # NaN by its name, as there
        assert math.isfinite(line["left_s"]) and line["memory_bytes"] > 1e7 and 0 <= line["data_wait_share"] <= 1
    assert [line["stage"] for line in told["stage"]] == ["audio", "pose"]
    assert [line["step"] for line in told["saved"]] == [5, 10, 12] and last_saved(run) == 12
    incidents = [line for line in lines if line.get("event") == "incident"]
    assert [line["incident"] for line in incidents] == [
        line["incident"] for line in read_lines(run / "incidents.jsonl")
    ]
    assert "update_skipped" in {line["incident"] for line in incidents}
    warnings = [line["message"] for line in lines if line["level"] == "warning"]
    for sentence in ("not finite", "is left out", "quarantine.jsonl names them"):
        assert any(sentence in message for message in warnings), (sentence, warnings)


def test_an_error_of_the_user_is_an_object_too(tmp_path: Path) -> None:
    process = runs.start(tmp_path / "run", tmp_path / "nowhere", "--log-format=json")
    (code,), (output,) = runs.outcomes([process])
    (line,) = [json.loads(line) for line in output.splitlines()]
    assert code == exit_codes.USER_ERROR and line["level"] == "error" and "nowhere" in line["message"]


@pytest.mark.slow
def test_two_processes_are_told_apart_and_gloo_is_not_heard(tmp_path: Path, damaged: Path) -> None:
    outputs = runs.finish(*runs.start_all(tmp_path / "run", damaged, SAVES, processes=2))
    for index, output in enumerate(outputs):
        lines = output.splitlines()
        assert all(re.match(WHEN + rf"\[process {index}\] ", line) for line in lines), output
        assert any(f"[process {index}] WARNING: step " in line and "not finite" in line for line in lines)
        assert len([line for line in lines if re.search(r"\] step \d+/12  stage", line)]) == (0 if index else 12)
        assert "[Gloo]" not in output
