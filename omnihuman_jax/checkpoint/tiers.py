"""Checkpoints in two tiers behind one interface: often on each host's own disk, now and then where they outlive every
host.

A restart takes the newest step that is whole in either. The local tier is `local_copies`: a crash or a preemption that
leaves the hosts' disks as they are then costs the steps of `checkpoint.local_interval` at most. Off without
`checkpoint.local_directory`.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from omnihuman_jax.checkpoint import fingerprint
from omnihuman_jax.checkpoint.local_copies import Copy, LocalCopies
from omnihuman_jax.checkpoint.parts import State, StateT, assemble_state, flatten, parts_of
from omnihuman_jax.checkpoint.reader import CheckpointError, DamagedError, RunRecord
from omnihuman_jax.checkpoint.writer import CheckpointConfig, Checkpoints

logger = logging.getLogger(__name__)

LOCAL = "local"


def open_checkpoints(
    directory: Path | str, config: CheckpointConfig, notify: Callable[[str, dict[str, Any]], None], expected: str = ""
) -> Checkpoints:
    """Of one tier, or of two, as the config says; arguments as those of `Checkpoints`."""
    return (TieredCheckpoints if config.local_directory else Checkpoints)(directory, config, notify, expected)


class TieredCheckpoints(Checkpoints):
    """`Checkpoints` with copies of the steps between on each host's own disk."""

    def __init__(
        self,
        directory: Path | str,
        config: CheckpointConfig,
        notify: Callable[[str, dict[str, Any]], None] = lambda kind, details: None,
        expected: str = "",
    ):
        super().__init__(directory, config, notify, expected)
        self._local_interval = config.local_interval
        self._local = LocalCopies(config.local_directory, self._identity, config.local_keep, notify)
        self._chosen: Copy | None = None

    def due(self, step: int, *, last: bool = False) -> str:
        return super().due(step, last=last) or (LOCAL if step % self._local_interval == 0 else "")

    def save(self, state: State, record: RunRecord, why: str = "interval") -> bool:
        if why != LOCAL:
            return super().save(state, record, why)
        begin = time.monotonic()
        flat = flatten(parts_of(state))
        self._local.save(flat, record.to_json() | {"sums": fingerprint.sums(flat)})
        self._stall_s += time.monotonic() - begin
        return True

    def close(self) -> None:
        super().close()
        self._local.wait()

    def choose(self, abstract: State | None = None, below: int | None = None) -> int | None:
        assert abstract is not None, "a local copy is stored as it lies on the devices"
        self._chosen, none_is_whole = None, None
        try:
            step = super().choose(abstract, below)
        except CheckpointError as error:  # on all processes
            step, none_is_whole = None, error
        # Back from steps that went wrong goes to a checkpoint: a copy may be gone by the next start, which has to find
        # the same.
        if below is None:
            self._chosen = self._local.newest(step or 0, flatten(parts_of(abstract)))
            self._warn_of_lone_shards()
        if self._chosen is not None:
            logger.warning(
                "resuming from the local copy of step %d; the newest checkpoint is %s",
                self._chosen.step,
                step or "none",
            )
            step = self._chosen.step
        elif none_is_whole is not None:
            raise none_is_whole
        # Of steps that are to be made again: the new copies must not be mixed up with these.
        self._local.forget((step or 0) + 1)
        return step

    def _warn_of_lone_shards(self) -> None:
        layouts = self._local.layouts
        alone = [layouts.count(layout) == 1 for layout in layouts]
        if jax.process_count() > 1 and any(alone):
            logger.warning(
                "%d of %d processes hold shards that no other holds: with one of their disks a local step is lost; "
                "mesh.data or mesh.dcn_data of 2 or more, across hosts, would keep a second copy",
                sum(alone), len(alone),
            )  # fmt: skip

    def record(self, step: int) -> RunRecord:
        copy = self._copy_of(step)
        return super().record(step) if copy is None else RunRecord.from_json(copy.metadata)

    def _copy_of(self, step: int) -> Copy | None:
        return self._chosen if self._chosen is not None and self._chosen.step == step else None

    def restore(self, step: int, abstract: StateT) -> StateT:
        copy = self._copy_of(step)
        if copy is None:
            state = super().restore(step, abstract)
        else:
            flat = flatten(parts_of(abstract))
            try:
                loaded = self._local.restore(copy, flat)
            except ValueError as error:
                raise DamagedError(f"the local copy of step {step} cannot be read: {error}") from error
            written = copy.metadata["sums"]
            if changed := [name for name, value in fingerprint.sums(loaded).items() if written.get(name) != value]:
                raise DamagedError(
                    f"the local copy of step {step} has changed since it was written: {len(changed)} arrays have"
                    f" another fingerprint, {changed[0]} is the first"
                )
            tree = jax.tree.unflatten(jax.tree.structure(parts_of(abstract)), [loaded[name] for name in flat])
            state = assemble_state(tree, abstract)
        return state

    def reject(self, step: int, reason: str) -> None:
        if (copy := self._copy_of(step)) is None:
            super().reject(step, reason)
            return
        logger.error("the local copy of step %d is given up, the newest step that is whole is next: %s", step, reason)
        self._notify("local_copy_rejected", {"step": step, "reason": reason})
        self._local.reject(copy, reason)

    def roll_back(self, step: int) -> None:
        super().roll_back(step)
        self._local.forget(step)
