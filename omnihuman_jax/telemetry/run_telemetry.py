"""What an attempt at a run says of itself while it runs, behind one object: each place is written by a file of its own.

| place | file | for |
|---|---|---|
| events/ | `events` | where the time goes: `omnihuman goodput` |
| metrics.jsonl, tensorboard/ | `metrics` | what the steps computed |
| a port | `prometheus` | whoever watches many runs |
| the bar | `progress` | whoever sits in front of it |
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax

from omnihuman_jax.stages import StageSchedule
from omnihuman_jax.telemetry.events import EventLog
from omnihuman_jax.telemetry.metrics import LoggingConfig, MetricsWriter, Speed
from omnihuman_jax.telemetry.progress import progress_bar
from omnihuman_jax.telemetry.prometheus import Exporter

Item = TypeVar("Item")


class RunTelemetry:
    """Opened with the run, on every process; its methods are named for what happens.

    speed: of the steps, once `training` has begun.

    Args:
        config: how often, and where.
        run_dir: of the run.
        name: of the run, for Prometheus.
        schedule: whose steps they are.
        progress: show a bar, on process 0.
    """

    def __init__(self, config: LoggingConfig, run_dir: Path, name: str, schedule: StageSchedule, *, progress: bool):
        self._config, self._run_dir, self._name, self._schedule = config, run_dir, name, schedule
        self._lead = jax.process_index() == 0
        self._progress = progress and self._lead
        self._events = EventLog(run_dir)
        self.speed: Speed

    def __enter__(self) -> "RunTelemetry":
        return self

    def __exit__(self, *error: Any) -> None:
        self._events.__exit__(*error)

    def restoring(self) -> contextlib.AbstractContextManager[None]:
        """Around choosing and reading a checkpoint."""
        return self._events.span("restore")

    @contextlib.contextmanager
    def training(self, start: int, *, step_flops: int, measure_peak: Callable[[], float]) -> Iterator[None]:
        """Around compiling and the steps from `start` on: opens what is written step by step.

        Args:
            start: finished steps.
            step_flops: of the model's one step.
            measure_peak: FLOP/s of this machine's matrix products, measured now.
        """
        self.speed, self._start = Speed(step_flops=step_flops, peak=measure_peak()), start
        with contextlib.ExitStack() as stack:
            self._writer = None
            if self._lead:
                writer = MetricsWriter(self._run_dir, self._config, step=start)
                self._writer = stack.enter_context(contextlib.closing(writer))
            total = self._schedule.total_steps
            self._show = stack.enter_context(progress_bar(start, total, enabled=self._progress))
            self._exporter = stack.enter_context(contextlib.closing(Exporter(self._config, self._name)))
            yield

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Around the step's compilation, or its load from the cache."""
        self.speed.compiling()
        with self._events.span("compile"):
            yield
        self.speed.compiled(self._start)

    def batches(self, loader: Iterable[Item]) -> Iterator[Item]:
        """`loader`'s batches; the wait for them is told apart."""
        return self._events.waiting(loader)

    def dispatched(self, loss: jax.Array) -> None:
        """The devices have a step, whose loss will be this; the first one is waited for."""
        self._events.dispatched()
        self.speed.first_result(loss)

    def finished(self, done: int, line: Mapping[str, Any] | None) -> None:
        """`done` steps are finished; `line`, where one is due, goes wherever lines go."""
        if line is not None and self._writer is not None:
            self._writer.write(line)
        self._show(done, line)
        self._events.step(done)
        if line is not None:
            self._exporter.update(done, line, self._events.seconds, self._events.compare_hosts(done))

    def saving(self) -> contextlib.AbstractContextManager[None]:
        """Around a save that the loop waits for."""
        return self._events.span("save")

    def saved(self, save: Mapping[str, Any]) -> None:
        """A checkpoint is whole: its step, seconds and bytes."""
        self._events.saved(save)
