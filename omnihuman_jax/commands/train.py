"""Train: config -> mesh -> data plan -> state, new or restored -> steps -> checkpoint. The same command starts and
resumes.

    omnihuman train --config configs/demo.py --run runs/demo/run --config.data.dataset=runs/demo/dataset
    omnihuman train --config configs/theatre.py --run runs/theatre/fork --fork runs/theatre/run@800

Several processes: `--coordinator HOST:PORT --num-processes N --process-id I` on each (or the environment variables
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID), or `--distributed` where JAX finds its peers by itself.
"""

import argparse
import contextlib
import dataclasses
import functools
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from omnihuman_jax.assembly import Parts, compile_step, controls_at
from omnihuman_jax.checkpoint.checkpoints import Checkpoints
from omnihuman_jax.checkpoint.record import RunRecord
from omnihuman_jax.config import (
    ExperimentConfig,
    load_config,
    to_json,
    write_config,
)
from omnihuman_jax.data.identity import features_of
from omnihuman_jax.data.pipeline import make_loader
from omnihuman_jax.models import flops
from omnihuman_jax.runtime import bucket_folder, compilation_cache, exit_codes, processes, signals, storage
from omnihuman_jax.runtime.locations import check_checkpoints, location
from omnihuman_jax.runtime.watchdog import Watchdog
from omnihuman_jax.sampling.training_samples import TrainingSamples, open_training_samples
from omnihuman_jax.scale import hardware
from omnihuman_jax.telemetry import run_log
from omnihuman_jax.telemetry.metrics import Speed, measure_matmul_peak
from omnihuman_jax.telemetry.profiler import Profiler, parse_steps
from omnihuman_jax.telemetry.run_telemetry import RunTelemetry
from omnihuman_jax.training import placement, run_guard, train_state
from omnihuman_jax.training.log_line import is_logged, log_line, steps_of_line
from omnihuman_jax.training.numerics import RepeatedStep
from omnihuman_jax.training.resume import open_checkpoints, open_parts, resume
from omnihuman_jax.training.run_guard import RunGuard
from omnihuman_jax.typing import Params

logger = logging.getLogger(__name__)


def train(
    config: ExperimentConfig,
    run_dir: Path | str,
    *,
    stop_after: int | None = None,
    accept_changes: bool = False,
    progress: bool = True,
    profile: range | None = None,
) -> train_state.TrainState:
    """Trains to the schedule's end, or until `stop_after` steps are finished, and returns the state.

    Args:
        config: resolved; validated here.
        run_dir: gets config.json, dataset.json, metrics.jsonl, tensorboard/, training_samples/, checkpoints/ (if
            `checkpoint.directory` does not say where), and origin.json if its weights were not born there; a run found
            there is continued. In a bucket too.
        stop_after: stop there, with a checkpoint.
        accept_changes: resume although the config or the data plan changed.
        progress: show a progress bar, on process 0 in a terminal; otherwise it logs a line an interval.
        profile: steps, counted from 1, of a trace for xprof.

    Raises:
        ValueError, FileNotFoundError: with the cure, before anything is trained or overwritten.
    """
    home = location(run_dir)
    config.validate()
    if not config.checkpoint.directory:
        check_checkpoints(home, "--run")
    end = min(config.stages.total_steps, stop_after if stop_after is not None else config.stages.total_steps)
    retry = functools.partial(storage.retry, retries=config.checkpoint.retries, delay_s=config.checkpoint.retry_delay_s)
    with contextlib.ExitStack() as stack:
        run_dir = stack.enter_context(bucket_folder.opened(home, retry))
        watchdog = Watchdog(config.watchdog, run_dir / f"stacks-{processes.own_index()}.txt")
        stack.callback(watchdog.stop)
        processes.set_barrier_timeout(config.watchdog.longest_s)
        processes.start_devices()
        parts = open_parts(config, run_dir)
        config = parts.config
        record = RunRecord(
            config=to_json(config),
            fingerprint=parts.plan.fingerprint(),
            step=0,
            data=features_of(parts.records.spec),
        )
        samples = open_training_samples(config, parts.mesh, parts.state_shardings.params, parts.records, run_dir)
        guard = RunGuard(watchdog, config.numerics, run_dir, parts.plan, parts.records)
        stack.enter_context(jax.set_mesh(parts.mesh))
        telemetry = stack.enter_context(
            RunTelemetry(config.logging, run_dir, config.name, config.stages, progress=progress, values=record.config)
        )
        with (
            telemetry.restoring(),
            guard.watchdog.allow(config.watchdog.restore_s, "choosing and reading a checkpoint"),
        ):
            checkpoints = stack.enter_context(open_checkpoints(config, run_dir, home, guard, telemetry))
            state, record, start = resume(parts, run_dir, checkpoints, record, guard, accept_changes=accept_changes)
        if config.fork:
            telemetry.forked(record.origin["forks"][-1])
        if wrong := train_state.misplaced_leaves(state, parts.state_shardings):
            raise AssertionError(f"state not sharded as the table says: {'; '.join(wrong[:5])}")
        logger.info(
            "%s parameters, %d devices %s, step %d of %d",
            f"{parts.num_parameters:,}", parts.mesh.size, dict(parts.mesh.shape), start, config.stages.total_steps,
        )  # fmt: skip
        profiler = Profiler(run_dir, profile)
        stack.callback(profiler.close)
        if start < end:
            if jax.process_index() == 0:
                write_config(config, run_dir)
                parts.records.spec.save(run_dir)
                record.save_origin(run_dir)
            state = run_steps(
                parts, state, checkpoints, record, guard, telemetry, profiler, start=start, end=end, samples=samples
            )
    return state


def run_steps(
    parts: Parts,
    state: train_state.TrainState,
    checkpoints: Checkpoints,
    record: RunRecord,
    guard: RunGuard,
    telemetry: RunTelemetry,
    profiler: Profiler,
    *,
    start: int,
    end: int,
    samples: TrainingSamples | None = None,
) -> train_state.TrainState:
    """Steps [start, end): batches, updates, a line of metrics now and then, samples, checkpoints, and a clean stop when
    asked.
    """
    config, rows, total = parts.config, parts.rows, parts.sequences
    loader = make_loader(
        parts.plan, parts.records, parts.records.spec, parts.shape,
        rows.start // len(rows), total // len(rows), start, config.data.read_threads,
    )  # fmt: skip
    step_flops = flops.train_step_flops(config.model, parts.shape, total)
    measure_peak = functools.partial(measure_matmul_peak, parts.mesh, parts.dtype)
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            telemetry.training(start, step_flops=step_flops, measure_peak=measure_peak, peak_flops=peak_flops(parts))
        )
        with telemetry.compiling():
            train_step = compile_step(parts, state)
        if samples is not None:
            with telemetry.preparing_samples():
                samples.first(averaged(parts, state), start, telemetry.show)
        repeated = RepeatedStep(parts.train_step) if config.numerics.repeat_interval else None
        stop = stack.enter_context(processes.stop_request())
        for step, batch in zip(range(start, end), telemetry.batches(loader)):
            done = step + 1
            # Batch: this process's rows onto its devices, and what the stage changes about the step.
            placed = placement.place_batch(batch, parts.batch_shardings, rows, total)
            controls = controls_at(config, parts.groups, step)
            if repeated is not None and done % config.numerics.repeat_interval == 0:
                guard.compare(step, repeated.differing(state, placed, controls))
            # Update: the whole step is one program, which takes the state and gives the next.
            profiler.before(done)
            state, metrics = train_step(state, placed, controls)
            telemetry.dispatched(metrics["loss"])
            profiler.after(done, metrics["loss"])
            # Observe: the step before this one is waited for, and its numbers looked at.
            guard.dispatched(step, metrics)
            # Show: samples and evaluations of the averaged weights, whose numbers stand in the line of their step.
            line = line_of(config, step, metrics, telemetry.speed, checkpoints, parts)
            if samples is not None and samples.due(done):
                with guard.watchdog.allow(config.watchdog.save_s, f"samples of step {done}"), telemetry.sampling():
                    line = {**(line or {}), **samples(averaged(parts, state), done, telemetry.show)}
            # Log: a line at the end of an interval, the step count always.
            telemetry.finished(done, line)
            # Save: at an interval, at the end, when asked to stop, and again after a save that failed.
            stopping = stop.agreed(done - start)
            last = done == end or stopping
            if why := checkpoints.due(done, last=last):
                with guard.watchdog.allow(config.watchdog.save_s, f"saving step {done}"), telemetry.saving():
                    checkpoints.save(state, dataclasses.replace(record, step=done), why)
            if checkpoints.is_hopeless and not last:
                raise processes.RunEnded(f"{checkpoints.failed_saves} saves in a row failed", exit_codes.RETRY)
            # Stop.
            if stopping:
                break
        guard.drain()
        with guard.watchdog.allow(config.watchdog.save_s, "finishing the last save"), telemetry.saving():
            saved = checkpoints.finish(state, dataclasses.replace(record, step=done))
    # Asked to stop by its last step, it is done all the same.
    stopped = stopping and not (done == end and saved)
    guard.finish(
        done,
        config.stages.total_steps,
        unsaved="" if saved else checkpoints.last_failure,
        stop=stop if stopped else None,
    )
    return state


def averaged(parts: Parts, state: train_state.TrainState) -> Params:
    """The averaged weights where the sampler wants them: on the devices, also if they wait in the host's memory."""
    return (
        state.ema
        if parts.config.step.offload != "moments_ema"
        else jax.device_put(state.ema, parts.state_shardings.params)
    )


def peak_flops(parts: Parts) -> float | None:
    """FLOP/s that the mesh's chips are sold with for the step's dtype; None where the table does not know."""
    known = hardware.device_flops(parts.mesh.devices.flat[0].device_kind) if parts.dtype == jnp.bfloat16 else None
    return None if known is None else known * parts.mesh.size


def line_of(
    config: ExperimentConfig,
    step: int,
    metrics: Mapping[str, Any],
    speed: Speed,
    checkpoints: Checkpoints,
    parts: Parts,
) -> dict[str, Any] | None:
    """What metrics.jsonl gets of `step` (from 0), whose metrics are waited for; None inside an interval."""
    if not is_logged(config.stages, config.logging.interval, step):
        return None
    line = log_line(config.stages, step, jax.device_get(dict(metrics)), speed)
    stall, cache = checkpoints.take_stall(), parts.records.cache_use
    line |= parts.plan.dataset_shares(steps_of_line(config.stages, config.logging.interval, step))
    return line | ({"save_stall_s": stall} if stall else {}) | (cache.line() if cache else {})


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options, and the `--config.*` overrides."""
    parser = argparse.ArgumentParser(
        prog="omnihuman train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="config file; fields are set with --config.FIELD=VALUE"
    )
    parser.add_argument(
        "--run", required=True, metavar="DIR", help="run directory, or gs://BUCKET/RUN; a run found there is continued"
    )
    parser.add_argument(
        "--fork", default="", metavar="RUN@STEP",
        help="a new run begins with the whole state of that step of another one (weights, moments, averages, counters)"
        " and trains on by this command's stages; the same as --config.fork, and given again to continue",
    )  # fmt: skip
    parser.add_argument("--stop-after", type=int, metavar="N", help="stop with a checkpoint once N steps are finished")
    parser.add_argument(
        "--accept-changes", action="store_true", help="continue a run although its config or data plan changed"
    )
    parser.add_argument(
        "--profile", metavar="STEPS",
        help="trace these steps for xprof into RUN/profile, such as 100:105; the file RUN/PROFILE asks for it later",
    )  # fmt: skip
    parser.add_argument(
        "--no-progress", action="store_true", help="a line an interval instead of a bar, in a terminal too"
    )
    parser.add_argument(
        "--log-format", choices=run_log.FORMATS, default=os.environ.get(run_log.FORMAT_VARIABLE, "text"),
        help=f"lines for people, or one JSON object a line (%(default)s; {run_log.FORMAT_VARIABLE} sets it)",
    )  # fmt: skip
    parser.add_argument(
        "--log-level", choices=run_log.LEVELS, default="info",
        help="what is below it is not printed; debug has the libraries' own messages too (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--compilation-cache", metavar="DIR",
        help="keep compiled programs there for the next start; trusted like code: a folder that only you can write to",
    )  # fmt: skip
    parser.add_argument(
        "--distributed", action="store_true", help="several processes that JAX finds itself (TPU pods, SLURM)"
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    parser.add_argument("--num-processes", type=int, metavar="N")
    parser.add_argument("--process-id", type=int, metavar="I")
    parser.add_argument(
        "--peer-timeout-s", type=int, default=300, metavar="S", help="how long to wait for the other processes"
    )
    parser.add_argument(
        "--heartbeat-s",
        type=int,
        default=60,
        metavar="S",
        help="a process without a heartbeat for this long ends the job",
    )
    parser.add_argument(
        "--shutdown-s", type=int, default=30, metavar="S", help="how long the processes wait for one another at the end"
    )
    # No abbreviations: --config.model.width would be taken for one of --config.
    parser.allow_abbrev = False
    return parser.parse_known_args(list(argv))


def main(argv: Sequence[str]) -> int:
    """`omnihuman train`."""
    options, overrides = parse(argv)
    run_log.set_up(options.log_format, options.log_level, options.process_id)
    with signals.listening(*signals.STOPS), run_log.last_words(options.log_format):
        return run(options, overrides)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """The command, once it can say something."""
    config = load_config(options.config, [*overrides, *([f"--config.fork={options.fork}"] if options.fork else [])])
    profile = parse_steps(options.profile) if options.profile else None
    compilation_cache.use(options.compilation_cache)
    joined = processes.join(
        options.coordinator,
        options.num_processes,
        options.process_id,
        automatic=options.distributed,
        timeout_s=options.peer_timeout_s,
        heartbeat_s=options.heartbeat_s,
        shutdown_s=options.shutdown_s,
    )
    if joined and processes.own_count() > 1:
        run_log.hear_native_stdout()
    with run_guard.exit_with_code("omnihuman train") if joined else contextlib.nullcontext():
        train(
            config,
            options.run,
            stop_after=options.stop_after,
            accept_changes=options.accept_changes,
            progress=not options.no_progress and options.log_format == "text",
            profile=profile,
        )
    return exit_codes.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
