"""What a run goes on from: its data, its checkpoints, and the state of the newest that is whole; or a new one.

Never a silent fresh start: where a run must have had a checkpoint and has none, that is an error.
"""

import copy
import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from omnihuman_jax.assembly import Parts, assemble
from omnihuman_jax.checkpoint import checkpoints as run_checkpoints
from omnihuman_jax.checkpoint.checkpoints import Checkpoints
from omnihuman_jax.checkpoint.folder import checkpoint_directory
from omnihuman_jax.checkpoint.reader import load_state, load_weights
from omnihuman_jax.checkpoint.record import CheckpointError, DamagedError, RunRecord
from omnihuman_jax.config import ExperimentConfig, changed_fields, data_rows, from_json, parse_fork, to_json
from omnihuman_jax.data import generations, plan
from omnihuman_jax.data.dataset_files import generations_of
from omnihuman_jax.data.identity import changed_features, changed_meaning, features_of
from omnihuman_jax.data.records import DatasetSpec
from omnihuman_jax.runtime import processes, storage
from omnihuman_jax.runtime.locations import Location
from omnihuman_jax.telemetry.events import last_saved, saved_steps
from omnihuman_jax.telemetry.metrics import read_metrics
from omnihuman_jax.telemetry.run_telemetry import RunTelemetry
from omnihuman_jax.training import run_guard, train_state
from omnihuman_jax.training.run_guard import RunGuard

logger = logging.getLogger(__name__)


def open_parts(config: ExperimentConfig, run_dir: Path) -> Parts:
    """`assemble`, on the generations of the data sets that the run is of (`with_generations`), with patience for their
    storage. RunEnded, for a restart, where it does not come back.

    Data sets that this run has opened before and that are not there any more are storage that is gone; otherwise a path
    is wrong.
    """
    known = processes.gather(has_opened(run_dir, config))[0]

    def retry(what: str, look: Callable[[], Any]) -> Any:
        def tolerant() -> Any:
            try:
                return look()
            except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
                if known:
                    raise storage.Gone(f"this run has opened it before, and now: {error}") from None
                raise

        return storage.retry(what, tolerant, retries=config.data.retries, delay_s=config.data.retry_delay_s)

    stored = processes.gather(_stored_paths(run_dir))[0]
    return assemble(retry(f"opening {config.data.label}", lambda: with_generations(config, stored)), retry)


def with_generations(config: ExperimentConfig, stored: Sequence[str]) -> ExperimentConfig:
    """The config with the generation of every data set in its path, as the run writes it down: the one that is named,
    else the one that the run began with, of a new run the newest.

    stored: the paths in the run's own config.json; [] of a new run. One without a generation is of before there were
    any: of the first. A generation that the run does not take is told of in one line.
    """
    paths, rows = [], data_rows(config)
    for index, row in enumerate(rows):
        dataset, number = generations.split_name(row.path)
        there = generations_of(dataset)
        if number is None and len(stored) == len(rows):
            number = generations.split_name(stored[index])[1] or 1
            if number < len(there):
                field = f"data.datasets[{index}].path" if config.data.datasets else "data.dataset"
                newest = generations.numbered(dataset, len(there))
                logger.info(
                    "%s: the run stays on generation %d, which it began with; generation %d is there, of %d windows:"
                    " take it with --config.%s=%s --accept-changes",
                    dataset, number, len(there), there[-1].windows, field, newest,
                )  # fmt: skip
        paths.append(generations.numbered(dataset, number or len(there)))
    # What process 0 found: another may look a moment later.
    paths = processes.gather(paths)[0]
    config = copy.deepcopy(config)
    if config.data.datasets:
        named = (dataclasses.replace(row, path=path) for row, path in zip(rows, paths, strict=True))
        config.data.datasets = tuple(named)
    else:
        config.data.dataset = paths[0]
    return config


def has_opened(run_dir: Path, config: ExperimentConfig) -> bool:
    """Whether this run, by its own config.json, which the first start writes once all is open, has had these data
    sets.
    """
    stored = [generations.split_name(path)[0] for path in _stored_paths(run_dir)]
    return bool(stored) and stored == [generations.split_name(row.path)[0] for row in config.data.rows]


def _stored_paths(run_dir: Path) -> list[str]:
    """Of the data sets in the run's own config.json; [] before the first start has written it."""
    data = _stored_config(run_dir).get("data", {})
    return [row["path"] for row in data.get("datasets", ())] or [path for path in [data.get("dataset")] if path]


def open_checkpoints(
    config: ExperimentConfig, run_dir: Path, home: Location, guard: RunGuard, telemetry: RunTelemetry
) -> Checkpoints:
    """The run's checkpoints, which may not be gone once there were any; what they have to say goes where it belongs.

    `run_dir` has the run's logs, `home` is where the run is: another place, if that is a bucket.
    """

    def note(kind: str, details: Mapping[str, Any]) -> None:
        telemetry.saved(details) if kind == "saved" else guard.note(kind, details)

    # Process 0 has written the logs: another may see less of them.
    first = parse_fork(config.fork).step if config.fork else 0
    expected = ""
    if jax.process_index() == 0:
        expected = must_be_there(run_dir, config.checkpoint.interval, guard.rollbacks, first)
    expected = processes.gather(expected)[0]
    return run_checkpoints.open_checkpoints(
        config.checkpoint.directory or home / "checkpoints", config.checkpoint, note, expected,
        reach=config.numerics.max_skipped + 1,
    )  # fmt: skip


def must_be_there(run_dir: Path, interval: int, rollbacks: run_guard.Rollbacks, first: int = 0) -> str:
    """Why there must be a checkpoint of this run, which began at step `first`, by its own logs; "" if there need be
    none.
    """
    anew = rollbacks.begun_anew_at(first)
    if (step := last_saved(run_dir)) > anew:
        return f"has saved step {step}"
    # A second save waits for the first: past two intervals there must have been a checkpoint.
    logged = (
        max((line["step"] for line in read_metrics(run_dir)), default=0) if (run_dir / "metrics.jsonl").exists() else 0
    )
    if logged > anew + 2 * interval and not rollbacks.is_pending():
        return f"has trained {logged} steps, with a checkpoint every {interval}"
    return ""


def first_state(parts: Parts, record: RunRecord) -> tuple[train_state.TrainState, RunRecord]:
    """What a run without a checkpoint begins with, at the record's step: random weights or those of `initial_weights`
    (step 0), or the whole state of `fork`. The record then says where they come from.
    """
    config, source = parts.config, parts.config.initial_weights
    if config.fork:
        return _forked_state(parts, record)
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


def _forked_state(parts: Parts, record: RunRecord) -> tuple[train_state.TrainState, RunRecord]:
    """The state that another run had after a step, bit for bit, and the record of a run that begins there.

    Raises:
        ValueError, FileNotFoundError: no such run or step, or of another model or other features.
    """
    config, (run, step) = parts.config, parse_fork(parts.config.fork)
    abstract = train_state.abstract_train_state(config.model, parts.optimizer, parts.state_shardings)
    try:
        state, stored = load_state(checkpoint_directory(run), step, abstract, lambda other: _check_fits(other, record))
    except (CheckpointError, FileNotFoundError) as error:
        raise type(error)(f"fork {config.fork}: {error}") from error
    began = ("fork:", "initial_weights:")
    changes = [line for line in _changes(stored, stored.data, record) if not line.startswith(began)]
    logger.info("forked from step %d of %s; %s", step, run, "; ".join(changes) or "nothing is changed")
    index, stage = config.stages.stage_at(step)
    if changes and step != config.stages.starts[index]:
        logger.warning("the fork begins inside stage %r: its logged ratios count windows of before, too", stage.name)
    entry = {"run": run, "step": step, "name": stored.config["name"], "plan": stored.fingerprint, "changes": changes}
    origin = {**stored.origin, "forks": [*stored.origin.get("forks", ()), entry]}
    return state, dataclasses.replace(record, origin=origin, step=step)


def _check_began_so(run_dir: Path, fork: str) -> None:
    """ValueError if a run that has no checkpoint yet began from something else."""
    stored = _stored_config(run_dir)
    begun = processes.gather(stored.get("fork", "") if stored else fork)[0]
    if begun != fork:
        raise ValueError(
            f"{run_dir} was begun {f'as a fork of {begun}' if begun else 'without a fork'}, not"
            f" {f'of {fork}' if fork else 'without one'}; train in another --run, or remove this one"
        )


def _stored_config(run_dir: Path) -> Mapping[str, Any]:
    """What the first start has written, {} before."""
    file = run_dir / "config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _check_fits(stored: RunRecord, record: RunRecord) -> None:
    """CheckpointError unless a run may go on from what another has stored: one model, and features that mean the
    same.
    """
    changed = [line for line in _changes(stored, {}, record) if line.startswith("model.")]
    changed += [f"features of the data set ({change})" for change in changed_meaning(stored.data, record.data)]
    if changed:
        raise CheckpointError(f"it is of another model or other features: {'; '.join(changed)}; a fork changes neither")


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
        _check_began_so(run_dir, config.fork)
        if asked:
            _check_none_was_saved(run_dir, guard, config.fork, asked["first"])
        state, record = first_state(parts, record)
        step = record.step
    if asked:
        checkpoints.roll_back(asked["first"])
        guard.rollbacks.carried_out(asked, step)
        guard.incidents.note("rolled_back", {"checkpoint": step, "on_from": asked["to"]})
        logger.warning("rolled back to step %d, on from step %d", step, asked["to"])
    to = guard.rollbacks.jump_from(step)
    return (state, record, step) if to is None else (train_state.skip_to(state, to, parts.state_shardings), record, to)


def _check_none_was_saved(run_dir: Path, guard: RunGuard, fork: str, first: int) -> None:
    """CheckpointError where a rollback to before step `first` would begin the run anew though it had saved by then."""
    saved = 0
    if jax.process_index() == 0:  # which has written the logs
        anew = guard.rollbacks.begun_anew_at(parse_fork(fork).step if fork else 0)
        saved = max((step for step in saved_steps(run_dir) if anew < step < first), default=0)
    if saved := processes.gather(saved)[0]:
        raise CheckpointError(
            f"{run_dir} is to go back to before step {first + 1}, where too many steps in a row went wrong, and has no"
            f" checkpoint from before it any more (step {saved} was saved once); bring one back from a backup, or start"
            " anew in another --run, with a higher checkpoint.keep"
        )


def continue_record(run_dir: Path, stored: RunRecord, record: RunRecord, *, accept_changes: bool) -> RunRecord:
    """The record to go on with; ValueError if the run there is not this one."""
    if stored.step == 0:
        raise ValueError(
            f"{run_dir} holds weights to start from, not a run; train in another --run with"
            f" --config.initial_weights={run_dir}"
        )
    if (fork := record.config.get("fork")) and not stored.origin.get("forks"):
        raise ValueError(f"{run_dir} was begun without a fork, not of {fork}; train in another --run")
    changes = _changes(stored, stored.data or _features_of_run(run_dir), record)
    if changes and not accept_changes:
        raise ValueError(
            f"{run_dir} was trained with another configuration or data set: {'; '.join(changes)}. Undo that, train in"
            " another --run, or continue with the new one by --accept-changes"
        )
    for change in changes:
        logger.warning("accepted change: %s", change)
    return dataclasses.replace(record, origin=stored.origin)


def _changes(stored: RunRecord, features: Mapping[str, Any], record: RunRecord) -> list[str]:
    """What the steps to come depend on and that is another than where `stored` was written, on these features; a line
    each.
    """
    changes = changed_fields(_in_todays_form(stored.config), record.config)
    changes += [f"features of the data set ({change})" for change in changed_features(features, record.data)]
    versions = plan.version_of(stored.fingerprint), plan.version_of(record.fingerprint)
    if versions[0] != versions[1]:
        changes.append(
            f"version of the data plan: {versions[0]} -> {versions[1]} (this version of the package draws and places"
            " windows otherwise from here on; the version that began the run goes on as before)"
        )
    elif stored.fingerprint != record.fingerprint:
        changes.append(
            f"data plan (catalogs and their weights, stages, sizes or seed): fingerprint {stored.fingerprint[:12]} ->"
            f" {record.fingerprint[:12]}"
        )
    return changes


def _in_todays_form(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored config with today's defaults in fields that were not there yet: they change nothing of a run that was
    made before. As it is, where it cannot be read.
    """
    try:
        return to_json(from_json(config))
    except ValueError:
        return config


def _features_of_run(run_dir: Path) -> Mapping[str, Any]:
    """What the run was trained on by its own dataset.json, for checkpoints that do not say it; {} without one."""
    return features_of(DatasetSpec.load(run_dir)) if (run_dir / "dataset.json").is_file() else {}
