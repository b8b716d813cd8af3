"""Safetensors folders, written and read one tensor at a time.

The format (huggingface/safetensors): 8 bytes little-endian header length, a JSON header {name: {dtype, shape,
data_offsets}}, the raw little-endian C-order bytes. Everything in a header is known before the first tensor is read, so
a model that does not fit on the host streams through: the peak is one tensor.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import fsspec.core
import ml_dtypes
import numpy as np

from omnihuman_jax.runtime import files, locations
from omnihuman_jax.runtime.locations import Location
from omnihuman_jax.serving.folders_omnihuman import PICKLES, read_weight_map

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
_HEADER_LIMIT_BYTES = 100_000_000  # the reference implementation's limit
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
    size = files.num_bytes(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_HEADER_LIMIT_BYTES, size - 8):
            raise ValueError(f"{path} is no safetensors file or is cut short ({size} bytes); fetch it again")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            infos = {name: _tensor_info(path, name, entry, 8 + length) for name, entry in header.items()}
        except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: its safetensors header cannot be read ({error!r}); fetch it again") from error
    for info in infos.values():
        if info.offset + math.prod(info.shape) * info.dtype.itemsize > size:
            raise ValueError(f"{path}: {info.name} ends after the file does ({size} bytes): cut short; fetch it again")
    return infos


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

    `stem` picks one of several models in a folder. Pickled weights are refused, since loading one runs its code.
    """
    if files.is_incomplete(folder):
        raise FileNotFoundError(f"{folder}: an export that was cut short; remove it, and export again")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give the one that holds the .safetensors files")
    pattern = f"{stem}.safetensors" if stem else "*.safetensors"
    indices = sorted(folder.glob(pattern + ".index.json"))
    if len(indices) > 1:
        raise ValueError(f"{folder} holds several models ({', '.join(p.name for p in indices)}); name one")
    if indices:
        weight_map = read_weight_map(indices[0])
        shards = [folder / name for name in sorted(set(weight_map.values()))]
        if missing := [path.name for path in shards if not path.is_file()]:
            raise FileNotFoundError(f"{indices[0]} names files that are not there: {', '.join(missing)}")
        tensors = _merge(shards)
        if missing := sorted(set(weight_map) - set(tensors)):
            raise ValueError(
                f"{indices[0]} names {len(missing)} tensors that its files do not hold: {', '.join(missing[:8])}"
            )
        return tensors
    found = sorted(folder.glob(pattern))
    if not found:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        cure = (
            f"; {', '.join(pickles)} are pickles, which run code when loaded: convert once with the library that wrote"
            " them (diffusers, transformers): MODEL_CLASS.from_pretrained(DIR).save_pretrained(OUT,"
            " safe_serialization=True)"
            if pickles
            else ""
        )
        raise FileNotFoundError(f"{folder} holds no {pattern}{cure}")
    return _merge(found)


def _merge(paths: Sequence[Location]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for path in paths:
        for name, info in read_header(path).items():
            if name in tensors:
                raise ValueError(
                    f"{name} is in both {tensors[name].path.name} and {path.name} of {path.parent}; remove "
                    "one of the files"
                )
            tensors[name] = info
    return tensors


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
