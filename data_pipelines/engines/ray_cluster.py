"""The engine for a cluster: Ray schedules tasks on whatever nodes have what they need, joined late ones too.

A part whose process dies is tried again where the caller says so; one whose node went away always is. Ray's
own retries are off: it cannot tell a row that kills its process from a lost machine. Tasks write their results to the
table's folder, which all nodes have to see at the same path, and need the package installed there.
"""

import functools
import logging
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from data_pipelines.needs import Needs

logger = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")
# What the cluster works on, and as much that waits: what is handed out is bounded, and nobody waits for the driver.
_TIMES = 2
_LOOK_AGAIN_S = 5.0
_ANSWER_S = 20.0


class RayCluster(Generic[Task, Result]):
    """The cluster at `address` (HOST:PORT, or `auto`), or one of this machine's cores for as long as it is open.

    Raises:
        ValueError: Ray is not installed, or no cluster answers.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._said: set[Needs] = set()

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
        follow: Callable[[Task, Result], Iterable[Task]] = lambda task, result: (),
        needs: Callable[[Task], Needs] = lambda task: Needs(),
    ) -> Iterator[tuple[Task, Result | None]]:
        """Yields (task, result) as they come; None for a task whose process died and that is not tried again.

        Args:
            function: of a module, as the nodes import it.
            tries_again: asked in this process about each task whose process died on a node that lives.
            follow: asked in this process for the tasks that a result makes possible: they are next, so that what is
                begun is finished first.
            needs: what a task is given: it waits for a node that has it free.

        Raises:
            Exception: what `function` raised.
        """
        # A process keeps its GPU and what is open on it, so none that had one is used again.
        remote = functools.cache(
            lambda need: self._ray.remote(max_retries=0, max_calls=int(need.gpus > 0), **_asked(need))(function)
        )
        # Tasks that wait for a GPU are not in the way of those that need none.
        queues: dict[bool, deque[tuple[Task, Needs]]] = {False: deque(), True: deque()}
        out = dict[Any, tuple[Task, Needs]]()

        def wait_for(tasks: Iterable[Task], *, first: bool = False) -> None:
            for task in reversed(list(tasks)) if first else tasks:
                need = needs(task)
                queue = queues[need.gpus > 0]
                (queue.appendleft if first else queue.append)((task, need))

        wait_for(tasks)
        lost = self._lost_nodes()
        while any(queues.values()) or out:
            for queue in queues.values():
                while queue and self._has_room(queue[0][1], [need for _, need in out.values()]):
                    task, need = queue.popleft()
                    self._say_if_nobody_has(need)
                    out[remote(need).remote(task)] = (task, need)
            done, _ = self._ray.wait(list(out), timeout=_LOOK_AGAIN_S)
            for ref in done:
                task, _ = out.pop(ref)
                died, result = self._result(ref)
                if not died:
                    wait_for(follow(task, result), first=True)
                    yield task, result
                elif (now := self._lost_nodes()) != lost or tries_again(task):
                    lost = now
                    wait_for([task])
                else:
                    yield task, None

    def _has_room(self, need: Needs, out: Sequence[Needs]) -> bool:
        """Whether a task is handed out: nodes may come and go."""
        there = self._ray.cluster_resources()
        if need.gpus:
            handed = sum(other.gpus for other in out)
            return not handed or handed + need.gpus <= _TIMES * there.get("GPU", 0.0)
        handed = sum(other.cores for other in out if not other.gpus)
        return not handed or handed + need.cores <= _TIMES * there.get("CPU", 0.0)

    def _say_if_nobody_has(self, needs: Needs) -> None:
        """Such a task waits for a node to join, which may be what is meant, and may never end."""
        wanted = {"CPU": needs.cores, "GPU": needs.gpus, "memory": float(needs.memory_mib << 20)}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if needs in self._said or any(all(has.get(n, 0.0) >= wanted[n] for n in wanted) for has in nodes):
            return
        self._said.add(needs)
        logger.warning(
            "tasks need %g cores, %g GPUs, %d MiB, which no node of the cluster has: they wait for one that joins",
            *needs,
        )

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


def _asked(needs: Needs) -> dict[str, Any]:
    """As Ray calls it."""
    memory = {"memory": needs.memory_mib << 20} if needs.memory_mib else {}
    return {"num_cpus": needs.cores, "num_gpus": needs.gpus, **memory}
