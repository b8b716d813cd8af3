"""A run that is killed and goes on, beside one that is not, as real processes on whatever device JAX finds."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from omnihuman_jax.telemetry.metrics import read_metrics
from tests.training import runs

STEPS, SAVED, KILLED_AT = 12, 4, 6


def command(run: Path, dataset: Path) -> list[str]:
    """`omnihuman train` of the tests' tiny model on one device."""
    fields = {
        "data.dataset": dataset, "mesh.data": 1, "mesh.fsdp": 1, "checkpoint.interval": SAVED,
        "stages.rows[1].steps": STEPS - 5,
    }  # fmt: skip
    options = [f"--config.{name}={value}" for name, value in fields.items()]
    return [
        sys.executable, "-m", "omnihuman_jax.cli", "train", f"--config={runs.CONFIG}", f"--run={run}", "--no-progress",
        *options,
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """One device, and the same bits every time."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    if os.environ.get("JAX_PLATFORMS") != "cpu":
        flags.append("--xla_gpu_deterministic_ops=true")
    return os.environ | {"XLA_FLAGS": " ".join(flags)}


def kill_after(process: subprocess.Popen[bytes], run: Path) -> None:
    """SIGKILL once step `KILLED_AT` is logged and the checkpoint before it is whole."""
    while process.poll() is None:
        lines = read_metrics(run) if (run / "metrics.jsonl").exists() else []
        if any(line["step"] >= KILLED_AT for line in lines) and (run / "checkpoints" / str(SAVED)).is_dir():
            break
        time.sleep(0.01)
    process.kill()
    process.wait()


def compare(folder: Path) -> tuple[int, int]:
    """(arrays of the last checkpoint that differ, arrays in all)."""
    shutil.rmtree(folder, ignore_errors=True)
    dataset = runs.write_dataset(folder / "dataset")
    straight, killed = folder / "straight", folder / "killed"
    subprocess.run(command(straight, dataset), env=environment(), check=True)
    kill_after(subprocess.Popen(command(killed, dataset), env=environment()), killed)
    subprocess.run(command(killed, dataset), env=environment(), check=True)
    ours, theirs = (runs.checkpoint(run, STEPS) for run in (killed, straight))
    differing = [name for name in theirs if ours[name].tobytes() != theirs[name].tobytes()]
    return len(differing), len(theirs)
