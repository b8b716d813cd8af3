"""Arrays that go to a checkpoint slice by slice: the host holds a few MB of them at a time, whatever their size.

Orbax hands TensorStore all that a device holds of a leaf at once, copied to the host and encoded there; of a stack of
blocks that is several GB. Here each device's part is cut along the chunks that it has on disk, and a few slices are
committed at a time. Files, metadata and names are Orbax's own, made by its own functions: whoever reads the checkpoint
cannot tell.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tensorstore as ts
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src.futures import future
from orbax.checkpoint._src.multihost import multihost
from orbax.checkpoint._src.serialization import (
    jax_array_handlers,
    ocdbt_utils,
    replica_slices,
    tensorstore_utils,
    types,
)
from orbax.checkpoint.experimental.v1._src.serialization import array_leaf_handler, registry

SLICE_BYTES = 1 << 23
COMMIT_BYTES = 1 << 24
"""Written in one transaction, which TensorStore keeps in memory until it commits."""


def use(context: ocp.Context) -> None:
    """Lets `context` save arrays by slices. They are read while the save runs: nobody may donate or delete them."""
    handlers = ocp.handlers.local_registry()
    handlers.add(_TreeHandler)
    context.checkpointables.registry = handlers


class _TreeHandler(ocp.handlers.PyTreeHandler):
    def __init__(self) -> None:
        leaves = registry.BaseLeafHandlerRegistry()
        for leaf, abstract, names, handler in registry.STANDARD_TYPE_AND_ABSTRACT_TYPE_AND_TYPESTR_TO_HANDLER:
            leaves.add(leaf, abstract, _LeafHandler if leaf is jax.Array else handler, secondary_typestrs=names)
        super().__init__(leaf_handler_registry=leaves)


# A checkpoint says by whom it was written, and any Orbax has that one.
_TreeHandler.__module__ = ocp.handlers.PyTreeHandler.__module__
_TreeHandler.__qualname__ = ocp.handlers.PyTreeHandler.__qualname__


class _LeafHandler(array_leaf_handler.ArrayLeafHandler):
    def __init__(self, *, context: Any = None) -> None:
        super().__init__(context=context)
        self._handler_impl.__class__ = _ArrayHandler


class _ArrayHandler(jax_array_handlers.ArrayHandler):
    """Orbax's handler of arrays, but for how their numbers get to the disk."""

    async def serialize(
        self,
        values: Sequence[jax.Array],
        infos: Sequence[types.ParamInfo],
        args: Sequence[types.SaveArgs] | None = None,
    ) -> Sequence[future.Future]:
        assert args is not None and not any(jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key) for value in values)
        shardings = jax_array_handlers._async_serialize_shardings(
            [value.sharding for value in values], infos, primary_host=self._primary_host
        )
        return [
            future.CommitFutureAwaitingContractedSignals(shardings, name="serialize_shardings"),
            future.CommitFutureAwaitingContractedSignals(self._write(values, infos, args), name="array_slices"),
        ]

    async def _write(
        self, values: Sequence[jax.Array], infos: Sequence[types.ParamInfo], args: Sequence[types.SaveArgs]
    ) -> None:
        written, waiting, batch = [], 0, ts.Transaction(atomic=True)
        for value, info, arg in zip(values, infos, args, strict=True):
            await info.await_path_creation()
            mine = replica_slices.get_replica_slices(
                value,
                self._replica_id,
                self._use_replica_parallel,
                self._min_slice_bytes_for_replica_parallel,
                self._max_replicas_for_replica_parallel,
            )
            spec = tensorstore_utils.build_array_write_spec(
                info,
                arg,
                global_shape=mine.global_shape,
                local_shape=mine.local_shape,
                dtype=mine.dtype,
                use_ocdbt=True,
                process_index=ocdbt_utils.get_process_index_for_subdir(True),
            )
            written.append(spec.metadata)
            if multihost.is_primary_host(self._primary_host):
                await ts.open(ts.Spec(spec.json), create=True, open=True, context=info.ts_context, transaction=batch)
            store = await ts.open(ts.Spec(spec.json), open=True, assume_metadata=True, context=info.ts_context)
            for at, numbers in _slices(mine, spec.metadata.chunk_shape):
                await store.with_transaction(batch)[at].write(numbers, can_reference_source_data_indefinitely=True)
                waiting += numbers.nbytes
                if waiting >= COMMIT_BYTES:
                    await batch.commit_async()
                    waiting, batch = 0, ts.Transaction(atomic=True)
        await batch.commit_async()
        if self._array_metadata_store is not None:
            await self._array_metadata_store.write(infos[0].parent_dir, written, multihost.process_index())


def _slices(mine: replica_slices.ReplicaSlices, chunk: Sequence[int]) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """(where it is in the whole array, its numbers) of every slice that this process writes."""
    shape = tuple(mine.local_shape)
    size = _slice_shape(shape, chunk, mine.dtype.itemsize)
    for part in mine.replica_slices:
        inside = [0] * len(shape)
        if part.slice_args is not None:
            inside[part.slice_args.axis] = part.slice_args.start_index
        corner = [at.start or 0 for at in part.index]
        for start in itertools.product(*(range(0, whole, step) for whole, step in zip(shape, size, strict=True))):
            sizes = tuple(min(step, whole - at) for at, step, whole in zip(start, size, shape, strict=True))
            where = tuple(slice(c + at, c + at + n) for c, at, n in zip(corner, start, sizes, strict=True))
            yield (
                where,
                _to_host(part.unsliced_data, [first + at for first, at in zip(inside, start, strict=True)], sizes),
            )


def _slice_shape(shape: tuple[int, ...], chunk: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Whole chunks, as many as `SLICE_BYTES` allow, one at least."""
    size = list(chunk)
    for dim in reversed(range(len(size))):
        room = SLICE_BYTES // max(1, int(np.prod(size)) * itemsize)
        size[dim] = min(shape[dim], size[dim] * max(1, room))
        if size[dim] < shape[dim]:
            break
    return tuple(size)


def _to_host(data: jax.Array, start: Sequence[int], sizes: tuple[int, ...]) -> np.ndarray:
    """A slice of what one device holds."""
    if next(iter(data.devices())).platform == "cpu":
        return np.asarray(data)[tuple(slice(at, at + n) for at, n in zip(start, sizes, strict=True))]  # a view: no copy
    return np.asarray(_cut(data, np.asarray(start, np.int32), sizes))


@functools.partial(jax.jit, static_argnums=2)
def _cut(data: jax.Array, start: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    return jax.lax.dynamic_slice(data, tuple(start), sizes)
