"""What the devices of one process hold, as a folder on its own disk, and as arrays again.

A folder has `shards.bin`, the bytes of every shard one after another, and `index.json`: where each begins, its
checksum, and whatever the writer has to say. A manifest is written last.
"""

import hashlib
import json
import logging
import math
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

from omnihuman_jax.checkpoint import manifest
from omnihuman_jax.runtime import files, storage

logger = logging.getLogger(__name__)

SHARDS, INDEX = "shards.bin", "index.json"
Place = tuple[str, tuple[int, ...], tuple[int, ...]]
"""Name of an array, start and shape of a shard of it."""


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
    """A copy, with a manifest, in `folder`, which appears whole; its bytes."""
    temporary = folder.parent / f"{folder.name}{manifest.PARTIAL}"
    temporary.mkdir(parents=True, exist_ok=True)
    rows, offset = [], 0
    with open(temporary / SHARDS, "wb") as file:
        for (name, start, shape), array in shards.items():
            data: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            file.write(data)
            rows.append([name, list(start), list(shape), str(array.dtype), offset, zlib.crc32(data)])
            offset += data.nbytes
    (temporary / INDEX).write_text(json.dumps({**metadata, "shards": rows}))
    manifest.write(temporary)
    if folder.exists():  # of an attempt whose steps are made again
        remove(folder)
    files.move_into_place(temporary, folder)
    return offset


def read_index(folder: epath.Path) -> tuple[dict[str, Any], dict[Place, tuple[str, int, int]]]:
    """(metadata, place -> dtype, offset and checksum); ValueError names what is wrong."""
    if reason := manifest.damage(folder):
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


def remove(folder: epath.Path) -> None:
    """A step folder, which stops being one first: a half-deleted one must not look like one that is damaged."""
    try:
        gone = folder.parent / f"{folder.name}.{time.monotonic_ns()}{manifest.PARTIAL}"
        folder.rename(gone)
        gone.rmtree()
    except OSError as error:
        logger.warning("%s could not be removed: %s", folder, storage.cause(error))


def to_devices(
    flat: Mapping[str, Any], shards: Mapping[Place, np.ndarray] | None, *, sent: bool
) -> dict[str, jax.Array]:
    """The arrays of which this process has `shards` (None: it has none), in the shardings of `flat`.

    `sent`: some process has none, and is sent them by those that hold the same; then all call this.
    """
    if sent:
        return {name: _send(name, leaf, shards) for name, leaf in flat.items()}
    return {
        name: jax.make_array_from_callback(leaf.shape, leaf.sharding, _piece_of(name, leaf, shards or {}))
        for name, leaf in flat.items()
    }


def _piece_of(name: str, leaf: Any, shards: Mapping[Place, np.ndarray]) -> Callable[[Any], np.ndarray]:
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
