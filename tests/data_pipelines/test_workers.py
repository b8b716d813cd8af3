"""A task that kills its process costs that task alone, whoever else is at work."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipelines.engines.local_pool import LocalPool
from omnihuman_jax.runtime.worker_share import WorkerShare


def half_or_die(number: int) -> float:
    """Negative numbers kill the process, as a crash in C would; others take a while, so that they are out with them."""
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL if number % 2 else signal.SIGSEGV)
    time.sleep(0.05)
    return number / 2


@pytest.mark.parametrize("count", [1, 3])
def test_the_others_go_on(count: int) -> None:
    tasks = [1, -1, 2, 3, -2, 4, 5, -3]
    with LocalPool[int, float](count) as workers:
        results = dict(workers.run(half_or_die, tasks))
        assert results == {n: n / 2 if n > 0 else None for n in tasks}
        assert dict(workers.run(half_or_die, [6])) == {6: 3.0}


def test_an_error_of_the_task_itself_is_passed_on() -> None:
    with LocalPool[int, int](2) as workers, pytest.raises(TypeError):
        list(workers.run(len, [1]))  # type: ignore[arg-type]


def test_a_task_is_tried_again_where_that_is_asked_for(tmp_path: Path) -> None:
    """In turn: the one that dies goes to the end of the queue, and is given up when the caller has enough."""
    tries: list[int] = []
    with LocalPool[int, float](2) as pool:
        results = dict(pool.run(half_or_die, [-1, 2], lambda task: tries.append(task) or len(tries) < 3))  # type: ignore[func-returns-value]
    assert results == {-1: None, 2: 1.0} and tries == [-1, -1, -1]


def test_tasks_that_follow_a_result_are_next() -> None:
    """One process: what is begun is finished before the next is begun."""
    with LocalPool[int, float](1) as pool:
        order = [
            task for task, _ in pool.run(half_or_die, [1, 2], follow=lambda task, result: [10, 20][: 2 * (task == 1)])
        ]
    assert order == [1, 10, 20, 2]


def sleeping_pid(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


PARENT = """
from data_pipelines.engines.local_pool import LocalPool
from tests.data_pipelines.test_workers import sleeping_pid
import sys
if __name__ == "__main__":
    with LocalPool(1) as pool:
        list(pool.run(sleeping_pid, [sys.argv[1]]))
"""


def test_the_processes_end_with_their_parent(tmp_path: Path) -> None:
    """Killed, it cannot tell them: an orphan would go on, and race whoever does its task again."""
    (tmp_path / "parent.py").write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py", tmp_path / "pid"], env=environment)
    while not (tmp_path / "pid").is_file() or not (pid := (tmp_path / "pid").read_text()):
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists() or "(zombie)" in Path(f"/proc/{pid}/status").read_text():
            return
        time.sleep(0.05)
    raise AssertionError("the orphan lives")


@pytest.mark.parametrize("text", ["4/4", "x", "1", "-1/2", "0/0"])
def test_a_share_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="I/N with I from 0 to N - 1"):
        WorkerShare.parse(text)


def test_shares_are_everything_once() -> None:
    parts = list(range(11))
    shares = [WorkerShare.parse(f"{i}/4") for i in range(4)]
    assert sorted(part for share in shares for part in share.of(parts)) == parts
    assert all(sorted(share.first(parts)) == parts and share.first(parts)[0] == share.index for share in shares)
