"""A window that is driven by what is its own, or by another's."""

import dataclasses

import numpy as np
import pytest

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data.records import WindowRecord
from omnihuman_jax.sampling import evaluators
from omnihuman_jax.sampling.window_inputs import driven_window
from tests.data import synthetic

EVERY = ConditionSet.of(*Condition)


def eligible(size: tuple[int, int]) -> WindowRecord:
    """A record that is eligible for everything, of another size for another `size`."""
    table = synthetic.catalog(40, strong=1.0)
    row = next(i for i in range(40) if ConditionSet(int(table.eligible[i])) == EVERY and table.frames[i] > 1)
    record = synthetic.record(table, row)
    latents = np.resize(record.latents_FHWC, (len(record.latents_FHWC), *size, 4))
    return dataclasses.replace(record, latents_FHWC=latents, references_RHWC=latents[:1])


def test_each_condition_can_be_anothers_alone() -> None:
    mine, other = eligible((4, 6)), eligible((8, 4))
    other = dataclasses.replace(
        other, text_SE=other.text_SE + 1, pooled_E=other.pooled_E + 1, audio_TE=other.audio_TE + 1,
        references_RHWC=mine.references_RHWC + 1,
    )  # fmt: skip
    own = driven_window(synthetic.spec(), mine, EVERY, 3, with_truth=True)
    told = {
        "text": ("text_SE", "pooled_E"),
        "picture": ("reference_HWC",),
        "sound": ("audio_TE",),
        "pose": ("keypoints_TJ3",),
    }
    assert set(evaluators._GIVEN.values()) == set(told)
    for given, changed in told.items():
        driven = driven_window(synthetic.spec(), mine, EVERY, 3, with_truth=True, **{given: other})
        for field in dataclasses.fields(own):
            a, b = getattr(own, field.name), getattr(driven, field.name)
            same = np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
            assert same == (field.name not in changed), (given, field.name)
    moved = driven_window(synthetic.spec(), mine, EVERY, 3, pose=other).keypoints_TJ3
    assert moved is not None and other.keypoints_TJ3 is not None
    # Stored in the units of its own grid: stretched to this one's.
    assert np.allclose(moved[..., 0], other.keypoints_TJ3[..., 0].astype(np.float32) * 6 / 4)
    assert np.allclose(moved[..., 1], other.keypoints_TJ3[..., 1].astype(np.float32) * 4 / 8)


@pytest.mark.parametrize("absent", list(Condition))
def test_what_is_absent_is_not_given(absent: Condition) -> None:
    mine, spec = eligible((4, 6)), synthetic.spec()
    window = driven_window(spec, mine, EVERY.without(absent), 0)
    assert (window.reference_HWC is None) == (absent is Condition.REFERENCE)
    assert (window.audio_TE is None) == (absent is Condition.AUDIO)
    assert (window.keypoints_TJ3 is None) == (absent is Condition.POSE)
    assert np.array_equal(window.text_SE, spec.empty_text_SE) == (absent is Condition.TEXT)


def test_another_s_reference_must_have_the_windows_size() -> None:
    mine, other = eligible((4, 6)), eligible((8, 4))
    assert evaluators._can_drive(other, mine, Condition.AUDIO) and evaluators._can_drive(other, mine, Condition.TEXT)
    assert not evaluators._can_drive(other, mine, Condition.REFERENCE)
    assert evaluators._can_drive(mine, mine, Condition.REFERENCE)
