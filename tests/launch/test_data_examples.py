"""The examples of workers on SLURM, Kubernetes and Ray say what the commands understand."""

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipelines.curate.curate_command import parser_of_curate
from data_pipelines.encode import encode
from omnihuman_jax.runtime import exit_codes

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "launch" / "examples" / "data"


def recorded(tmp_path: Path, *programs: str, code: int = 0) -> dict[str, str]:
    """An environment in which these programs write down what they were called with, and end with `code`."""
    (tmp_path / "bin").mkdir()
    for name in programs:
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {tmp_path}/{name}.called\nexit {code}\n')
        program.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}


def called(tmp_path: Path, name: str) -> list[str]:
    return (tmp_path / f"{name}.called").read_text().splitlines()


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (43, True), (2, False)])
def test_a_task_of_the_array_takes_its_share_and_comes_again_after_an_outage(
    tmp_path: Path, code: int, requeued: bool
) -> None:
    env = recorded(tmp_path, "omnihuman", "scontrol", code=code)
    env |= {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "64", "SLURM_ARRAY_JOB_ID": "17"}
    command = ["curate", "--source", "gs://raw/**", "--out", "/shared/table", "--workers", "4"]
    ended = subprocess.run(["bash", FOLDER / "array.sbatch", *command], env=env, check=False)
    assert ended.returncode == code and called(tmp_path, "omnihuman") == [*command, "--worker", "3/64"]
    assert (tmp_path / "scontrol.called").exists() == requeued
    if requeued:
        assert called(tmp_path, "scontrol") == ["requeue", "17_3"]
    options = parser_of_curate().parse_args(called(tmp_path, "omnihuman")[1:])
    assert (options.worker.index, options.worker.count, options.workers) == (3, 64, 4)
    own = encode.parse_arguments(["/shared/sets", "--out", "/shared/dataset", "--worker", "3/64"])
    assert own.worker.index == 3


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (43, True)])
def test_the_cluster_of_a_slurm_job_runs_curate_on_its_head(tmp_path: Path, code: int, requeued: bool) -> None:
    env = recorded(tmp_path, "srun", code=code)
    control = tmp_path / "bin" / "scontrol"
    control.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.called\nprintf "node07\\nnode08\\n"\n')
    control.chmod(0o755)
    env |= {"SLURM_JOB_NODELIST": "node[07-08]", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "32"}
    words = ["bash", FOLDER / "ray.sbatch", "--source", "gs://raw/**", "--out", "/t"]
    assert subprocess.run(words, env=env | {"SLURM_JOB_ID": "17"}, check=False).returncode == code
    ours = called(tmp_path, "srun")
    start, command = ours[: ours.index("--")], ours[ours.index("--") + 1 :]
    assert start[:3] == ["--cpus-per-task=32", "ray", "symmetric-run"]
    assert start[3:] == ["--address", "node07:6379", "--min-nodes", "2", "--num-cpus", "32"]
    assert command[:2] == ["omnihuman", "curate"]
    options = parser_of_curate().parse_args(command[2:])
    assert (options.engine, options.address, options.source) == ("ray", "node07:6379", "gs://raw/**")
    assert ("requeue 17" in called(tmp_path, "scontrol")) == requeued


def test_an_index_of_the_job_takes_its_share(tmp_path: Path) -> None:
    job = yaml.safe_load((FOLDER / "job.yaml").read_text())
    spec: dict[str, Any] = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert spec["completions"] == spec["parallelism"] == 64 and spec["completionMode"] == "Indexed"
    env = recorded(tmp_path, "python") | {"JOB_COMPLETION_INDEX": "5"}
    subprocess.run([*container["command"], *container["args"]], env=env, check=True)
    words = called(tmp_path, "python")
    assert words[:3] == ["-m", "omnihuman_jax.cli", "curate"]
    options = parser_of_curate().parse_args(words[3:])
    assert (options.worker.index, options.worker.count, options.source) == (5, 64, "gs://raw/**")
    (rule,) = (rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule)
    assert rule["containerName"] == container["name"] and rule["values"] == [exit_codes.USER_ERROR]


def test_the_cluster_of_kuberay_has_our_ray_and_no_probe_that_asks_the_dashboard() -> None:
    file = FOLDER / "ray_cluster.yaml"
    spec = yaml.safe_load(file.read_text())["spec"]
    pinned = (ROOT / "constraints" / "py312.txt").read_text().splitlines()
    assert f"ray=={spec['rayVersion']}" in pinned
    (line,) = (line for line in file.read_text().splitlines() if "kubectl exec" in line)
    words = shlex.split(line.partition(" -- ")[2])
    assert words[:4] == ["python", "-m", "omnihuman_jax.cli", "curate"]
    options = parser_of_curate().parse_args(words[4:])
    assert (options.engine, options.address) == ("ray", "auto")
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        assert all("tcpSocket" in container[probe] for probe in ("readinessProbe", "livenessProbe"))
