"""Generations of a dataset: names, the manifest, and records that lie in several folders."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from omnihuman_jax.data import generations
from omnihuman_jax.data.catalog import Catalog, has_catalog
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.data.records import encode_record
from omnihuman_jax.data.weighted_datasets import WeightedDataset
from tests.data import synthetic


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs/data", ("runs/data", None)),
        ("runs/data@2", ("runs/data", 2)),
        ("gs://bucket/data@12/", ("gs://bucket/data", 12)),
        ("runs/look@3f2a", ("runs/look@3f2a", None)),
        ("runs/data@0", ("runs/data@0", None)),
        ("runs/@3", ("runs/@3", None)),
    ],
)
def test_the_name_of_a_generation(text: str, expected: tuple[str, int | None]) -> None:
    assert generations.split_name(text) == expected
    assert generations.split_name(Path("runs") / "data@3") == ("runs/data", 3)
    assert generations.numbered("runs/data@3/", 4) == generations.numbered("runs/data/", 4) == "runs/data@4"
    assert WeightedDataset(path="runs/data@3").label == "data"


def contents(dataset: Path | str) -> list[bytes]:
    source, catalog = open_records(dataset), Catalog.load(dataset)
    records = [source[int(index)] for index in catalog.record]
    assert [record.window_id for record in records if record] == catalog.window_id.tolist()
    return [encode_record(record, source.spec) for record in records if record]


def test_an_old_generation_reads_as_before(tmp_path: Path) -> None:
    old = synthetic.catalog(12)
    dataset = synthetic.write_dataset(tmp_path / "dataset", old)
    before = contents(dataset)
    whole = synthetic.append(dataset, synthetic.catalog(5, seed=1))
    third = synthetic.append(dataset, synthetic.catalog(3, seed=2))
    assert contents(f"{dataset}@1") == before and Catalog.load(f"{dataset}@1").fingerprint() == old.fingerprint()
    assert Catalog.load(f"{dataset}@2").fingerprint() == whole.fingerprint()
    assert Catalog.load(dataset).fingerprint() == Catalog.load(f"{dataset}@3").fingerprint() == third.fingerprint()
    assert contents(dataset)[:12] == before and [len(contents(f"{dataset}@{n}")) for n in (1, 2, 3)] == [12, 17, 20]
    assert [len(open_records(f"{dataset}@{n}")) for n in (1, 2, 3)] == [12, 17, 20]
    assert open_records(dataset).locate(13) == (dataset / "generations" / "00003", 13)
    # A record of the second is damaged: the first does not know, the third says so and reads on.
    path = next((dataset / "generations" / "00002").glob("*.array_record-*"))
    data = bytearray(path.read_bytes())
    needle = np.ascontiguousarray(open_records(dataset)[14].latents_FHWC).tobytes()
    data[data.find(needle) + len(needle) // 2] ^= 0xFF
    path.write_bytes(data)
    assert contents(f"{dataset}@1") == before
    source = open_records(dataset)
    assert [index for index in range(len(source)) if source[index] is None] == [14]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"generations/00002/windows-train.*: shard missing or empty"):
        open_records(dataset)
    assert contents(f"{dataset}@1") == before


def test_a_row_that_is_left_out_stays_in_the_generation_before(tmp_path: Path) -> None:
    dataset = synthetic.write_dataset(tmp_path / "dataset", synthetic.catalog(8))
    fewer = Catalog.load(dataset).select(np.arange(2, 8))
    one = generations.Generation(number=1, windows=8, records=8)
    two = generations.Generation(number=2, windows=6)
    fewer.save(dataset / two.folder)
    synthetic.spec().save(dataset / two.folder)
    generations.write_manifest(dataset, [one, two])
    assert contents(dataset) == contents(f"{dataset}@1")[2:]
    assert len(open_records(dataset)) == 8  # the records are those of the first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not the manifest of a dataset"),
        (json.dumps({"version": 1, "generations": [{"num": 1}]}), "not the manifest of a dataset"),
        (json.dumps({"version": 9, "generations": []}), "version 9, this package reads 1"),
        (json.dumps({"version": 1, "generations": [{"number": 2}]}), r"generations \[2\], not 1, 2"),
    ],
)
def test_a_manifest_that_is_none(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / generations.MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=rf"manifest\.json: .*{message}"):
        Catalog.load(tmp_path)


def test_a_generation_that_is_not_there(tmp_path: Path) -> None:
    dataset = synthetic.write_dataset(tmp_path / "dataset", synthetic.catalog(4))
    assert Catalog.load(f"{dataset}@1").fingerprint() == Catalog.load(dataset).fingerprint()
    with pytest.raises(ValueError, match=r"dataset@2: there is no such generation; .*dataset has one"):
        has_catalog(f"{dataset}@2")
    assert not has_catalog(tmp_path / "none@2")


def test_rows_of_two_catalogs() -> None:
    one, two = synthetic.catalog(5), synthetic.catalog(3, seed=1)
    two = dataclasses.replace(two, split=["held out", "train", "held out"])
    both = one.extended(two)
    assert both.window_id.tolist() == [*one.window_id, *two.window_id]
    assert both.split.tolist() == ["train"] * 5 + ["held out", "train", "held out"]
    assert both.duration_s.tolist() == [*one.duration_s.tolist(), *two.duration_s.tolist()]
