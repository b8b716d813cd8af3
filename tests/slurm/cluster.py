"""A real SLURM on this machine: munged, one slurmctld, two slurmd on loopback, all in one folder.

    with Cluster(folder) as cluster:
        subprocess.run(["sbatch", ...], env=cluster.environment)

Debian 12: apt-get install slurmctld slurmd slurm-client munge. No accounting, no cgroups, eight GPUs a node that are
empty files: what is tried is who starts whom, who gets which signal, and what goes back into the queue.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "srun")
INSTALL = "apt-get install slurmctld slurmd slurm-client munge"
_SBIN = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
# KillWait: between SIGTERM and SIGKILL at a time limit, and for whoever is cancelled or requeued.
KILL_WAIT_S = 20
CONF = """\
ClusterName=tiny
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerNode=100
SlurmdParameters=config_overrides
SchedulerParameters=requeue_delay=1,sched_interval=2,bf_interval=2
GresTypes=gpu
ReturnToService=2
KillWait={kill_wait}
InactiveLimit=0
MpiDefault=none
MailProg=/bin/true
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports} CPUs=1 RealMemory=8000 Gres=gpu:8 State=UNKNOWN
PartitionName=gpu Nodes={nodes} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The tools of SLURM that this machine lacks."""
    return [tool for tool in TOOLS if shutil.which(tool, path=_SBIN) is None]


def until(answer: Callable[[], bool], seen: Callable[[], object], *, limit_s: float) -> None:
    """Waits; AssertionError with what is seen when the time is over."""
    deadline = time.monotonic() + limit_s
    while not answer():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {seen()}"
        time.sleep(0.3)


class Cluster:
    """Two nodes of this machine. Their names have to resolve to it, since JAX meets at the first."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.host = socket.gethostname().partition(".")[0]
        self.nodes = [self.host, "localhost"]
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _SBIN}
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> Self:
        for name in ("state", "gpu", *(f"spool.{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True)
        self._configure()
        with contextlib.ExitStack() as stack:
            stack.callback(self._stop)
            self._munge()
            self._start("slurmctld", "-D", "-f", self.environment["SLURM_CONF"])
            for node in self.nodes:
                self._start("slurmd", "-D", "-N", node, "-f", self.environment["SLURM_CONF"])
            until(lambda: self.node_states() == {"IDLE"}, self.node_states, limit_s=200)
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.clear()
        finally:
            self._stop()

    def clear(self) -> None:
        """No job, and both nodes up: the next test begins as this one did."""
        self.say("scancel", "--user", getpass.getuser())
        until(lambda: not self.say("squeue", "--noheader"), lambda: self.say("squeue"), limit_s=KILL_WAIT_S + 200)
        if self.node_states() - {"IDLE"}:
            self.say("scontrol", "update", f"nodename={','.join(self.nodes)}", "state=resume")

    def _configure(self) -> None:
        controller, *ports = (_free_port() for _ in range(1 + len(self.nodes)))
        text = CONF.format(
            host=self.host, user=getpass.getuser(), folder=self.folder, controller=controller,
            nodes=",".join(self.nodes), ports=",".join(map(str, ports)), kill_wait=KILL_WAIT_S,
        )  # fmt: skip
        (self.folder / "slurm.conf").write_text(text)
        for index in range(8):
            (self.folder / "gpu" / str(index)).touch()
        nodes = ",".join(self.nodes)
        gres = f"AutoDetect=off\nNodeName={nodes} Name=gpu File={self.folder}/gpu/[0-7]\n"
        (self.folder / "gres.conf").write_text(gres)
        version = "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1"
        (self.folder / "cgroup.conf").write_text(f"CgroupPlugin=cgroup/{version}\nCgroupAutomount=no\n")

    def _munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = [f"--{what}-file={self.folder}/munge.{what}" for what in ("pid", "log", "seed", "key")]
        self._start("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *files)
        until((self.folder / "munge.socket").exists, lambda: "munged has no socket", limit_s=20)

    def _start(self, *argv: str) -> None:
        with (self.folder / f"{argv[0]}.out").open("ab") as log:
            self._daemons.append(subprocess.Popen(argv, stdout=log, stderr=log, env=self.environment))

    def _stop(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.send_signal(signal.SIGKILL)

    def ask(self, *argv: str) -> str:
        """What a tool prints; its message is in the error where it fails."""
        done = self._run(argv)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def say(self, *argv: str) -> str:
        """What a tool prints, its message too; on a busy machine slurmctld now and then answers nobody."""
        done = self._run(argv)
        return (done.stdout + done.stderr).strip()

    def _run(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv, capture_output=True, text=True, env=self.environment, timeout=120, check=False)

    def node_states(self) -> set[str]:
        return {state.upper() for state in self.say("sinfo", "--noheader", "--Node", "--format=%T").split()}

    def field(self, job: str, name: str) -> str:
        """Of `scontrol show job`, such as JobState; empty once SLURM has forgotten the job."""
        words = self.say("scontrol", "show", "job", job, "--oneliner").split()
        return dict(word.split("=", 1) for word in words if "=" in word).get(name, "")

    def wait_for(self, job: str, *states: str, limit_s: float) -> str:
        """The state once it is one of these."""
        until(lambda: self.field(job, "JobState") in states, lambda: self.say("squeue"), limit_s=limit_s)
        return self.field(job, "JobState")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
