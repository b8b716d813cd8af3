"""The trainer itself under the local launcher: real processes that find each other, die, and go on."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from launch import local, local_state
from launch.local import Event, LocalJob, Outcome
from launch.spec import RunSpec
from omnihuman_jax.telemetry.metrics import read_metrics
from tests import quick_xla
from tests.launch.specs import spec
from tests.training import runs

STEPS, INTERVAL = 16, 4
# As tests.training.runs: programs compile in a third of the time like this.
QUICK = {"XLA_FLAGS": quick_xla.FLAGS}


def a_spec(run: Path, dataset: Path, **overrides: object) -> RunSpec:
    rows = {
        "data.dataset": str(dataset),
        "stages.rows[1].steps": STEPS - 5,
        "checkpoint.interval": INTERVAL,
        **overrides,
    }
    accelerator = {"type": "cpu", "nodes": 2, "devices": 2}
    return spec(
        config=str(runs.CONFIG), output=str(run), accelerator=accelerator, overrides=rows, grace_s=60, restarts=1
    )


def logs(job_spec: RunSpec) -> str:
    return "\n".join(
        f"{path.name}:\n{path.read_text()}" for path in sorted((local.state_dir(job_spec) / "logs").iterdir())
    )


def test_a_user_error_is_not_tried_again(tmp_path: Path) -> None:
    job_spec = a_spec(tmp_path / "run", tmp_path / "no_dataset")
    outcome = LocalJob(job_spec, environment=QUICK).run()
    assert (outcome.code, outcome.attempts) == (2, 1), logs(job_spec)
    assert "no_dataset" in logs(job_spec)


def run_and_kill(job_spec: RunSpec, rank: int, number: signal.Signals, at_step: int) -> Outcome:
    """The job with one signal to one rank, once a step is logged and the checkpoint before it lies there."""
    job = LocalJob(job_spec, environment=QUICK)

    def strike() -> None:
        run = Path(job_spec.output)
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline:
            logged = (run / "metrics.jsonl").exists() and any(line["step"] >= at_step for line in read_metrics(run))
            if logged and (run / "checkpoints" / str(at_step // INTERVAL * INTERVAL)).is_dir():
                os.kill(job.pids()[rank], number)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    outcome = job.run()
    thread.join(1)
    return outcome


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "rank", "code", "counted"), [(signal.SIGKILL, 1, 137, 1), (signal.SIGTERM, 0, 42, 0)]
)
def test_a_run_that_loses_a_rank_ends_as_one_that_does_not(
    tmp_path: Path, number: signal.Signals, rank: int, code: int, counted: int
) -> None:
    dataset = runs.write_dataset(tmp_path / "dataset")
    straight, disturbed = a_spec(tmp_path / "straight", dataset), a_spec(tmp_path / "disturbed", dataset)
    undisturbed = LocalJob(straight, environment=QUICK).run()
    assert (undisturbed.code, undisturbed.attempts) == (0, 1), logs(straight)

    outcome = run_and_kill(disturbed, rank, number, at_step=6)
    assert (outcome.code, outcome.attempts, outcome.counted) == (0, 2, counted), logs(disturbed)
    first: Event = next(event for event in outcome.events if event.kind == "exited")
    assert first.code == code, logs(disturbed)
    assert local_state.status(disturbed) == 0
    assert runs.records(Path(disturbed.output)) == runs.records(Path(straight.output))
    ours, theirs = (runs.checkpoint(Path(s.output), STEPS) for s in (disturbed, straight))
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not np.array_equal(ours[name], theirs[name])]
    assert different == []
