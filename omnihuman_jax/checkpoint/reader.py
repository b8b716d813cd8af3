"""How a checkpoint is read: manifest first, then the record, then arrays, then their fingerprints.

A step holds four parts that can be read alone: `params`, `ema`, `optimizer` (moments and counts) and `progress` (step
and counters), and as its metadata the resolved config and the plan's fingerprint. Sampling reads one part, resume all
of them.
"""

from collections.abc import Callable
from typing import Any, Self

import jax
from orbax.checkpoint import v1 as ocp

from omnihuman_jax.checkpoint import fingerprint, manifest, step_folders
from omnihuman_jax.checkpoint.folder import CheckpointFolder
from omnihuman_jax.checkpoint.parts import StateT, assemble_state, context_for, flatten, mismatches, parts_of
from omnihuman_jax.checkpoint.record import CURE, FORMAT, WEIGHTS, CheckpointError, DamagedError, RunRecord
from omnihuman_jax.runtime import locations, processes, storage


class CheckpointReader:
    """Reads the checkpoints of a folder; all processes call every method, in the same order.

    `folder`: that of `open_folder`, which is verified and waited for, or where it is, which is neither.
    """

    def __init__(self, folder: CheckpointFolder | locations.StrPath):
        self.folder = folder if isinstance(folder, CheckpointFolder) else CheckpointFolder(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        """A reader leaves nothing open."""

    @property
    def latest_step(self) -> int | None:
        """The newest finished checkpoint, None if there is none."""
        steps = self.steps
        return steps[-1] if steps else None

    @property
    def steps(self) -> list[int]:
        """Finished steps, as the disk has them now."""
        return step_folders.finished(self.folder)

    def record(self, step: int) -> RunRecord:
        """The record of a step; CheckpointError if it is missing or of another format."""
        return RunRecord.from_json(
            self._agreed(f"reading {self.folder}/{step}", lambda: self._metadata(step)).custom_metadata
        )

    def _agreed(self, what: str, look: Callable[[], Any]) -> Any:
        """What `look` finds on every process; where one finds damage, all do."""

        def tolerant() -> tuple[Any, str]:
            try:
                return look(), ""
            except DamagedError as error:
                return None, str(error)

        found, reason = self.folder.retry(what, tolerant)
        if reasons := [why for why in processes.gather(reason) if why]:
            raise DamagedError(reasons[0])
        return found

    def _metadata(self, step: int) -> Any:
        where = f"{self.folder}/{step}"
        self.folder.verify()
        if step not in self.steps:
            raise CheckpointError(f"{self.folder} has no step {step}; it has {self.steps or 'none'}")
        if reason := manifest.damage(self.folder.step(step)):
            self.folder.verify()
            raise DamagedError(f"{where} is damaged: {reason}; {CURE}")
        try:
            with context_for(self.folder.directory):
                metadata = ocp.checkpointables_metadata(self.folder.step(step))
        except Exception as error:
            if storage.does_not_answer(error):
                raise storage.Gone(storage.cause(error)) from error
            raise DamagedError(f"{where} is damaged: {storage.cause(error)}; {CURE}") from error
        stored = metadata.custom_metadata
        if not isinstance(stored, dict) or stored.get("format") != FORMAT:
            raise CheckpointError(f"{where} has no readable record of its run (format {FORMAT}); {CURE}")
        return metadata

    def restore(self, step: int, abstract: StateT) -> StateT:
        """The whole state of a step, in the shardings of `abstract`; CheckpointError names what does not fit."""
        state = assemble_state(self._load(step, parts_of(abstract)), abstract)
        if int(state.step) != step:
            raise CheckpointError(f"{self.folder}/{step} holds the state of step {int(state.step)}; {CURE}")
        return state

    def restore_part(self, step: int, part: str, abstract: Any) -> Any:
        """One part alone (`params`, `ema`, ...), in the shardings of `abstract`."""
        return self._load(step, {part: abstract})[part]

    def _load(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        where = f"{self.folder}/{step}"
        metadata = self._agreed(f"reading {where}", lambda: self._metadata(step))
        stored = metadata.metadata
        written: dict[str, int] = metadata.custom_metadata["sums"]
        if missing := sorted(set(abstract) - {name for name, value in stored.items() if value is not None}):
            if {name.split("/")[0] for name in written}.issuperset(missing):
                raise DamagedError(f"{where} is damaged: the metadata of {', '.join(missing)} cannot be read; {CURE}")
            raise CheckpointError(f"{where} lacks {', '.join(missing)}; {CURE}")
        problems = [line for name in abstract for line in mismatches(name, stored[name], abstract[name])]
        if problems:
            shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            raise CheckpointError(f"{where} does not fit this model: {shown}")
        loaded: dict[str, Any] = self._agreed(f"reading {where}", lambda: self._read(step, abstract))
        changed = [name for name, value in fingerprint.sums(flatten(loaded)).items() if written.get(name) != value]
        if changed:
            raise DamagedError(
                f"{where} has changed since it was written: {len(changed)} arrays have another fingerprint,"
                f" {changed[0]} is the first; {CURE}"
            )
        return loaded

    def _read(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """Each process for itself, so that none waits in a barrier for one that fails."""
        context, own = context_for(self.folder.directory), jax.process_index()
        context.multiprocessing.primary_host, context.multiprocessing.active_processes = own, {own}
        try:
            with context:
                return ocp.load_checkpointables(self.folder.step(step), abstract)
        except Exception as error:
            if storage.does_not_answer(error):
                raise storage.Gone(storage.cause(error)) from error
            self.folder.verify()
            raise DamagedError(f"{self.folder}/{step} cannot be read: {storage.cause(error)}; {CURE}") from error


def load_weights(
    directory: locations.StrPath, abstract: Any, *, weights: str = "ema", step: int | None = None
) -> tuple[Any, RunRecord]:
    """Weights of a checkpoint for sampling or export: (parameters in the shardings of `abstract`, record).

    Args:
        directory: the run's `checkpoints` folder.
        abstract: ShapeDtypeStructs of the parameters, or a function of the record that makes them.
        weights: `ema` or `raw`.
        step: None for the newest.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights {weights!r}: choose ema or raw")
    checkpoints = _existing(directory)
    step = checkpoints.latest_step if step is None else step
    if step is None:
        raise FileNotFoundError(f"{directory} has no finished checkpoint; train first, or wait for the first save")
    record = checkpoints.record(step)
    shapes = abstract(record) if callable(abstract) else abstract
    return checkpoints.restore_part(step, record.part(weights), shapes), record


def load_state(
    directory: locations.StrPath, step: int, abstract: StateT, check: Callable[[RunRecord], None]
) -> tuple[StateT, RunRecord]:
    """The whole state of a run's step, in the shardings of `abstract`, and its record, which `check` may refuse first.

    Raises:
        FileNotFoundError, CheckpointError: no such folder or step, or it does not fit `abstract`.
    """
    checkpoints = _existing(directory)
    record = checkpoints.record(step)
    check(record)
    return checkpoints.restore(step, abstract), record


def _existing(directory: locations.StrPath) -> CheckpointReader:
    place = locations.location(directory)
    if not locations.is_remote(place) and not place.is_dir():
        raise FileNotFoundError(f"{directory} does not exist; give the run directory of `omnihuman train`")
    return CheckpointReader(directory)
