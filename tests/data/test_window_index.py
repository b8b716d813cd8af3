"""The sorted windows of a stage: who is in, in which order, and who lies at which hour."""

import dataclasses

import numpy as np
import pytest

from omnihuman_jax.data import window_index
from omnihuman_jax.data.window_index import ServingWindows
from omnihuman_jax.stages import Stage
from tests.data import synthetic

STAGE = Stage(name="s", steps=10)


@pytest.fixture(params=[1 << 20, 7])
def parts(request, monkeypatch):
    """Catalogs larger than what is looked at together, too."""
    monkeypatch.setattr(window_index, "_CHUNK", request.param)


def test_rows_are_sorted_by_what_they_are_eligible_for(parts):
    table = synthetic.catalog(60)
    split = np.asarray(["train", "test", "train"] * 20)
    eligible = np.where(np.arange(60) % 5 == 0, 0, table.eligible)
    table = dataclasses.replace(table, split=split, eligible=eligible)
    stage = Stage(name="s", steps=1, min_frames=17, max_frames=25, max_tokens=150)
    index = window_index.build(table, stage)
    keep = (split == "train") & (eligible > 0) & (table.frames >= 17) & (table.frames <= 25)
    keep &= table.window_tokens <= 150
    rows = np.flatnonzero(keep)
    expected = rows[np.argsort(eligible[rows], kind="stable")]
    assert 0 < len(rows) < 30 and index.rows.tolist() == expected.tolist()
    assert index.counts.tolist() == np.bincount(eligible[rows], minlength=16).tolist()
    np.testing.assert_allclose(index.hours, np.bincount(eligible[rows], table.duration_s[rows], 16) / 3600)
    for kind in np.unique(eligible[rows]):
        mine = rows[eligible[rows] == kind]
        tokens = table.window_tokens[mine]
        assert index.largest[kind].tolist() == [
            tokens.max(),
            (tokens + table.reference_tokens[mine]).max(),
            table.text_tokens[mine].max(),
            table.latent_frames[mine].max(),
        ]


@pytest.mark.parametrize("active", [0, 1, 3, 4, 11, 15])
def test_every_tick_is_its_windows(parts, active):
    table = synthetic.catalog(40)
    index = window_index.build(table, STAGE)
    serving = ServingWindows.of(index, active)
    able = [row for row in index.rows.tolist() if table.eligible[row] & active == active]
    expected = np.repeat(able, table.frames[able])  # a tick is a frame
    assert serving.windows == len(able) and serving.ticks == len(expected) and index.ticks_per_s == 25
    order = np.random.default_rng(0).permutation(serving.ticks)
    assert serving.rows_at(order).tolist() == expected[order].tolist()


def test_durations_that_are_no_whole_frames_and_more_ticks_than_32_bits(parts):
    table = synthetic.catalog(40)
    odd = dataclasses.replace(table, duration_s=np.where(np.arange(40) == 3, 1.0123, 1.0))
    index = window_index.build(odd, STAGE)
    assert index.ticks_per_s == 25_000 and index.ends.dtype == np.uint32
    np.testing.assert_allclose(index.hours.sum() * 3600, 40.0123, rtol=1e-6)
    long = dataclasses.replace(table, duration_s=np.full(40, 20_000_000.0))
    index = window_index.build(long, STAGE)
    assert index.ends.dtype == np.uint64 and int(index.ends[-1]) == 40 * 20_000_000 * 25
    serving = ServingWindows.of(index, 0)
    assert serving.rows_at(np.asarray([0, serving.ticks - 1])).tolist() == index.rows[[0, -1]].tolist()


def test_no_window_at_all(parts):
    table = dataclasses.replace(synthetic.catalog(10), split=["test"] * 10)
    index = window_index.build(table, STAGE)
    assert len(index.rows) == 0 and not index.counts.any() and not index.hours.any()
