"""Copies of the training state on each host's own disk: what this process's devices hold, written and read by this
process alone. They are the near tier of checkpoints: a crash or a preemption that leaves the hosts' disks as they are
costs the steps since the last copy at most.

DIRECTORY/<identity of the run's checkpoints>/<process>/<step>/ is a folder of `shards`, with the run's record and the
fingerprints of the whole arrays.

Processes whose devices hold the same shards (slices that replicate the state) have the same *layout*. A step is whole
if each layout is held by one process at least; the others of that layout are sent it, over the devices. Nobody reads
another host's disk.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from omnihuman_jax.checkpoint import fingerprint, manifest, shards
from omnihuman_jax.checkpoint.parts import State, StateT, assemble_state, flatten, parts_of
from omnihuman_jax.checkpoint.record import DamagedError, RunRecord
from omnihuman_jax.checkpoint.step_folders import Notify
from omnihuman_jax.runtime import processes, storage

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """A step that all processes can have: its metadata, the folder where this process holds it (None: it is sent it),
    and the layout of every process."""

    step: int
    metadata: dict[str, Any]
    folder: epath.Path | None
    layouts: tuple[str, ...]

    @property
    def record(self) -> RunRecord:
        """What it says about the run that wrote it."""
        return RunRecord.from_json(self.metadata)


class LocalCopies:
    """The copies of one run on this process's disk; all processes call every method, in the same order.

    Args:
        directory: on this host's disk.
        identity: of the run's checkpoints: copies of another run are none of this one.
        interval: of steps between two copies.
        keep: steps that stay.
        notify: called with (kind, details) for what has to be known later.
    """

    def __init__(self, directory: str, identity: str, *, interval: int, keep: int, notify: Notify):
        self._run = epath.Path(directory).absolute() / identity
        self._own = self._run / str(jax.process_index())
        self._interval, self._keep, self._notify = interval, keep, notify
        self._saving: tuple[int, threading.Thread, list[str]] | None = None
        reason = ""
        try:
            self._own.mkdir(parents=True, exist_ok=True)
            manifest.remove_partial(self._own)
        except OSError as error:
            reason = storage.cause(error)
        answers = processes.gather(reason)
        reasons = [f"process {index}: {why}" for index, why in enumerate(answers) if why]
        if all(answers):
            raise ValueError(f"checkpoint.local_directory {directory} cannot be written to: {'; '.join(reasons[:3])}")
        if reasons:  # a disk that is broken on one host stops no run
            logger.error(
                "%s cannot be written to: %s; there will be no local copies", directory, "; ".join(reasons[:8])
            )
            notify("local_disk_unusable", {"reasons": reasons[:8]})

    def due(self, step: int) -> bool:
        """Whether `save` has to be called with the state of a step."""
        return step % self._interval == 0

    def save(self, state: State, record: RunRecord) -> None:
        """Returns once the arrays are copied to the host; an earlier copy is waited for."""
        flat = flatten(parts_of(state))
        metadata = json.loads(json.dumps(record.to_json() | {"sums": fingerprint.sums(flat)}))
        self.wait()
        step, failed = record.step, []
        held = shards.to_host(flat)

        def run() -> None:
            try:
                shards.write(self._own / str(step), held, metadata)
            except Exception as error:
                failed.append(storage.cause(error))

        thread = threading.Thread(target=run, name=f"omnihuman-local-save-{step}", daemon=True)
        thread.start()
        self._saving = step, thread, failed

    def wait(self) -> None:
        """Until the copy in progress is whole on all processes, which makes room, or has failed, which costs this copy
        only.
        """
        if self._saving is None:
            return
        step, thread, failed = self._saving
        self._saving = None
        thread.join()
        reasons = [f"process {index}: {why[0]}" for index, why in enumerate(processes.gather(failed)) if why]
        if reasons:
            logger.error("the local copy of step %d was NOT made (%s); the run goes on", step, reasons[0])
            self._notify("local_save_failed", {"step": step, "reasons": reasons[:8]})
            self.forget(step)
            with contextlib.suppress(OSError):
                manifest.remove_partial(self._own)
            return
        kept = _steps(self._own)[-self._keep :]
        for folder in self._process_folders():
            for old in [old for old in _steps(folder) if kept and old < kept[0]]:
                shards.remove(folder / str(old))

    def _process_folders(self) -> list[epath.Path]:
        """Of this disk: another process may have been on this host before."""
        try:
            return [entry for entry in self._run.iterdir() if entry.is_dir()]
        except OSError:
            return []

    def newest(self, abstract: State, above: int) -> Copy | None:
        """The newest copy above step `above` of a state like `abstract` that the processes hold together.

        One that only some of them hold, so that it cannot be put together, is told loudly.
        """
        wanted = shards.places(flatten(parts_of(abstract)))
        layout = shards.layout_of(wanted)
        held: dict[int, tuple[epath.Path, dict[str, Any]]] = {}
        lost: dict[int, str] = {}
        for folder in sorted(self._process_folders(), key=lambda folder: folder != self._own, reverse=True):
            for step in [step for step in _steps(folder) if step > above]:
                try:
                    metadata, rows = shards.read_index(folder / str(step))
                except (OSError, ValueError, KeyError, TypeError) as error:
                    lost[step] = storage.cause(error)
                    continue
                if all(rows.get(place, ("",))[0] == str(dtype) for place, dtype in wanted.items()):
                    held[step] = folder / str(step), metadata
                else:
                    lost.setdefault(step, "it holds other shards: another mesh, or another number of processes")
        digests = {step: _digest(metadata) for step, (_, metadata) in held.items()}
        seen = processes.gather(
            [layout, [[step, digests[step]] for step in held], [[step, why] for step, why in lost.items()]]
        )
        layouts = tuple(other for other, _, _ in seen)
        _warn_of_lone_shards(layouts)
        for step in sorted({step for _, steps, bad in seen for step, _ in (*steps, *bad)}, reverse=True):
            holders = {index: dict(steps)[step] for index, (_, steps, _) in enumerate(seen) if step in dict(steps)}
            first = next(iter(holders.values()), "")
            agreed = {index for index, digest in holders.items() if digest == first}
            missing = sorted(set(layouts) - {layouts[index] for index in agreed})
            without = [index for index in range(len(seen)) if index not in agreed]
            why = {index: dict(seen[index][2]).get(step, "it has none") for index in without}
            if without:
                self._tell(step, why, "no other process holds the same" if missing else "another process sends it")
            if missing:
                continue
            folder, metadata = held[step] if jax.process_index() in agreed else (None, {})
            if without:
                metadata = processes.gather(metadata if jax.process_index() == min(agreed) else None)[min(agreed)]
            return Copy(step=step, metadata=metadata, folder=folder, layouts=layouts)
        return None

    def _tell(self, step: int, why: Mapping[int, str], result: str) -> None:
        reasons = [f"process {index}: {reason}" for index, reason in list(why.items())[:8]]
        logger.warning("the local copy of step %d is not whole (%s): %s", step, "; ".join(reasons), result)
        self._notify("local_copy_lost", {"step": step, "reasons": reasons, "result": result})

    def restore(self, copy: Copy, abstract: StateT) -> StateT:
        """The state of a copy, in the shardings of `abstract`; DamagedError, on all processes, where its shards cannot
        be put together, or are not what was written.
        """
        flat = flatten(parts_of(abstract))
        loaded = self._arrays(copy, flat)
        written = copy.metadata["sums"]
        if changed := [name for name, value in fingerprint.sums(loaded).items() if written.get(name) != value]:
            raise DamagedError(
                f"the local copy of step {copy.step} has changed since it was written: {len(changed)} arrays have"
                f" another fingerprint, {changed[0]} is the first"
            )
        tree = jax.tree.unflatten(jax.tree.structure(parts_of(abstract)), [loaded[name] for name in flat])
        return assemble_state(tree, abstract)

    def _arrays(self, copy: Copy, flat: Mapping[str, Any]) -> dict[str, jax.Array]:
        wanted = shards.places(flat)
        held: dict[shards.Place, np.ndarray] | None = None
        reason = "" if copy.folder is not None else "it has none"
        if copy.folder is not None:
            try:
                held = shards.read(copy.folder, wanted)
            except (OSError, ValueError, KeyError, TypeError) as error:
                reason = storage.cause(error)
                logger.error("local copy %s cannot be read: %s", copy.folder, reason)
        reasons = dict(enumerate(processes.gather(reason)))
        bad = {index: why for index, why in reasons.items() if why and why != "it has none"}
        missing = set(copy.layouts) - {copy.layouts[index] for index, why in reasons.items() if not why}
        if bad:
            self._tell(copy.step, bad, "no other process holds the same" if missing else "another process sends it")
        if missing:
            why = "; ".join(f"process {index}: {why}" for index, why in list(bad.items())[:3])
            raise DamagedError(f"the local copy of step {copy.step} cannot be read: {why}")
        return shards.to_devices(flat, held, sent=any(reasons.values()))

    def forget(self, step: int) -> None:
        """Removes the copies of `step` and later."""
        for folder in self._process_folders():
            for later in [later for later in _steps(folder) if later >= step]:
                shards.remove(folder / str(later))

    def reject(self, copy: Copy, reason: str) -> None:
        """Takes a copy out of the way, loudly: set aside on the disk where it is damaged, removed on others."""
        logger.error(
            "the local copy of step %d is given up, the newest step that is whole is next: %s", copy.step, reason
        )
        self._notify("local_copy_rejected", {"step": copy.step, "reason": reason})
        if copy.folder is not None and not self._is_sound(copy.folder):
            with contextlib.suppress(OSError):
                manifest.set_aside(copy.folder.parent, copy.step, reason)
        self.forget(copy.step)

    def _is_sound(self, folder: epath.Path) -> bool:
        try:
            _, rows = shards.read_index(folder)
            shards.read(folder, {place: np.dtype(dtype) for place, (dtype, _, _) in rows.items()})
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return True


def _warn_of_lone_shards(layouts: Sequence[str]) -> None:
    alone = [layouts.count(layout) == 1 for layout in layouts]
    if len(layouts) > 1 and any(alone):
        logger.warning(
            "%d of %d processes hold shards that no other holds: with one of their disks a local step is lost; "
            "mesh.data or mesh.dcn_data of 2 or more, across hosts, would keep a second copy",
            sum(alone), len(alone),
        )  # fmt: skip


def _digest(metadata: Mapping[str, Any]) -> str:
    """The same for copies of the same state; the configs of the processes may name different folders."""
    same = [metadata.get(name) for name in ("step", "fingerprint", "sums")]
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()


def _steps(folder: epath.Path) -> list[int]:
    """The copies in a process's folder; none where the disk does not say."""
    try:
        return manifest.committed_steps(folder)
    except OSError:
        return []
