"""The same loss curve on every mesh, in micro-batches, with offload, and in two processes: `make loss-curves` prints
the table.
"""

import functools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.integration.loss_curve import curve

TOLERANCE = 1e-5

CURVES: dict[str, dict[str, Any]] = {
    "8 fsdp": {"devices": 8, "mesh": {"data": 1, "fsdp": 8}},
    "2 data x 2 fsdp x 2 tensor": {"devices": 8, "mesh": {"data": 2, "fsdp": 2, "tensor": 2}},
    "2 fsdp x 2 context x 2 tensor": {"devices": 8, "mesh": {"data": 1, "fsdp": 2, "context": 2, "tensor": 2}},
    "context 4": {"devices": 4, "mesh": {"data": 1, "context": 4}},
    "tensor 2": {"devices": 2, "mesh": {"data": 1, "tensor": 2}},
    "gradient accumulation 4": {"devices": 1, "micro_batches": 4},
    "2 slices of 2 fsdp x 2 tensor": {"devices": 8, "mesh": {"data": 1, "fsdp": 2, "tensor": 2, "slices": 2}},
    "8 fsdp in all over 2 slices": {
        "devices": 8, "mesh": {"data": 1, "fsdp": 4, "slices": 2, "dcn_data": 1, "dcn_fsdp": 2}, "micro_batches": 1,
        "offload": "moments_ema", "remat": "attention_offload",
    },
}  # fmt: skip


@functools.cache
def expected() -> np.ndarray:
    losses = np.asarray(curve(1))
    # A curve: it must move by far more than what is allowed between meshes.
    assert losses[-4:].mean() < 0.9 * losses[:4].mean() and np.abs(np.diff(losses)).min() > 100 * TOLERANCE
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("name", CURVES)
def test_one_curve(name: str, measured: Callable[[str, float, float], None]) -> None:
    losses = np.asarray(curve(**CURVES[name]))
    measured(f"loss over 20 steps, {name} against one device", np.abs(losses / expected() - 1).max(), TOLERANCE)


@pytest.mark.slow
def test_two_processes_of_four_devices(measured: Callable[[str, float, float], None]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [
        sys.executable,
        "-m",
        "tests.integration.loss_curve",
        f"--coordinator=127.0.0.1:{port}",
        "--num-processes=2",
    ]
    command.append('--mesh={"data": 2, "fsdp": 2, "tensor": 2}')
    started = [
        subprocess.Popen([*command, f"--process-id={i}"], env=environment, stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    output = [process.communicate(timeout=900)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    losses = np.asarray(json.loads(output[0].strip().splitlines()[-1]))
    error = np.abs(losses / expected() - 1).max()
    measured("loss over 20 steps, 2 processes x 4 devices against one device", error, TOLERANCE)
