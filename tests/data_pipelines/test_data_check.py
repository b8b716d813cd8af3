"""Defects planted into a data set that encode made: each is found, named by kind and place, and nothing else is."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data_pipelines.curate.known_clips import write_clips
from data_pipelines.encode.clip_encoder import WindowConfig
from data_pipelines.encode.encode import EncodeConfig, encode
from omnihuman_jax import cli
from omnihuman_jax.conditions import Condition
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.dataset_check import check_dataset
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.data.records import WindowRecord, write_shard
from omnihuman_jax.serving import media_omnihuman
from tests.data_pipelines.test_encode import ALL, _clip, _pictures
from tests.encoders import tiny_networks

MARGIN = 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of one video, in two shards."""
    root = tmp_path_factory.mktemp("checked")
    (root / "clips" / "videos").mkdir(parents=True)
    video = root / "clips" / "videos" / "talk.mp4"
    media_omnihuman.write_video(video, _pictures(60, 96, 128), audio=tiny_networks.wave(2.4))
    clips = [_clip(root / "clips", "talk.mp4", start, end, (96, 128), ALL) for start, end in ((2, 30), (30, 58))]
    write_clips(root / "clips", clips)
    config = EncodeConfig(
        text_encoder=str(tiny_networks.write_bert(root / "bert")),
        speech_encoder=str(tiny_networks.write_whisper(root / "whisper")),
        speech_layers=(0, 2),
        windows=WindowConfig(area=64 * 48, frames=(1, 5, 17), image_stride=12, references=2, margin=MARGIN),
        shard_mib=0.001,
    )
    encode(root / "clips", root / "dataset", config, Console(quiet=True))
    return root / "dataset"


@pytest.fixture
def dataset(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "dataset"))


def test_what_encode_made_is_right(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []
    assert not list(check_dataset(whole, on_record=lambda: seen.append(1)))
    assert len(seen) == len(Catalog.load(whole)) and len(list(whole.glob("*.array_record-*"))) == 2
    assert cli.main(["data", "check", str(whole)]) == 0
    assert "no problems" in capsys.readouterr().err


def shard(folder: Path, number: int) -> Path:
    return sorted(folder.glob("*.array_record-*"))[number]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


def rewrite_catalog(folder: Path, change: Callable[[Catalog], Catalog]) -> None:
    change(Catalog.load(folder)).save(folder)


def with_value(name: str, row: int, value: object) -> Callable[[Path], None]:
    def change(catalog: Catalog) -> Catalog:
        column = getattr(catalog, name).copy()
        column[row] = value
        return dataclasses.replace(catalog, **{name: column})

    return lambda folder: rewrite_catalog(folder, change)


def rewrite_record(row: int, change: Callable[[WindowRecord], WindowRecord]) -> Callable[[Path], None]:
    """Writes the first shard again with one record changed."""

    def plant(folder: Path) -> None:
        source, path = open_records(folder), shard(folder, 0)
        count = json.loads((folder / "encode.json").read_text())["shards"][0]["records"]
        records = [source[index] for index in range(count)]
        records = [change(r) if index == row else r for index, r in enumerate(records) if r is not None]
        write_shard(path, records, source.spec)

    return plant


def changed(name: str, place: tuple[int, ...], value: float) -> Callable[[WindowRecord], WindowRecord]:
    def change(record: WindowRecord) -> WindowRecord:
        array = getattr(record, name).copy()
        array[place] = value
        return dataclasses.replace(record, **{name: array})

    return change


DEFECTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a shard is gone": ("missing shard", lambda f: shard(f, 1).unlink()),
    "a shard is empty": ("empty shard", lambda f: shard(f, 1).write_bytes(b"")),
    "a byte of a shard": ("changed shard", lambda f: flip(shard(f, 0))),
    "a shard too many": (
        "extra shard",
        lambda f: shutil.copy(shard(f, 0), f / "w.array_record-7-of-9"),
    ),
    "a byte of the catalog": ("catalog", lambda f: flip(f / "catalog" / "record.npy")),
    "no features.json": ("missing file", lambda f: (f / "features.json").unlink()),
    "no dataset.npz": ("spec", lambda f: (f / "dataset.npz").unlink()),
    "encode.json is cut": ("summary", lambda f: (f / "encode.json").write_text("{")),
    "a row twice": ("repeated row", lambda f: rewrite_catalog(f, lambda c: c.select(np.r_[np.arange(len(c)), 0]))),
    "a row is gone": ("count", lambda f: rewrite_catalog(f, lambda c: c.select(np.arange(1, len(c))))),
    "a row of another record": ("another record", with_value("record", 0, 1)),
    "a row beyond the data": ("no record", with_value("record", 0, 10_000)),
    "another size": ("wrong size", with_value("latent_frames", 0, 9)),
    "other pixels": ("wrong size", with_value("height", 0, 4096)),
    "another length": ("wrong length", with_value("duration_s", 0, 3.0)),
    "more tokens than there are": ("wrong count", with_value("text_tokens", 0, 60)),
    "bits that the record has not": ("eligible", with_value("eligible", 0, 15)),
    "NaN in latents": ("not finite", rewrite_record(0, changed("latents_FHWC", (0, 0, 0, 0), np.nan))),
}


@pytest.mark.parametrize(("kind", "plant"), DEFECTS.values(), ids=DEFECTS)
def test_a_planted_defect_is_found(kind: str, plant: Callable[[Path], None], dataset: Path) -> None:
    plant(dataset)
    found = list(check_dataset(dataset))
    assert kind in {problem.kind for problem in found}
    assert all(str(dataset) not in problem.where and str(problem).isprintable() for problem in found)


@pytest.mark.parametrize(
    ("change", "kind", "what"),
    [
        (changed("keypoints_TJ3", (MARGIN, 0, 0), 900.0), "keypoints", "x of keypoint 0 in row 2 is 900"),
        (changed("keypoints_TJ3", (MARGIN, 0, 2), 7.0), "keypoints", "confidence of keypoint 0 in row 2 is 7"),
        (changed("audio_TE", (0, 3), np.inf), "not finite", "audio_TE"),
        (changed("audio_valid_T", (MARGIN,), False), "eligible", "the record has nothing for audio"),
        (lambda r: dataclasses.replace(r, keypoints_TJ3=0 * r.keypoints_TJ3), "eligible", "nothing for pose"),
    ],
)
def test_a_defect_of_a_window_is_placed(
    change: Callable[[WindowRecord], WindowRecord], kind: str, what: str, dataset: Path
) -> None:
    catalog = Catalog.load(dataset)
    row = int(np.flatnonzero(catalog.frames == 17)[0])
    rewrite_record(row, change)(dataset)
    (problem,) = check_dataset(dataset, hashes=False)
    assert (problem.kind, problem.where) == (kind, str(catalog.window_id[row])) and what in problem.what


def test_a_command_lists_and_counts(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_value("eligible", 0, 15)(dataset)
    assert cli.main(["data", "check", str(dataset), "--no-hashes"]) == 2
    out, err = capsys.readouterr()
    assert "eligible: " in out and "1 problem" not in out and "problems" in err
    assert Condition.AUDIO.label in out
    assert cli.main(["data", "check", str(dataset / "nowhere")]) == 2
    assert cli.main(["data", "check", str(dataset), "--sample", "2"]) == 2
    assert "--sample must be in (0, 1], not 2.0" in capsys.readouterr().err


def test_the_page_says_what_is_there(whole: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert cli.main(["data", "report", str(whole), "--out", str(page)]) == 0
    text = page.read_text()
    assert 'src="http' not in text and 'href="http' not in text and "<h2>Windows</h2>" in text
    assert "Hours by eligible set" in text and "text+reference+audio+pose" in text
