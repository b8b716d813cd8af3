"""The engine for a cluster: Ray schedules a task a part on whatever nodes there are, joined late ones too.

A part whose process dies is tried again where the caller says so; one whose node went away always is. Ray's
own retries are off: it cannot tell a row that kills its process from a lost machine. Tasks write their results to the
table's folder, which all nodes have to see at the same path, and need the package installed there.
"""

import logging
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
# A task for every core, and one that waits: what is handed out is bounded, and no core waits for the driver.
_TASKS_A_CORE = 2
_LOOK_AGAIN_S = 5.0
_ANSWER_S = 20.0


class RayCluster(Generic[Task, Result]):
    """The cluster at `address` (HOST:PORT, or `auto`), or one of this machine's cores for as long as it is open.

    Raises:
        ValueError: Ray is not installed, or no cluster answers.
    """

    def __init__(self, address: str | None, cores_a_task: float = 1.0) -> None:
        self._address = address
        self._cores = cores_a_task

    def __enter__(self) -> "RayCluster[Task, Result]":
        try:
            import ray
        except ImportError as error:
            raise ValueError(
                f"--engine ray needs Ray, which cannot be imported ({error}); pip install 'omnihuman-jax[cluster]'"
            ) from error
        self._check_answers()
        try:
            ray.init(address=self._address, include_dashboard=None, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise ValueError(f"--address {self._address}: no Ray cluster answers there ({error})") from None
        self._ray: Any = ray
        return self

    def __exit__(self, *exception: object) -> None:
        self._ray.shutdown()

    def _check_answers(self) -> None:
        """ValueError where nothing listens at HOST:PORT: Ray itself goes on trying for minutes."""
        host, _, port = (self._address or "").rpartition("://")[2].rpartition(":")
        if not port.isdigit():
            return  # `auto`, or a cluster of its own
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
        except (OSError, OverflowError) as error:
            raise ValueError(f"--address {self._address}: no Ray cluster answers there ({error})") from None

    def run(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        tries_again: Callable[[Task], bool] = lambda task: False,
    ) -> Iterator[tuple[Task, Result | None]]:
        """Yields (task, result) as they come; None for a task whose process died and that is not tried again.

        Args:
            function: of a module, as the nodes import it.
            tries_again: asked in this process about each task whose process died on a node that lives.

        Raises:
            Exception: what `function` raised.
        """
        remote = self._ray.remote(num_cpus=self._cores, max_retries=0)(function)
        waiting, out = deque(tasks), dict[Any, Any]()
        lost = self._lost_nodes()
        while waiting or out:
            while waiting and len(out) < self._most():
                task = waiting.popleft()
                out[remote.remote(task)] = task
            done, _ = self._ray.wait(list(out), timeout=_LOOK_AGAIN_S)
            for ref in done:
                task = out.pop(ref)
                died, result = self._result(ref)
                if not died:
                    yield task, result
                elif (now := self._lost_nodes()) != lost or tries_again(task):
                    lost = now
                    waiting.append(task)
                else:
                    yield task, None

    def _most(self) -> int:
        """Tasks that are handed out at once; nodes may come and go."""
        cores = self._ray.cluster_resources().get("CPU", 0.0)
        return max(1, int(_TASKS_A_CORE * cores / self._cores))

    def _lost_nodes(self) -> int:
        return sum(not node["Alive"] for node in self._ray.nodes())

    def _result(self, ref: Any) -> tuple[bool, Any]:
        """(whether its process died, what it made); raises what the function raised."""
        from ray import exceptions

        try:
            return False, self._ray.get(ref)
        except exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            raise cause from None
        except exceptions.RayError:  # of the process, its node, or the memory of either
            return True, None
