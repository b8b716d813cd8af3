"""What a run writes about itself, and that a resume takes back what it will write again."""

import json
import logging
import math
import resource
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from omnihuman_jax import sharding
from omnihuman_jax.conditions import ConditionSet
from omnihuman_jax.evaluation import sheet
from omnihuman_jax.telemetry import trackers, tracking_services
from omnihuman_jax.telemetry.metrics import LoggingConfig, MetricsWriter, Speed, measure_matmul_peak, read_metrics


def test_lines_are_exact_and_a_resume_takes_back_what_comes_after_it(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, step=0)
    values = [float(np.float32(1 / 3)), math.pi, 1e-30, math.nan]
    for step, value in enumerate(values, 1):
        writer.write({"step": step, "stage": "a", "loss": value})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "los')  # killed in the middle of a line
    assert [record["loss"] for record in read_metrics(tmp_path)] == [*values[:3], "nan"]
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()[:2]
    writer = MetricsWriter(tmp_path, step=2)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == before
    writer.write({"step": 3, "stage": "a", "loss": 2.0})
    writer.close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["loss"] == values[0]


def test_tensorboard_beside_it_has_legal_names_and_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("tensorboardX").setLevel(logging.DEBUG)
    record = {f"loss/{active.label}": 0.25 for active in ConditionSet.every() if active}
    assert any("+" in name for name in record)
    run = trackers.TrackedRun(folder=tmp_path, project="p", name="n", step=0, config={})
    writers = [MetricsWriter(tmp_path, step=0), *tracking_services.open_services(run, "", tensorboard=True)]
    for writer in writers:
        writer.write({"step": 1, "stage": "a", "loss": 0.5, "learning_rate/audio": 0.1} | record)
    sheet.write_png(tmp_path / "face.png", np.zeros((16, 16, 3), np.uint8))
    writers[1].show(1, "face", tmp_path / "face.mp4", tmp_path / "face.png")
    for writer in writers:
        writer.close()
    assert "illegal" not in caplog.text + "".join(capfd.readouterr())
    (events,) = (tmp_path / "tensorboard").iterdir()
    data = events.read_bytes()
    assert (
        b"loss/text_audio" in data and b"learning_rate/audio" in data and b"stage" not in data and b"text+" not in data
    )
    assert b"samples/face" in data and "fails" not in caplog.text
    assert "loss/text+audio" in read_metrics(tmp_path)[0]


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give the run directory"):
        read_metrics(tmp_path)
    with pytest.raises(ValueError, match=r"logging.interval must be >= 1"):
        LoggingConfig(interval=0).validate()


def test_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("omnihuman_jax.telemetry.metrics.time.perf_counter", lambda: now[0])
    speed = Speed(step_flops=1000, measure_peak=lambda: 4000.0)
    speed.compiling()
    now[0] = 160.0
    speed.compiled(0)
    now[0] = 161.0
    speed.first_result(jnp.zeros(()))
    now[0] = 162.0
    speed.first_result(jnp.zeros(()))  # the second step
    rates = {"step_time_s": 1.0, "tokens_per_s": 50, "flops_per_s": 1000, "matmul_peak_share": 0.25}
    assert speed.measure(2, 50.0, 1) == {"compile_s": 60.0, "first_step_s": 61.0} | rates
    speed.restart(1)
    assert speed.measure(1, 50.0, 1) == {}
    now[0] = 174.0
    speed.pause(10.0)  # samples between two steps
    assert speed.measure(5, 200.0, 4) == {
        "step_time_s": 0.5,
        "tokens_per_s": 100,
        "flops_per_s": 2000,
        "matmul_peak_share": 0.5,
    }


def test_no_step_beats_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    now, peaks = [0.0], iter([1000.0, 5000.0, 2000.0])
    monkeypatch.setattr("omnihuman_jax.telemetry.metrics.time.perf_counter", lambda: now[0])

    def measure() -> float:
        now[0] += 10.0  # of no step
        return next(peaks)

    speed, shares = Speed(step_flops=1000, measure_peak=measure), []
    for done, seconds in enumerate((2.0, 0.25, 0.5, 0.1, 0.2), 1):
        now[0] += seconds
        shares.append(speed.measure(done, 1.0, 1)["matmul_peak_share"])
    # Under the first peak; above it, and the second is 5000; under that; above it and above the third; under the best.
    assert shares == pytest.approx([0.5, 0.8, 0.4, 1.0, 0.5]) and max(shares) <= 1.0


def test_the_peak_is_measured_on_all_devices() -> None:
    peak = measure_matmul_peak(sharding.create_mesh(sharding.MeshConfig(data=4, tensor=2)), jnp.float32)
    assert 1e8 < peak < 1e13


def test_a_full_disk_only_delays_lines(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, step=0)
    writer.write({"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
        for step in (2, 3):
            writer.write({"step": step})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.write({"step": 4})
    writer.close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4]
