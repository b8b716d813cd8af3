"""One part of an Orbax checkpoint, read leaf by leaf and layer by layer: a model larger than the host streams through.

Orbax restores whole leaves, and a stacked leaf of a large model is several GB. What lies on disk are zarr arrays in one
OCDBT store, so TensorStore (which Orbax itself reads with) can read any slice of them.
"""

import dataclasses
import json
import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import tensorstore as ts
from etils import epath

from omnihuman_jax.runtime import locations

_KEPT_BLOCKS = 2  # a tensor is joined from at most two leaves
# One chunk is read and decoded at a time, and none is kept: what TensorStore holds beside the result is a chunk or two.
_CONTEXT = {
    "cache_pool": {"total_bytes_limit": 0},
    "data_copy_concurrency": {"limit": 1},
    "file_io_concurrency": {"limit": 1},
}


@dataclasses.dataclass(slots=True)
class _Block:
    begin: int
    layers: np.ndarray


class CheckpointLeaves:
    """The leaves of `part` (`params` or `ema`) of the checkpoint of one step, by path; nothing is read before it is
    asked for.
    """

    def __init__(self, step_folder: Path | str, part: str):
        folder = epath.Path(step_folder) / part
        metadata = folder / "_METADATA"
        if not metadata.exists():
            raise FileNotFoundError(f"{folder} is not a part of a checkpoint: it has no _METADATA")
        stored = json.loads(metadata.read_text())
        if not stored.get("use_ocdbt"):
            raise ValueError(f"{folder} was not written as one OCDBT store; write it again with this package's Orbax")
        self._driver = "zarr3" if stored.get("use_zarr3") else "zarr"
        # As a driver's spec, not as a URL, in which `#`, `?` and `%` would mean something else.
        remote = locations.is_remote(folder)
        self._base = str(folder) if remote else {"driver": "file", "path": f"{Path(folder).absolute()}/"}
        self._context = ts.Context(_CONTEXT)
        paths = [tuple(str(key["key"]) for key in entry["key_metadata"]) for entry in stored["tree_metadata"].values()]
        self._arrays = {path: self._open(path) for path in paths}
        self._blocks: OrderedDict[tuple[str, ...], _Block] = OrderedDict()

    def _open(self, path: tuple[str, ...]) -> ts.TensorStore:
        store = {"driver": "ocdbt", "base": self._base, "path": ".".join(path) + "/"}
        return ts.open({"driver": self._driver, "kvstore": store}, open=True, read=True, context=self._context).result()

    @property
    def shapes(self) -> dict[tuple[str, ...], tuple[int, ...]]:
        """The shape of every leaf."""
        return {path: tuple(array.shape) for path, array in self._arrays.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves together."""
        return sum(math.prod(array.shape) * array.dtype.numpy_dtype.itemsize for array in self._arrays.values())

    def read(self, path: tuple[str, ...], layer: int | None) -> np.ndarray:
        """The leaf at `path`, or one layer of it; layers are fastest read in order.

        Chunks that hold several layers (as checkpoints have them that were written before `training.checkpoint_parts`
        kept chunks within a layer) are decoded once for all of their layers, which then stay until the next ones are
        asked for.
        """
        array = self._arrays[path]
        if layer is None:
            return _read_by_chunks(array)
        layers = _chunk(array)[0]
        if layers == 1:
            return _read_by_chunks(array[layer])
        block = self._blocks.get(path)
        if block is None or not block.begin <= layer < block.begin + len(block.layers):
            self._blocks.pop(path, None)  # room is made before the read, not after it
            while len(self._blocks) >= _KEPT_BLOCKS:
                self._blocks.popitem(last=False)
            begin = layer - layer % layers
            block = _Block(begin, _read_by_chunks(array[begin : min(begin + layers, array.shape[0])]))
            self._blocks[path] = block
        return block.layers[layer - block.begin]


def _read_by_chunks(view: ts.TensorStore) -> np.ndarray:
    """`view`, one row of chunks after the other along the dim that has most of them, so that few are in memory at
    once.
    """
    chunk = _chunk(view)
    counts = [-(-dim // size) for size, dim in zip(chunk, view.shape)]
    if not counts or max(counts) == 1:
        return view.read().result()
    values = np.empty(view.shape, view.dtype.numpy_dtype)
    dim = counts.index(max(counts))
    origin = view.domain.inclusive_min
    for begin in range(0, view.shape[dim], chunk[dim]):
        end = min(begin + chunk[dim], view.shape[dim])
        at = (slice(None),) * dim
        values[(*at, slice(begin, end))] = view[(*at, slice(origin[dim] + begin, origin[dim] + end))].read().result()
    return values


def _chunk(view: ts.TensorStore) -> list[int]:
    """What is decoded at once, in rows of each dim of `view`."""
    return [max(1, size or dim) for size, dim in zip(view.chunk_layout.read_chunk.shape or view.shape, view.shape)]
