"""A run told to real services, over a restart; and services that fail, which stop nothing."""

import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnihuman_jax.evaluation import sheet
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.telemetry import trackers
from omnihuman_jax.telemetry.metrics import LoggingConfig

ROOT = Path(__file__).resolve().parents[2]
# `make trackers`: services whose libraries do not go together with the rest of the environment.
APART = ROOT / ".venv-trackers" / "bin" / "python"


def python_with(service: str) -> str:
    """An interpreter that has the service's library."""
    if importlib.util.find_spec(service) is not None:
        return sys.executable
    apart = os.environ.get("OMNIHUMAN_TRACKERS_PYTHON", str(APART))
    if not Path(apart).is_file():
        pytest.skip(f"{service} is in an environment of its own: make trackers")
    return apart


def run_module(service: str, module: str, folder: Path, *words: str, **variables: str) -> str:
    """What `python -m tests.telemetry.MODULE SERVICE FOLDER ...` prints, in the folder, with no address but ours."""
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT),
        "WANDB_MODE": "offline", "TRACKIO_DIR": str(folder / "trackio"), "HF_HUB_OFFLINE": "1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", **variables,
    }  # fmt: skip
    done = subprocess.run(
        [python_with(service), "-m", f"tests.telemetry.{module}", service, str(folder), *words],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder with a sample in it."""
    frames = np.zeros((5, 32, 32, 3), np.uint8)
    media_omnihuman.write_video(tmp_path / "face.mp4", frames)
    sheet.write_png(tmp_path / "face.png", frames[0])
    return tmp_path


@pytest.mark.parametrize("service", trackers.SERVICES)
def test_a_restart_goes_on_with_the_same_run(service: str, folder: Path) -> None:
    told = [run_module(service, "tracker_story", folder, str(finished)) for finished in (0, 2)]
    assert "WARNING" not in "".join(told), told
    kept = (folder / "trackers" / service).read_text().strip()
    found = json.loads(run_module(service, "tracker_readback", folder).splitlines()[-1])
    assert set(found["runs"]) == {kept}
    # Steps 3 and 4 came twice, with the same values.
    assert sorted(set(found["steps"])) == [1, 2, 3, 4, 5, 6]
    assert found["values"] == {str(step): 1.0 / step for step in range(1, 7)}
    assert {"loss"} <= set(found["names"]) and len(found["files"]) >= 2
    if service == "mlflow":
        assert found["config"]["stages.rows.0.steps"] == "5" and found["status"] == "FINISHED"
        assert "loss/text_audio" in found["names"]


def test_a_server_that_is_gone_is_one_warning(folder: Path) -> None:
    told = run_module(
        "mlflow", "tracker_story", folder, "0",
        MLFLOW_TRACKING_URI="http://127.0.0.1:9", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
    )  # fmt: skip
    assert told.count("WARNING omnihuman_jax.telemetry.trackers mlflow fails") == 1
    assert "the run goes on, metrics.jsonl has all of it" in told


class Failing:
    """A service that takes every second record."""

    def __init__(self) -> None:
        self.taken: list[Any] = []

    def write(self, record: Any) -> None:
        if record["step"] % 2:
            raise ConnectionError("no route to host")
        self.taken.append(record["step"])

    def show(self, step: int, name: str, video: Path, picture: Path) -> None:
        raise SystemExit("a library that leaves")

    def close(self) -> None:
        self.taken.append("closed")


def test_every_record_is_tried_and_one_failure_is_told(caplog: pytest.LogCaptureFixture) -> None:
    service = Failing()
    with caplog.at_level(logging.WARNING):
        tracker = trackers.Detached("failing", lambda: service)
        for step in range(1, 7):
            tracker.write({"step": step})
        tracker.show(6, "a", Path("a.mp4"), Path("a.png"))
        tracker.close()
    assert service.taken == [2, 4, 6, "closed"]
    assert [record.message for record in caplog.records] == [
        "failing fails (no route to host); the run goes on, metrics.jsonl has all of it"
    ]


def test_a_service_that_hangs_holds_nobody(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "CLOSE_S", 0.2)
    release, began = threading.Event(), time.monotonic()

    class Hanging(Failing):
        def write(self, record: Any) -> None:
            release.wait(30)

    tracker = trackers.Detached("hanging", Hanging)
    for step in range(3):
        tracker.write({"step": step})
    with caplog.at_level(logging.WARNING):
        tracker.close()
    assert time.monotonic() - began < 5 and "has not taken everything after 0.2 s" in caplog.text
    release.set()


def test_a_service_that_cannot_be_opened_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> trackers.Tracker:
        raise PermissionError("no key")

    with caplog.at_level(logging.WARNING):
        tracker = trackers.Detached("refusing", refuse)
        tracker.write({"step": 1})
        tracker.close()
    assert caplog.text.count("refusing fails (no key)") == 1


def test_names_and_libraries_are_checked_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trackers.named(" wandb, mlflow,") == ("wandb", "mlflow")
    with pytest.raises(ValueError, match="'wand' is unknown; it is one or more of wandb, mlflow, trackio"):
        LoggingConfig(trackers="wand").validate()
    with pytest.raises(ValueError, match=r"logging.project is empty"):
        LoggingConfig(project=" ").validate()
    monkeypatch.setitem(trackers.SERVICES, "wandb", "no_such_library")
    with pytest.raises(ValueError, match=r"names wandb, which is not installed: pip install -e '.\[wandb\]'"):
        trackers.check_installed("wandb")
