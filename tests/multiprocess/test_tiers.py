"""Checkpoints on each host's own disk, with two real processes: the newest step that is whole in either tier, bit for
bit.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from omnihuman_jax.runtime import exit_codes
from omnihuman_jax.runtime.incidents import read_lines
from omnihuman_jax.telemetry.metrics import read_metrics
from tests.multiprocess.two_tiers import LOCAL, PERSISTENT
from tests.training import runs

LOST, REJECTED, BROKEN = "local_copy_lost", "local_copy_rejected", "local_disk_unusable"
SET_ASIDE = "checkpoint_rejected"
# What a host holds -> scenario -> (step, what is noted).
EXPECTED = {
    "replicated": {  # the other host has the same shards, and sends them
        "both disks are there": (LOCAL, []),
        "one disk is lost": (LOCAL, [LOST]),
        "a bit of one copy flipped": (LOCAL, [LOST]),
        "one copy is cut short": (LOCAL, [LOST]),
        "one disk is broken": (PERSISTENT, [BROKEN]),
        "the checkpoint is damaged": (LOCAL, [SET_ASIDE]),
    },
    "split": {
        "both disks are there": (LOCAL, []),
        "one disk is lost": (PERSISTENT, [LOST]),
        "a bit of one copy flipped": (PERSISTENT, [LOST, REJECTED]),
        "one copy is cut short": (PERSISTENT, [LOST]),
        "one disk is broken": (PERSISTENT, [BROKEN]),
        "the checkpoint is damaged": (LOCAL, [SET_ASIDE]),
    },
}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_the_newest_step_that_is_whole_in_either_tier(tmp_path: Path) -> None:
    port, flags = free_port(), "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.multiprocess.two_tiers", str(index), str(port), str(tmp_path)],
            env=os.environ | {"XLA_FLAGS": flags}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    outputs = [job.communicate(timeout=300) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs[0][1][-3000:] + outputs[1][1][-3000:]
    for index, (printed, _) in enumerate(outputs):
        # gloo prints too. Process 0 alone notes what happens to a checkpoint.
        found = [json.loads(line) for line in printed.splitlines() if line.startswith('["')]
        assert found == [
            [name, scenario, step, [kind for kind in noted if index == 0 or kind != SET_ASIDE]]
            for name, rows in EXPECTED.items()
            for scenario, (step, noted) in rows.items()
        ]


STEPS = 24
OPTIONS = (
    f"--config.stages.rows[1].steps={STEPS - 5}", "--config.checkpoint.interval=12",
    "--config.checkpoint.local_interval=2",
    "--config.mesh.data=2", "--config.mesh.fsdp=2", "--heartbeat-s=10", "--shutdown-s=10",
)  # fmt: skip


def start(run: Path, dataset: Path, *options: str) -> list[subprocess.Popen]:
    """Two processes, each with a disk of its own."""
    port = free_port()
    return [
        runs.start(
            run, dataset, *OPTIONS, *options, f"--config.checkpoint.local_directory={run / f'disk-{index}'}",
            devices=2, process=(index, 2, port),
        )
        for index in range(2)
    ]  # fmt: skip


def kill(jobs: Sequence[subprocess.Popen], run: Path, step: int) -> None:
    """kill -9 of one once both disks hold `step`; the other is ended for it."""
    for _ in range(12_000):
        if all(list(run.glob(f"disk-{index}/*/{index}/{step}/manifest.json")) for index in range(2)):
            break
        assert all(job.poll() is None for job in jobs), runs.outcomes(list(jobs))
        time.sleep(0.01)
    jobs[0].send_signal(signal.SIGKILL)
    codes, _ = runs.outcomes(list(jobs))
    assert codes[0] == exit_codes.KILLED


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_local_copies_bit_for_bit(tmp_path: Path) -> None:
    dataset = runs.write_dataset(tmp_path / "dataset")
    straight, run = tmp_path / "straight", tmp_path / "run"
    runs.finish(*start(straight, dataset))
    jobs = start(run, dataset)
    kill(jobs, run, 16)
    reached = max(line["step"] for line in read_metrics(run))
    outputs = runs.finish(*start(run, dataset))
    resumed = [int(output.split("resuming from the local copy of step ")[1].split(";")[0]) for output in outputs]
    assert resumed[0] == resumed[1] >= 16 and reached - resumed[0] <= 4
    assert runs.records(run) == runs.records(straight)
    ours, theirs = runs.checkpoint(run, STEPS), runs.checkpoint(straight, STEPS)
    assert [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()] == []
    assert not [line for line in read_lines(run / "incidents.jsonl") if line["incident"] == LOST]
    for index in range(2):  # one step stays, and what is being written
        kept = [path for path in run.glob(f"disk-{index}/*/{index}/*") if path.name.isdigit()]
        assert len(kept) <= 2
