"""Catalog: round trip, derived sizes, refusal of rows that no plan could use."""

import dataclasses

import numpy as np
import pytest

from omnihuman_jax.data.catalog import Catalog, columns
from tests.data import synthetic


def test_round_trip(tmp_path):
    made = synthetic.catalog(20)
    made.save(tmp_path)
    read = Catalog.load(tmp_path)
    for name in columns():
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name), err_msg=name)
    assert read.empty_text_tokens == 2 and read.fingerprint() == made.fingerprint()
    assert not list(tmp_path.glob(".*"))


def test_sizes_in_frames_and_tokens():
    table = synthetic.catalog(20)
    np.testing.assert_array_equal(table.frames, 4 * table.latent_frames - 3)
    np.testing.assert_array_equal(table.reference_tokens, table.latent_height * table.latent_width // 4)
    np.testing.assert_array_equal(table.window_tokens, table.latent_frames * table.reference_tokens)


@pytest.mark.parametrize("name", ["window_id", "duration_s", "eligible", "record", "text_tokens"])
def test_the_fingerprint_sees_every_column(name):
    table = synthetic.catalog(20)
    column = getattr(table, name).copy()
    column[5] = "other" if name == "window_id" else column[5] + 1 if name != "eligible" else 1
    assert dataclasses.replace(table, **{name: column}).fingerprint() != table.fingerprint()


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


def test_missing_damaged_or_foreign_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="omnihuman encode"):
        Catalog.load(tmp_path)
    path = synthetic.catalog(20).save(tmp_path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"catalog.parquet: not a readable Parquet file"):
        Catalog.load(tmp_path)
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"window_id": ["a"]}), path)
    with pytest.raises(ValueError, match="clip_id, split, record"):
        Catalog.load(tmp_path)


def test_unequal_columns_are_refused():
    with pytest.raises(ValueError, match="duration_s"):
        dataclasses.replace(synthetic.catalog(20), duration_s=np.ones(3))
