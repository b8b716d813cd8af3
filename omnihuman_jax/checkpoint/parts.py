"""What of a state a checkpoint holds, by name, and how Orbax stores it."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

MIN_CHUNK_BYTES, MAX_CHUNK_BYTES = 1 << 20, 1 << 22
FILE_BYTES = 1 << 28


class State(Protocol):
    """What can be saved: a named tuple with these fields (`training.train_state.TrainState`)."""

    @property
    def params(self) -> Any: ...
    @property
    def ema(self) -> Any: ...
    @property
    def opt_state(self) -> Any: ...
    @property
    def step(self) -> Any: ...
    @property
    def counters(self) -> Any: ...
    @property
    def _replace(self) -> Callable[..., Any]: ...


StateT = TypeVar("StateT", bound=State)


def context_for(directory: Path | str) -> ocp.Context:
    """Orbax's settings for a folder or bucket of checkpoints."""
    context = ocp.Context()
    # Explicit: AUTO decides by path, and a bucket mounted as a folder would then list half-written steps as good ones.
    remote = "://" in str(directory)
    context.atomicity.mode = (
        ocp.options.AtomicityMode.COMMIT_FILE if remote else ocp.options.AtomicityMode.ATOMIC_RENAME
    )
    # Replicas share the writing of large leaves; for small ones Orbax would compile a slicing program a shape, for
    # seconds.
    context.array.saving.min_slice_bytes_for_replica_parallel = 1 << 20
    context.array.saving.use_compression = False
    context.array.saving.scoped_storage_options_creator = _storage
    # In one file of up to 2 GB, which is Orbax's own, nothing is written at the same time.
    context.array.saving.ocdbt_target_data_file_size = FILE_BYTES
    return context


def _storage(path: Any, leaf: Any) -> ocp.options.ArrayOptions.Saving.StorageOptions | None:
    """Chunks of stacked blocks hold an eighth of a layer, or what lies between 1 and 4 MB if that is nearer; others up
    to 4 MB.

    Orbax's own chunk is all that a device holds of a leaf, several GB for a large model's stack: `omnihuman export`
    reads layer by layer, and could not without decoding all of them.
    """
    if leaf.ndim < 2 or leaf.nbytes <= MIN_CHUNK_BYTES:
        return None
    if "blocks" not in jax.tree_util.keystr(path):
        return ocp.options.ArrayOptions.Saving.StorageOptions(chunk_byte_size=MAX_CHUNK_BYTES)
    chunk = min(max(leaf.nbytes // leaf.shape[0] // 8, MIN_CHUNK_BYTES), MAX_CHUNK_BYTES)
    return ocp.options.ArrayOptions.Saving.StorageOptions(chunk_byte_size=chunk, shard_axes=(0,))


def parts_of(state: State) -> dict[str, Any]:
    """The parts that can be read alone."""
    return {
        "params": state.params,
        "ema": state.ema,
        "optimizer": flatten(state.opt_state),
        "progress": {"step": state.step, "counters": flatten(state.counters)},
    }


def assemble_state(parts: Mapping[str, Any], like: StateT) -> StateT:
    """The inverse of `parts_of`, with the tree of `like`."""
    state: StateT = like._replace(
        params=parts["params"],
        opt_state=_refill(like.opt_state, parts["optimizer"]),
        ema=parts["ema"],
        step=parts["progress"]["step"],
        counters=_refill(like.counters, parts["progress"]["counters"]),
    )
    return state


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves by path: optax's nested tuples would tie a checkpoint to optax's own classes."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def _refill(like: Any, flat: Mapping[str, Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in flatten(like)])


def mismatches(part: str, stored: Any, wanted: Any) -> list[str]:
    """Lines about leaves that are missing, unknown, or of another shape or dtype."""
    have, want = flatten(stored), flatten(wanted)
    lines = [f"{part}/{name} is missing" for name in want if name not in have]
    lines += [f"{part}/{name} is unknown" for name in have if name not in want]
    for name in want.keys() & have.keys():
        shape, dtype = tuple(have[name].shape), np.dtype(have[name].dtype)
        if shape != tuple(want[name].shape) or dtype != np.dtype(want[name].dtype):
            lines.append(
                f"{part}/{name} is {dtype}{list(shape)}, wanted {np.dtype(want[name].dtype)}{list(want[name].shape)}"
            )
    return sorted(lines)


def size_bytes(abstract: Any) -> int:
    """Bytes of a tree's arrays, as a checkpoint of it takes on disk uncompressed."""
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(abstract))
