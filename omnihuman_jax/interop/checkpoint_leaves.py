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

BLOCK_BYTES = 1 << 28
"""Layers are read in blocks of about this size, so that a chunk on disk that holds many layers is not decoded for each."""
_KEPT_BLOCKS = 2  # a tensor is joined from at most two leaves


@dataclasses.dataclass(slots=True)
class _Block:
    begin: int
    layers: np.ndarray


class CheckpointLeaves:
    """The leaves of `part` (`params` or `ema`) of the checkpoint of one step, by path; nothing is read before it is asked for."""

    def __init__(self, step_folder: Path | str, part: str, *, block_bytes: int = BLOCK_BYTES):
        folder = epath.Path(step_folder) / part
        metadata = folder / "_METADATA"
        if not metadata.exists():
            raise FileNotFoundError(f"{folder} is no part of a checkpoint: it has no _METADATA")
        stored = json.loads(metadata.read_text())
        if not stored.get("use_ocdbt"):
            raise ValueError(f"{folder} was not written as one OCDBT store; write it again with this package's Orbax")
        self._driver = "zarr3" if stored.get("use_zarr3") else "zarr"
        self._base = str(folder) if "://" in str(folder) else f"file://{Path(folder).absolute()}"
        paths = [tuple(str(key["key"]) for key in entry["key_metadata"]) for entry in stored["tree_metadata"].values()]
        self._arrays = {path: self._open(path) for path in paths}
        self._blocks: OrderedDict[tuple[str, ...], _Block] = OrderedDict()
        self._block_bytes = block_bytes

    def _open(self, path: tuple[str, ...]) -> ts.TensorStore:
        store = {"driver": "ocdbt", "base": self._base, "path": ".".join(path) + "/"}
        return ts.open({"driver": self._driver, "kvstore": store}, open=True, read=True).result()

    @property
    def shapes(self) -> dict[tuple[str, ...], tuple[int, ...]]:
        """The shape of every leaf."""
        return {path: tuple(array.shape) for path, array in self._arrays.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves together."""
        return sum(math.prod(array.shape) * array.dtype.numpy_dtype.itemsize for array in self._arrays.values())

    def read(self, path: tuple[str, ...], layer: int | None) -> np.ndarray:
        """The leaf at `path`, or one layer of it; layers are fastest read in order."""
        array = self._arrays[path]
        if layer is None:
            return array.read().result()
        block = self._blocks.get(path)
        if block is None or not block.begin <= layer < block.begin + len(block.layers):
            self._blocks.pop(path, None)  # room is made before the read, not after it
            while len(self._blocks) >= _KEPT_BLOCKS:
                self._blocks.popitem(last=False)
            layer_bytes = max(1, math.prod(array.shape[1:]) * array.dtype.numpy_dtype.itemsize)
            end = min(array.shape[0], layer + max(1, self._block_bytes // layer_bytes))
            block = _Block(layer, array[layer:end].read().result())
            self._blocks[path] = block
        return block.layers[layer - block.begin]
