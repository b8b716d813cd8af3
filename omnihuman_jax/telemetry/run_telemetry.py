"""What an attempt at a run says of itself while it runs, behind one object: each place is written by a file of its own.

| place | file | for |
|---|---|---|
| events/ | `events` | where the time goes: `omnihuman goodput` |
| metrics.jsonl | `metrics` | what the steps computed, to the bit |
| tensorboard/, W&B, MLflow, trackio | `trackers` | whoever follows curves and samples |
| a port | `prometheus` | whoever watches many runs |
| the bar, or lines | `progress`, `interval_line` | whoever sits in front of it; whoever reads its log |
"""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax

from omnihuman_jax.conditions import Condition
from omnihuman_jax.stages import StageSchedule
from omnihuman_jax.telemetry import interval_line, run_log, trackers, tracking_services
from omnihuman_jax.telemetry.events import EventLog
from omnihuman_jax.telemetry.metrics import LoggingConfig, MetricsWriter, Speed
from omnihuman_jax.telemetry.prometheus import Exporter
from omnihuman_jax.telemetry.training_bar import progress_bar

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


class RunTelemetry:
    """Opened with the run, on every process; its methods are named for what happens.

    speed: of the steps, once `training` has begun.

    Args:
        config: how often, and where.
        run_dir: of the run.
        name: of the run, for Prometheus.
        schedule: whose steps they are.
        values: the config as plain values, for the trackers.
        progress: show a bar where there is a terminal; otherwise, and without one, process 0 tells its story in lines.
    """

    def __init__(
        self,
        config: LoggingConfig,
        run_dir: Path,
        name: str,
        schedule: StageSchedule,
        *,
        progress: bool,
        values: Mapping[str, Any] | None = None,
    ):
        trackers.check_installed(config.trackers)
        self._config, self._run_dir, self._name, self._schedule = config, run_dir, name, schedule
        self._values = values or {}
        self._lead = jax.process_index() == 0
        self._bar = self._lead and progress and sys.stdout.isatty()
        self._lines = self._lead and not self._bar
        self._events = EventLog(run_dir)
        self.speed: Speed

    def __enter__(self) -> "RunTelemetry":
        return self

    def __exit__(self, *error: Any) -> None:
        self._events.__exit__(*error)

    def restoring(self) -> contextlib.AbstractContextManager[None]:
        """Around choosing and reading a checkpoint."""
        return self._events.span("restore")

    def forked(self, fork: Mapping[str, Any]) -> None:
        """This run goes on from the state of another one: `run`, `step`."""
        self._events.forked(fork["run"], fork["step"])

    @contextlib.contextmanager
    def training(
        self, start: int, *, step_flops: int, measure_peak: Callable[[], float], peak_flops: float | None = None
    ) -> Iterator[None]:
        """Around compiling and the steps from `start` on: opens what is written step by step.

        Args:
            start: finished steps.
            step_flops: of the model's one step.
            measure_peak: FLOP/s of matrix products on all devices of the job, measured now; called again where a step
                is faster.
            peak_flops: FLOP/s that their chips are sold with, None where that is not known.
        """
        self.speed, self._start = Speed(step_flops=step_flops, measure_peak=measure_peak), start
        self._peak_flops = peak_flops
        with contextlib.ExitStack() as stack:
            self._trackers = self._open_trackers(start) if self._lead else []
            for tracker in self._trackers:
                stack.callback(tracker.close)
            total = self._schedule.total_steps
            self._show = stack.enter_context(progress_bar(start, total, enabled=self._bar))
            self._exporter = stack.enter_context(contextlib.closing(Exporter(self._config, self._name)))
            yield

    def _open_trackers(self, start: int) -> list[trackers.Tracker]:
        config = self._config
        run = trackers.TrackedRun(
            folder=self._run_dir, project=config.project, name=self._name, step=start, config=self._values
        )
        services = tracking_services.open_services(run, config.trackers, tensorboard=config.tensorboard)
        return [MetricsWriter(self._run_dir, step=start), *services]

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Around the step's compilation, or its load from the cache."""
        self.speed.compiling()
        with self._events.span("compile"):
            yield
        self.speed.compiled(self._start)
        self._began = time.perf_counter()
        self._logged_at, self._waited = self._began, 0.0
        self._tell_stage(self._start)

    def batches(self, loader: Iterable[Item]) -> Iterator[Item]:
        """`loader`'s batches; the wait for them is told apart."""
        return self._events.waiting(loader)

    def dispatched(self, loss: jax.Array) -> None:
        """The devices have a step, whose loss will be this; the first one is waited for."""
        self._events.dispatched()
        self.speed.first_result(loss)

    def finished(self, done: int, line: Mapping[str, Any] | None) -> None:
        """`done` steps are finished; `line`, where one is due, goes wherever lines go."""
        if line is not None:
            for tracker in self._trackers:
                tracker.write(line)
        self._show(done, line)
        if line is not None and self._lines:
            self._tell(done, line)
        self._events.step(done)
        if line is not None:
            self._exporter.update(done, line, self._events.seconds, self._events.compare_hosts(done))

    @contextlib.contextmanager
    def preparing_samples(self) -> Iterator[None]:
        """After `compiling`, around the first samples of this start, which compile what makes them."""
        with self._events.span("compile"):
            yield
        self.speed.restart(self._start)
        self._began = self._logged_at = time.perf_counter()

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        """Around samples between two steps: no time of the steps."""
        began = time.perf_counter()
        with self._events.span("samples"):
            yield
        self.speed.pause(time.perf_counter() - began)

    def show(self, step: int, name: str, video: Path, picture: Path) -> None:
        """A sample of finished step `step` lies in the run's folder."""
        for tracker in self._trackers:
            tracker.show(step, name, video, picture)

    def saving(self) -> contextlib.AbstractContextManager[None]:
        """Around a save that the loop waits for."""
        return self._events.span("save")

    def saved(self, save: Mapping[str, Any]) -> None:
        """A checkpoint is whole: its step, seconds and bytes."""
        self._events.saved(save)
        if self._lines:
            logger.info(
                "saved step %d: %s in %.1f s", save["step"], interval_line.size(save["bytes"]), save["seconds"],
                extra=run_log.fields("saved", **save),
            )  # fmt: skip

    def _tell(self, done: int, line: Mapping[str, Any]) -> None:
        """The line of an interval, and of a stage that begins with the next step."""
        now, total, waited = time.perf_counter(), self._schedule.total_steps, self._events.data_wait_s
        kind, nbytes = interval_line.memory()
        told = {
            **line,
            "total_steps": total,
            "data_wait_share": min(1.0, (waited - self._waited) / max(now - self._logged_at, 1e-9)),
            "left_s": (total - done) * (now - self._began) / (done - self._start),
            "memory": kind,
            "memory_bytes": nbytes,
        }
        if self._peak_flops is not None and "flops_per_s" in line:
            told["mfu"] = line["flops_per_s"] / self._peak_flops
        self._logged_at, self._waited = now, waited
        logger.info("%s", interval_line.describe(told), extra=run_log.fields("step", **told))
        if done in self._schedule.starts and done < total:
            self._tell_stage(done)

    def _tell_stage(self, done: int) -> None:
        """The stage of the step after `done` finished ones."""
        if not self._lines:
            return
        index, stage = self._schedule.stage_at(done)
        first = self._schedule.starts[index]
        ratios = {condition.label: stage.ratios[condition] for condition in Condition}
        logger.info(
            "stage %s: steps %d to %d, %s", stage.name, first + 1, first + stage.steps,
            ", ".join(f"{name} {ratio:g}" for name, ratio in ratios.items()),
            extra=run_log.fields("stage", stage=stage.name, first=first + 1, last=first + stage.steps, ratios=ratios),
        )  # fmt: skip
