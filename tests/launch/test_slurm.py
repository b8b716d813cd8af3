"""The sbatch script: its text, and what it does, run by bash with tools that stand for SLURM's.

On a real SLURM: tests/slurm, `make slurm`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import slurm
from omnihuman_jax.checkpoint.folder import checkpoint_directory
from omnihuman_jax.checkpoint.reader import CheckpointReader
from omnihuman_jax.runtime import exit_codes
from tests.launch.specs import IMAGE, ON_SLURM, SLURM, spec
from tests.training import runs

# srun: every task with SLURM's variables, as slurmstepd sets them; the highest code, as srun reports.
SRUN = """#!/usr/bin/env python3
import os, subprocess, sys
options = [a for a in sys.argv[1:] if a.startswith("--")]
arguments = sys.argv[1:]
while arguments[0].startswith("--"):
    arguments.pop(0)
tasks = int(os.environ["FAKE_TASKS"])
fixed = {"SLURM_NTASKS": str(tasks), "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_STEP_NUM_NODES": str(tasks)}
children = [
    subprocess.Popen(arguments, env={**os.environ, **fixed, "SLURM_PROCID": str(i), "SLURM_LOCALID": "0"})
    for i in range(tasks)
]
codes = [child.wait() for child in children]
sys.exit(max(128 - code if code < 0 else code for code in codes))
"""
SCONTROL = '#!/usr/bin/env bash\necho "$@" >>"$FAKE_REQUEUES"\n'
# Stands for the trainer: exits with CODES[attempt][rank].
TRAINER = """
import glob, os, sys, time
codes = [row.split(",") for row in os.environ["CODES"].split(";")]
code = int(codes[int(os.environ["RESTART_ATTEMPT"])][int(os.environ["SLURM_PROCID"])])
assert os.environ["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3,4,5,6,7" and "https_proxy" not in os.environ
while code == 134 and not glob.glob(os.environ["FIRST_CODES"] + os.environ["RESTART_ATTEMPT"]):
    time.sleep(0.05)  # a peer dies after the one that it misses
sys.exit(code)
"""
GOLDEN = """#!/bin/bash -l
#SBATCH --job-name=run
#SBATCH --nodes=32
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --mem=0
#SBATCH --partition=gpu
#SBATCH --time=1-00:00:00
#SBATCH --output="/shared/my runs/100%%j/launch/slurm-%j.log"
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
#SBATCH --export=NONE
#SBATCH --exclusive
#SBATCH --requeue
export SLURM_EXPORT_ENV=ALL
export PYTHONUNBUFFERED=1
export A='b c'
export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7
module load cuda
set -uo pipefail
unset http_proxy https_proxy ftp_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY FTP_PROXY ALL_PROXY NO_PROXY

state='/shared/my runs/100%j/launch'/$SLURM_JOB_ID
mkdir -p "$state"
number() { cat "$state/$1" 2>/dev/null || echo 0; }
stopped=
stop() {
  case "$(scontrol show job "$SLURM_JOB_ID")" in
    *Reason=TimeLimit*)
      echo "the time limit came before the save was done; back into the queue, to the last checkpoint" >&2
      scontrol requeue "$SLURM_JOB_ID"; stopped=yes ;;
    *JobState=RUNNING*) ;;
    *) stopped=yes ;;
  esac
}
trap stop TERM
while true; do
  RESTART_ATTEMPT=$(number attempts); export RESTART_ATTEMPT
  echo $((RESTART_ATTEMPT + 1)) >"$state/attempts"
  first=$state/code.$RESTART_ATTEMPT
  srun --wait=120 --chdir=/shared/omnihuman /shared/venv/bin/python -m launch.supervise --secret T=/shared/t --first-code "$first" -- \\
    -m omnihuman_jax.cli train --config=CONFIG '--run=/shared/my runs/100%j' --no-progress --distributed --config.seed=3 &
  wait $!; code=$?
  while kill -0 $! 2>/dev/null; do wait $!; code=$?; done
  [ "$code" -ne 0 ] && [ -s "$first" ] && code=$(cat "$first")
  [ -n "$stopped" ] && exit "$code"
  case "$code" in
    0) exit 0 ;;
    2|130) echo "code $code: no restart cures it" >&2; exit "$code" ;;
    42) echo "code $code: saved and stopped; back into the queue" >&2
      scontrol requeue "$SLURM_JOB_ID"; exit "$code" ;;
  esac
  failures=$(($(number failures) + 1))
  echo "$failures" >"$state/failures"
  if [ "$failures" -gt 10 ]; then
    echo "code $code: failed $failures times, 10 restarts allowed" >&2; exit "$code"
  fi
  echo "code $code: restart $failures of 10" >&2
  sleep "${RESTART_PAUSE_S:-10}"
done
"""  # noqa: E501


def test_the_script() -> None:
    fields = {"output": "/shared/my runs/100%j", "slurm": SLURM | {"setup": ["module load cuda"]}}
    run = spec(ON_SLURM, fields, env={"A": "b c"}, secrets={"T": {"file": "/shared/t"}}, overrides={"seed": 3})
    assert slurm.render(run).replace(run.config, "CONFIG") == GOLDEN


def test_the_memory_of_a_node_is_the_users_to_say() -> None:
    lines = slurm.directives(spec(ON_SLURM, slurm=SLURM | {"directives": ["--mem-per-gpu=64G"]}))
    assert "--mem=0" not in lines and "--mem-per-gpu=64G" in lines


def test_bash_reads_it_and_values_stay_values() -> None:
    evil = "x'; touch /pwned; $(reboot) `id`"
    text = slurm.render(spec(ON_SLURM, env={"A": evil}, overrides={"data.dataset": evil}))
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    line = next(line for line in text.splitlines() if line.startswith("export A="))
    done = subprocess.run(["bash", "-c", f'{line}; printf %s "$A"'], capture_output=True, text=True, check=True)
    assert done.stdout == evil


def test_a_container_and_cpu_nodes() -> None:
    fields = {
        "runtime": "apptainer",
        "binds": ["/shared/data"],
        "directives": ["--exclude=node7"],
        "setup": ["module load x"],
    }
    text = slurm.render(spec(ON_SLURM, image=IMAGE, slurm=fields))
    wanted = (
        f"srun --wait=120 apptainer exec --nv --pwd /app --bind /shared/run --bind /shared/data docker://{IMAGE} python"
    )
    assert wanted in text and "#SBATCH --exclude=node7\n" in text and "\nmodule load x\n" in text
    on_cpu = slurm.render(spec(ON_SLURM, accelerator={"type": "cpu", "nodes": 2, "devices": 4}))
    assert "--simulate-devices 4 train" in on_cpu and "gpus" not in on_cpu and "LOCAL_DEVICE_IDS" not in on_cpu


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH with what the script calls."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    for name, value in {
        "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "77", "FAKE_TASKS": "2", "RESTART_PAUSE_S": "0",
        "FAKE_REQUEUES": str(tmp_path / "requeues"), "FIRST_CODES": f"{tmp_path}/run/launch/77/code.",
        "https_proxy": "http://proxy", "OMNIHUMAN_RESTART_PAUSE_S": "0.01",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return tmp_path


def script(folder: Path, monkeypatch: pytest.MonkeyPatch, **fields: object) -> str:
    """The script with a small program in the trainer's place."""
    monkeypatch.setattr(slurm, "trainer_argv", lambda run: ["-c", TRAINER])
    paths = {"python": sys.executable, "workdir": str(folder)}
    return slurm.render(spec(ON_SLURM, {"output": str(folder / "run"), "slurm": paths, "restarts": 2}, fields))


@pytest.mark.parametrize(
    ("codes", "code", "attempts", "requeues"),
    [
        ("0,0", 0, 1, 0),
        ("2,134", 2, 1, 0),  # srun reports 134, the first code is the user's error
        ("134,1;134,137;0,0", 0, 3, 0),
        ("1,134;1,134;1,134", 1, 3, 0),
        ("42,134", 42, 1, 1),
    ],
)
def test_the_restart_rule(
    cluster: Path, monkeypatch: pytest.MonkeyPatch, codes: str, code: int, attempts: int, requeues: int
) -> None:
    text = script(cluster, monkeypatch)
    done = subprocess.run(
        ["bash"],
        input=text,
        text=True,
        env={**os.environ, "CODES": codes},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert (cluster / "run" / "launch" / "77" / "attempts").read_text() == f"{attempts}\n"
    asked = (cluster / "requeues").read_text().splitlines() if requeues else []
    assert asked == ["requeue 77"] * requeues and (cluster / "requeues").exists() == bool(requeues)


def test_a_requeued_job_counts_on(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = script(cluster, monkeypatch)
    env = {**os.environ, "CODES": "1,134;42,42;1,134;0,0"}
    codes = [
        subprocess.run(["bash"], input=text, text=True, env=env, timeout=120, check=False).returncode for _ in range(2)
    ]
    assert codes == [exit_codes.RESTART, exit_codes.OK]
    state = cluster / "run" / "launch" / "77"
    assert (state / "failures").read_text() == "2\n" and (state / "attempts").read_text() == "4\n"


@pytest.mark.slow
def test_the_trainer_itself_finds_its_peers_by_slurms_variables(cluster: Path, tmp_path: Path) -> None:
    """Two tasks, JAX's own detection, supervision, the script's end: a whole tiny training run."""
    dataset, run = runs.write_dataset(tmp_path / "dataset"), tmp_path / "trained"
    steps = 7
    nodes = {"accelerator": {"type": "cpu", "nodes": 2, "devices": 2}, "volumes": [], "output": str(run), "restarts": 0}
    overrides = {"data.dataset": str(dataset), "stages.rows[1].steps": steps - 5}
    elsewhere = tmp_path / "elsewhere"
    nodes["checkpoints"] = str(elsewhere)
    job = spec(
        nodes, config=str(runs.CONFIG), overrides=overrides, slurm={"python": sys.executable, "workdir": str(tmp_path)}
    )
    done = subprocess.run(["bash"], input=slurm.render(job), text=True, capture_output=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["step"] for line in runs.records(run)] == list(range(1, steps + 1))
    assert (elsewhere / str(steps)).is_dir() and not (run / "checkpoints").exists()
    # Whoever reads the run finds them there.
    with CheckpointReader(checkpoint_directory(run)) as checkpoints:
        assert checkpoints.steps[-1] == steps
