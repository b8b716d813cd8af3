"""A table and its sets in a bucket: the bytes of those on a disk, whoever is killed on the way."""

import hashlib
import random
import time
from pathlib import Path

import pytest

from data_pipelines.curate import part_slices, source_list
from data_pipelines.curate.clip_sets import load_landmarks, read_clips
from data_pipelines.curate.curate import CurateConfig, Engine, curate
from data_pipelines.curate.part_slices import Slice
from data_pipelines.curate.row_deaths import RowDeaths
from data_pipelines.curate.selection import select
from data_pipelines.curate.stage_parts import SCHEMAS, Table, read_part, stated_choice, write_part
from data_pipelines.curate.tagging import Thresholds
from omnihuman_jax.runtime import bucket_copies, files, locations
from tests.data_pipelines.test_kill import digests, finish, kill, start
from tests.data_pipelines.test_sources import media, server, upload
from tests.storage.servers import Server

__all__ = ["media", "server"]


def objects(uri: str) -> dict[str, str]:
    """As `digests` of a folder."""
    fs, root = bucket_copies.open_storage(uri)
    found = fs.find(root)
    return {name.removeprefix(f"{root}/"): hashlib.sha256(fs.cat_file(name)).hexdigest() for name in found}


def test_a_table_in_a_bucket_is_the_one_on_a_disk(server: Server, media: Path, tmp_path: Path) -> None:
    """And its sets; run again, nothing is done; new videos are all that is done."""
    source, table = upload(server, media / "talks", "table/raw"), f"{server.bucket}/table/clips"
    config = CurateConfig(workers=1, task_minutes=0.01)
    made = curate(source, tmp_path / "clips", config)["computed"]
    assert curate(source, table, config)["computed"] == made and made["videos"] == 1
    assert objects(table) == digests(tmp_path / "clips")
    assert curate(source, table, config)["computed"] == {"videos": 0, "clips": 0}
    # What is selected lies beside the table, on a disk, or in the bucket.
    strict = Thresholds(min_bits_per_pixel=0.5)
    for number, out in enumerate((f"{server.bucket}/table/strict", tmp_path / "strict")):
        select((table, tmp_path / "clips")[number], strict, out)
    assert objects(f"{server.bucket}/table/strict") == digests(tmp_path / "strict")
    (clip,) = read_clips(f"{server.bucket}/table/strict")
    assert clip == read_clips(tmp_path / "strict")[0] and clip.path == f"{source}/a.mp4"
    select(table, strict, tmp_path / "here")
    assert read_clips(tmp_path / "here") == [clip]
    with pytest.raises(ValueError, match=r"has no landmarks, as its preview shows too little of a person"):
        load_landmarks(tmp_path / "here", clip)
    # Grown by two videos, one of which was there under another name.
    upload(server, media, "table/raw")
    assert curate(source, table, config)["computed"]["videos"] == 2
    assert len(read_clips(table)) == 2 and "b é.mp4" in {clip.video for clip in read_clips(table)}


def test_a_table_on_a_disk_of_another_place_is_found(server: Server, media: Path) -> None:
    """Videos of this machine in a table of a bucket, and sets of this machine of that table."""
    table = f"{server.bucket}/of_disk/clips"
    assert curate(media, table, CurateConfig(workers=1))["clips"] == 2
    (one, other) = read_clips(table)
    assert {Path(one.path), Path(other.path)} == {media / "talks/a.mp4", media / "b é.mp4"}
    assert one.video_path(table).samefile(media / one.video)
    assert curate(media, table, CurateConfig(workers=1), engine=Engine(listed=True))["computed"]["videos"] == 0


def test_who_comes_second_takes_the_parts_of_the_first(server: Server) -> None:
    """Two that add the same videos at once."""
    table = Table(folder=locations.location(f"{server.bucket}/race [1]/clips"), keys={})
    rows = [{"part": 0, "source": "a", "name": "a.mp4", "size": 1, "mtime_ns": 1}]
    assert source_list.write_sources(table, rows) and source_list.read_sources(table) == rows
    first = table.folder / "sources" / "added-00000.parquet"
    assert not files.claim(first, lambda beside: beside.write_bytes(b"another"))
    assert files.claim(first, lambda beside: beside.write_bytes(first.read_bytes()))  # an answer that was lost


def test_a_row_that_kills_its_process_is_noted_where_whoever_goes_on_finds_it(server: Server) -> None:
    deaths = RowDeaths(locations.location(f"{server.bucket}/deaths/look@0/part-00000.parquet"))
    assert not deaths.blame() and not deaths.count("a clip")
    for died in (1, 2):
        deaths.begin("a clip")
        assert deaths.blame() and deaths.count("a clip") == died
    deaths.forget()
    assert not objects(f"{server.bucket}/deaths")


def test_storage_that_does_not_answer_is_no_damaged_part(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    part = locations.location(f"{server.bucket}/silent/look@0/part-00000.parquet")
    write_part(part, [], SCHEMAS["look"], "chosen")
    assert stated_choice(part) == "chosen" and not len(read_part(part))
    monkeypatch.setattr(bucket_copies, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(bucket_copies, "_PATIENCE_S", 0.02)

    def cut_off(uri: str) -> None:
        raise ConnectionResetError("by peer")

    monkeypatch.setattr(bucket_copies, "open_storage", cut_off)
    for look in (stated_choice, read_part):
        with pytest.raises(bucket_copies.NoAnswer, match=r"part-00000.parquet: storage did not answer"):
            look(part)


def test_slices_are_old_by_what_was_written_last(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(folder=locations.location(f"{server.bucket}/slices"), keys={"look": "0"})
    folder = Slice(stage="look", begin=0, end=1).folder(table, 7)
    files.write_text(folder / "000000-000001.parquet", "rows")
    assert part_slices.folders_of(table, "look", 7) == [folder]
    part_slices.remove_dead(folder)
    assert objects(f"{server.bucket}/slices")
    monkeypatch.setattr(files, "DEAD_S", -60.0)
    part_slices.remove_dead(folder)
    part_slices.remove_dead(folder)  # and where nothing is left
    assert not objects(f"{server.bucket}/slices")


@pytest.mark.slow
def test_a_table_in_a_bucket_survives_kills(server: Server, media: Path, tmp_path: Path) -> None:
    """SIGKILL at twelve moments, with another number of processes each time, and a server that answers 503 now and
    then: the objects are those of an undisturbed run, to the byte, and no more of them.
    """
    source, table, log = upload(server, media, "kill/raw"), f"{server.bucket}/kill/clips", tmp_path / "log"
    (tmp_path / "config.json").write_text('{"shots": {"min_s": 0.2, "max_s": 0.4}, "task_minutes": 0.005}')
    command = ["curate", "--source", f"{source}/**", "--config", str(tmp_path / "config.json"), "--out"]
    finish(start([*command, str(tmp_path / "clips"), "--workers=2"], log), log)
    server.proxy.faults = lambda method, path, number: 503 if number % 11 == 0 else None
    rng = random.Random(0)
    try:
        for number in range(12):
            count = 1 + number % 3
            shares = [[f"--worker={i}/{count}", "--workers=1"] for i in range(count)]
            running = [
                start([*command, table, *options], log) for options in (shares if number % 2 else [["--workers=2"]])
            ]
            time.sleep(rng.uniform(2.0, 9.0))
            for process in running:
                kill(process)
        finish(start([*command, table, "--workers=2"], log), log)
    finally:
        server.proxy.faults = lambda method, path, number: None
    assert objects(table) == digests(tmp_path / "clips")
