"""Records: what is written is what is read; damage is found, named and contained."""

import dataclasses
import json

import numpy as np
import pytest

from omnihuman_jax.data.records import DatasetSpec, open_records, shard_path, write_shard
from tests.data import synthetic


@pytest.fixture
def table():
    return synthetic.catalog(9)


def assert_same(left, right):
    for field in dataclasses.fields(left):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype and a.shape == b.shape, field.name
            np.testing.assert_array_equal(a, b, err_msg=field.name)
        else:
            assert a == b, field.name


def test_round_trip_of_every_field_across_shards(tmp_path, table):
    records = open_records(synthetic.write_dataset(tmp_path, table, num_shards=3))
    assert len(records) == 9 and {len(records[i].audio_TE) for i in range(9)} > {0}
    for row in range(9):
        assert_same(records[row], synthetic.record(table, row))
    assert not records.unreadable
    with pytest.raises(IndexError, match="record 9 of 9"):
        records[9]


def test_spec_round_trip_and_its_derived_values(tmp_path):
    made = synthetic.spec()
    made.save(tmp_path)
    read = DatasetSpec.load(tmp_path)
    assert_same(read, made)
    assert read.audio_width == 6 and read.num_keypoints == 4 and read.empty_text_tokens == 2


def test_a_dataset_without_speech_keypoints_or_pooled_text(tmp_path, table):
    spec = dataclasses.replace(
        synthetic.spec(), speech_layers=(), keypoint_names=(), pooled_width=0, empty_pooled_E=np.zeros(0, np.float16)
    )
    bare = dataclasses.replace(
        synthetic.record(table, 0),
        audio_TE=np.zeros((0, 0), np.float16), audio_valid_T=np.zeros(0, bool), pooled_E=np.zeros(0, np.float16),
        keypoints_TJ3=np.zeros((0, 0, 3), np.float16), keypoints_valid_T=np.zeros(0, bool),
        references_RHWC=np.zeros((0, *synthetic.record(table, 0).latents_FHWC.shape[1:]), np.float16),
    )  # fmt: skip
    from omnihuman_jax.data.records import write_dataset_metadata

    write_dataset_metadata(tmp_path, spec, [write_shard(shard_path(tmp_path, 0, 1), [bare], spec)])
    assert_same(open_records(tmp_path)[0], bare)


def test_one_flipped_byte_costs_one_record(tmp_path, table):
    synthetic.write_dataset(tmp_path, table)
    synthetic.damage(tmp_path, table, 4)
    records = open_records(tmp_path)
    assert [records[row] is None for row in range(9)] == [row == 4 for row in range(9)]
    assert list(records.unreadable) == [4] and "hash mismatch" in records.unreadable[4]


def test_a_missing_shard_is_named(tmp_path, table):
    synthetic.write_dataset(tmp_path, table)
    shard_path(tmp_path, 1, 2).unlink()
    with pytest.raises(FileNotFoundError, match=r"00001-of-00002: shard missing"):
        open_records(tmp_path)


def test_no_dataset_and_a_foreign_spec_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="omnihuman encode"):
        open_records(tmp_path)
    synthetic.spec().save(tmp_path)
    fields = json.loads((tmp_path / "dataset.json").read_text()) | {"flavour": 1}
    (tmp_path / "dataset.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="unknown fields flavour"):
        DatasetSpec.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio_TE": np.zeros((3, 6), np.float16)}, r"w0: audio_TE \(3, 6\)"),
        ({"text_SE": np.zeros((3, 7), np.float16)}, r"w0: text_SE \(3, 7\)"),
        (
            {"latents_FHWC": np.zeros((7, 8, 7, 4), np.float16), "references_RHWC": np.zeros((1, 8, 7, 4))},
            "multiples of 16",
        ),
        ({"frames": 20}, "1 \\+ 4n"),
    ],
)
def test_a_window_that_does_not_fit_the_spec_is_refused_and_nothing_stays(tmp_path, table, changes, message):
    wrong = dataclasses.replace(synthetic.record(table, 0), **changes)
    with pytest.raises(ValueError, match=message):
        write_shard(shard_path(tmp_path, 0, 1), [synthetic.record(table, 1), wrong], synthetic.spec())
    assert not list(tmp_path.iterdir())


def test_an_empty_shard_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        write_shard(shard_path(tmp_path, 0, 1), [], synthetic.spec())
