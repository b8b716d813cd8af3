"""A Ray cluster of real processes on this machine: a head and three raylets, of which one is killed and one joins late.
The table is that of the local engine, and the shards those of one process, to the last bit.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from data_pipelines.encode.encode import encode
from data_pipelines.engines.ray_cluster import RayCluster
from data_pipelines.needs import Needs
from tests.data_pipelines.test_kill import (
    CLI,
    OF_PLACE,
    arguments,
    clips,
    config,
    curating,
    digests,
    finish,
    start,
    undisturbed,
    videos,
)

__all__ = ["clips", "undisturbed", "videos"]


def half_or_die(number: int) -> float:
    """Negative numbers kill the process, as a crash in C would."""
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return number / 2


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Nodes:
    """`ray start` in the foreground, a group of processes a node."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self.running: list[subprocess.Popen[bytes]] = []

    def add(self, *options: str) -> subprocess.Popen[bytes]:
        port = self.address.split(":")[1]
        head = ["--head", f"--port={port}", "--include-dashboard=false"]
        where = [f"--address={self.address}"] if self.running else head
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", *where, *options]
        command += ["--node-ip-address=127.0.0.1", "--disable-usage-stats", "--object-store-memory=100000000"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_TMPDIR": str(self._folder)}
        environment["RAY_worker_niceness"] = "0"  # 15, which on a busy machine is never
        with (self._folder / f"node{len(self.running)}.log").open("wb") as log:
            node = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.running.append(node)
        return node

    @staticmethod
    def kill(node: subprocess.Popen[bytes]) -> None:
        """The machine is gone: the raylet, and whoever it started."""
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def close(self) -> None:
        for node in reversed(self.running):
            if node.poll() is None:
                self.kill(node)


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = Path("/tmp") / f"ray{os.getpid()}"  # the address of a socket is short
    folder.mkdir(exist_ok=True)
    nodes = Nodes(folder)
    yield nodes
    nodes.close()
    shutil.rmtree(folder, ignore_errors=True)


def wait_for(nodes: Nodes) -> None:
    host, port = nodes.address.split(":")
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the head does not come up")


@pytest.mark.slow
def test_a_task_that_kills_its_process_costs_that_task_alone(nodes: Nodes) -> None:
    nodes.add()
    wait_for(nodes)
    tries: list[int] = []
    with RayCluster[int, float](nodes.address) as cluster:
        results = dict(cluster.run(half_or_die, [1, -1, 2, 3], lambda task: tries.append(task) or len(tries) < 2))  # type: ignore[func-returns-value]
    assert results == {1: 0.5, -1: None, 2: 1.0, 3: 1.5} and tries == [-1, -1]


def where(number: int) -> str:
    """The node that this runs on, by what it says of itself."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


@pytest.mark.slow
def test_a_task_runs_where_there_is_what_it_needs(nodes: Nodes, caplog: pytest.LogCaptureFixture) -> None:
    """Odd ones need a GPU, which nobody has at first: that is said, the others go on, and the node that joins with one
    gets them, two at a time.
    """
    nodes.add()
    wait_for(nodes)
    found = dict[int, str]()
    with RayCluster[int, str](nodes.address) as cluster:
        for task, node in cluster.run(
            where, [1, 3, 5, 2, 4], follow=lambda task, result: [100 + task] if task == 4 else [],
            needs=lambda task: Needs(cores=0.5, gpus=0.5 * (task % 2), memory_mib=64),
        ):  # fmt: skip
            found[task] = node
            if list(found) == [2, 4, 104]:
                assert "0.5 GPUs, 64 MiB, which no node of the cluster has: they wait" in caplog.text
                nodes.add("--num-gpus=1")
    assert len(found) == 6 and len({found[task] for task in (1, 3, 5)}) == 1 and found[1] != found[2]
    assert caplog.text.count("which no node of the cluster has") == 1


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "[::1]:{}", "127.0.0.1:9{}"])
def test_where_no_cluster_answers_is_said_at_once(address: str) -> None:
    begun = time.monotonic()
    with pytest.raises(ValueError, match="no Ray cluster answers there"):
        RayCluster[int, float](address.format(free_port())).__enter__()
    assert time.monotonic() - begun < 60  # Ray itself was still trying after four minutes


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_and_gets_another_makes_the_same_table(
    nodes: Nodes, videos: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(videos, tmp_path / "media")
    nodes.add()
    wait_for(nodes)
    doomed = nodes.add()
    nodes.add()
    table, log = tmp_path / "table", tmp_path / "log"
    running = start([*curating(tmp_path), "--engine=ray", f"--address={nodes.address}"], log)

    def strike() -> None:
        while len(list(table.glob("scan@*/part-*.parquet"))) < 2 and running.poll() is None:
            time.sleep(0.1)
        nodes.add()
        nodes.kill(doomed)

    striker = threading.Thread(target=strike)
    striker.start()
    finish(running, log)
    striker.join()
    assert len(nodes.running) == 4 and digests(table) == undisturbed


def encode_share(task: tuple[tuple[str, ...], int, int]) -> int:
    """A worker of `encode` as a node of the cluster runs it, as a process of its own."""
    command, index, count = task
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    command = [*CLI, *command, f"--worker={index}/{count}"]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.returncode


@pytest.mark.slow
def test_the_nodes_of_a_cluster_encode_and_one_is_lost(nodes: Nodes, clips: Path, tmp_path: Path) -> None:
    """Four workers of `encode`, handed out by Ray; a node goes with the shard that it was at, and one joins late."""
    encode(clips / "clips", tmp_path / "alone" / "dataset", config(clips), Console(quiet=True))
    nodes.add()
    wait_for(nodes)
    doomed = nodes.add()
    nodes.add()
    out, log = tmp_path / "shared" / "dataset", tmp_path / "log"
    out.parent.mkdir()
    command = arguments(clips, out)

    def strike() -> None:
        while not list(out.parent.glob("dataset.encoding/part-*.json")) and not over.is_set():
            time.sleep(0.1)
        nodes.add()
        nodes.kill(doomed)

    over, striker = threading.Event(), threading.Thread(target=strike)
    striker.start()
    with RayCluster[tuple[tuple[str, ...], int, int], int](nodes.address) as cluster:
        try:
            # A task is known by its number: commands are lists.
            done = dict(cluster.run(encode_share, [(tuple(command), index, 4) for index in range(4)]))
        finally:
            over.set()
            striker.join()
    assert list(done.values()) == [0] * 4 and len(nodes.running) == 4
    finish(start([*command, "--finish"], log), log)
    made, alone = digests(out), digests(tmp_path / "alone" / "dataset")
    assert {name for name in made.keys() | alone.keys() if made.get(name) != alone.get(name)} <= OF_PLACE
    assert os.listdir(out.parent) == ["dataset"]
