"""Windows of a data set as the model is to see them: which are taken, and what drives each."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.joined_records import JoinedRecords, Records
from omnihuman_jax.data.packing import PackInput
from omnihuman_jax.data.record_source import RecordSource
from omnihuman_jax.data.records import DatasetSpec, WindowRecord
from omnihuman_jax.data.weighted_datasets import WeightedDataset
from omnihuman_jax.data.window_index import TRAIN_SPLIT
from omnihuman_jax.evaluation import sheet

# Of millions of windows so many are sorted, evenly taken.
_LOOKED_AT = 20_000


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class SampledData:
    """A data set of a run: what the config calls it, its catalog and its records."""

    name: str
    catalog: Catalog
    records: RecordSource


def data_of(rows: Sequence[WeightedDataset], records: Records) -> list[SampledData]:
    """The data sets of a run one by one; `records` are those of all `rows`, in order."""
    sources = records.sources if isinstance(records, JoinedRecords) else (records,)
    return [
        SampledData(name=row.label, catalog=Catalog.load(row.path), records=own)
        for row, own in zip(rows, sources, strict=True)
    ]


def shares(count: int, parts: int) -> list[int]:
    """`count` split evenly, the first ones getting what is left."""
    return [count // parts + (number < count % parts) for number in range(parts)]


def driven_window(
    spec: DatasetSpec,
    record: WindowRecord,
    active: ConditionSet,
    slot: int,
    *,
    text: WindowRecord | None = None,
    picture: WindowRecord | None = None,
    sound: WindowRecord | None = None,
    pose: WindowRecord | None = None,
    with_truth: bool = False,
) -> PackInput:
    """The window under the conditions `active`; without text, the empty prompt.

    Args:
        spec: of its data set.
        record: the window.
        active: what drives it, each of which it must have.
        slot: what its noise is keyed on.
        text, picture, sound, pose: windows whose text, reference, sound and keypoints drive it instead of its own.
            Another's reference must have this one's size; another's keypoints are stretched to this one's grid, in
            whose units they are stored.
        with_truth: its own latents, for losses; otherwise zeros: nothing of the truth goes into a sample.
    """
    text, picture, sound, pose = text or record, picture or record, sound or record, pose or record
    has_text = Condition.TEXT in active
    size, own = record.latents_FHWC.shape[1:3], pose.latents_FHWC.shape[1:3]
    stretch = np.array([size[1] / own[1], size[0] / own[0], 1.0], np.float32)
    heard, seen = Condition.AUDIO in active, Condition.POSE in active
    latents = record.latents_FHWC.astype(np.float32)
    return PackInput(
        latents_FHWC=latents if with_truth else np.zeros_like(latents),
        reference_HWC=picture.references_RHWC[0].astype(np.float32) if Condition.REFERENCE in active else None,
        text_SE=text.text_SE if has_text else spec.empty_text_SE,
        pooled_E=text.pooled_E if has_text else spec.empty_pooled_E,
        active=active,
        audio_TE=sound.audio_TE.astype(np.float32) if heard else None,
        audio_valid_T=sound.audio_valid_T if heard else None,
        keypoints_TJ3=pose.keypoints_TJ3.astype(np.float32) * stretch if seen else None,
        keypoints_valid_T=pose.keypoints_valid_T if seen else None,
        margin=spec.margin,
        slot=slot,
    )


def with_text(active: ConditionSet, record: WindowRecord) -> ConditionSet:
    """`active`, and text where the window is eligible for it."""
    return active | (ConditionSet(record.eligible) & ConditionSet.of(Condition.TEXT))


def longest_rows(catalog: Catalog, among: np.ndarray, needed: ConditionSet) -> np.ndarray:
    """The rows of the longest videos `among` (bool [n]) that are eligible for `needed`; none where there are none."""
    rows = np.flatnonzero(among & ((catalog.eligible & needed.bits) == needed.bits) & (catalog.frames > 1))
    return rows[catalog.frames[rows] == catalog.frames[rows].max()] if len(rows) else rows


def held_out(catalog: Catalog, split: str, needed: ConditionSet) -> tuple[str, np.ndarray]:
    """(split, `longest_rows` of it).

    `split`: "" for the held-out split that has most of what is eligible, or else the windows that are trained on.
    """
    if not split:
        usable = ((catalog.eligible & needed.bits) == needed.bits) & (catalog.frames > 1)
        held = catalog.split[usable & (catalog.split != TRAIN_SPLIT)]
        names, counts = np.unique(held.astype(str), return_counts=True)
        split = str(names[counts.argmax()]) if len(names) else TRAIN_SPLIT
    return split, longest_rows(catalog, catalog.split == split, needed)


def spread(catalog: Catalog, rows: Sequence[int] | np.ndarray, count: int) -> list[int]:
    """`count` of the rows at most, spread over clips and, within a clip, over time."""
    rows = np.asarray(rows)[sheet.evenly(len(rows), _LOOKED_AT)]
    clips: dict[str, list[int]] = {}
    for row in sorted(map(int, rows), key=lambda row: (str(catalog.clip_id[row]), int(catalog.start_frame[row]))):
        clips.setdefault(str(catalog.clip_id[row]), []).append(row)
    if 0 < count < len(clips):
        names = sorted(clips)
        clips = {names[i]: clips[names[i]] for i in sheet.evenly(len(names), count)}
    share = -(-count // max(len(clips), 1))
    chosen = {clip: [own[i] for i in sheet.evenly(len(own), share)] for clip, own in clips.items()}
    return [own[i] for i in range(share) for own in chosen.values() if i < len(own)][:count]
