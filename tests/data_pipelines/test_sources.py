"""Sources of `curate`: a folder, a bucket, archives and a list give the same clips of the same bytes; what is bad in
one is told with its stage and reason, and the rest is finished.
"""

import dataclasses
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.curate import curate as curate_module
from data_pipelines.curate import (
    curate_command,
    part_work,
    source_list,
    stage_parts,
    stage_rows,
    video_files,
)
from data_pipelines.curate.clip_sets import read_clips, table_folder
from data_pipelines.curate.curate import CurateConfig, Engine, curate
from data_pipelines.curate.file_stages import ScanOptions
from data_pipelines.curate.found_videos import CaptionOptions, Found
from data_pipelines.curate.part_slices import Slice
from data_pipelines.curate.part_task import PartTask
from data_pipelines.curate.stage_keys import stage_keys
from data_pipelines.curate.stage_parts import Table
from data_pipelines.curate.tagging import Thresholds
from data_pipelines.curate.video_files import Address
from omnihuman_jax.runtime import bucket_copies, exit_codes, files, scratch
from omnihuman_jax.runtime.worker_share import WorkerShare
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.serving.media_omnihuman import MediaError
from tests.storage import servers
from tests.storage.servers import Server

OPTIONS = CaptionOptions(default="nothing is said")


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of noise with a caption for one, in folders, and what is no video beside them."""
    folder = tmp_path_factory.mktemp("media") / "footage"
    (folder / "talks").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, name in enumerate(("talks/a.mp4", "b é.mp4")):
        low = rng.integers(0, 255, (30, 9, 12, 3), np.uint8)
        frames = np.repeat(np.repeat(low, 8, axis=1), 8, axis=2)
        media_omnihuman.write_video(folder / name, frames, audio=np.sin(np.arange(19200) / (9 + number)).astype("f4"))
    (folder / "talks" / "a.txt").write_text("a person\nspeaks")
    (folder / "lonely.txt").write_text("of nothing")
    (folder / "notes.pdf").write_bytes(b"%PDF")
    (folder / ".hidden.mp4").write_bytes(b"x")
    (folder / "splits.json").write_text(json.dumps({"talks/a.mp4": "held"}))
    return folder


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def archived(media: Path, folder: Path) -> str:
    """The footage in two archives, with what the folder says of it in their own way."""
    bytes_of = {name: (media / name).read_bytes() for name in ("talks/a.mp4", "b é.mp4")}
    facts = json.dumps({"caption": "a person speaks", "split": "held"}).encode()
    first = {"talks/a.mp4": bytes_of["talks/a.mp4"], "talks/a.json": facts, "talks/notes.pdf": b"%PDF", "x.txt": b"x"}
    write_tar(folder / "0.tar", first)
    write_tar(folder / "1.tar", {"b é.mp4": bytes_of["b é.mp4"]})
    return str(folder / "*.tar")


def listed(media: Path, place: Path, prefix: str = "") -> str:
    rows = {
        "path": [f"{prefix}talks/a.mp4", f"{prefix}b é.mp4"],
        "caption": ["a person  speaks", None],
        "split": ["held", None],
    }
    pq.write_table(pa.table(rows), place)
    return str(place)


def as_tfds(folder: Path, splits: dict[str, list[dict[str, Any]]], features: Any) -> str:
    """A data set of tensorflow-datasets, a shard a split."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core import example_serializer

    folder.mkdir(parents=True)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    template = {"data_dir": str(folder), "dataset_name": "talks", "filetype_suffix": "array_record"}
    infos = []
    for name, records in splits.items():
        data = [serializer.serialize_example(features.encode_example(record)) for record in records]
        writer = ArrayRecordWriter(
            str(folder / f"talks-{name}.array_record-00000-of-00001"), "group_size:1,uncompressed"
        )
        for one in data:
            writer.write(one)
        writer.close()
        infos.append(
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=[len(data)],
                num_bytes=sum(map(len, data)),
                filename_template=tfds.core.ShardedFileTemplate(split=name, **template),
            )
        )
    tfds.folder_dataset.write_metadata(data_dir=str(folder), features=features, split_infos=infos, check_data=False)
    return f"tfds:{folder}"


def tfds_of(media: Path, folder: Path) -> str:
    """The footage as a data set that has other features too."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({
        "video": tfds.features.Tensor(shape=(), dtype=np.object_),
        "caption": tfds.features.Text(),
        "ages": tfds.features.Sequence(np.float32),
    })  # fmt: skip
    said = {"video": (media / "talks/a.mp4").read_bytes(), "caption": "a person\nspeaks", "ages": [20.0, 30.0]}
    silent = {"video": (media / "b é.mp4").read_bytes(), "caption": "", "ages": []}
    return as_tfds(folder, {"held": [said], "train": [silent]}, features)


def find(source: str | Path) -> Found:
    return source_list.find(source, OPTIONS)


def facts(found: Found, table: Path) -> list[tuple[Any, ...]]:
    """What a source says of each video, whatever it calls it: sha256, size, caption, split."""
    return sorted(
        (files.file_sha256(video_files.local_file(Address.parse(video.address.text(table), table))), video.size,
         video.caption, video.caption_source, video.caption_error, video.split)
        for video in found.videos.values()
    )  # fmt: skip


def tabled(source: str | Path, folder: Path, *, whole: bool = False) -> Table:
    """A table of a source, its parts made in this process: what every video is scanned for, or the whole of it."""
    options = ScanOptions()
    table = Table(folder=folder, keys=stage_keys(options))
    videos = source_list.look_up(table, source, OPTIONS)
    table.save()
    for task in curate_module._tasks(table, videos, options, Thresholds()):
        if whole:
            part_work.work(task)
        elif not table.part("scan", task.number).is_file():
            videos_of_part = Slice(stage="scan", begin=0, end=len(task.sources))
            scanned, _ = stage_rows.scan(task, table, None, videos_of_part, table.part("scan", task.number))
            stage_parts.write_part(table.part("scan", task.number), scanned, stage_parts.SCHEMAS["scan"])
    return table


def rows(table: Table) -> list[dict[str, Any]]:
    """Every clip with all that the stages which ran know, in the order of their ids; not its part and source."""
    found = []
    for number in sorted({row["part"] for row in source_list.read_sources(table)}):
        scanned = stage_parts.clip_rows(table.read("scan", number))
        stages = [stage for stage in stage_parts.STAGES[1:] if table.part(stage, number).is_file()]
        others = [table.read(stage, number).to_pylist() for stage in stages] or [[{}] * len(scanned)]
        for scan, *scored in zip(scanned, *others, strict=True):
            facts = {name: value for name, value in scan.items() if name != "source"}
            name = stage_parts.clip_id(scan["sha256"], scan["start_frame"], scan["end_frame"])
            found.append({"clip_id": name, **facts, **{k: v for row in scored for k, v in row.items()}})
    return sorted(found, key=lambda row: row["clip_id"])


def dead(table: Table) -> dict[str, dict[str, Any]]:
    """Name -> its dead letter."""
    names = {row["source"]: row["name"] for row in source_list.read_listings(table).to_pylist()}
    numbers = sorted({row["part"] for row in source_list.read_sources(table)})
    letters = [row for n in numbers for row in table.read("scan", n).to_pylist() if row["kind"] == stage_parts.DEAD]
    return {names[row["source"]]: row for row in letters if row["source"] in names}


@pytest.fixture(scope="module")
def of_folder(media: Path, tmp_path_factory: pytest.TempPathFactory) -> Table:
    return tabled(media, tmp_path_factory.mktemp("of_folder") / "table")


def test_archives_and_a_list_give_the_clips_of_the_folder(media: Path, of_folder: Table, tmp_path: Path) -> None:
    """Ids, headers, shots, captions and splits."""
    expected = rows(of_folder)
    assert len(expected) == 2
    told = facts(find(media), tmp_path)
    assert [row[2:] for row in told if row[5] == "held"] == [("a person speaks", "sidecar", "", "held")]
    for number, source in enumerate(
        (archived(media, tmp_path / "tars"), listed(media, media.parent / "list.parquet", "footage/"))
    ):
        assert facts(find(source), tmp_path / "x") == told
        assert rows(tabled(source, tmp_path / f"table{number}")) == expected


def test_what_is_no_video_is_passed_over_by_name(media: Path, tmp_path: Path) -> None:
    over = find(archived(media, tmp_path)).passed_over
    assert over == {"captions without a video": ["0.tar/x.txt"], "files of other types": ["0.tar/talks/notes.pdf"]}


def test_the_parts_of_an_archive_are_found_where_the_table_lies_now(media: Path, tmp_path: Path) -> None:
    """Addresses are relative to the table, so that both may move together."""
    source = archived(media, tmp_path / "old" / "tars")
    texts = {name: video.address.text(tmp_path / "old" / "table") for name, video in find(source).videos.items()}
    assert texts["1.tar/b é.mp4"].startswith("tar:") and texts["1.tar/b é.mp4"].endswith(":../tars/1.tar")
    (tmp_path / "old").rename(tmp_path / "new")
    moved = Address.parse(texts["1.tar/b é.mp4"], tmp_path / "new" / "table")
    assert video_files.local_file(moved).read_bytes() == (media / "b é.mp4").read_bytes()


@pytest.mark.parametrize(
    "address",
    [
        Address(place="/x/a b\n.mp4"),
        Address(place="gs://b/tar:1:2:x é.mp4"),
        Address(place="/x/tar:1:2:y", offset=512, size=7),
        Address(place="s3://b/00.tar", offset=0, size=0),
        Address(place="/x/set-train.array_record-00000-of-00001", record=17, feature="video"),
        Address(place="gs://b/record:1:video:x", record=0, feature="mp4"),
        Address(problem="row 3: none\\x"),
    ],
)
def test_an_address_survives_its_text(address: Address) -> None:
    text = address.text("/tables/t")
    assert Address.parse(text, "/tables/t") == address and "\n" not in text


def test_the_listing_that_was_written_last_says_where_a_video_lies_and_what_it_shows(tmp_path: Path) -> None:
    """Whatever the sources are called: a hash of that names the listings."""
    table = Table(folder=tmp_path / "table", keys=dict.fromkeys(stage_parts.STAGES, "made"))
    place = tmp_path / "0"
    place.mkdir()
    (place / "a.mp4").write_bytes(b"x")
    for number in range(1, 6):
        place = place.rename(tmp_path / str(number))
        (place / "a.txt").write_text(f"caption {number}")
        (video,) = source_list.look_up(table, place, OPTIONS)
        for (row,) in (source_list.listed_in(table, 0), source_list.read_listings(table).to_pylist()):
            assert (row["path"], row["caption"]) == (f"../{number}/a.mp4", f"caption {number}")
            assert row["source"] == video.source
    assert len(list((tmp_path / "table" / "listings").glob("*.parquet"))) == 5


def test_a_video_that_was_touched_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, media = Table(folder=tmp_path / "table", keys=dict.fromkeys(stage_parts.STAGES, "made")), tmp_path / "media"
    media.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (media / name).write_bytes(name.encode())
    hashed: list[str] = []
    digest = source_list._digest
    monkeypatch.setattr(source_list, "_digest", lambda at: hashed.append(Path(at.place).name) or digest(at))

    def look() -> tuple[dict[str, str], list[str]]:
        hashed.clear()
        return {video.name: video.source for video in source_list.look_up(table, media, OPTIONS)}, hashed[:]

    first, _ = look()
    for row in source_list.read_sources(table):
        scan = {"source": row["source"], "kind": "dead", "sha256": files.file_sha256(media / row["name"])}
        stage_parts.write_part(table.part("scan", row["part"]), [scan], stage_parts.SCHEMAS["scan"])
    rows = source_list.read_sources(table)
    os.utime(media / "a.mp4", ns=(1, 1))
    (media / "b.mp4").write_bytes(b"other")
    second, asked = look()
    assert second["a.mp4"] == first["a.mp4"] and second["b.mp4"] != first["b.mp4"] and asked == ["a.mp4", "b.mp4"]
    assert look() == (second, []), "neither is looked into again"
    os.utime(media / "a.mp4", ns=(2, 2))
    assert look() == (second, ["a.mp4"]) and look() == (second, [])
    known = source_list.read_sources(table)
    assert known[:2] == rows and [row["source"] for row in known[2:]] == [second["b.mp4"]]


def test_a_cut_archive_loses_what_is_cut_and_nothing_else(media: Path, of_folder: Table, tmp_path: Path) -> None:
    good = (media / "talks" / "a.mp4").read_bytes()
    whole = write_tar(tmp_path / "tars" / "cut.tar", {"a.mp4": good, "lost.mp4": good, "never seen.mp4": good})
    whole.write_bytes(whole.read_bytes()[: 3 * 512 + len(good) + len(good) // 2])
    (tmp_path / "tars" / "none.tar").write_bytes(b"<html>403 Forbidden</html>" * 100)
    (tmp_path / "tars" / "empty.tar").write_bytes(b"")
    repeated = {"x/a.mp4": good}
    with tarfile.open(write_tar(tmp_path / "tars" / "twice.tar", repeated), "a") as archive:
        info = tarfile.TarInfo("x/a.mp4")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    table = tabled(str(tmp_path / "tars" / "*.tar"), tmp_path / "table")
    letters = dead(table)
    assert set(letters) == {"cut.tar", "cut.tar/lost.mp4", "none.tar", "empty.tar"}
    assert all(row["is_lasting"] for row in letters.values())
    assert "the archive is cut, or none (unexpected end of data); 2 videos before" in letters["cut.tar"]["reason"]
    assert "bytes before its end; copy the archive again" in letters["cut.tar/lost.mp4"]["reason"]
    assert source_list.read_passed_over(table) == {
        "members of a name that their archive has already": ["twice.tar/x/a.mp4"]
    }
    assert {row["clip_id"] for row in rows(table)} < {row["clip_id"] for row in rows(of_folder)}


def test_a_list_tells_each_bad_row_and_finishes_the_rest(media: Path, of_folder: Table, tmp_path: Path) -> None:
    place = str(media / "talks" / "a.mp4")
    paths = [place, str(tmp_path / "absent.mp4"), None, place, "ftp://x/y.mp4", str(media / "notes.pdf"), str(media)]
    captions = ["fine", "", None, "again", "x", "a\x00b", "y"]
    pq.write_table(pa.table({"uri": paths, "caption": captions}), tmp_path / "list.parquet")
    table = tabled(tmp_path / "list.parquet", tmp_path / "table")
    letters = {name: row["reason"] for name, row in dead(table).items()}
    assert letters.keys() == {paths[1], "row 2", f"{place} (row 3)", "ftp://x/y.mp4", paths[5], paths[6]}
    assert "No such file" in letters[str(tmp_path / "absent.mp4")]
    assert letters["row 2"] == "the list's row has no path"
    assert letters[f"{place} (row 3)"] == "the list has it already, in row 0; take the row out"
    assert "ftp:// is not supported" in letters["ftp://x/y.mp4"]
    listing = {row["name"]: row for row in source_list.read_listings(table).to_pylist()}
    assert "the caption of row 5 has U+0000" in listing[paths[5]]["caption_error"]
    assert len(rows(table)) == 1 and listing[place]["caption"] == "fine"
    # What is there the next time is new work, and nothing else is.
    (tmp_path / "absent.mp4").write_bytes((media / "b é.mp4").read_bytes())
    again = tabled(tmp_path / "list.parquet", tmp_path / "table")
    assert rows(again) == rows(of_folder)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"url": ["a"]}, "has no column `path` or `uri`; it has url"),
        ({"path": [3]}, "its column path holds int64, not text"),
        ({"path": ["a"], "caption": [[1]]}, r"its column caption holds list"),
        ({}, "has no column `path` or `uri`; it has none"),
    ],
)
def test_a_list_of_another_kind_is_refused_in_one_line(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    with pytest.raises(ValueError, match=message) as error:
        find(tmp_path / "list.parquet")
    assert "\n" not in str(error.value)


def test_sources_that_are_none_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no")
    for source, kind, words in (
        (tmp_path / "text.parquet", ValueError, "not a readable Parquet file"),
        (tmp_path / "none.parquet", FileNotFoundError, "no such list"),
        (tmp_path / "*.tar", FileNotFoundError, "no such archive"),
        (tmp_path / "nothing", FileNotFoundError, "no such folder"),
        (f"tfds:{tmp_path}/none", FileNotFoundError, "no data set of tensorflow-datasets"),
        ("tfds:gs:/bucket/x", ValueError, "write gs://BUCKET/PATH"),
        ("gs://bucket/a/*.tar.gz", ValueError, "decompress it"),
        ("http://x/y", ValueError, "http:// is not supported"),
        ("gs:/bucket/x", ValueError, "write gs://BUCKET/PATH"),
    ):
        with pytest.raises(kind, match=words) as error:
            find(source)
        assert "\n" not in str(error.value)
    write_tar(tmp_path / "empty.tar", {"a.pdf": b"x"})
    with pytest.raises(ValueError, match="no videos in it"):
        find(tmp_path / "empty.tar")


def test_a_data_set_of_tfds_gives_the_clips_of_the_folder(media: Path, of_folder: Table, tmp_path: Path) -> None:
    source = tfds_of(media, tmp_path / "set")
    found = find(source)
    names = [f"{split}/talks-{split}.array_record-00000-of-00001/000000" for split in ("held", "train")]
    assert list(found.videos) == names
    assert facts(found, tmp_path) == facts(find(media), tmp_path)
    assert rows(tabled(source, tmp_path / "table")) == rows(of_folder)


def test_damaged_records_of_tfds_are_dead_letters(media: Path, of_folder: Table, tmp_path: Path) -> None:
    """A record without its video, one of flipped bytes, a shard that is cut, one that is gone; the rest is read."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({"mp4": tfds.features.Text()})
    whole = {"mp4": (media / "talks/a.mp4").read_bytes()}
    splits = {"a": [whole, {"mp4": b""}], "b": [whole, whole], "c": [whole], "d": [whole]}
    source = as_tfds(tmp_path / "set", splits, features)
    shard = {split: next((tmp_path / "set").glob(f"talks-{split}.*")) for split in splits}
    data = bytearray(shard["b"].read_bytes())
    middle = data.rindex(whole["mp4"][-64:])
    data[middle : middle + 8] = b"flipped!"
    shard["b"].write_bytes(data)
    shard["c"].write_bytes(shard["c"].read_bytes()[:-1000])
    shard["d"].unlink()
    table = tabled(source, tmp_path / "table")
    reasons = {name.partition("/")[0] + name[-2:]: row["reason"] for name, row in dead(table).items()}
    assert set(reasons) == {"a01", "b01", "c01", "d01"}
    assert "nothing in the feature mp4" in reasons["a01"] and "record 1" in reasons["b01"]
    assert "is cut" in reasons["c01"] and "No such file" in reasons["d01"]
    # The same bytes twice are the same clips.
    assert {row["clip_id"] for row in rows(table)} < {row["clip_id"] for row in rows(of_folder)}


def test_data_sets_of_tfds_without_encoded_videos_are_refused(tmp_path: Path) -> None:
    """Decoded pictures, which TensorFlow alone takes apart; no feature of a name that we know; another file format."""
    import tensorflow_datasets as tfds

    labels = as_tfds(tmp_path / "labels", {"train": []}, tfds.features.FeaturesDict({"label": tfds.features.Text()}))
    with pytest.raises(ValueError, match=r"no feature `video` or `mp4` of bytes.*it has label"):
        find(labels)
    features = tfds.features.FeaturesDict({"video": tfds.features.Text()})
    as_video = (
        'text_feature.Text",\n                "text": {}',
        'video_feature.Video", "video": {"shape": {"dimensions": ["-1", "4", "4", "3"]}, "dtype": "uint8"}',
    )
    for name, file, old, new, words in (
        ("frames", "features.json", *as_video, "decoded pictures without sound"),
        ("tfrecord", "dataset_info.json", '"array_record"', '"tfrecord"', "in tfrecord, which wants TensorFlow"),
    ):
        source = as_tfds(tmp_path / name, {"train": []}, features)
        edited = (tmp_path / name / file).read_text().replace(old, new)
        assert new in edited
        (tmp_path / name / file).write_text(edited)
        with pytest.raises(ValueError, match=words) as error:
            find(source)
        assert "\n" not in str(error.value)


def test_copies_stay_below_their_limit_and_go_with_their_process(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [bytes([number]) * 1000 for number in range(6)]
    write_tar(tmp_path / "a.tar", {f"{number}.mp4": one for number, one in enumerate(data)})
    home = tmp_path / "copies"
    monkeypatch.setenv(scratch.FOLDER_VARIABLE, str(home))
    monkeypatch.setenv(bucket_copies.LIMIT_VARIABLE, "0.0000025")
    (home / "1-dead").mkdir(parents=True)
    (home / "1-dead" / ".lock").touch()  # of a process that was killed
    bucket_copies._copies.cache_clear()
    scratch._folders.cache_clear()
    try:
        addresses = [video.address for video in find(tmp_path / "a.tar").videos.values()]
        for address, expected in [*zip(addresses, data, strict=True), (addresses[0], data[0])]:
            assert video_files.local_file(address).read_bytes() == expected
            assert sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) <= 2500
        assert not (home / "1-dead").exists()
        with pytest.raises(OSError, match=f"2.5e-06 GB of copies; raise {bucket_copies.LIMIT_VARIABLE}"):
            video_files.local_file(dataclasses.replace(addresses[0], size=3000))
        with pytest.raises(MediaError, match=r"ends .* bytes before its end"):
            video_files.local_file(dataclasses.replace(addresses[5], offset=addresses[5].offset + 20_000))
    finally:
        bucket_copies.forget()
        bucket_copies._copies.cache_clear()
        scratch._folders.cache_clear()
    assert not [path for path in home.rglob("*") if path.is_file() and path.name != ".lock"]


@pytest.fixture(scope="module", params=["gs", pytest.param("s3", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server, used from this process."""
    import fsspec

    start = {"gs": servers.gcs, "s3": servers.s3}[request.param]
    with start(tmp_path_factory.mktemp(request.param)) as started, pytest.MonkeyPatch.context() as patch:
        for name, value in started.environment.items():
            patch.setenv(name, value)
        fsspec.get_filesystem_class(request.param).clear_instance_cache()
        yield started
        fsspec.get_filesystem_class(request.param).clear_instance_cache()


def upload(server: Server, folder: Path, prefix: str) -> str:
    fs, _ = bucket_copies.open_storage(server.bucket)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            fs.pipe_file(f"{servers.BUCKET}/{prefix}/{path.relative_to(folder)}", path.read_bytes())
    return f"{server.bucket}/{prefix}"


def test_a_bucket_gives_the_clips_of_the_folder(server: Server, media: Path, of_folder: Table, tmp_path: Path) -> None:
    """Below a prefix, by a pattern, as archives, as a list and as a data set in it."""
    uri = upload(server, media, "raw")
    found = find(f"{uri}/**")
    assert sorted(found.videos) == ["b é.mp4", "talks/a.mp4"]
    assert found.passed_over == {
        "captions without a video": ["lonely.txt"],
        "files of other types": ["notes.pdf", "splits.json"],
        "hidden and system files": [".hidden.mp4"],
    }
    told = facts(find(media), tmp_path)
    assert facts(found, tmp_path) == facts(find(uri), tmp_path) == told
    assert list(find(f"{uri}/*/*.mp4").videos) == ["talks/a.mp4"]
    archived(media, tmp_path / "tars")
    tars = upload(server, tmp_path / "tars", "tars")
    (tmp_path / "lists").mkdir()
    listed(media, tmp_path / "lists" / "list.parquet")
    place = upload(server, tmp_path / "lists", "raw")
    tfds_of(media, tmp_path / "set")
    data_set = f"tfds:{upload(server, tmp_path / 'set', 'set')}"
    for number, source in enumerate((f"{uri}/**", f"{tars}/*.tar", f"{place}/list.parquet", data_set)):
        assert facts(find(source), tmp_path) == told
        assert rows(tabled(source, tmp_path / f"table{number}")) == rows(of_folder)


def test_a_table_that_grows_daily_has_few_files() -> None:
    """Of ten million clips fewer than 50,000 objects: six files a part."""
    known: list[dict[str, Any]] = []
    for day in range(365):
        ids = {f"day{day}/{i}.mp4": f"{day:03d}-{i:03d}" for i in range(274)}
        added = source_list._added(known[-1:], ids, dict.fromkeys(ids, (1, 1)), 1000)
        assert len(added) == 274 and min(row["part"] for row in added) == (known[-1]["part"] + 1 if known else 0)
        known += added
    parts = known[-1]["part"] + 1
    assert parts > 1000 and 6 * parts < 30_000
    ids = {f"{i}.mp4": f"{i:06d}" for i in range(50_000)}
    at_once = source_list._added([], ids, dict.fromkeys(ids, (1, 1)), 1000)
    assert at_once[-1]["part"] + 1 == 50


def test_objects_that_are_gone_forbidden_or_slow_to_come(server: Server, media: Path, tmp_path: Path) -> None:
    """Absent and 403 are dead letters, and no fault of the files; a 503 that heals is waited for."""
    uri = upload(server, media, "faulty")
    names = ["talks/a.mp4", "b é.mp4", "absent.mp4"]
    pq.write_table(pa.table({"path": [f"{uri}/{name}" for name in names]}), tmp_path / "list.parquet")
    answered: list[str] = []

    def faults(method: str, path: str, number: int) -> int | None:
        if "b%20" in path:
            return 403
        if "a.mp4" in path and len(answered) < 2:
            answered.append(path)
            return 503
        return None

    server.proxy.faults = faults
    try:
        table = tabled(tmp_path / "list.parquet", tmp_path / "table")
    finally:
        server.proxy.faults = lambda method, path, number: None
    letters = dead(table)
    assert len(answered) == 2 and len(rows(table)) == 1
    assert set(letters) == {f"{uri}/b é.mp4", f"{uri}/absent.mp4"}
    assert not any(row["is_lasting"] for row in letters.values())
    assert "FileNotFoundError" in letters[f"{uri}/absent.mp4"]["reason"]
    assert letters[f"{uri}/b é.mp4"]["exception"] != "FileNotFoundError"


def test_storage_that_stays_away_ends_the_run_and_an_object_that_does_is_left_behind(
    server: Server, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next video would fare no better, so no row is written, however often it ends; where storage answers for
    another object, it is that object's own fault.
    """
    uri = upload(server, media, "away")
    pq.write_table(pa.table({"path": [f"{uri}/{name}" for name in ("talks/a.mp4", "b é.mp4")]}), tmp_path / "l.parquet")
    copy, asked = bucket_copies.copy_object, []

    def cut_off(fs: Any, path: str, *given: Any) -> int:
        if path.endswith("a.mp4"):
            asked.append(path)
            raise ConnectionResetError("by peer")
        return copy(fs, path, *given)

    monkeypatch.setattr(bucket_copies, "copy_object", cut_off)
    monkeypatch.setattr(bucket_copies, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(bucket_copies, "_PATIENCE_S", 0.02)
    with monkeypatch.context() as away:
        away.setattr(bucket_copies, "answers", lambda place: False)
        for _ in range(stage_rows.MAX_DEATHS + 1):
            asked.clear()
            with pytest.raises(bucket_copies.NoAnswer, match=r"a.mp4: storage did not answer for .*by peer") as ended:
                tabled(tmp_path / "l.parquet", tmp_path / "table")
            assert asked and exit_codes.of_error(ended.value) == exit_codes.RETRY
    assert "run the same command again" in ended.value.__notes__[0]
    assert bucket_copies.answers(f"{uri}/talks/a.mp4")
    table = tabled(tmp_path / "l.parquet", tmp_path / "table")
    (letter,) = dead(table).values()
    assert letter["exception"] == "NoAnswer" and not letter["is_lasting"] and len(rows(table)) == 1


def test_patience_is_not_doubled_and_garbled_bytes_are_their_objects_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_copies, "_FIRST_PAUSE_S", 0.0)
    asked: list[int] = []

    def fails(problem: Exception) -> Any:
        asked.append(1)
        raise problem

    shard = bucket_copies.NoAnswer("gs://raw/shard: storage did not answer for 10 minutes (Connection reset)")
    with pytest.raises(bucket_copies.NoAnswer, match=r"^gs://raw/shard"):
        bucket_copies.patiently("gs://raw/shard", lambda: fails(shard))
    assert len(asked) == 1
    with pytest.raises(bucket_copies.GarbledError):
        bucket_copies.patiently("gs://raw/a", lambda: fails(bucket_copies.GarbledError("3 bytes")))
    assert len(asked) == 1 + 1 + bucket_copies._GARBLED


def test_a_key_with_two_slashes_is_read_as_it_is(server: Server, tmp_path: Path) -> None:
    fs, _ = bucket_copies.open_storage(server.bucket)
    fs.pipe_file(f"{servers.BUCKET}/odd//a b#1.mp4", b"bytes")
    (video,) = find(f"{server.bucket}/odd/**").videos.values()
    moved = Address.parse(video.address.text(tmp_path), tmp_path)
    assert video_files.local_file(moved).read_bytes() == b"bytes"


def test_a_bucket_that_is_not_there_is_one_line(server: Server) -> None:
    with pytest.raises(FileNotFoundError, match="nothing is there"):
        find(f"{server.bucket}/no/such/prefix/**")


@pytest.mark.slow
def test_all_stages_give_the_same_rows_from_every_source(server: Server, media: Path, tmp_path: Path) -> None:
    """Scores of pictures, landmarks and sound too."""
    expected = rows(tabled(media, tmp_path / "of_folder", whole=True))
    assert all(row["sharpness"] is not None and row["loudness_dbfs"] is not None for row in expected)
    sources = [f"{upload(server, media, 'stages')}/**", archived(media, tmp_path / "tars")]
    for number, source in enumerate(sources):
        assert rows(tabled(source, tmp_path / f"table{number}", whole=True)) == expected


@pytest.mark.slow
def test_curate_reads_a_bucket_to_the_end(server: Server, media: Path, tmp_path: Path) -> None:
    """By worker processes, and the clips' videos are there for encode."""
    uri = upload(server, media, "all")
    funnel = curate(f"{uri}/**", tmp_path / "table", CurateConfig(workers=2))
    assert funnel["clips"] == 2 and funnel["computed"]["videos"] == 2
    for clip in read_clips(tmp_path / "table"):
        path = clip.video_path(table_folder(tmp_path / "table"))
        assert files.file_sha256(path) == clip.sha256 == files.file_sha256(media / clip.video)
    again = curate(f"{uri}/**", tmp_path / "table", CurateConfig(workers=2))
    assert again["computed"]["videos"] == 0 and again["clips"] == 2


@pytest.mark.slow
def test_what_a_bucket_refuses_today_is_tried_again_when_asked(server: Server, media: Path, tmp_path: Path) -> None:
    uri = upload(server, media, "again")
    server.proxy.faults = lambda method, path, number: 403 if method == "GET" and "b%20" in path else None
    try:
        funnel = curate(f"{uri}/**", tmp_path / "table", CurateConfig(workers=1))
    finally:
        server.proxy.faults = lambda method, path, number: None
    (letter,) = funnel["quarantine"]
    assert (letter["video"], letter["stage"], funnel["clips"]) == ("b é.mp4", "scan", 1)
    again = curate(f"{uri}/**", tmp_path / "table", CurateConfig(workers=1), engine=Engine(retry_dead=True))
    assert again["clips"] == 2 and not again["quarantine"]


def test_workers_take_a_source_as_it_was_listed(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One looks into it, and the others do not; what came since then is not there for them."""
    shutil.copytree(media, tmp_path / "media")
    command = ["--source", str(tmp_path / "media"), "--out", str(tmp_path / "table")]
    with pytest.raises(FileNotFoundError, match=r"was not listed for .*table yet; run .* --list` first"):
        curate_command.main([*command, "--listed", "--worker=0/2"])
    with pytest.raises(ValueError, match="--list makes nothing; leave out"):
        curate_command.main([*command, "--list", "--worker=0/2"])
    assert curate_command.main([*command, "--list"]) == 0
    os.utime(next((tmp_path / "media").rglob("*.mp4")))  # touched: it is hashed, or new
    assert curate_command.main([*command, "--list"]) == 0
    with pytest.raises(ValueError, match="--default-caption: of the command that lists"):
        curate_command.main([*command, "--listed", "--default-caption", "b"])
    listed = source_list.as_listed(Table(folder=tmp_path / "table", keys={}), tmp_path / "media")
    parts = len({video.part for video in listed})
    assert f"{len(listed)} videos in {parts} parts; now --listed makes them" in " ".join(
        capsys.readouterr().out.split()
    )
    shutil.copy(next((tmp_path / "media").rglob("*.mp4")), tmp_path / "media" / "new.mp4")
    tasks: list[PartTask] = []
    monkeypatch.setattr(curate_module, "_run", lambda engine, workers, own, progress: (tasks.extend(own), ({}, []))[1])
    with monkeypatch.context() as blind:
        blind.setattr(source_list, "find", None)
        for index in range(2):
            own = Engine(share=WorkerShare(index, 2), listed=True)
            curate(tmp_path / "media", tmp_path / "table", engine=own)
    assert sorted(source for task in tasks for source in task.paths) == sorted(video.source for video in listed)
    curate(tmp_path / "media", tmp_path / "table", engine=Engine(share=WorkerShare(0, 1)))
    assert len({source for task in tasks for source in task.paths}) == len(listed) + 1
