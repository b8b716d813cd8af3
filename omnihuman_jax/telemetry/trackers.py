"""Where else a run is told: one small interface, and the services behind it. None of them can stop a run.

`metrics.jsonl` is a tracker like the others, the exact one; TensorBoard, W&B, MLflow and trackio are named in the
config. Process 0 alone tells. A run keeps its id at a service in RUN/trackers/<service>, so that a restart goes on with
the same curves. No JAX.
"""

import dataclasses
import importlib.util
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger(__name__)

# Service -> the module that it needs, and the extra that brings it.
SERVICES = {"wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
# How long the end of a run waits for a service to take what is left.
CLOSE_S = 30.0
_WAITING = 10_000


class Tracker(Protocol):
    """What a run tells a service. Each may raise whatever it likes; only `metrics.jsonl` is called directly."""

    def write(self, record: Mapping[str, Any]) -> None:
        """A line of metrics: `step` (finished steps), `stage`, and numbers by name."""

    def show(self, step: int, name: str, video: Path, picture: Path) -> None:
        """A sample of finished step `step`: an mp4, with sound if it has one, and a png of one of its frames."""

    def close(self) -> None:
        """Nothing more comes."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrackedRun:
    """What a service is told about a run at its start.

    folder: of the run; step: finished steps, what comes after them is written anew; config: plain values.
    """

    folder: Path
    project: str
    name: str
    step: int
    config: Mapping[str, Any]

    def id_file(self, service: str) -> Path:
        """Where the run's id at a service is kept."""
        return self.folder / "trackers" / service

    def stored_id(self, service: str) -> str | None:
        """The run's id at a service, None before its first start there."""
        file = self.id_file(service)
        return file.read_text(encoding="utf-8").strip() or None if file.is_file() else None


def named(services: str) -> tuple[str, ...]:
    """`"wandb,mlflow"` as names; ValueError on one that there is not."""
    found = tuple(name.strip() for name in services.split(",") if name.strip())
    if unknown := [name for name in found if name not in SERVICES]:
        raise ValueError(f"logging.trackers {unknown[0]!r} is unknown; it is one or more of {', '.join(SERVICES)}")
    return found


def check_installed(services: str) -> None:
    """ValueError, with the cure, where the library of a named service is not installed."""
    for name in named(services):
        if importlib.util.find_spec(SERVICES[name]) is None:
            raise ValueError(
                f"logging.trackers names {name}, which is not installed: pip install -e '.[{name}]', or leave it out"
            )


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The record's numbers, without the step."""
    return {name: value for name, value in record.items() if name != "step" and isinstance(value, int | float)}


class Detached:
    """A tracker in a thread of its own: it may be slow, fail or hang, and the run goes on.

    The first failure is a warning, later ones are debug lines; every record is tried all the same.
    """

    def __init__(self, name: str, open_tracker: Callable[[], Tracker]):
        self._name, self._open = name, open_tracker
        self._todo: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(_WAITING)
        self._failed = False
        self._thread = threading.Thread(target=self._work, name=f"omnihuman-{name}", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, Any]) -> None:
        """See `Tracker`; returns at once."""
        self._put(lambda tracker: tracker.write(record))

    def show(self, step: int, name: str, video: Path, picture: Path) -> None:
        """See `Tracker`; returns at once."""
        self._put(lambda tracker: tracker.show(step, name, video, picture))

    def close(self) -> None:
        """Waits `CLOSE_S` at most for what is left."""
        self._put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._warn(f"it has not taken everything after {CLOSE_S:g} s")

    def _put(self, call: Callable[[Tracker], None] | None) -> None:
        try:
            self._todo.put_nowait(call)
        except queue.Full:
            self._warn(f"{_WAITING} records wait for it; those that come are left out")

    def _work(self) -> None:
        try:
            tracker = self._open()
        except (Exception, SystemExit) as error:
            self._warn(str(error) or type(error).__name__)
            return
        while (call := self._todo.get()) is not None:
            self._try(call, tracker)
        self._try(lambda tracker: tracker.close(), tracker)

    def _try(self, call: Callable[[Tracker], None], tracker: Tracker) -> None:
        try:
            call(tracker)
        except (Exception, SystemExit) as error:
            self._warn(str(error) or type(error).__name__)

    def _warn(self, reason: str) -> None:
        level, self._failed = (logging.DEBUG if self._failed else logging.WARNING), True
        text = " ".join(reason.split())[:300]
        logger.log(level, "%s fails (%s); the run goes on, metrics.jsonl has all of it", self._name, text)
