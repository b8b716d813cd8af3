"""`omnihuman submit --target slurm` on a real SLURM: `make slurm`, or `pytest --slow=slurm`.

A small program stands for the trainer where only its end matters; the last test trains. Every job's folder has a blank
and a `%j` in its name.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch import slurm
from launch.spec import RunSpec
from omnihuman_jax import cli
from tests import quick_xla
from tests.launch.specs import ON_SLURM, ROOT, changed, spec
from tests.slurm.cluster import INSTALL, Cluster, missing, until
from tests.training import runs

pytestmark = pytest.mark.slurm
# SLURM holds a job for two minutes after a requeue; the rest is for a busy machine.
LIMIT_S = 600

# Ends with CODES[attempt][rank]; `wait` waits for SIGTERM and then "saves"; `slow` takes longer to save than anybody
# gives it.
TRAINER = """
import os, pathlib, signal, sys, time
rank, attempt = int(os.environ["SLURM_PROCID"]), int(os.environ["RESTART_ATTEMPT"])
word = os.environ["CODES"].split(";")[attempt].split(",")[rank]
print("environment", *sorted(os.environ), flush=True)
print("secret", os.environ.get("T"), flush=True)
signal.signal(signal.SIGTERM, lambda *_: word == "slow" or (print("saved", flush=True), os._exit(42)))
(pathlib.Path(os.environ["FOLDER"]) / f"pid.{attempt}.{rank}").write_text(str(os.getpid()))
if word in ("wait", "slow"):
    while True:
        time.sleep(0.2)
first = pathlib.Path(os.environ["FOLDER"]) / "launch" / os.environ["SLURM_JOB_ID"] / f"code.{attempt}"
while word == "134" and not first.exists():
    time.sleep(0.1)  # a peer dies after the one that it misses
sys.exit(int(word))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if tools := missing():
        pytest.fail(f"SLURM is not on this machine ({', '.join(tools)}); Debian, Ubuntu: {INSTALL}")
    with Cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


class Job:
    """What was submitted: its id, and what is seen of it."""

    def __init__(self, cluster: Cluster, run: RunSpec, number: str):
        self.cluster, self.run, self.number = cluster, run, number
        self.folder = Path(run.output)

    def ends(self, *states: str, limit_s: float = LIMIT_S) -> str:
        return self.cluster.wait_for(self.number, *states, limit_s=limit_s)

    def started(self, attempt: int, rank: int = 0) -> int:
        """The process id of a rank's trainer, once it runs."""
        file = self.folder / f"pid.{attempt}.{rank}"
        until(lambda: file.exists() and bool(file.read_text()), self.log, limit_s=LIMIT_S)
        return int(file.read_text())

    @property
    def restarts(self) -> int:
        return int(self.cluster.field(self.number, "Restarts") or 0)

    def log(self) -> str:
        file = Path(slurm.state_dir(self.run)) / f"slurm-{self.number}.log"
        return file.read_text() if file.exists() else ""


@pytest.fixture
def submit(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Job]]:
    """Submits a spec whose trainer ends by CODES."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SUBMITTER_HF_TOKEN", "hf_leaked")
    monkeypatch.setattr(slurm, "trainer_argv", lambda run: ["-c", TRAINER])

    def start(codes: str, *, nodes: int = 2, **fields: Any) -> Job:
        folder = tmp_path / "omni human" / "100%j"
        secret = tmp_path / "secret"
        secret.write_text("whispered\n")
        settings = {"python": sys.executable, "workdir": str(ROOT), "partition": "gpu", **fields.pop("slurm", {})}
        base = {
            "output": str(folder), "accelerator": {"type": "h100", "nodes": nodes}, "slurm": settings, "restarts": 2,
            "env": {"CODES": codes, "FOLDER": str(folder), "RESTART_PAUSE_S": "0.1"}, "grace_s": 10,
            "secrets": {"T": {"file": str(secret)}},
        }  # fmt: skip
        run = spec(ON_SLURM, base, fields)
        slurm.check(run)
        capfd.readouterr()
        assert slurm.submit(run) == 0
        return Job(cluster, run, capfd.readouterr().out.strip())

    yield start
    cluster.clear()


@pytest.mark.parametrize(
    ("codes", "state", "code", "attempts"),
    [
        ("0,0", "COMPLETED", "0:0", 1),
        ("2,134", "FAILED", "2:0", 1),  # srun reports 134; the first code is the user's error
        ("43,134;44,134;0,0", "COMPLETED", "0:0", 3),
        ("1,134;44,134;43,134", "FAILED", "43:0", 3),
    ],
)
def test_codes(submit: Callable[..., Job], codes: str, state: str, code: str, attempts: int) -> None:
    job = submit(codes)
    assert job.ends("COMPLETED", "FAILED") == state, job.log()
    assert job.cluster.field(job.number, "ExitCode") == code and job.restarts == 0
    numbers = Path(slurm.state_dir(job.run)) / job.number
    assert (numbers / "attempts").read_text() == f"{attempts}\n", job.log()


def test_a_saved_stop_goes_back_into_the_queue(submit: Callable[..., Job]) -> None:
    job = submit("42,42;0,0")
    until(lambda: job.restarts == 1, job.log, limit_s=LIMIT_S)
    assert job.ends("COMPLETED", "FAILED", limit_s=LIMIT_S) == "COMPLETED", job.log()


def test_the_environment_is_the_specs(submit: Callable[..., Job]) -> None:
    """Neither the submitter's tokens nor his settings; the secret's content, and the spec's own variables."""
    job = submit("0,0")
    job.ends("COMPLETED")
    names = next(line for line in job.log().splitlines() if line.startswith("environment")).split()
    assert "SUBMITTER_HF_TOKEN" not in names and "PYTEST_CURRENT_TEST" not in names and "hf_leaked" not in job.log()
    assert {"CODES", "JAX_LOCAL_DEVICE_IDS", "HOME", "PATH"} <= set(names)
    assert "secret whispered" in job.log()


def test_time_limits(submit: Callable[..., Job], tmp_path: Path) -> None:
    """Two jobs, a node each: one saves in its grace period, one takes longer than anybody waits. Both go on."""
    quick = submit("wait;0", nodes=1, slurm={"time": "00:02:00"})
    slow = submit("slow;0", nodes=1, name="slow", output=str(tmp_path / "slow"), slurm={"time": "00:02:00"},
                  env={"CODES": "slow;0", "FOLDER": str(tmp_path / "slow")})  # fmt: skip
    until(lambda: quick.restarts == 1 and slow.restarts == 1, lambda: (quick.log(), slow.log()), limit_s=LIMIT_S)
    assert quick.ends("COMPLETED", "FAILED", "TIMEOUT", limit_s=LIMIT_S) == "COMPLETED", quick.log()
    assert slow.ends("COMPLETED", "FAILED", "TIMEOUT", limit_s=LIMIT_S) == "COMPLETED", slow.log()
    assert "saved and stopped; back into the queue" in quick.log()
    assert "the time limit came before the save was done; back into the queue" in slow.log()


def test_a_rank_that_is_killed_is_a_counted_restart(submit: Callable[..., Job]) -> None:
    job = submit("wait,wait;0,0")
    job.started(0, 0)
    os.kill(job.started(0, 1), signal.SIGKILL)
    assert job.ends("COMPLETED", "FAILED") == "COMPLETED", job.log()
    assert "code 137: restart 1 of 2" in job.log() and job.restarts == 0


def test_an_operator_puts_it_back_while_a_node_is_drained(submit: Callable[..., Job], cluster: Cluster) -> None:
    """A drained node lets its job run on; after `scontrol requeue` the job waits for the node."""
    job, node = submit("wait,wait;0,0"), cluster.nodes[1]
    job.started(0, 1)
    cluster.ask("scontrol", "update", f"nodename={node}", "state=drain", "reason=look")
    time.sleep(3)
    assert cluster.field(job.number, "JobState") == "RUNNING"
    cluster.ask("scontrol", "requeue", job.number)
    assert job.ends("PENDING") and job.restarts == 1
    time.sleep(3)
    assert not (job.folder / "pid.1.0").exists()
    cluster.ask("scontrol", "update", f"nodename={node}", "state=resume")
    assert job.ends("COMPLETED", "FAILED", limit_s=LIMIT_S) == "COMPLETED", job.log()


def test_a_node_that_is_lost(submit: Callable[..., Job], cluster: Cluster) -> None:
    job, node = submit("wait,wait;0,0"), cluster.nodes[1]
    job.started(0, 1)
    cluster.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")
    until(lambda: job.restarts == 1, job.log, limit_s=LIMIT_S)
    cluster.ask("scontrol", "update", f"nodename={node}", "state=resume")
    assert job.ends("COMPLETED", "FAILED", "NODE_FAIL", limit_s=LIMIT_S) == "COMPLETED", job.log()


def test_status_and_cancel(submit: Callable[..., Job], capfd: pytest.CaptureFixture[str]) -> None:
    """A cancelled job saves, and does not come back."""
    job = submit("wait,wait;0,0")
    job.started(0, 0), job.started(0, 1)
    slurm.status(job.run)
    assert f"run: job {job.number} RUNNING, ran for" in capfd.readouterr().out
    slurm.cancel(job.run)
    assert job.ends("CANCELLED", "PENDING", "COMPLETED", limit_s=LIMIT_S) == "CANCELLED"
    until(lambda: not job.cluster.ask("squeue", "--noheader"), job.log, limit_s=LIMIT_S)
    assert job.log().count("saved") >= 2 and job.restarts == 0 and "back into the queue" not in job.log()
    capfd.readouterr()
    slurm.status(job.run)
    slurm.cancel(job.run)
    assert capfd.readouterr().out.splitlines() == [f"run: not in the queue; its logs are in {job.folder}/launch"] * 2


def test_the_trainer(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two processes train; one is killed, then the whole job is put back; it ends with every step, once."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    dataset, run, steps = runs.write_dataset(tmp_path / "data set"), tmp_path / "my run", 120
    fields = {
        "accelerator": {"type": "cpu", "nodes": 2, "devices": 2}, "output": str(run), "restarts": 2, "grace_s": 60,
        "config": str(runs.CONFIG), "env": {"XLA_FLAGS": quick_xla.FLAGS},
        "overrides": {"data.dataset": str(dataset), "stages.rows[1].steps": steps - 5, "checkpoint.interval": 5},
        "slurm": {"python": sys.executable, "workdir": str(ROOT)},
    }  # fmt: skip
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(changed(ON_SLURM, fields)))
    words = [str(tmp_path / "spec.yaml"), "--target", "slurm"]
    assert cli.main(["submit", *words]) == 0
    number = capfd.readouterr().out.strip()

    def at(step: int) -> Callable[[], bool]:
        metrics = run / "metrics.jsonl"
        return lambda: metrics.exists() and any(line["step"] >= step for line in runs.records(run))

    def log() -> str:
        file = run / "launch" / f"slurm-{number}.log"
        return file.read_text()[-3000:] if file.exists() else ""

    until(at(8), log, limit_s=LIMIT_S)
    os.kill(_trainers(run)[-1], signal.SIGKILL)
    until(lambda: "restart 1 of 2" in log(), log, limit_s=LIMIT_S)
    until(at(20), log, limit_s=LIMIT_S)
    cluster.ask("scontrol", "requeue", number)
    assert cluster.wait_for(number, "COMPLETED", "FAILED", limit_s=LIMIT_S) == "COMPLETED", log()
    assert cluster.field(number, "Restarts") == "1"
    assert sorted({line["step"] for line in runs.records(run)}) == list(range(1, steps + 1))
    assert (run / "checkpoints" / str(steps)).is_dir()
    assert cli.main(["logs", *words, "--lines", "5"]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 5


def _trainers(run: Path) -> list[int]:
    """Process ids of the trainers themselves."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"--run={run}".encode() in words and b"omnihuman_jax.cli" in words and b"launch.supervise" not in words:
                found.append(int(folder.name))
    return sorted(found)
