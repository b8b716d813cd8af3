"""The pipeline: the plan's batches, read, packed and delivered ahead of time. Its only state is the step.

Grain maps step -> this host's share of the batch by random access, on read threads; no worker processes, which are
slower for cached features. Row r of the global batch belongs to host r // (B / hosts), on any number of hosts the same
rows.
"""

import collections
import dataclasses
import logging
from collections.abc import Iterator, Mapping

import grain
import numpy as np

from omnihuman_jax.conditions import Condition
from omnihuman_jax.data.joined_catalog import JoinedCatalog
from omnihuman_jax.data.joined_records import JoinedRecords, Records
from omnihuman_jax.data.packing import PackInput, empty_batch, neighbours_of, pack_sequence
from omnihuman_jax.data.plan import PlacedWindow, Plan
from omnihuman_jax.data.records import DatasetSpec, WindowRecord
from omnihuman_jax.typing import PackedBatch, PackedShape

logger = logging.getLogger(__name__)


def window_input(record: WindowRecord, placed: PlacedWindow, spec: DatasetSpec) -> PackInput:
    """A record as the model is to see it under its active set: what is inactive is left out, no text is the empty
    prompt.
    """
    has_text = Condition.TEXT in placed.active
    return PackInput(
        latents_FHWC=record.latents_FHWC,
        text_SE=record.text_SE if has_text else spec.empty_text_SE,
        pooled_E=record.pooled_E if has_text else spec.empty_pooled_E,
        active=placed.active,
        reference_HWC=record.references_RHWC[placed.reference] if Condition.REFERENCE in placed.active else None,
        audio_TE=record.audio_TE,
        audio_valid_T=record.audio_valid_T,
        keypoints_TJ3=record.keypoints_TJ3,
        keypoints_valid_T=record.keypoints_valid_T,
        margin=spec.margin,
        motion=placed.motion,
        slot=placed.slot,
        window=placed.row,
    )


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class _Batches:
    """Step -> (batch of this host, catalog rows that could not be read). A sequence to grain, a function to us."""

    plan: Plan
    records: Records
    spec: DatasetSpec
    shape: PackedShape
    rows: range
    start_step: int

    def __len__(self) -> int:
        return self.plan.schedule.total_steps - self.start_step

    def __getitem__(self, index: int) -> tuple[PackedBatch[np.ndarray], list[int]]:
        batch = self.plan.batch(self.start_step + index)
        missing: list[int] = []
        out = empty_batch(len(self.rows), self.shape)
        for number, row in enumerate(self.rows):  # one sequence's records are in memory at a time
            windows = [self._window(placed, missing) for placed in batch.sequences[row]]
            pack_sequence(windows, self.shape, out, number)
        return out, missing

    def _window(self, placed: PlacedWindow, missing: list[int]) -> PackInput | None:
        catalog = self.plan.catalog
        index = catalog.record_of(placed.row)
        record = self.records[index]
        if record is None:
            missing.append(placed.row)
            return None
        if not catalog.is_window(placed.row, record.window_id):
            directory, own = self.records.locate(index)
            raise ValueError(
                f"{directory}: record {own} is window "
                f"{record.window_id}, but the catalog says {catalog.window_id[placed.row]}: catalog and "
                "records belong to different datasets; run `omnihuman encode` again"
            )
        return window_input(record, placed, self.spec)


class Loader(Iterator[PackedBatch[np.ndarray]]):
    """This host's batches, step after step, to the end of the schedule.

    step: of the next batch. placeholders: window id -> how often it was replaced by an empty slot because its record
    cannot be read; its sequence is otherwise as planned, on every host.
    """

    def __init__(self, batches: _Batches, read_threads: int):
        self.step = batches.start_step
        self.placeholders: collections.Counter[str] = collections.Counter()
        self._batches = batches
        self._iterator = None
        if len(batches):
            # Twice the threads in flight: enough that a slow record does not stall the step after it.
            options = grain.ReadOptions(num_threads=read_threads, prefetch_buffer_size=2 * read_threads)
            dataset: grain.MapDataset = grain.MapDataset.source(batches)
            self._iterator = iter(dataset.to_iter_dataset(options))

    def __next__(self) -> PackedBatch[np.ndarray]:
        if self._iterator is None:
            raise StopIteration
        batch, missing = next(self._iterator)
        for row in missing:
            window = str(self._batches.plan.catalog.window_id[row])
            if window not in self.placeholders:
                records, record = self._batches.records, self._batches.plan.catalog.record_of(row)
                reason = records.unreadable.get(record, "unreadable")
                directory, own = records.locate(record)
                logger.warning("record %d (window %s) of %s is left out: %s", own, window, directory, reason)
            self.placeholders[window] += 1
        self.step += 1
        return batch

    def close(self) -> None:
        """Stops reading ahead."""
        if self._iterator is not None and hasattr(self._iterator, "close"):
            self._iterator.close()
        self._iterator = None


def make_loader(
    plan: Plan,
    records: Records,
    spec: DatasetSpec,
    shape: PackedShape,
    process_index: int,
    process_count: int,
    start_step: int = 0,
    read_threads: int = 4,
) -> Loader:
    """Batches of host `process_index` of `process_count` from `start_step` on; ValueError if plan, data and shape do
    not fit.

    A batch has B / process_count sequences: contiguous rows of the global batch.
    """
    sequences = plan.config.sequences_per_step
    if not 0 <= process_index < process_count or sequences % process_count:
        raise ValueError(
            f"{sequences} sequences a step cannot be split evenly over host {process_index} of {process_count}"
        )
    if not 0 <= start_step <= plan.schedule.total_steps:
        raise ValueError(f"start_step {start_step} outside the schedule's [0, {plan.schedule.total_steps}]")
    if read_threads < 1:
        raise ValueError(f"read_threads must be >= 1, not {read_threads}")
    _check_shape(plan, records, spec, shape)
    per_host = sequences // process_count
    rows = range(process_index * per_host, (process_index + 1) * per_host)
    return Loader(_Batches(plan, records, spec, shape, rows, start_step), read_threads)


def _check_shape(plan: Plan, records: Records, spec: DatasetSpec, shape: PackedShape) -> None:
    """Everything that would otherwise only fail at some later window."""
    catalog, config = plan.catalog, plan.config
    expected: Mapping[str, tuple[int, int]] = {
        **{
            n: (getattr(shape, n), getattr(config, n))
            for n in ("latent_tokens", "text_tokens", "windows", "latent_frames", "frames")
        },
        "patch_channels": (shape.patch_channels, 4 * spec.latent_channels),
        "text_width": (shape.text_width, spec.text_width),
        "audio_width": (shape.audio_width, spec.audio_width if shape.audio_width else 0),
        "keypoints": (shape.keypoints, spec.num_keypoints if shape.keypoints else 0),
        "pooled_width": (shape.pooled_width, spec.pooled_width if shape.pooled_width else 0),
        "empty_text_tokens (catalog, dataset.json)": (catalog.empty_text_tokens, spec.empty_text_tokens),
    }
    if wrong := [f"{name} {has}, not {wants}" for name, (has, wants) in expected.items() if has != wants]:
        raise ValueError(f"the batch layout does not fit the plan and the dataset: {'; '.join(wrong)}")
    if isinstance(records, JoinedRecords):
        assert isinstance(catalog, JoinedCatalog)
        records.covers(catalog)
    else:
        assert not isinstance(catalog, JoinedCatalog)
        records.covers(catalog)
    neighbours = max(neighbours_of(shape.audio_tokens), neighbours_of(shape.pose_frames))
    if (taken := min(spec.margin, neighbours)) > config.margin:
        raise ValueError(
            f"plan.margin is {config.margin}, windows take {taken} frames on each side; set plan.margin to {taken}"
        )
    if neighbours > spec.margin:
        logger.warning(
            ("the model uses %d frames on each side of a window, but the dataset stores %d; encode with --margin %d"),
            neighbours,
            spec.margin,
            neighbours,
        )
