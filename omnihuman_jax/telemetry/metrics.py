"""What a run says about itself: metrics.jsonl (exact), and the machine's own matrix-multiply peak."""

import contextlib
import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from omnihuman_jax.runtime import files
from omnihuman_jax.runtime.locations import local
from omnihuman_jax.telemetry import trackers

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True, slots=True)
class LoggingConfig:
    """A line of metrics every `interval` steps and at the end of a stage; TensorBoard beside the JSONL file or not.

    trackers: services that get the same, such as `wandb` or `mlflow,trackio` (docs/tracking.md)
    project: what the run belongs to there
    prometheus_port: every process serves its newest numbers there (several on one machine: the next free port); 0 does
        not
    prometheus_host: address that it listens on; anyone who reaches it can read it
    """

    interval: int = 10
    tensorboard: bool = True
    trackers: str = ""
    project: str = "omnihuman"
    prometheus_port: int = 0
    prometheus_host: str = "127.0.0.1"

    def validate(self) -> None:
        """ValueError on an interval below 1, a tracker that there is not, or a port that is none."""
        if self.interval < 1:
            raise ValueError(f"logging.interval must be >= 1, not {self.interval}")
        trackers.named(self.trackers)
        if not self.project.strip():
            raise ValueError("logging.project is empty; give the runs of a project one name")
        if not 0 <= self.prometheus_port < 2**16:
            raise ValueError(f"logging.prometheus_port must be in [0, 65535], not {self.prometheus_port}")


class Speed:
    """Wall-clock speed since the last measurement; compilation, and nothing else, is left out by `restart`, and told
    apart.
    """

    def __init__(self, *, step_flops: int, measure_peak: Callable[[], float]):
        self._step_flops, self._measure_peak = step_flops, measure_peak
        self._peak = measure_peak()
        self._start_up: dict[str, float] = {}
        self._began = 0.0
        self.restart(0)

    def compiling(self) -> None:
        """The step's compilation begins (or its load from the cache)."""
        self._began = time.perf_counter()

    def compiled(self, done: int) -> None:
        """It is over; `done` steps were finished before this start. Speed counts from here."""
        self._start_up = {"compile_s": time.perf_counter() - self._began}
        self.restart(done)

    def first_result(self, result: jax.Array) -> None:
        """Waits for the first step's result, once, and says what the start cost, compilation and first step
        together.
        """
        if "compile_s" in self._start_up and "first_step_s" not in self._start_up:
            jax.block_until_ready(result)
            self._start_up["first_step_s"] = time.perf_counter() - self._began
            logger.info(
                "first step done %.1f s after the start of its compilation, which took %.1f s",
                self._start_up["first_step_s"], self._start_up["compile_s"],
                extra={"fields": {"event": "first_step", **self._start_up}},
            )  # fmt: skip

    def restart(self, done: int) -> None:
        """Forgets what was before; `done` steps are finished."""
        self._done, self._time = done, time.perf_counter()

    def pause(self, seconds: float) -> None:
        """`seconds` since the last measurement were no step's."""
        self._time += seconds

    def measure(self, done: int, interval_tokens: float, interval_steps: int) -> dict[str, float]:
        """Seconds a step, tokens/s, FLOP/s and their share of the measured peak; after a start also what that cost."""
        steps, seconds = done - self._done, time.perf_counter() - self._time
        start_up, self._start_up = self._start_up, {}
        rates: dict[str, float] = {}
        if steps:
            step_time = seconds / steps
            rate = self._step_flops / step_time
            rates = {
                "step_time_s": step_time,
                "tokens_per_s": interval_tokens / max(interval_steps, 1) / step_time,
                "flops_per_s": rate,
                "matmul_peak_share": rate / self._peak_for(rate),
            }
        self.restart(done)
        return start_up | rates

    def _peak_for(self, rate: float) -> float:
        """The best peak so far: one that a step beats was measured on a busy machine, and is measured again."""
        if rate > self._peak:
            before, again = self._peak, self._measure_peak()
            self._peak = max(before, again, rate)
            logger.info("a step beat the measured matmul peak of %.3g FLOP/s; it is now %.3g", before, self._peak)
        return self._peak


class MetricsWriter:
    """Appends records to `metrics.jsonl`, a `trackers.Tracker`; after a resume, lines past the restored step are taken
    back.
    """

    def __init__(self, run_dir: Path | str, *, step: int):
        self.path = local(run_dir) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            _keep_until(self.path, step)
        self._file = self.path.open("ab", buffering=0)
        self._pending = b""

    def write(self, record: Mapping[str, Any]) -> None:
        """One line; floats as `repr` has them, so equal lines mean equal bits."""
        line = json.dumps({name: value if _finite(value) else repr(value) for name, value in record.items()}) + "\n"
        self._pending += line.encode()
        try:  # a full disk must not end a run: what cannot be written now is kept for the next time
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) :]
        except OSError as error:
            logger.error("%s cannot be written (%s); %d bytes wait", self.path, error, len(self._pending))

    def show(self, step: int, name: str, video: Path, picture: Path) -> None:
        """Nothing: the files are in the run's folder already."""

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):
            self._file.close()


def read_metrics(run_dir: Path | str) -> list[dict[str, Any]]:
    """The records of a run, in order; a line that a kill cut short is left out."""
    path = local(run_dir) / "metrics.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the run directory of `omnihuman train`")
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def measure_matmul_peak(mesh: Mesh, dtype: Any) -> float:
    """FLOP/s of plain matrix products on all devices of the mesh, best of three: what a step is compared with.

    Each process measures its own devices, all at once, and takes the others' for alike: it may do so at any time.
    """
    own = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    local = Mesh(np.asarray(own), ("all",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(local):
        return _measure_matmul_peak(local, dtype) * mesh.size / local.size


def _measure_matmul_peak(mesh: Mesh, dtype: Any) -> float:
    cpu = mesh.devices.flat[0].platform == "cpu"
    size, repeats = (768, 2) if cpu else (8192, 32)
    spec = PartitionSpec(mesh.axis_names)

    def chain(x: jax.Array) -> jax.Array:
        # Scaled so that repeated products neither vanish nor overflow.
        body = lambda _, y: (y @ x[0]) * jnp.asarray(1 / math.sqrt(size), dtype)  # noqa: E731
        return jax.lax.fori_loop(0, repeats, body, x[0])[None]

    sharded = NamedSharding(mesh, spec)
    x = jax.jit(lambda: jnp.ones((mesh.size, size, size), dtype), out_shardings=sharded)()
    run = jax.jit(jax.shard_map(chain, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    jax.block_until_ready(run(x))
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(run(x))
        best = min(best, time.perf_counter() - start)
    return mesh.size * repeats * 2 * size**3 / best


def _keep_until(path: Path, step: int) -> None:
    """Rewrites the file without the lines after `step`, all or nothing."""
    kept = [record for record in read_metrics(path.parent) if record["step"] <= step]
    files.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
