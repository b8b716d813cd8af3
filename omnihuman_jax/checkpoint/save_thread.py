"""One save of a checkpoint while the run goes on."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from omnihuman_jax.runtime import processes, storage

logger = logging.getLogger(__name__)


class Save:
    """A save in progress: a thread waits for Orbax, then (process 0) writes the manifest and makes room.

    `number`: of this save in the life of the job, the same on all processes: a step may be saved again, and what
    another process said of the first try is no word about the second.
    """

    def __init__(
        self, step: int, number: int, response: Any, write_manifest: Callable[[], int], make_room: Callable[[], None]
    ):
        self.step = step
        self._note = f"save_failed/{number}"
        self.error: BaseException | None = None
        self.no_room = ""
        self.nbytes = 0
        self.seconds = 0.0
        self._begin = time.monotonic()
        self._response, self._write_manifest, self._make_room = response, write_manifest, make_room
        self._thread = threading.Thread(target=self._run, name=f"omnihuman-save-{step}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._response.result()
            self.nbytes = self._write_manifest()
            self.seconds = time.monotonic() - self._begin
        except BaseException as error:
            self.error = error
            logger.error("saving step %d failed: %s", self.step, storage.cause(error))
            processes.post(self._note, storage.cause(error))
            return
        try:
            self._make_room()
        except Exception as error:  # the step is whole, whatever became of the older ones
            logger.error(
                "step %d is saved, but no room could be made for the next: %s", self.step, storage.cause(error)
            )
            self.no_room = storage.cause(error)

    @property
    def is_running(self) -> bool:
        """Not yet whole, and not failed here."""
        return self._thread.is_alive()

    def wait(self) -> str:
        """Until it is whole, or has failed here or on another process: why, or ""."""
        while self._thread.is_alive():
            self._thread.join(0.2)
            # Whoever failed reaches no barrier of this save: do not wait for that.
            if self._thread.is_alive() and (elsewhere := processes.posted(self._note)):
                return next(iter(elsewhere.values()))
        return "" if self.error is None else storage.cause(self.error)
