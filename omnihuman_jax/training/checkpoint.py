"""Checkpoints: Orbax v1, asynchronous, whole or not at all, and never a silent fresh start.

A step holds four parts that can be read alone: `params`, `ema`, `optimizer` (moments and counts) and `progress` (step and
counters), and as its metadata the resolved config and the plan's fingerprint. Sampling reads one part, resume all of them.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from omnihuman_jax.training.train_state import TrainState

WEIGHTS = {"raw": "params", "ema": "ema"}
FORMAT = 1
MIN_CHUNK_BYTES, MAX_CHUNK_BYTES = 1 << 20, 1 << 24


@dataclasses.dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """A checkpoint every `interval` steps (and at the end); the newest `keep` stay, and every `keep_every`-th (0: none)."""

    interval: int = 1000
    keep: int = 3
    keep_every: int = 0

    def validate(self) -> None:
        """ValueError on intervals below 1."""
        if self.interval < 1 or self.keep < 1 or self.keep_every < 0:
            raise ValueError(
                f"checkpoint: interval {self.interval} and keep {self.keep} must be >= 1, keep_every {self.keep_every} must be >= 0"
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """What a checkpoint says about the run that wrote it: resolved config (JSON), plan fingerprint, finished steps.

    `origin` says where weights that were not born in this run come from: what `omnihuman import` read, with the sha256 of
    every file; a run that starts from an import keeps it.
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

    def part(self, weights: str) -> str:
        """The part that holds these weights (`ema` or `raw`): at step 0, which `omnihuman import` writes, the average of
        the parameters is the parameters, and lies there once."""
        if weights not in WEIGHTS:
            raise ValueError(f"weights {weights!r}: choose ema or raw")
        return "params" if self.step == 0 else WEIGHTS[weights]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, with the file and the cure."""


class Checkpoints:
    """The checkpoints of one run directory; all processes call every method, in the same order."""

    def __init__(self, directory: Path | str, config: CheckpointConfig | None = None):
        self.directory = Path(directory).absolute() if "://" not in str(directory) else directory
        policies = ocp.training.preservation_policies
        preserve = None
        if config is not None:
            rules = [policies.LatestN(config.keep)]
            if config.keep_every:
                rules.append(policies.EveryNSteps(config.keep_every))
            preserve = policies.AnyPreservationPolicy(rules)
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            context=_context(self.directory),
            # The loop decides when to save; Orbax's default would also save the very first step.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=preserve,
            cleanup_tmp_directories=config is not None,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for a save in progress."""
        self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """The newest finished checkpoint, None if there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def steps(self) -> list[int]:
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(self, state: TrainState, record: RunRecord) -> None:
        """Starts a save and returns once the arrays are copied to the host; an earlier save is waited for."""
        response = self._checkpointer.save_checkpointables_async(
            record.step, _parts(state), force=True, custom_metadata=json.loads(json.dumps(record.to_json()))
        )
        if response is None:
            raise CheckpointError(f"{self.directory}: Orbax refused to save step {record.step}")

    def save_weights(self, params: Any, record: RunRecord) -> None:
        """Saves parameters that no step has changed yet (`record.step` 0) and waits until they are on disk.

        No moments and no average: a run that starts from them begins with zeros and with the parameters themselves.
        """
        self._checkpointer.save_checkpointables(
            record.step, {"params": params}, force=True, custom_metadata=json.loads(json.dumps(record.to_json()))
        )

    def wait(self) -> None:
        """Blocks until the save in progress is on disk."""
        self._checkpointer.wait()

    def record(self, step: int) -> RunRecord:
        """The record of a step; CheckpointError if it is missing or of another format."""
        where = f"{self.directory}/{step}"
        if step not in self.steps:
            raise CheckpointError(f"{self.directory} has no step {step}; it has {self.steps or 'none'}")
        try:
            stored = self._checkpointer.checkpointables_metadata(step).custom_metadata
        except Exception as error:
            raise CheckpointError(f"{where} is damaged: {_cause(error)}; {_CURE}") from error
        if not isinstance(stored, dict) or stored.get("format") != FORMAT:
            raise CheckpointError(f"{where} has no readable record of its run (format {FORMAT}); {_CURE}")
        return RunRecord(
            config=stored["config"], fingerprint=stored["fingerprint"], step=stored["step"], origin=stored.get("origin", {})
        )

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The whole state of a step, in the shardings of `abstract`; CheckpointError names what does not fit."""
        parts = self._load(step, _parts(abstract))
        state = TrainState(
            params=parts["params"],
            opt_state=_refill(abstract.opt_state, parts["optimizer"]),
            ema=parts["ema"],
            step=parts["progress"]["step"],
            counters=_refill(abstract.counters, parts["progress"]["counters"]),
        )
        if int(state.step) != step:
            raise CheckpointError(f"{self.directory}/{step} holds the state of step {int(state.step)}; {_CURE}")
        return state

    def restore_part(self, step: int, part: str, abstract: Any) -> Any:
        """One part alone (`params`, `ema`, ...), in the shardings of `abstract`."""
        return self._load(step, {part: abstract})[part]

    def _load(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        where = f"{self.directory}/{step}"
        if step not in self.steps:
            raise CheckpointError(f"{self.directory} has no step {step}; it has {self.steps or 'none'}")
        try:
            stored = self._checkpointer.checkpointables_metadata(step).metadata
        except Exception as error:
            raise CheckpointError(f"{where} is damaged: {_cause(error)}; {_CURE}") from error
        if missing := sorted(set(abstract) - {name for name, value in stored.items() if value is not None}):
            raise CheckpointError(f"{where} lacks {', '.join(missing)}; {_CURE}")
        problems = [line for name in abstract for line in _mismatches(name, stored[name], abstract[name])]
        if problems:
            shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            raise CheckpointError(f"{where} does not fit this model: {shown}")
        try:
            return self._checkpointer.load_checkpointables(step, abstract)
        except Exception as error:
            raise CheckpointError(f"{where} cannot be read: {_cause(error)}; {_CURE}") from error


_CURE = "remove that folder to go back to the checkpoint before it, or train in another --run"


def load_weights(directory: Path | str, abstract: Any, *, weights: str = "ema", step: int | None = None) -> tuple[Any, RunRecord]:
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
    with Checkpoints(directory) as checkpoints:
        step = checkpoints.latest_step if step is None else step
        if step is None:
            raise FileNotFoundError(f"{directory} has no finished checkpoint; train first, or wait for the first save")
        record = checkpoints.record(step)
        shapes = abstract(record) if callable(abstract) else abstract
        return checkpoints.restore_part(step, record.part(weights), shapes), record


def _context(directory: Path | str) -> ocp.Context:
    context = ocp.Context()
    # Explicit: AUTO decides by path, and a bucket mounted as a folder would then list half-written steps as good ones.
    remote = "://" in str(directory)
    context.atomicity.mode = ocp.options.AtomicityMode.COMMIT_FILE if remote else ocp.options.AtomicityMode.ATOMIC_RENAME
    # Replicas share the writing of large leaves; for small ones Orbax would compile a slicing program a shape, for seconds.
    context.array.saving.min_slice_bytes_for_replica_parallel = 1 << 20
    context.array.saving.scoped_storage_options_creator = _storage
    return context


def _storage(path: Any, leaf: Any) -> ocp.options.ArrayOptions.Saving.StorageOptions | None:
    """Chunks of stacked blocks hold an eighth of a layer, or what lies between 1 and 16 MB if that is nearer.

    Orbax's own chunk is all that a device holds of a leaf, several GB for a large model's stack: `omnihuman export` reads
    layer by layer, and could not without decoding all of them.
    """
    if "blocks" not in jax.tree_util.keystr(path) or leaf.ndim < 2 or leaf.nbytes <= MIN_CHUNK_BYTES:
        return None
    chunk = min(max(leaf.nbytes // leaf.shape[0] // 8, MIN_CHUNK_BYTES), MAX_CHUNK_BYTES)
    return ocp.options.ArrayOptions.Saving.StorageOptions(chunk_byte_size=chunk, shard_axes=(0,))


def _parts(state: TrainState) -> dict[str, Any]:
    return {
        "params": state.params,
        "ema": state.ema,
        "optimizer": _flatten(state.opt_state),
        "progress": {"step": state.step, "counters": _flatten(state.counters)},
    }


def _flatten(tree: Any) -> dict[str, Any]:
    """Leaves by path: optax's nested tuples would tie a checkpoint to optax's own classes."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def _refill(like: Any, flat: Mapping[str, Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in _flatten(like)])


def _mismatches(part: str, stored: Any, wanted: Any) -> list[str]:
    """Lines about leaves that are missing, unknown, or of another shape or dtype."""
    have, want = _flatten(stored), _flatten(wanted)
    lines = [f"{part}/{name} is missing" for name in want if name not in have]
    lines += [f"{part}/{name} is unknown" for name in have if name not in want]
    for name in want.keys() & have.keys():
        shape, dtype = tuple(have[name].shape), np.dtype(have[name].dtype)
        if shape != tuple(want[name].shape) or dtype != np.dtype(want[name].dtype):
            lines.append(f"{part}/{name} is {dtype}{list(shape)}, wanted {np.dtype(want[name].dtype)}{list(want[name].shape)}")
    return sorted(lines)


def _cause(error: BaseException) -> str:
    """One line of the innermost cause: Orbax wraps the real one in a misleading one."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"


def size_bytes(abstract: Any) -> int:
    """Bytes of a tree's arrays, as a checkpoint of it takes on disk uncompressed."""
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(abstract))
