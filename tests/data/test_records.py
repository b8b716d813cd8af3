"""Records: what is written is what is read; damage is found, named and contained."""

import dataclasses
import json
import re

import numpy as np
import pytest

from omnihuman_jax.data.example_wire import parse_example
from omnihuman_jax.data.finite import not_finite
from omnihuman_jax.data.identity import changed_features, features_of
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.data.records import (
    VERSION,
    DatasetSpec,
    decode_record,
    encode_record,
    features,
    shard_path,
    write_shard,
)
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


def test_the_parser_reads_what_tfds_reads(table):
    spec = synthetic.spec()
    layout = features(spec)
    for row in range(9):
        data = encode_record(synthetic.record(table, row), spec, layout)
        mine, theirs = parse_example(data), layout.deserialize_example_np(data)
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            assert mine[name] == (value if isinstance(value, int | bytes) else value.tobytes()), name
        assert_same(decode_record(data, spec), synthetic.record(table, row))


@pytest.mark.parametrize("value", [0, 1, 127, 128, 2**31 - 1, -1, -(2**31)])
def test_the_parser_reads_numbers_of_every_size(table, value):
    record = dataclasses.replace(synthetic.record(table, 1), eligible=value)
    assert decode_record(encode_record(record, synthetic.spec()), synthetic.spec()).eligible == value


def test_a_number_beyond_the_end_of_its_packed_list_is_refused():
    def example(feature: bytes) -> bytes:
        entry = b"\x0a\x01n\x12" + bytes([len(feature)]) + feature
        features = b"\x0a" + bytes([len(entry)]) + entry
        return b"\x0a" + bytes([len(features)]) + features

    assert parse_example(example(b"\x1a\x03\x0a\x01\x05")) == {"n": 5}
    for wrong in (b"\x1a\x03\x0a\x00\x05", b"\x1a\x04\x0a\x02\x05\x06"):
        with pytest.raises(ValueError, match=r"cut short|several values"):
            parse_example(example(wrong))


def test_whatever_bytes_there_are_the_parser_ends_with_a_record_or_a_value_error(table):
    """Cut anywhere, or with any byte changed: no other exception, and never past the end."""
    small = dataclasses.replace(synthetic.record(table, 1), text_SE=np.zeros((1, 6), np.float16))
    data = encode_record(small, synthetic.spec())
    broken = [data[:size] for size in range(0, len(data), 37)]
    rng = np.random.default_rng(0)
    for _ in range(400):
        other = bytearray(data)
        # Half of them in the first 300 bytes, where most of the structure is.
        other[rng.integers(0, len(data) if rng.random() < 0.5 else 300)] = rng.integers(0, 256)
        broken.append(bytes(other))
    errors = 0
    for one in broken:
        try:
            decode_record(one, synthetic.spec())
        except ValueError:
            errors += 1
    assert len(data) // 37 <= errors < len(broken)


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


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("latents_FHWC", np.nan, "nan at [0, 1, 2, 3]"),
        ("references_RHWC", np.inf, "inf at [0, 1, 2, 3]"),
        ("text_SE", -np.inf, "-inf at [0, 1]"),
        ("pooled_E", np.nan, "nan at [3]"),
        ("audio_TE", np.nan, "nan at [0, 1]"),
        ("keypoints_TJ3", np.inf, "inf at [0, 1, 2]"),
    ],
)
def test_a_value_that_is_none_is_named_with_its_first_place(table, name, value, place):
    window = synthetic.record(table, 0)
    window.check_finite()
    array = getattr(window, name)
    array[tuple(range(array.ndim)) if array.ndim > 1 else 3] = value
    array[(-1,) * array.ndim] = value  # not the first
    with pytest.raises(ValueError, match=rf"w0: {name} is {re.escape(place)}; every value must be finite"):
        window.check_finite()
    assert not_finite(np.full(2, 65504, np.float16)) == "" == not_finite(np.zeros(0, np.float32))
    with pytest.raises(ValueError, match=r"empty_pooled_E is nan at \[1\]"):
        empty = np.array([0, np.nan, 0, 0, 0], np.float16)
        dataclasses.replace(synthetic.spec(), empty_pooled_E=empty)


def test_records_of_another_layout_are_refused_by_name(tmp_path, table):
    """Otherwise each record would count as damaged, and training go on without any."""
    for name, change, message in (
        (
            "dataset_info.json",
            lambda text: text.replace(f'"version": "{VERSION}"', '"version": "0.9.0"'),
            "layout 0.9.0",
        ),
        ("features.json", lambda text: text.replace('"latents_shape"', '"latents_size"'), "its records have latents_s"),
        (
            "dataset.json",
            lambda text: text.replace('"latent_channels": 4', '"latent_channels": 16'),
            r"its records have",
        ),
    ):
        folder = synthetic.write_dataset(tmp_path / name, table)
        assert open_records(folder)[0] is not None
        before = (folder / name).read_text()
        (folder / name).write_text(change(before))
        assert (folder / name).read_text() != before
        with pytest.raises(ValueError, match=message + ".*encode its clips again") as error:
            open_records(folder)
        assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"speech_layers": (1, 2)}, r"speech_layers: \[0, 2\] -> \[1, 2\]"),
        ({"codec": "wan"}, "codec: dct -> wan"),
        ({"codec_options": {"tile_height": 0}}, "codec_options: {} -> {'tile_height': 0}"),
        ({"speech_encoder": ""}, "speech_encoder: speech -> none"),
        ({"encoder_sha256": {"text_encoder/model.safetensors": "1" * 64}}, r"text_encoder: text -> \w{12}\.\.\."),
        ({"max_text_tokens": 64}, "max_text_tokens: 128 -> 64"),
        ({"margin": 4}, "margin: 5 -> 4"),
        ({"keypoint_names": ("a", "b", "c", "d")}, r"keypoint_names: \w{12}\.\.\. -> "),
        ({"empty_pooled_E": np.zeros(5, np.float16)}, "empty_prompt: "),
        ({"records_sha256": "2" * 64}, r"records_sha256: 111111111111\.\.\. -> 222222222222\.\.\."),
    ],
)
def test_features_differ_by_whatever_made_them(change, named):
    before = dataclasses.replace(synthetic.spec(), records_sha256="1" * 64)
    (line,) = changed_features(features_of(before), features_of(dataclasses.replace(before, **change)))
    assert re.match(named, line)


def test_features_are_the_same_wherever_the_networks_lie(tmp_path):
    hashes = {f"{role}/model.safetensors": "3" * 64 for role in ("codec", "text_encoder", "speech_encoder")}
    here = dataclasses.replace(synthetic.spec(), encoder_sha256=hashes, text_encoder="/here", records_sha256="1" * 64)
    there = dataclasses.replace(here, text_encoder="/there", codec="/vae")
    there.save(tmp_path)
    stored = json.loads(json.dumps(features_of(here)))
    assert changed_features(stored, features_of(DatasetSpec.load(tmp_path))) == []
    # A data set of before its records were summed up says nothing about them.
    assert changed_features({**stored, "records_sha256": ""}, stored) == [] == changed_features({}, stored)
    assert changed_features(stored, {**stored, "records_sha256": ""}) == ["records_sha256: 111111111111... -> none"]


def test_an_empty_shard_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        write_shard(shard_path(tmp_path, 0, 1), [], synthetic.spec())
