"""Copies of the training state on each host's own disk: what this process's devices hold, written and read by this
process alone.

DIRECTORY/<identity of the run's checkpoints>/<process>/<step>/ holds `shards.bin`, the bytes of every shard one after
another, and `index.json`: where each begins, its checksum, the run's record and the fingerprints of the whole arrays. A
seal is written last.

Processes whose devices hold the same shards (slices that replicate the state) have the same *layout*. A step is whole
if each layout is held by one process at least; the others of that layout are sent it, over the devices. Nobody reads
another host's disk.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from omnihuman_jax.checkpoint import seals
from omnihuman_jax.runtime import files, processes, storage

logger = logging.getLogger(__name__)

SHARDS, INDEX = "shards.bin", "index.json"
Place = tuple[str, tuple[int, ...], tuple[int, ...]]
"""Name of an array, start and shape of a shard of it."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """A step that all processes can have: its metadata, the folder where this process holds it (None: it is sent it),
    and the layout of every process."""

    step: int
    metadata: dict[str, Any]
    folder: epath.Path | None
    layouts: tuple[str, ...]


def place_of(name: str, index: tuple[slice, ...], shape: tuple[int, ...]) -> Place:
    """The place of the shard that `index` cuts from an array of `shape`."""
    bounds = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
    return name, tuple(start for start, _ in bounds), tuple(stop - start for start, stop in bounds)


def places(flat: Mapping[str, Any]) -> dict[Place, np.dtype]:
    """What the devices of this process hold of arrays, or of abstract ones with shardings."""
    found = {}
    for name, leaf in flat.items():
        for index in leaf.sharding.addressable_devices_indices_map(tuple(leaf.shape)).values():
            found[place_of(name, index, tuple(leaf.shape))] = np.dtype(leaf.dtype)
    return found


def layout_of(wanted: Mapping[Place, np.dtype]) -> str:
    """The same for processes whose devices hold the same shards."""
    return hashlib.sha256(repr(sorted((place, str(dtype)) for place, dtype in wanted.items())).encode()).hexdigest()[
        :16
    ]


def to_host(flat: Mapping[str, jax.Array]) -> dict[Place, np.ndarray]:
    """A copy of every shard of this process, each once; waits for the devices."""
    shards: dict[Place, Any] = {}
    for name, leaf in flat.items():
        for shard in leaf.addressable_shards:
            shards.setdefault(place_of(name, shard.index, leaf.shape), shard.data)
    for data in shards.values():
        data.copy_to_host_async()
    # On CPU the array would be the device's own buffer, which the next step is given.
    own = jax.default_backend() == "cpu"
    return {place: np.array(data) if own else np.asarray(data) for place, data in shards.items()}


def write(folder: epath.Path, shards: Mapping[Place, np.ndarray], metadata: Mapping[str, Any]) -> int:
    """A sealed copy in `folder`, which appears whole; its bytes."""
    temporary = folder.parent / f"{folder.name}{seals.PARTIAL}"
    temporary.mkdir(parents=True, exist_ok=True)
    rows, offset = [], 0
    with open(temporary / SHARDS, "wb") as file:
        for (name, start, shape), array in shards.items():
            data: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            file.write(data)
            rows.append([name, list(start), list(shape), str(array.dtype), offset, zlib.crc32(data)])
            offset += data.nbytes
    (temporary / INDEX).write_text(json.dumps({**metadata, "shards": rows}))
    seals.write(temporary)
    if folder.exists():  # of an attempt whose steps are made again
        _remove(folder)
    files.move_into_place(temporary, folder)
    return offset


def read_index(folder: epath.Path) -> tuple[dict[str, Any], dict[Place, tuple[str, int, int]]]:
    """(metadata, place -> dtype, offset and checksum); ValueError names what is wrong."""
    if reason := seals.damage(folder):
        raise ValueError(reason)
    index = json.loads((folder / INDEX).read_text())
    rows = index.pop("shards")
    return index, {(name, tuple(start), tuple(shape)): (dtype, at, crc) for name, start, shape, dtype, at, crc in rows}


def read(folder: epath.Path, wanted: Mapping[Place, np.dtype]) -> dict[Place, np.ndarray]:
    """The wanted shards; ValueError or OSError names what is wrong."""
    _, rows = read_index(folder)
    found = {}
    with open(folder / SHARDS, "rb") as file:
        for place, dtype in wanted.items():
            _, offset, checksum = rows[place]
            file.seek(offset)
            data: Any = np.fromfile(file, np.uint8, math.prod(place[2]) * dtype.itemsize)
            if zlib.crc32(data) != checksum:
                raise ValueError(f"{place[0]} at {place[1]} has another checksum than was written")
            found[place] = data.view(dtype).reshape(place[2])
    return found


class LocalCopies:
    """The copies of one run on this process's disk; all processes call every method, in the same order.

    Args:
        directory: on this host's disk.
        identity: of the run's checkpoints: copies of another run are none of this one.
        keep: steps that stay.
        notify: called with (kind, details) for what has to be known later.
    """

    def __init__(self, directory: str, identity: str, keep: int, notify: Callable[[str, dict[str, Any]], None]):
        self._run = epath.Path(directory).absolute() / identity
        self._own = self._run / str(jax.process_index())
        self._keep, self._notify = keep, notify
        self._saving: tuple[int, threading.Thread, list[str]] | None = None
        self.layouts: tuple[str, ...] = ()  # of all processes, once `newest` has asked
        reason = ""
        try:
            self._own.mkdir(parents=True, exist_ok=True)
            seals.remove_partial(self._own)
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

    def save(self, flat: Mapping[str, jax.Array], metadata: Mapping[str, Any]) -> None:
        """Returns once the arrays are copied to the host; an earlier copy is waited for. `metadata`: JSON, with
        `step`.
        """
        self.wait()
        step, failed = int(metadata["step"]), []
        shards, text = to_host(flat), json.loads(json.dumps(metadata))

        def run() -> None:
            try:
                write(self._own / str(step), shards, text)
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
                seals.remove_partial(self._own)
            return
        kept = _steps(self._own)[-self._keep :]
        for folder in self._process_folders():
            for old in [old for old in _steps(folder) if kept and old < kept[0]]:
                _remove(folder / str(old))

    def _process_folders(self) -> list[epath.Path]:
        """Of this disk: another process may have been on this host before."""
        try:
            return [entry for entry in self._run.iterdir() if entry.is_dir()]
        except OSError:
            return []

    def newest(self, above: int, flat: Mapping[str, Any]) -> Copy | None:
        """The newest copy above step `above` of arrays like `flat` that the processes hold together.

        One that only some of them hold, so that it cannot be put together, is told loudly.
        """
        wanted = places(flat)
        layout = layout_of(wanted)
        held: dict[int, tuple[epath.Path, dict[str, Any]]] = {}
        lost: dict[int, str] = {}
        for folder in sorted(self._process_folders(), key=lambda folder: folder != self._own, reverse=True):
            for step in [step for step in _steps(folder) if step > above]:
                try:
                    metadata, rows = read_index(folder / str(step))
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
        layouts = self.layouts = tuple(other for other, _, _ in seen)
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

    def restore(self, copy: Copy, flat: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The arrays of a copy, in the shardings of `flat`; ValueError, on all processes, where they cannot be put
        together.
        """
        wanted = places(flat)
        shards: dict[Place, np.ndarray] | None = None
        reason = "" if copy.folder is not None else "it has none"
        if copy.folder is not None:
            try:
                shards = read(copy.folder, wanted)
            except (OSError, ValueError, KeyError, TypeError) as error:
                reason = storage.cause(error)
                logger.error("local copy %s cannot be read: %s", copy.folder, reason)
        reasons = dict(enumerate(processes.gather(reason)))
        bad = {index: why for index, why in reasons.items() if why and why != "it has none"}
        missing = set(copy.layouts) - {copy.layouts[index] for index, why in reasons.items() if not why}
        if bad:
            self._tell(copy.step, bad, "no other process holds the same" if missing else "another process sends it")
        if missing:
            raise ValueError("; ".join(f"process {index}: {why}" for index, why in list(bad.items())[:3]))
        if not any(reasons.values()):
            return {
                name: jax.make_array_from_callback(leaf.shape, leaf.sharding, _reader(name, leaf, shards or {}))
                for name, leaf in flat.items()
            }
        return {name: _send(name, leaf, shards) for name, leaf in flat.items()}

    def forget(self, step: int) -> None:
        """Removes the copies of `step` and later."""
        for folder in self._process_folders():
            for later in [later for later in _steps(folder) if later >= step]:
                _remove(folder / str(later))

    def reject(self, copy: Copy, reason: str) -> None:
        """Takes a copy out of the way: set aside on the disk where it is damaged, removed on others."""
        if copy.folder is not None and not self._is_sound(copy.folder):
            with contextlib.suppress(OSError):
                seals.set_aside(copy.folder.parent, copy.step, reason)
        self.forget(copy.step)

    def _is_sound(self, folder: epath.Path) -> bool:
        try:
            _, rows = read_index(folder)
            read(folder, {place: np.dtype(dtype) for place, (dtype, _, _) in rows.items()})
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return True


def _digest(metadata: Mapping[str, Any]) -> str:
    """The same for copies of the same state; the configs of the processes may name different folders."""
    same = [metadata.get(name) for name in ("step", "fingerprint", "sums")]
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()


def _steps(folder: epath.Path) -> list[int]:
    """The copies in a process's folder; none where the disk does not say."""
    try:
        return seals.committed_steps(folder)
    except OSError:
        return []


def _remove(folder: epath.Path) -> None:
    """A step folder, which stops being one first: a half-deleted one must not look like one that is damaged."""
    try:
        gone = folder.parent / f"{folder.name}.{time.monotonic_ns()}{seals.PARTIAL}"
        folder.rename(gone)
        gone.rmtree()
    except OSError as error:
        logger.warning("%s could not be removed: %s", folder, storage.cause(error))


def _reader(name: str, leaf: Any, shards: Mapping[Place, np.ndarray]) -> Callable[[Any], np.ndarray]:
    return lambda index: shards[place_of(name, index, tuple(leaf.shape))]


def _send(name: str, leaf: Any, shards: Mapping[Place, np.ndarray] | None) -> jax.Array:
    """An array whose shards some of the processes have that hold it: the others give zeros, and the largest bits
    win.
    """
    mesh, spec = leaf.sharding.mesh, tuple(leaf.sharding.spec)
    used = {axis for entry in spec for axis in ((entry,) if isinstance(entry, str) else entry or ())}
    free = tuple(axis for axis in mesh.axis_names if axis not in used)
    ways = math.prod(mesh.shape[axis] for axis in free)
    bits = np.dtype(f"uint{8 * np.dtype(leaf.dtype).itemsize}")
    stacked = NamedSharding(mesh, PartitionSpec(free or None, *spec))

    def piece(index: Any) -> np.ndarray:
        place = place_of(name, index[1:], tuple(leaf.shape))
        if shards is None:
            return np.zeros((1, *place[2]), bits)
        return shards[place].view(bits)[None] if place[2] else shards[place].reshape(1).view(bits)

    apart = jax.make_array_from_callback((ways, *leaf.shape), stacked, piece)

    def join(pieces: jax.Array) -> jax.Array:
        whole = jnp.max(pieces, axis=0)
        return whole.astype(jnp.bool_) if leaf.dtype == jnp.bool_ else lax.bitcast_convert_type(whole, leaf.dtype)

    return jax.jit(join, out_shardings=leaf.sharding)(apart)
