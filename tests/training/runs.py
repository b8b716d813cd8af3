"""Training in real processes, as a user starts it, and reading what it left."""

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.runtime import exit_codes
from omnihuman_jax.telemetry.metrics import read_metrics
from tests import quick_xla
from tests.data import synthetic

CONFIG = Path(__file__).with_name("tiny_config.py")
DEVICES = 4
# What may differ between two runs of the same steps: the clock.
TIMES = (
    "step_time_s", "tokens_per_s", "flops_per_s", "matmul_peak_share", "compile_s", "first_step_s", "save_stall_s",
    "dataset_cache_hit_rate", "dataset_cache_stall_s",
)  # fmt: skip


def catalog() -> Catalog:
    return synthetic.catalog(48, latent_frames=(1, 3), strong=0.3)


def write_dataset(folder: Path, *, shards: int = 2, poisoned: tuple[int, ...] = ()) -> Path:
    return synthetic.write_dataset(folder, catalog(), shards, poisoned)


def start(
    run: Path | str,
    dataset: Path,
    *options: str,
    devices: int = DEVICES,
    process: tuple[int, int, int] | None = None,
    fault: tuple[str, int] | None = None,
    moment: tuple[str, float] | None = None,
) -> subprocess.Popen:
    """`omnihuman train` as a process of its own.

    process: (index, number of processes, port of the coordinator); fault: (kind, batch), see `faulty`; moment: (name,
    seconds), see `moments`.
    """
    program = ["omnihuman_jax.cli"]
    if fault is not None or moment is not None:
        module, (name, value) = ("faulty", fault) if fault is not None else ("moments", moment)
        program = [f"tests.training.{module}", name, str(value), "--"]
    command = [sys.executable, "-m", *program, "--simulate-devices", str(devices), "train", f"--config={CONFIG}"]
    command += [f"--run={run}", f"--config.data.dataset={dataset}", "--no-progress", *options]
    if process is not None:
        index, count, port = process
        command += [
            f"--coordinator=127.0.0.1:{port}",
            f"--num-processes={count}",
            f"--process-id={index}",
            "--peer-timeout-s=600",
        ]
    environment = os.environ | {"XLA_FLAGS": quick_xla.FLAGS}
    started = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    # A test that looks at files meanwhile reads nothing, and what a library says of one failed save fills 64 KiB.
    fcntl.fcntl(started.stdout, fcntl.F_SETPIPE_SZ, 1 << 20)
    return started


def wait_until(process: subprocess.Popen, moment: str) -> None:
    """Until it is there (`moments`); what it prints until then is read."""
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line == f"AT {moment}\n":
            return
    raise AssertionError(f"{moment} was not reached:\n{''.join(seen)}")


def finish(*processes: subprocess.Popen, timeout: float = 400) -> list[str]:
    """What each printed; an error, with that, if one fails."""
    outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return outputs


def train(run: Path | str, dataset: Path, *options: str, processes: int = 1, devices: int | None = None) -> str:
    """One training job on `devices` (each process; `DEVICES` in all by default) and `processes`; what process 0
    printed.
    """
    if processes == 1:
        return finish(start(run, dataset, *options, devices=devices or DEVICES))[0]
    return finish(*start_all(run, dataset, *options, processes=processes))[0]


def start_all(
    run: Path | str,
    dataset: Path,
    *options: str,
    processes: int = 2,
    faults: dict[int, tuple[str, int]] | None = None,
    moments: dict[int, tuple[str, float]] | None = None,
) -> list[subprocess.Popen]:
    """The processes of one job; `faults`: process -> (kind, batch); `moments`: process -> (name, seconds)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        start(
            run, dataset, *options,
            devices=DEVICES // processes, process=(index, processes, port), fault=(faults or {}).get(index),
            moment=(moments or {}).get(index),
        )
        for index in range(processes)
    ]  # fmt: skip


def outcomes(jobs: list[subprocess.Popen], timeout: float = 400) -> tuple[list[int], list[str]]:
    """Exit codes (as a shell has them) and what each printed."""
    outputs = [job.communicate(timeout=timeout)[0] for job in jobs]
    return [exit_codes.of_returncode(job.returncode) for job in jobs], outputs


def records(run: Path) -> list[dict[str, Any]]:
    """The logged lines, without the clock."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read_metrics(run)]


def checkpoint(run: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by its path, on the host."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    folder = run / "checkpoints" / str(step)
    stored = {name: tree for name, tree in ocp.checkpointables_metadata(folder).metadata.items() if tree is not None}
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), stored)
    flat, _ = jax.tree_util.tree_flatten_with_path(ocp.load_checkpointables(folder, wanted))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in flat}
