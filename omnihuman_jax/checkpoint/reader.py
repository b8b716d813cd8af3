"""What lies in a checkpoint, and how it is read: seal first, then the record, then arrays, then their fingerprints.

A step holds four parts that can be read alone: `params`, `ema`, `optimizer` (moments and counts) and `progress` (step
and counters), and as its metadata the resolved config and the plan's fingerprint. Sampling reads one part, resume all
of them.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from omnihuman_jax.checkpoint import fingerprint, seals
from omnihuman_jax.checkpoint.parts import StateT, assemble_state, context_for, flatten, mismatches, parts_of
from omnihuman_jax.runtime import processes, storage

WEIGHTS = {"raw": "params", "ema": "ema"}
FORMAT = 2

_CURE = "remove that folder to go back to the checkpoint before it, or train in another --run"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """What a checkpoint says about the run that wrote it: resolved config (JSON), plan fingerprint, finished steps.

    `origin` says where weights that were not born in this run come from: what `omnihuman import` read, with the sha256
    of every file; a run that starts from an import keeps it.
    """

    config: Mapping[str, Any]
    fingerprint: str
    step: int
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT, "config": dict(self.config), "fingerprint": self.fingerprint, "step": self.step,
            "origin": dict(self.origin),
        }  # fmt: skip

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "RunRecord":
        """Out of what a checkpoint says."""
        return cls(
            config=stored["config"],
            fingerprint=stored["fingerprint"],
            step=stored["step"],
            origin=stored.get("origin", {}),
        )

    def part(self, weights: str) -> str:
        """The part that holds these weights (`ema` or `raw`): at step 0, which `omnihuman import` writes, the average
        of the parameters is the parameters, and lies there once."""
        if weights not in WEIGHTS:
            raise ValueError(f"weights {weights!r}: choose ema or raw")
        return "params" if self.step == 0 else WEIGHTS[weights]


def checkpoint_directory(run_dir: Path | str) -> Path | str:
    """Where a run's checkpoints lie, as its own config.json says."""
    file = Path(run_dir) / "config.json"
    stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return stored.get("checkpoint", {}).get("directory") or Path(run_dir) / "checkpoints"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, with the file and the cure."""


class DamagedError(CheckpointError):
    """A checkpoint whose files are all there, and wrong."""


class CheckpointReader:
    """Reads the checkpoints of a directory; all processes call every method, in the same order. Storage is not waited
    for.
    """

    def __init__(self, directory: Path | str):
        self.directory = Path(directory).absolute() if "://" not in str(directory) else directory
        self._folder = epath.Path(self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        """A reader leaves nothing open."""

    def _ask(self, what: str, look: Callable[[], Any]) -> Any:
        """What `look` finds; for those who wait, once storage answers."""
        try:
            return look()
        except OSError as error:
            if storage.does_not_answer(error):
                raise CheckpointError(f"{what}: storage does not answer: {storage.cause(error)}") from error
            raise

    def _recognise(self) -> None:
        """`storage.Gone` if the folder is not what it was, for those who know."""

    @property
    def latest_step(self) -> int | None:
        """The newest finished checkpoint, None if there is none."""
        return self.steps[-1] if self.steps else None

    @property
    def steps(self) -> list[int]:
        """Steps that were saved to the end; read from disk every time: a list that is kept lies after a failed save."""
        return [step for step in seals.committed_steps(self._folder) if seals.is_sealed(self._folder / str(step))]

    def record(self, step: int) -> RunRecord:
        """The record of a step; CheckpointError if it is missing or of another format."""
        return RunRecord.from_json(
            self._agreed(f"reading {self.directory}/{step}", lambda: self._metadata(step)).custom_metadata
        )

    def _agreed(self, what: str, look: Callable[[], Any]) -> Any:
        """What `look` finds on every process; where one finds damage, all do."""

        def tolerant() -> tuple[Any, str]:
            try:
                return look(), ""
            except DamagedError as error:
                return None, str(error)

        found, reason = self._ask(what, tolerant)
        if reasons := [why for why in processes.gather(reason) if why]:
            raise DamagedError(reasons[0])
        return found

    def _metadata(self, step: int) -> Any:
        where = f"{self.directory}/{step}"
        self._recognise()
        if step not in self.steps:
            raise CheckpointError(f"{self.directory} has no step {step}; it has {self.steps or 'none'}")
        if reason := seals.damage(self._folder / str(step)):
            self._recognise()
            raise DamagedError(f"{where} is damaged: {reason}; {_CURE}")
        try:
            with context_for(self.directory):
                metadata = ocp.checkpointables_metadata(self._folder / str(step))
        except Exception as error:
            if storage.does_not_answer(error):
                raise storage.Gone(storage.cause(error)) from error
            raise DamagedError(f"{where} is damaged: {storage.cause(error)}; {_CURE}") from error
        stored = metadata.custom_metadata
        if not isinstance(stored, dict) or stored.get("format") != FORMAT:
            raise CheckpointError(f"{where} has no readable record of its run (format {FORMAT}); {_CURE}")
        return metadata

    def restore(self, step: int, abstract: StateT) -> StateT:
        """The whole state of a step, in the shardings of `abstract`; CheckpointError names what does not fit."""
        state = assemble_state(self._load(step, parts_of(abstract)), abstract)
        if int(state.step) != step:
            raise CheckpointError(f"{self.directory}/{step} holds the state of step {int(state.step)}; {_CURE}")
        return state

    def restore_part(self, step: int, part: str, abstract: Any) -> Any:
        """One part alone (`params`, `ema`, ...), in the shardings of `abstract`."""
        return self._load(step, {part: abstract})[part]

    def _load(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        where = f"{self.directory}/{step}"
        metadata = self._agreed(f"reading {where}", lambda: self._metadata(step))
        stored = metadata.metadata
        written: dict[str, int] = metadata.custom_metadata["sums"]
        if missing := sorted(set(abstract) - {name for name, value in stored.items() if value is not None}):
            if {name.split("/")[0] for name in written}.issuperset(missing):
                raise DamagedError(f"{where} is damaged: the metadata of {', '.join(missing)} cannot be read; {_CURE}")
            raise CheckpointError(f"{where} lacks {', '.join(missing)}; {_CURE}")
        problems = [line for name in abstract for line in mismatches(name, stored[name], abstract[name])]
        if problems:
            shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            raise CheckpointError(f"{where} does not fit this model: {shown}")
        loaded: dict[str, Any] = self._agreed(f"reading {where}", lambda: self._read(step, abstract))
        changed = [name for name, value in fingerprint.sums(flatten(loaded)).items() if written.get(name) != value]
        if changed:
            raise DamagedError(
                f"{where} has changed since it was written: {len(changed)} arrays have another fingerprint,"
                f" {changed[0]} is the first; {_CURE}"
            )
        return loaded

    def _read(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """Each process for itself, so that none waits in a barrier for one that fails."""
        context, own = context_for(self.directory), jax.process_index()
        context.multiprocessing.primary_host, context.multiprocessing.active_processes = own, {own}
        try:
            with context:
                return ocp.load_checkpointables(self._folder / str(step), abstract)
        except Exception as error:
            if storage.does_not_answer(error):
                raise storage.Gone(storage.cause(error)) from error
            self._recognise()
            raise DamagedError(f"{self.directory}/{step} cannot be read: {storage.cause(error)}; {_CURE}") from error


def load_weights(
    directory: Path | str, abstract: Any, *, weights: str = "ema", step: int | None = None
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
    if "://" not in str(directory) and not Path(directory).is_dir():
        raise FileNotFoundError(f"{directory} does not exist; give the run directory of `omnihuman train`")
    checkpoints = CheckpointReader(directory)
    step = checkpoints.latest_step if step is None else step
    if step is None:
        raise FileNotFoundError(f"{directory} has no finished checkpoint; train first, or wait for the first save")
    record = checkpoints.record(step)
    shapes = abstract(record) if callable(abstract) else abstract
    return checkpoints.restore_part(step, record.part(weights), shapes), record
