"""The steps in a folder of checkpoints: which are finished, which is the newest whole one, what becomes of the others.

All processes call `newest_whole`, `reject` and `roll_back`, in the same order; process 0 alone moves folders.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax

from omnihuman_jax.checkpoint import manifest
from omnihuman_jax.checkpoint.folder import CheckpointFolder
from omnihuman_jax.checkpoint.record import CheckpointError
from omnihuman_jax.runtime import exit_codes, processes, storage

logger = logging.getLogger(__name__)

Notify = Callable[[str, dict[str, Any]], None]
"""Called with (kind, details) for what has to be known later."""


def finished(folder: CheckpointFolder) -> list[int]:
    """Steps that were saved to the end; read from disk every time: a list that is kept lies after a failed save."""
    return [step for step in manifest.committed_steps(folder.path) if manifest.is_complete(folder.step(step))]


def newest_whole(folder: CheckpointFolder, notify: Notify, below: int | None = None) -> int | None:
    """The newest step (under `below`) that every process finds whole; those that are not are set aside, with a note.

    Each process looks at its share of the files, and all vote, without a collective. None: there is no checkpoint.

    Raises:
        CheckpointError: there were checkpoints, and none of them is whole.
        RunEnded: storage did not answer, however often it was asked.
    """
    steps = processes.gather(folder.retry(f"looking for checkpoints in {folder}", lambda: _present(folder)))[0]
    for step in reversed([step for step in steps if below is None or step < below]):
        reason = folder.retry(f"checking {folder}/{step}", functools.partial(_damage, folder, step))
        reasons = [why for why in processes.gather(reason) if why]
        if not reasons:
            return int(step)
        reject(folder, step, reasons[0], notify)
    if lost := list(manifest.aside(folder.path)):
        raise CheckpointError(
            f"{folder} has no whole checkpoint left; the damaged ones are in {folder}/{manifest.SET_ASIDE} "
            f"({', '.join(lost)}): restore one from a backup, or remove the run directory to start over"
        )
    return None


def _present(folder: CheckpointFolder) -> list[int]:
    folder.verify()
    return manifest.committed_steps(folder.path)


def _damage(folder: CheckpointFolder, step: int) -> str:
    """`manifest.damage` of this process's share; a folder that goes away meanwhile is no damage."""
    reason = manifest.damage(folder.step(step), jax.process_index(), jax.process_count())
    if reason:
        folder.verify()
    return reason


def reject(folder: CheckpointFolder, step: int, reason: str, notify: Notify) -> None:
    """Sets a step aside, loudly."""
    logger.error("checkpoint %s/%d is set aside, the one before it is next: %s", folder, step, reason)
    # Nobody may still be looking at what moves: it would miss the step, which is a user's error.
    processes.gather(None)

    def move() -> None:
        target = manifest.set_aside(folder.path, step, reason)
        notify("checkpoint_rejected", {"step": step, "reason": reason, "moved_to": str(target)})

    _by_lead(folder, move)


def roll_back(folder: CheckpointFolder, step: int) -> None:
    """Moves the checkpoints of `step` and later out of the way."""

    def move() -> None:
        for later in [later for later in manifest.committed_steps(folder.path) if later >= step]:
            manifest.set_aside(folder.path, later, f"rolled back to before step {step}", under="rolled_back")

    _by_lead(folder, move)


def _by_lead(folder: CheckpointFolder, move: Callable[[], None]) -> None:
    """`move` on process 0; if its storage refuses, all leave for a restart, which looks anew."""
    reason = ""
    if jax.process_index() == 0:
        try:
            move()
        except OSError as error:
            reason = storage.cause(error)
    if reason := processes.gather(reason)[0]:
        raise processes.RunEnded(f"{folder}: a checkpoint could not be moved: {reason}", exit_codes.RETRY)


def remove_old(folder: CheckpointFolder, keep: int, keep_every: int, reach: int = 0) -> None:
    """Deletes all but the newest `keep`, every `keep_every`-th (0: none), and, for a rollback by `reach` steps (0:
    none), the newest of those that are so much older than the last one, and the next, which will be; the first error
    once all were tried.
    """
    errors, steps = [], finished(folder)
    old_enough = sum(step <= steps[-1] - reach for step in steps)
    from_before = steps[max(old_enough - 1, 0) : old_enough + 1] if reach else []
    for old in steps[:-keep]:
        if not (keep_every and old % keep_every == 0) and old not in from_before:
            try:
                folder.step(old).rmtree()
            except OSError as error:
                errors.append(error)
    if errors:
        raise errors[0]
