"""A task that kills its process costs that task alone, whoever else is at work."""

import os
import signal
import time

import pytest

from data_pipelines.curate.workers import Workers


def half_or_die(number: int) -> float:
    """Negative numbers kill the process, as a crash in C would; others take a while, so that they are out with them."""
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL if number % 2 else signal.SIGSEGV)
    time.sleep(0.05)
    return number / 2


@pytest.mark.parametrize("count", [1, 3])
def test_the_others_go_on(count: int) -> None:
    tasks = [1, -1, 2, 3, -2, 4, 5, -3]
    with Workers[int, float](count) as workers:
        results = dict(workers.run(half_or_die, tasks))
        assert results == {n: n / 2 if n > 0 else None for n in tasks}
        assert dict(workers.run(half_or_die, [6])) == {6: 3.0}


def test_an_error_of_the_task_itself_is_passed_on() -> None:
    with Workers[int, int](2) as workers, pytest.raises(TypeError):
        list(workers.run(len, [1]))  # type: ignore[arg-type]
