"""Catalog: round trip, derived sizes, refusal of rows that no plan could use, damaged files, catalogs of version 1."""

import dataclasses
import json
import logging
import re

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from omnihuman_jax.data.catalog import COLUMNS, Catalog, has_catalog
from omnihuman_jax.data.catalog_files import NUMBERS
from tests.data import synthetic


def same(a: Catalog, b: Catalog) -> bool:
    return a.empty_text_tokens == b.empty_text_tokens and all(
        getattr(a, name).tolist() == getattr(b, name).tolist() for name in COLUMNS
    )


def save_as_version_1(table: Catalog, folder) -> None:
    """As `omnihuman encode` wrote it before catalogs had a folder."""
    kinds = {name: np.float64 if name == "duration_s" else np.int32 for name in NUMBERS}
    columns = {
        name: pyarrow.array(
            getattr(table, name).astype(kinds[name]) if name in kinds else getattr(table, name).tolist()
        )
        for name in COLUMNS
    }
    made = pyarrow.table(columns).replace_schema_metadata({b"empty_text_tokens": b"2"})
    pyarrow.parquet.write_table(made, folder / "catalog.parquet")


def test_round_trip(tmp_path):
    made = synthetic.catalog(20)
    assert made.save(tmp_path) == tmp_path / "catalog" / "catalog.json"
    read = Catalog.load(tmp_path)
    assert same(read, made) and read.empty_text_tokens == 2 and read.fingerprint() == made.fingerprint()
    assert [path.name for path in tmp_path.iterdir()] == ["catalog"]
    read.release()
    assert same(read, made)
    made.select(np.arange(7)).save(tmp_path)
    assert same(Catalog.load(tmp_path), made.select(np.arange(20) < 7))


def test_numbers_are_mapped_and_ids_are_opened_when_asked_for(tmp_path):
    made = synthetic.catalog(20)
    made.save(tmp_path)
    read = Catalog.load(tmp_path)
    assert not any(getattr(read, name).flags.owndata or getattr(read, name).flags.writeable for name in NUMBERS)
    (tmp_path / "catalog" / "ids.arrow").unlink()
    assert read.is_window(3, "w3") and not read.is_window(3, "w4") and read.frames.sum() == made.frames.sum()
    with pytest.raises(FileNotFoundError, match=r"ids\.arrow: .* missing"):
        read.window_id[3]


def test_a_catalog_of_version_1_is_the_same_catalog(tmp_path, caplog):
    made = synthetic.catalog(20)
    save_as_version_1(made, tmp_path)
    with caplog.at_level(logging.INFO):
        read = Catalog.load(tmp_path)
    (line,) = caplog.messages
    assert re.search(r"catalog\.parquet: a catalog of version 1, its 20 rows .* writes version 2", line)
    assert same(read, made) and read.fingerprint() == made.fingerprint() and read.is_window(3, "w3")
    read.save(tmp_path)
    assert same(Catalog.load(tmp_path), made)


def test_texts_by_row_mask_and_slice():
    table = synthetic.catalog(20)
    assert table.window_id[-1] == "w19" and table.window_id[np.int32(4)] == "w4"
    assert table.window_id[np.arange(20) % 7 == 0].tolist() == ["w0", "w7", "w14"]
    assert table.clip_id[[0, 4, 8]].tolist() == ["c0", "c1", "c2"] and table.window_id[2:4].tolist() == ["w2", "w3"]
    assert np.unique(table.clip_id).tolist() == sorted(f"c{i}" for i in range(5))
    assert np.flatnonzero(table.clip_id == "c1").tolist() == [4, 5, 6, 7]
    split = dataclasses.replace(table, split=["test", "train"] * 10).split
    assert (split == "train").sum() == 10 and not (split == "none").any() and split[3] == "train"
    assert split.names == ("test", "train") and split.take(np.asarray([0, 2])).tolist() == ["test", "test"]


def test_sizes_in_frames_and_tokens():
    table = synthetic.catalog(20)
    np.testing.assert_array_equal(table.frames, 4 * table.latent_frames - 3)
    np.testing.assert_array_equal(table.reference_tokens, table.latent_height * table.latent_width // 4)
    np.testing.assert_array_equal(table.window_tokens, table.latent_frames * table.reference_tokens)
    np.testing.assert_array_equal(table.numbers(np.asarray([3, 5])).window_tokens, table.window_tokens[[3, 5]])


def test_the_largest_window_overflows_nothing():
    """A minute of 1080p: the columns are as narrow as they can be."""
    table = synthetic.catalog(1)
    large = {"latent_frames": [376], "latent_height": [136], "latent_width": [240], "height": [1088], "width": [1920]}
    table = dataclasses.replace(table, **large)
    assert table.window_tokens[0] == 376 * 68 * 120 and table.frames[0] == 1501
    assert int((table.height * table.width)[0]) == 1088 * 1920


@pytest.mark.parametrize("name", COLUMNS)
def test_the_fingerprint_sees_every_column(name):
    table = synthetic.catalog(20)
    column = np.asarray(getattr(table, name).tolist())
    column[5] = "other" if column.dtype.kind == "U" else 1 if name == "eligible" else column[5] + 2
    changed = dataclasses.replace(table, **{name: column})
    assert changed.fingerprint() != table.fingerprint()
    assert dataclasses.replace(table, empty_text_tokens=3).fingerprint() != table.fingerprint()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("duration_s", 0.0, "duration_s"),
        ("duration_s", float("nan"), "duration_s"),
        ("eligible", 16, "eligible bits"),
        ("latent_width", 7, "odd"),
        ("latent_frames", 0, "latent_frames"),
        ("num_references", 0, "no reference stored"),
        ("text_tokens", 0, "text_tokens"),
    ],
)
def test_broken_rows_are_named(name, value, message):
    table = synthetic.catalog(20)
    column = getattr(table, name).copy()
    column[5] = value
    with pytest.raises(ValueError, match=rf"{message}.*1 windows, the first is w5"):
        dataclasses.replace(table, **{name: column})


@pytest.mark.parametrize("value", [1.5, float("nan"), float("inf"), 40_000, -40_000])
def test_a_value_that_no_row_can_hold_is_named(value):
    column = synthetic.catalog(20).text_tokens.astype(float)
    column[5] = value
    with pytest.raises(ValueError, match=r"text_tokens of row 5 is .*, not a whole number from -32768 to 32767"):
        dataclasses.replace(synthetic.catalog(20), text_tokens=column)


def test_missing_damaged_or_foreign_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="omnihuman encode"):
        Catalog.load(tmp_path)
    save_as_version_1(synthetic.catalog(20), tmp_path)
    path = tmp_path / "catalog.parquet"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"catalog.parquet: not a readable Parquet file"):
        Catalog.load(tmp_path)
    pyarrow.parquet.write_table(pyarrow.table({"window_id": ["a"]}), path)
    with pytest.raises(ValueError, match="clip_id, split, record"):
        Catalog.load(tmp_path)


@pytest.mark.parametrize("where", [0, 60, -1])
@pytest.mark.parametrize("name", ["record.npy", "split.npy", "id_check.npy", "ids.arrow"])
def test_a_flipped_byte_is_found_and_its_file_named(tmp_path, name, where):
    synthetic.catalog(20).save(tmp_path)
    path = tmp_path / "catalog" / name
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: damaged, or of another dataset: .* copy"):
        Catalog.load(tmp_path).window_id[0]


@pytest.mark.parametrize("damage", ["cut", "gone", "another column"])
def test_a_column_that_is_not_the_right_one_is_named(tmp_path, damage):
    synthetic.catalog(20).save(tmp_path)
    path = tmp_path / "catalog" / "width.npy"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9] if damage == "cut" else path.with_name("height.npy").read_bytes())
    with pytest.raises((ValueError, FileNotFoundError), match=r"width\.npy: (damaged|this column .* missing)"):
        Catalog.load(tmp_path)


def test_the_head_is_checked(tmp_path):
    head = synthetic.catalog(20).save(tmp_path)
    values = json.loads(head.read_text())
    for change, message in (
        ({"version": 3}, "a catalog of version 3, this package reads 2; update"),
        ({"rows": 19}, r"record\.npy: holds int32 \(20,\), expected int32 \(19,\)"),
        ({"content": {}}, r"catalog\.json: without content\.clip_id"),
    ):
        head.write_text(json.dumps(values | change))
        with pytest.raises(ValueError, match=message):
            Catalog.load(tmp_path)
    head.write_text("{")
    with pytest.raises(ValueError, match=r"catalog\.json: not the head of a catalog"):
        Catalog.load(tmp_path)
    head.unlink()
    with pytest.raises(FileNotFoundError, match=r"catalog\.json"):
        Catalog.load(tmp_path)


def test_has_catalog(tmp_path):
    assert not has_catalog(tmp_path)
    synthetic.catalog(3).save(tmp_path)
    assert has_catalog(tmp_path)


def test_unequal_columns_are_refused():
    with pytest.raises(ValueError, match="duration_s"):
        dataclasses.replace(synthetic.catalog(20), duration_s=np.ones(3))
