"""`omnihuman import` by two processes that share a checkpoint: what one process writes, bit for bit."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from omnihuman_jax.interop import file_hashes, model_sources
from omnihuman_jax.interop.checkpoint_leaves import CheckpointLeaves
from tests.parity.test_mmdit_diffusers import config_of, oracle


def _import(source: Path, to: Path, count: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    jobs = []
    for index in range(count):
        command = [
            sys.executable,
            "-m",
            "omnihuman_jax.cli",
            "--simulate-devices",
            str(4 // count),
            "import",
            "hunyuan-video",
        ]
        command += ["--from", str(source), "--to", str(to)]
        environment = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
        environment = os.environ | (environment if count > 1 else {})
        jobs.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    outputs = [job.communicate(timeout=300)[0] for job in jobs]
    assert all(job.returncode == 0 for job in jobs), outputs


@pytest.mark.slow
def test_two_processes_import_what_one_does(tmp_path):
    oracle(config_of(guidance_embed=True)).save_pretrained(tmp_path / "source", max_shard_size="150KB")
    for count in (1, 2):
        _import(tmp_path / "source", tmp_path / str(count), count)
    one, two = (CheckpointLeaves(tmp_path / count / "checkpoints" / "0", "params") for count in "12")
    assert one.shapes == two.shapes
    for path in one.shapes:
        assert one.read(path, None).tobytes() == two.read(path, None).tobytes(), path
    origins = [json.loads((tmp_path / count / "origin.json").read_text()) for count in "12"]
    assert origins[0] == origins[1]
    assert origins[0]["files"] == file_hashes.hash_files(model_sources.open_hunyuan_video(tmp_path / "source").files)
