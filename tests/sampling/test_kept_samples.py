"""A kept sample is that of its window, seed and weights, and of no other."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.sampling import window_inputs
from omnihuman_jax.sampling.kept_samples import KeptSampler
from omnihuman_jax.sampling.trained_run import TrainedRun
from tests.sampling.tiny_run import TinyRun


def test_what_decides_a_sample_is_in_its_name(tiny: TinyRun, run: TrainedRun, tmp_path: Path) -> None:
    record = open_records(tiny.dataset)[0]
    assert record is not None
    active = ConditionSet.of(Condition.REFERENCE, Condition.AUDIO)
    window = window_inputs.driven_window(run.spec, record, active, 0)
    config = dataclasses.replace(run.config.sampling, num_steps=1)
    assert window.audio_TE is not None

    def sampled(run: TrainedRun = run, seed: int = 0, **changes: object) -> np.ndarray:
        inputs = [dataclasses.replace(window, **changes)]  # type: ignore[arg-type]
        return KeptSampler(run, config, inputs, 1, tmp_path).all_of(inputs, seed)[0]

    first = sampled()
    for other in (
        sampled(seed=1),
        sampled(slot=1),
        sampled(audio_TE=window.audio_TE + 1),
        sampled(dataclasses.replace(run, params=jax.tree.map(lambda leaf: leaf * 1.01, run.params))),
    ):
        assert not np.array_equal(first, other)
    with pytest.raises(ValueError, match="1 of 1 samples are not finite; lower the guidance"):
        sampled(dataclasses.replace(run, params=jax.tree.map(lambda leaf: leaf * np.nan, run.params)))
    assert len(list(tmp_path.iterdir())) == 5
    assert np.array_equal(sampled(), first) and len(list(tmp_path.iterdir())) == 5
