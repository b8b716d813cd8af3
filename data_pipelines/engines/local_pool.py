"""The default engine: a pool of processes on this machine, in which a task that kills its process costs that task
alone.

Each process has one task at a time, so that whoever dies is known, and nobody else's work is lost with it.
"""

import contextlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
_HELLO = "started"


class LocalPool(Generic[Task, Result]):
    """`count` processes, started with the first task, so that idle runs start none.

    One process is one too: a decoder that crashes in this one would end the run.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._idle: list[_Process] = []

    def __enter__(self) -> "LocalPool[Task, Result]":
        return self

    def __exit__(self, *exception: object) -> None:
        while self._idle:
            self._idle.pop().end()

    def run(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        tries_again: Callable[[Task], bool] = lambda task: False,
        follow: Callable[[Task, Result], Iterable[Task]] = lambda task, result: (),
    ) -> Iterator[tuple[Task, Result | None]]:
        """Yields (task, result) as they come; None for a task whose process died and that is not tried again.

        Args:
            function: of a module, as the processes import it.
            tries_again: asked in this process about each task whose process died.
            follow: asked in this process for the tasks that a result makes possible: they are next, so that what is
                begun is finished first.

        Raises:
            ChildProcessError: processes do not start at all.
            Exception: what `function` raised.
        """
        waiting = deque(tasks)
        busy: dict[Connection, tuple[_Process, Task]] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < self._count:
                    process = self._idle.pop() if self._idle else _Process()
                    task = waiting.popleft()
                    busy[process.pipe] = (process, task)
                    process.give(function, task)
                for pipe in wait(list(busy)):
                    assert isinstance(pipe, Connection)
                    process, task = busy.pop(pipe)
                    is_alive, result = process.take()
                    if is_alive:
                        self._idle.append(process)
                        waiting.extendleft(reversed(list(follow(task, result))))
                        yield task, result
                    elif tries_again(task):
                        waiting.append(task)
                    else:
                        yield task, None
        finally:
            for process, _ in busy.values():
                process.end()


class _Process:
    """A process of the pool and its pipe."""

    def __init__(self) -> None:
        # Not forked: the parent may hold threads of JAX, and MediaPipe starts its own.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=False)
        self._process.start()
        theirs.close()
        try:
            assert self.pipe.recv() == _HELLO
        except EOFError:
            self._process.join()
            raise ChildProcessError(
                "worker processes do not start; a script that calls curate needs `if __name__ == '__main__':`"
            ) from None

    def give(self, function: Callable[[Any], Any], task: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # it died while it was idle: `take` says so
            self.pipe.send((function, task))

    def take(self) -> tuple[bool, Any]:
        """(whether it lives, what it made); raises what the function raised."""
        try:
            error, result = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            return False, None
        if error is not None:
            self.end()
            raise error
        return True, result

    def end(self) -> None:
        self.pipe.close()
        self._process.terminate()
        self._process.join()


def _serve(pipe: Connection) -> None:
    """What a process of the pool does until its parent closes the pipe or dies."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pipe.send(_HELLO)
    while True:
        try:
            function, task = pipe.recv()
        except EOFError:
            return
        try:
            answer: tuple[Exception | None, Any] = (None, function(task))
        except Exception as error:
            answer = (error, None)
        try:
            pipe.send(answer)
        except Exception as error:  # the pipe carries what can be copied, and an answer may hold anything
            pipe.send((RuntimeError(f"{answer[0] or answer[1]!r} cannot be sent back ({error})"), None))


def _end_with_parent() -> None:
    """Nobody waits for what an orphan makes, and it would race whoever makes it again."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
