"""Safetensors folders, written and read one tensor at a time.

The format (huggingface/safetensors): 8 bytes little-endian header length, a JSON header {name: {dtype, shape,
data_offsets}}, the raw little-endian C-order bytes. Everything in a header is known before the first tensor is read, so
a model that does not fit on the host streams through: the peak is one tensor.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import fsspec.core
import ml_dtypes
import numpy as np

from omnihuman_jax.runtime import folders, locations
from omnihuman_jax.runtime.locations import Location
from omnihuman_jax.serving import folders_omnihuman
from omnihuman_jax.serving.folders_omnihuman import PICKLES, shard_files

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
ROW_BLOCK_BYTES = 1 << 21  # what is transposed, rounded and written at a time
DEFAULT_MAX_SHARD_BYTES = 5_000_000_000  # Hugging Face's own default


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TensorSource:
    """A tensor to be written: what its header says, and how to get it when its turn comes.

    `parts` gives the arrays that lie side by side along its last dim, in any order of their bytes in memory; numbers
    are rounded to `dtype` (to nearest, ties to even) if `rounds`, and must be of it if not.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    parts: Callable[[], Sequence[np.ndarray]]
    rounds: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def row_blocks(self, block_bytes: int = ROW_BLOCK_BYTES) -> Iterator[np.ndarray]:
        """The tensor, rows after rows, as contiguous arrays of about `block_bytes`: with what `parts` gave, the
        peak.
        """
        parts = self.parts()
        for part in parts:
            if part.dtype != self.dtype and not self.rounds:
                raise ValueError(f"{self.name}: {part.dtype} was read, {self.dtype} was announced")
        joined = (*parts[0].shape[:-1], sum(part.shape[-1] for part in parts)) if len(parts) > 1 else parts[0].shape
        if math.prod(joined) != math.prod(self.shape):
            raise ValueError(f"{self.name}: {list(joined)} was read, {list(self.shape)} was announced")
        if parts[0].ndim == 0:
            yield parts[0].astype(self.dtype).reshape(self.shape)
            return
        rows = max(1, block_bytes // max(1, self.nbytes // max(1, len(parts[0]))))
        for begin in range(0, len(parts[0]), rows):
            block = np.empty((min(rows, len(parts[0]) - begin), *joined[1:]), self.dtype)
            end = 0
            for part in parts:  # straight into place: no copy is made of a whole part
                block[..., end : end + part.shape[-1]] = part[begin : begin + len(block)]
                end += part.shape[-1]
            yield block

    def read(self) -> np.ndarray:
        """The tensor at once."""
        blocks = list(self.row_blocks(max(1, self.nbytes)))
        return blocks[0].reshape(self.shape) if blocks else np.zeros(self.shape, self.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """A tensor in a file: `offset` is absolute, in bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    path: Location
    offset: int


def plan_shards(sources: Sequence[TensorSource], max_shard_bytes: int) -> list[list[TensorSource]]:
    """`sources`, in their order, cut into shards of at most `max_shard_bytes` (a larger tensor is a shard alone)."""
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes is {max_shard_bytes}; at least 1 is needed")
    shards: list[list[TensorSource]] = [[]]
    size = 0
    for source in sources:
        if shards[-1] and size + source.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(source)
        size += source.nbytes
    return shards


def write_file(path: Location, sources: Sequence[TensorSource], metadata: Mapping[str, str] | None = None) -> None:
    """One safetensors file, tensor after tensor; flushed to disk when it returns."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for source in sources:
        if source.dtype not in _CODES:
            raise ValueError(f"{source.name}: safetensors has no {source.dtype}; it has {', '.join(map(str, _CODES))}")
        if source.name in header:
            raise ValueError(f"{source.name} is given twice")
        header[source.name] = {
            "dtype": _CODES[source.dtype],
            "shape": list(source.shape),
            "data_offsets": [offset, offset + source.nbytes],
        }
        offset += source.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts on a multiple of 8 bytes, so that it can be mapped
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for source in sources:
            for block in source.row_blocks():
                if block.nbytes:
                    file.write(block.reshape(-1).view(np.uint8).data)
        if not locations.is_remote(path):
            file.flush()
            os.fsync(file.fileno())


def write_folder(
    folder: Location,
    sources: Sequence[TensorSource],
    *,
    stem: str = "model",
    max_shard_bytes: int = DEFAULT_MAX_SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> list[Location]:
    """`sources` in Hugging Face's layout: `stem.safetensors`, or numbered shards and `stem.safetensors.index.json`.

    `progress` is called with the size in bytes of each tensor that has been read. Returns the files written.
    """

    def counted(source: TensorSource) -> TensorSource:
        def parts() -> Sequence[np.ndarray]:
            arrays = source.parts()
            progress(source.nbytes)
            return arrays

        return dataclasses.replace(source, parts=parts)

    shards = plan_shards([counted(source) for source in sources], max_shard_bytes)
    if len(shards) == 1:
        path = folder / f"{stem}.safetensors"
        write_file(path, shards[0], metadata)
        return [path]
    paths = [folder / f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for path, shard in zip(paths, shards):
        write_file(path, shard, metadata)
    index = {
        "metadata": {"total_size": sum(source.nbytes for source in sources)},
        "weight_map": {source.name: path.name for path, shard in zip(paths, shards) for source in shard},
    }
    index_path = folder / f"{stem}.safetensors.index.json"
    index_path.write_text(json.dumps(index, indent=2) + "\n")
    return [*paths, index_path]


def read_header(path: Location) -> dict[str, TensorInfo]:
    """What a safetensors file holds, by name; ValueError on a truncated or malformed file."""
    _, entries = folders_omnihuman.read_header(path)
    with path.open("rb") as file:
        data_start = 8 + int.from_bytes(file.read(8), "little")
    try:
        return {name: _tensor_info(path, name, entry, data_start) for name, entry in entries.items()}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: its safetensors header cannot be read ({error!r}); fetch it again") from error


def _tensor_info(path: Location, name: str, entry: Mapping, data_start: int) -> TensorInfo:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{path}: {name} has dtype {entry['dtype']}; known are {', '.join(DTYPES)}")
    shape, dtype = tuple(int(dim) for dim in entry["shape"]), DTYPES[entry["dtype"]]
    begin, end = entry["data_offsets"]
    if begin < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{path}: {name} {shape} {dtype} does not take {end - begin} bytes; fetch the file again")
    return TensorInfo(name=name, shape=shape, dtype=dtype, path=path, offset=data_start + begin)


def open_folder(folder: Location, stem: str | None = None) -> dict[str, TensorInfo]:
    """Every tensor of a Hugging Face-layout folder (one file, or shards with an index), by name; reads headers only.

    `stem` picks one of several models in a folder. Pickled weights are refused, since loading one runs its code. What
    is not one whole model is refused too, with the file (`folders_omnihuman.shard_files`).
    """
    if folders.is_incomplete(folder):
        raise FileNotFoundError(f"{folder}: an export that was cut short; remove it, and export again")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give the one that holds the .safetensors files")
    stems = [stem] if stem else _stems(folder)
    if len(stems) > 1:
        raise ValueError(f"{folder} holds several models ({', '.join(stems)}); name one")
    if not stems or not any(path.name.startswith(stems[0]) and _is_weights(path) for path in folder.iterdir()):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        cure = (
            f"; {', '.join(pickles)} are pickles, which run code when loaded: convert once with the library that wrote"
            " them (diffusers, transformers): MODEL_CLASS.from_pretrained(DIR).save_pretrained(OUT,"
            " safe_serialization=True)"
            if pickles
            else ""
        )
        raise FileNotFoundError(f"{folder} holds no {stem or '*'}.safetensors{cure}")
    return {name: info for path in shard_files(folder, stems[0]) for name, info in read_header(path).items()}


def _is_weights(path: Location) -> bool:
    return path.name.endswith((".safetensors", ".safetensors.index.json"))


def _stems(folder: Location) -> list[str]:
    """Names of the models in a folder: what comes before `.safetensors`, or before a shard's number."""
    names = (path.name.partition(".safetensors")[0] for path in folder.iterdir() if _is_weights(path))
    return sorted({re.sub(r"-\d+-of-\d+$", "", name) for name in names})


def read_tensor(info: TensorInfo) -> np.ndarray:
    """The tensor as a read-only view of its file: pages come in as they are touched, and can go again. Out of a bucket
    it is one request.
    """
    nbytes = math.prod(info.shape) * info.dtype.itemsize
    if nbytes == 0:
        return np.zeros(info.shape, info.dtype)
    if locations.is_remote(info.path):
        return np.frombuffer(_range_of(info.path, info.offset, nbytes), info.dtype).reshape(info.shape)
    data = np.memmap(info.path, np.uint8, "r", info.offset, (nbytes,))
    return np.asarray(data).view(info.dtype).reshape(info.shape)


def _range_of(path: Location, offset: int, nbytes: int) -> bytes:
    """Bytes [offset, offset + nbytes) of an object; ValueError if fewer came."""
    system, name = fsspec.core.url_to_fs(str(path))
    data: bytes = system.cat_file(name, start=offset, end=offset + nbytes)
    if len(data) != nbytes:
        raise ValueError(f"{path}: {len(data)} of {nbytes} bytes at {offset} were read; try again")
    return data
