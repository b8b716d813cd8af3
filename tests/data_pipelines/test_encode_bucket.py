"""encode reads videos out of a bucket, as objects and out of an archive: the records are those of the folder."""

import dataclasses
import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from data_pipelines.curate.clips import Clip
from data_pipelines.curate.known_clips import write_clips
from data_pipelines.curate.video_files import Address
from data_pipelines.encode.encode import encode
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.serving import media_omnihuman
from tests.data_pipelines.test_append import config
from tests.data_pipelines.test_encode import ALL, _clip, _pictures
from tests.data_pipelines.test_kill import OF_PLACE, digests, finish, start
from tests.data_pipelines.test_sources import server, upload
from tests.encoders import tiny_networks
from tests.storage.servers import Server

__all__ = ["server"]

QUIET = Console(quiet=True)
Place = Callable[[Clip], str]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, and two tiny networks."""
    root = tmp_path_factory.mktemp("bucket")
    (root / "videos").mkdir()
    for number, name in enumerate(("one.mp4", "two é.mp4")):
        frames = _pictures(40 + number, 96, 128)[number:]
        media_omnihuman.write_video(root / "videos" / name, frames, audio=tiny_networks.wave(1.6))
    tiny_networks.write_bert(root / "bert")
    tiny_networks.write_whisper(root / "whisper")
    return root


def sets(root: Path, folder: Path, place: Place) -> Path:
    """A table of two clips of each video, whose videos lie where `place` says."""
    shutil.copytree(root / "videos", folder / "videos")
    known = [
        _clip(folder, name, begin, begin + 20, (96, 128), ALL) for name in ("one.mp4", "two é.mp4") for begin in (0, 20)
    ]
    write_clips(folder, [(dataclasses.replace(clip, path=place(clip)), landmarks) for clip, landmarks in known])
    if "://" in place(known[0][0]):
        shutil.rmtree(folder / "videos")
    return folder


def archive(root: Path, folder: Path, uri: str, table: Path) -> Place:
    """Both videos in one archive; where in it each lies."""
    folder.mkdir()
    texts: dict[str, str] = {}
    with tarfile.open(folder / "all.tar", "w") as tar:
        for path in sorted((root / "videos").iterdir()):
            info = tarfile.TarInfo(path.name)
            info.size = path.stat().st_size
            tar.addfile(info, io.BytesIO(path.read_bytes()))
            offset = tar.offset - -(-info.size // 512) * 512
            texts[path.name] = Address(place=f"{uri}/all.tar", offset=offset, size=info.size).text(table)
    return lambda clip: texts[clip.video]


def same(one: Path, other: Path) -> bool:
    """Every byte of two data sets, but what says where they came from."""
    made, expected = digests(one), digests(other)
    return {name for name in made.keys() | expected.keys() if made.get(name) != expected.get(name)} <= OF_PLACE


def test_a_bucket_gives_the_records_of_the_folder(server: Server, root: Path, tmp_path: Path) -> None:
    """As objects, from a server that answers 503 now and then; and as members of an archive."""
    encode(sets(root, tmp_path / "local", lambda clip: clip.path), tmp_path / "expected", config(root), QUIET)
    uri = upload(server, root / "videos", "encode")
    of_objects = sets(root, tmp_path / "objects", lambda clip: f"{uri}/{clip.video}")
    server.proxy.faults = lambda method, path, number: 503 if method == "GET" and number % 3 == 0 else None
    try:
        encode(of_objects, tmp_path / "of_objects", config(root), QUIET)
    finally:
        server.proxy.faults = lambda method, path, number: None
    assert same(tmp_path / "of_objects", tmp_path / "expected")
    place = archive(root, tmp_path / "tars", f"{server.bucket}/tars", tmp_path / "members")
    upload(server, tmp_path / "tars", "tars")
    encode(sets(root, tmp_path / "members", place), tmp_path / "of_members", config(root), QUIET)
    assert same(tmp_path / "of_members", tmp_path / "expected")
    # And what is appended to one of the folder is what the bucket's clips lack: nothing.
    assert encode(of_objects, tmp_path / "expected", config(root), QUIET)["generation"] == 1


def test_an_object_that_is_gone_or_forbidden_costs_its_clips(server: Server, root: Path, tmp_path: Path) -> None:
    uri = upload(server, root / "videos", "gone")
    places = {"one.mp4": f"{uri}/never.mp4", "two é.mp4": f"{uri}/two é.mp4"}
    summary = encode(
        sets(root, tmp_path / "sets", lambda clip: places[clip.video]), tmp_path / "out", config(root), QUIET
    )
    assert [row["clip_id"] for row in summary["quarantine"]] == ["one-000", "one-020"]
    assert all("never.mp4" in row["reason"] for row in summary["quarantine"])
    assert set(Catalog.load(tmp_path / "out").clip_id) == {"two é-000", "two é-020"}


@pytest.mark.slow
def test_workers_share_the_clips_of_a_bucket(server: Server, root: Path, tmp_path: Path) -> None:
    """`--worker 0/2` and `1/2` as processes of their own, then `--finish`."""
    encode(sets(root, tmp_path / "local", lambda clip: clip.path), tmp_path / "expected", config(root), QUIET)
    uri, log = upload(server, root / "videos", "workers"), tmp_path / "log"
    remote = sets(root, tmp_path / "objects", lambda clip: f"{uri}/{clip.video}")
    command = ["encode", str(remote), "--out", str(tmp_path / "out"), "--text-encoder", str(root / "bert")]
    command += ["--speech-encoder", str(root / "whisper"), "--speech-layers", "0,2", "--window-frames", "1,17"]
    command += ["--area", "64x48", "--references", "2", "--margin", "2", "--shard-mib", "0.05"]
    running = [start([*command, f"--worker={index}/2"], log) for index in range(2)]
    for process in running:
        finish(process, log)
    assert not (tmp_path / "out").exists()
    finish(start([*command, "--finish"], log), log)
    assert same(tmp_path / "out", tmp_path / "expected")
