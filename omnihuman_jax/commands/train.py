"""Train: config -> mesh -> data plan -> state, new or restored -> steps -> checkpoint. The same command starts and resumes.

    omnihuman train --config configs/demo.py --run runs/demo/run --config.data.dataset=runs/demo/dataset

Several processes: `--coordinator HOST:PORT --num-processes N --process-id I` on each (or the environment variables
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID), or `--distributed` where JAX finds its peers by itself.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from omnihuman_jax.assembly import Parts, assemble, compile_step, controls_at
from omnihuman_jax.checkpoint import tiers
from omnihuman_jax.checkpoint.reader import CheckpointError, DamagedError, RunRecord, checkpoint_directory, load_weights
from omnihuman_jax.checkpoint.writer import Checkpoints
from omnihuman_jax.config import (
    ExperimentConfig,
    changed_fields,
    load_config,
    to_json,
    write_config,
)
from omnihuman_jax.data.pipeline import make_loader
from omnihuman_jax.models import flops
from omnihuman_jax.runtime import compilation_cache, exit_codes, processes, storage
from omnihuman_jax.runtime.watchdog import Watchdog
from omnihuman_jax.telemetry.events import EventLog, last_saved
from omnihuman_jax.telemetry.metrics import MetricsWriter, Speed, measure_matmul_peak, read_metrics
from omnihuman_jax.telemetry.progress import progress_bar
from omnihuman_jax.telemetry.prometheus import Exporter
from omnihuman_jax.training import placement, run_guard, train_state
from omnihuman_jax.training.log_line import is_logged, log_line
from omnihuman_jax.training.numerics import RepeatedStep
from omnihuman_jax.training.run_guard import RunGuard

logger = logging.getLogger(__name__)


def train(
    config: ExperimentConfig,
    run_dir: Path | str,
    *,
    stop_after: int | None = None,
    accept_changes: bool = False,
    progress: bool = True,
) -> train_state.TrainState:
    """Trains to the schedule's end, or until `stop_after` steps are finished, and returns the state.

    Args:
        config: resolved; validated here.
        run_dir: gets config.json, dataset.json, metrics.jsonl, tensorboard/, checkpoints/ (if
            `checkpoint.directory` does not say where); a run found there is continued.
        stop_after: stop there, with a checkpoint.
        accept_changes: resume although the config or the data plan changed.
        progress: show a progress bar on process 0.

    Raises:
        ValueError, FileNotFoundError: with the cure, before anything is trained or overwritten.
    """
    run_dir = Path(run_dir)
    config.validate()
    end = min(config.stages.total_steps, stop_after if stop_after is not None else config.stages.total_steps)
    with contextlib.ExitStack() as stack:
        watchdog = Watchdog(config.watchdog, run_dir / f"stacks-{processes.own_index()}.txt")
        stack.callback(watchdog.stop)
        processes.be_patient(config.watchdog.longest_s)
        parts = open_parts(config, run_dir)
        record = RunRecord(config=to_json(config), fingerprint=parts.plan.fingerprint(), step=0)
        guard = RunGuard(watchdog, config.numerics, run_dir, parts.plan, parts.records)
        stack.enter_context(jax.set_mesh(parts.mesh))
        events = stack.enter_context(EventLog(run_dir))
        with events.span("restore"), guard.watchdog.allow(config.watchdog.restore_s, "choosing and reading a checkpoint"):
            checkpoints = stack.enter_context(open_checkpoints(config, run_dir, guard, events))
            state, record, start = resume(parts, run_dir, checkpoints, record, guard, accept_changes=accept_changes)
        if wrong := train_state.misplaced_leaves(state, parts.state_shardings):
            raise AssertionError(f"state not sharded as the table says: {'; '.join(wrong[:5])}")
        logger.info(
            "%s parameters, %d devices %s, step %d of %d",
            f"{parts.num_parameters:,}", parts.mesh.size, dict(parts.mesh.shape), start, config.stages.total_steps,
        )  # fmt: skip
        if start < end:
            if jax.process_index() == 0:
                write_config(config, run_dir)
                parts.records.spec.save(run_dir)
            state = run_steps(parts, state, checkpoints, record, run_dir, guard, events, start=start, end=end, progress=progress)
    return state


def open_parts(config: ExperimentConfig, run_dir: Path) -> Parts:
    """`assemble`, with patience for the data set's storage. RunEnded, for a restart, where it does not come back.

    A data set that this run has opened before and that is not there any more is storage that is gone; otherwise the path is wrong.
    """
    known = processes.gather(has_opened(run_dir, config.data.dataset))[0]

    def ask(what: str, look: Callable[[], Any]) -> Any:
        def tolerant() -> Any:
            try:
                return look()
            except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
                if known:
                    raise storage.Gone(f"this run has opened it before, and now: {error}") from None
                raise

        return storage.ask(what, tolerant, retries=config.data.retries, delay_s=config.data.retry_delay_s)

    return assemble(config, ask)


def has_opened(run_dir: Path, dataset: str) -> bool:
    """Whether this run, by its own config.json, which the first start writes once all is open, has had that data set."""
    file = run_dir / "config.json"
    stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return bool(dataset) and stored.get("data", {}).get("dataset") == dataset


def open_checkpoints(config: ExperimentConfig, run_dir: Path, guard: RunGuard, events: EventLog) -> Checkpoints:
    """The run's checkpoints, which may not be gone once there were any; what they have to say goes where it belongs."""

    def note(kind: str, details: Mapping[str, Any]) -> None:
        events.saved(details) if kind == "saved" else guard.note(kind, details)

    # Process 0 has written the logs: another may see less of them.
    expected = must_be_there(run_dir, config.checkpoint.interval, guard.rollbacks) if jax.process_index() == 0 else ""
    expected = processes.gather(expected)[0]
    return tiers.open_checkpoints(config.checkpoint.directory or run_dir / "checkpoints", config.checkpoint, note, expected)


def must_be_there(run_dir: Path, interval: int, rollbacks: run_guard.Rollbacks) -> str:
    """Why there must be a checkpoint of this run, by its own logs; "" if there need be none."""
    anew = rollbacks.begun_anew_at()
    if (step := last_saved(run_dir)) > anew:
        return f"has saved step {step}"
    # A second save waits for the first: past two intervals there must have been a checkpoint.
    logged = max((line["step"] for line in read_metrics(run_dir)), default=0) if (run_dir / "metrics.jsonl").exists() else 0
    if logged > anew + 2 * interval and not rollbacks.is_pending():
        return f"has trained {logged} steps, with a checkpoint every {interval}"
    return ""


def first_state(parts: Parts, record: RunRecord) -> tuple[train_state.TrainState, RunRecord]:
    """Step 0 around random weights, or those of `initial_weights`; the record then says where these come from."""
    config, source = parts.config, parts.config.initial_weights
    if not source:
        return train_state.create_train_state(config.model, parts.optimizer, parts.state_shardings, config.seed), record
    abstract = train_state.abstract_train_state(config.model, parts.optimizer, parts.state_shardings).params
    try:
        params, stored = load_weights(checkpoint_directory(source), abstract)
    except CheckpointError as error:
        raise CheckpointError(
            f"initial_weights: {error} (`omnihuman import ... --config FILE` makes one for the model of a config file)"
        ) from error
    origin = {**stored.origin, "initial_weights": {"run": str(stored.config["name"]), "step": stored.step}}
    state = train_state.continue_from(params, parts.optimizer, parts.state_shardings)
    return state, dataclasses.replace(record, origin=origin)


def resume(
    parts: Parts, run_dir: Path, checkpoints: Checkpoints, record: RunRecord, guard: RunGuard, *, accept_changes: bool
) -> tuple[train_state.TrainState, RunRecord, int]:
    """State, record and step to go on from: of the newest checkpoint that is whole, or new where there has been none.

    After too many steps that went wrong in a row it is one from before them, and the step is the one after them.
    """
    config, asked = parts.config, guard.rollbacks.pending()
    abstract = train_state.abstract_train_state(config.model, parts.optimizer, parts.state_shardings)
    while (step := checkpoints.choose(abstract, asked["first"] if asked else None)) is not None:
        try:
            record = continue_record(run_dir, checkpoints.record(step), record, accept_changes=accept_changes)
            state = checkpoints.restore(step, abstract)
            break
        except DamagedError as error:
            checkpoints.reject(step, str(error))
    else:
        state, record = first_state(parts, record)
    if asked:
        checkpoints.roll_back(asked["first"])
        guard.rollbacks.carried_out(asked, step or 0)
        guard.incidents.note("rolled_back", {"checkpoint": step or 0, "on_from": asked["to"]})
        logger.warning("rolled back to step %d, on from step %d", step or 0, asked["to"])
    to = guard.rollbacks.jump_from(step or 0)
    return (state, record, step or 0) if to is None else (train_state.skip_to(state, to, parts.state_shardings), record, to)


def run_steps(
    parts: Parts,
    state: train_state.TrainState,
    checkpoints: Checkpoints,
    record: RunRecord,
    run_dir: Path,
    guard: RunGuard,
    events: EventLog,
    *,
    start: int,
    end: int,
    progress: bool,
) -> train_state.TrainState:
    """Steps [start, end): batches, updates, a line of metrics now and then, checkpoints, and a clean stop when asked."""
    config, rows, total = parts.config, parts.rows, parts.sequences
    lead = jax.process_index() == 0
    step_flops = flops.train_step_flops(config.model, parts.shape, total)
    speed = Speed(step_flops=step_flops, peak=measure_matmul_peak(parts.mesh, parts.dtype))
    loader = make_loader(
        parts.plan, parts.records, parts.records.spec, parts.shape,
        rows.start // len(rows), total // len(rows), start, config.data.read_threads,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(contextlib.closing(MetricsWriter(run_dir, config.logging, step=start))) if lead else None
        show = stack.enter_context(progress_bar(start, config.stages.total_steps, enabled=progress and lead))
        exporter = stack.enter_context(contextlib.closing(Exporter(config.logging, config.name)))
        stop = stack.enter_context(processes.stop_request())
        speed.compiling()
        with events.span("compile"):
            train_step = compile_step(parts, state)
        repeated = RepeatedStep(parts.train_step) if config.numerics.repeat_interval else None
        speed.compiled(start)
        previous = None
        for step, batch in zip(range(start, end), events.waiting(loader)):
            done = step + 1
            placed = placement.place_batch(batch, parts.batch_shardings, rows, total)
            controls = controls_at(config, parts.groups, step)
            if repeated is not None and done % config.numerics.repeat_interval == 0:
                guard.compare(step, repeated.differing(state, placed, controls))
            state, metrics = train_step(state, placed, controls)
            events.dispatched()
            speed.first_result(metrics["loss"])
            # One step in flight: the host prepares the next while the devices work, and never runs further ahead.
            if previous is not None:
                guard.observe(*previous)
            previous = step, {name: metrics[name] for name in ("loss", "grad_norm", "verdict", "skipped_in_a_row")}
            line = (
                log_line(config.stages, step, jax.device_get(metrics), speed)
                if is_logged(config.stages, config.logging.interval, step)
                else None
            )
            if line is not None and (stall := checkpoints.take_stall()):
                line["save_stall_s"] = stall
            if line is not None and writer is not None:
                writer.write(line)
            show(done, line)
            events.step(done)
            if is_logged(config.stages, config.logging.interval, step):
                exporter.update(done, line, events.seconds, events.compare_hosts(done))
            # In steps of this attempt: JAX answers at one more than the largest number asked with, and begins at 0.
            stopping = stop.agreed(done - start)
            if why := checkpoints.due(done, last=done == end or stopping):
                with guard.watchdog.allow(config.watchdog.save_s, f"saving step {done}"), events.span("save"):
                    checkpoints.save(state, dataclasses.replace(record, step=done), why)
            if checkpoints.is_hopeless and not (done == end or stopping):
                raise processes.RunEnded(f"{checkpoints.failed_saves} saves in a row failed", exit_codes.RETRY)
            if stopping:
                break
        if previous is not None:
            guard.observe(*previous)
        with guard.watchdog.allow(config.watchdog.save_s, "finishing the last save"), events.span("save"):
            saved = checkpoints.finish(state, dataclasses.replace(record, step=done))
    if unreadable := parts.records.unreadable:
        logger.warning("%d unreadable records were masked; %s names them", len(unreadable), run_dir / run_guard.QUARANTINE)
    guard.finish(done, config.stages.total_steps, saved=saved, stop=stop if stopping else None)
    return state


def continue_record(run_dir: Path, stored: RunRecord, record: RunRecord, *, accept_changes: bool) -> RunRecord:
    """The record to go on with; ValueError if the run there is not this one."""
    if stored.step == 0:
        raise ValueError(
            f"{run_dir} holds weights to start from, not a run; train in another --run with --config.initial_weights={run_dir}"
        )
    changes = changed_fields(stored.config, record.config)
    if stored.fingerprint != record.fingerprint:
        changes.append(
            f"data plan (catalog, stages, sizes or seed): fingerprint {stored.fingerprint[:12]} -> {record.fingerprint[:12]}"
        )
    if changes and not accept_changes:
        raise ValueError(
            f"{run_dir} was trained with another configuration: {'; '.join(changes)}. Undo that, train in another --run, "
            f"or continue with the new one by --accept-changes"
        )
    for change in changes:
        logger.warning("accepted change: %s", change)
    return dataclasses.replace(record, origin=stored.origin)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options, and the `--config.*` overrides."""
    parser = argparse.ArgumentParser(
        prog="omnihuman train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="config file; fields are set with --config.FIELD=VALUE")
    parser.add_argument("--run", required=True, metavar="DIR", help="run directory; a run found there is continued")
    parser.add_argument("--stop-after", type=int, metavar="N", help="stop with a checkpoint once N steps are finished")
    parser.add_argument("--accept-changes", action="store_true", help="continue a run although its config or data plan changed")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.add_argument(
        "--compilation-cache", metavar="DIR",
        help="keep compiled programs there for the next start; trusted like code: a folder that only you can write to",
    )  # fmt: skip
    parser.add_argument("--distributed", action="store_true", help="several processes that JAX finds itself (TPU pods, SLURM)")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    parser.add_argument("--num-processes", type=int, metavar="N")
    parser.add_argument("--process-id", type=int, metavar="I")
    parser.add_argument("--peer-timeout-s", type=int, default=300, metavar="S", help="how long to wait for the other processes")
    parser.add_argument(
        "--heartbeat-s", type=int, default=60, metavar="S", help="a process that is silent for so long ends the job"
    )
    parser.add_argument(
        "--shutdown-s", type=int, default=30, metavar="S", help="how long the processes wait for each other at the end"
    )
    # No abbreviations: --config.model.width would be taken for one of --config.
    parser.allow_abbrev = False
    return parser.parse_known_args(list(argv))


def main(argv: Sequence[str]) -> int:
    """`omnihuman train`."""
    options, overrides = parse(argv)
    # By force: a library that is imported before may have set the root logger up, at its own level.
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    for library in ("absl", "jax", "grain"):
        logging.getLogger(library).setLevel(logging.WARNING)
    config = load_config(options.config, overrides)
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
    with run_guard.one_door("omnihuman train") if joined else contextlib.nullcontext():
        train(
            config,
            options.run,
            stop_after=options.stop_after,
            accept_changes=options.accept_changes,
            progress=not options.no_progress,
        )
    return exit_codes.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
