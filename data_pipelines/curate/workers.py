"""A pool of processes in which a task that kills its process costs that task alone."""

import concurrent.futures
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
DIED = "the process that worked on it died (a crash in a decoder, or out of memory); re-encode it, or take it out"


class Workers(Generic[Task, Result]):
    """`count` processes, started with the first task, so that idle runs start none.

    One process is one too: a decoder that crashes in this one would end the run.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers[Task, Result]":
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[Task, Result | None]]:
        """Yields (task, result) as they come; None for a result whose process died.

        No more tasks are handed out than there are processes: when one dies, the pool cannot say which task did it, so
        that all that were out are tried again, each alone.

        Raises:
            ChildProcessError: processes do not start at all.
        """
        waiting = deque(tasks)
        out: dict[concurrent.futures.Future[Result], Task] = {}
        while waiting or out:
            suspects: list[Task] = []
            while waiting and len(out) < self._count:
                try:
                    future = self._started().submit(function, waiting[0])
                except BrokenProcessPool:  # since the last look
                    if not out:
                        self._close()
                    break
                out[future] = waiting.popleft()
            done, _ = concurrent.futures.wait(out, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                task = out.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    suspects.append(task)
                else:
                    yield task, future.result()
            if suspects:
                suspects += out.values()
                out.clear()
                yield from ((task, self._alone(function, task, tried=len(suspects) == 1)) for task in suspects)

    def _alone(self, function: Callable[[Task], Result], task: Task, *, tried: bool) -> Result | None:
        self._close()
        if tried:
            return None
        try:
            return self._started().submit(function, task).result()
        except BrokenProcessPool:
            self._close()
            return None

    def _started(self) -> concurrent.futures.ProcessPoolExecutor:
        if self._pool is None:
            # Not forked: the parent may hold threads of JAX, and MediaPipe starts its own.
            context = multiprocessing.get_context("spawn")
            self._pool = concurrent.futures.ProcessPoolExecutor(self._count, mp_context=context)
            try:
                self._pool.submit(int).result()
            except BrokenProcessPool as error:
                raise ChildProcessError(
                    "worker processes do not start; a script that calls curate needs `if __name__ == '__main__':`"
                ) from error
        return self._pool

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
