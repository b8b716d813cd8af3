"""encode reads videos out of a bucket, as objects and out of an archive: the records are those of the folder. And it
makes data sets in a bucket: the bytes of those on a disk.
"""

import dataclasses
import io
import random
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from rich.console import Console

from data_pipelines.curate.clip_sets import load_landmarks, read_clips
from data_pipelines.curate.clips import Clip
from data_pipelines.curate.known_clips import write_clips
from data_pipelines.curate.video_files import Address
from data_pipelines.encode.encode import EncodeShare, encode
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.dataset_check import check_dataset
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.runtime import bucket_copies
from omnihuman_jax.runtime.worker_share import WorkerShare
from omnihuman_jax.serving import media_omnihuman
from tests.data_pipelines.test_append import config
from tests.data_pipelines.test_bucket_table import objects
from tests.data_pipelines.test_encode import ALL, _clip, _pictures
from tests.data_pipelines.test_kill import OF_PLACE, digests, finish, kill, start
from tests.data_pipelines.test_sources import server, upload
from tests.encoders import tiny_networks
from tests.storage.servers import BUCKET, Server

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


def arguments(root: Path, sets: Path, out: str) -> list[str]:
    """The command that encodes as `config` has it."""
    return [
        *("encode", str(sets), "--out", out, "--text-encoder", str(root / "bert"), "--area", "64x48"),
        *("--speech-encoder", str(root / "whisper"), "--speech-layers", "0,2", "--window-frames", "1,17"),
        *("--references", "2", "--margin", "2", "--shard-mib", "0.05"),
    ]


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
    command = arguments(root, remote, str(tmp_path / "out"))
    running = [start([*command, f"--worker={index}/2"], log) for index in range(2)]
    for process in running:
        finish(process, log)
    assert not (tmp_path / "out").exists()
    finish(start([*command, "--finish"], log), log)
    assert same(tmp_path / "out", tmp_path / "expected")


def _read(dataset: str | Path) -> list[bytes]:
    return [record.latents_FHWC.tobytes() for record in open_records(dataset)]


def test_a_data_set_is_made_in_a_bucket(
    server: Server, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From sets in it too; then one clip more, which is a generation; then another one in its place."""
    monkeypatch.setenv("OMNIHUMAN_DATASET_CACHE", str(tmp_path / "cache"))
    made, uri = tmp_path / "made", f"{server.bucket}/made"
    whole = sets(root, tmp_path / "sets", lambda clip: clip.path)
    clips = read_clips(whole)
    few = tmp_path / "few"
    shutil.copytree(root / "videos", few / "videos")
    write_clips(few, [(clip, load_landmarks(whole, clip)) for clip in clips[:3]])
    for out in (made, uri):
        first = encode(few, f"{out}/dataset", config(root), QUIET)
        assert first["num_clips"] == 3
        assert encode(few, f"{out}/dataset", config(root), QUIET) == first  # already encoded
        assert encode(whole, f"{out}/dataset", config(root), QUIET)["generation"] == 2
    on_disk, there = digests(made), objects(uri)
    assert on_disk.keys() == there.keys() and sum(".array_record-" in name for name in there) > 2
    assert {PurePosixPath(name).name for name in there if there[name] != on_disk[name]} <= OF_PLACE
    assert _read(f"{uri}/dataset") == _read(made / "dataset") and _read(f"{uri}/dataset@1") == _read(
        f"{made}/dataset@1"
    )
    assert not list(check_dataset(f"{uri}/dataset"))
    fs, path = bucket_copies.open_storage(f"{uri}/dataset")
    (shard,) = (name for name in fs.find(f"{path}/generations") if ".array_record-" in name)
    kept = fs.cat_file(shard)
    fs.pipe_file(shard, kept[:-1] + bytes([kept[-1] ^ 1]))
    problems = {problem.kind: problem.where for problem in check_dataset(f"{uri}/dataset")}
    assert problems["changed shard"] == shard.removeprefix(f"{path}/")
    assert not list(check_dataset(f"{uri}/dataset@1"))
    fs.pipe_file(shard, kept)
    settings = dataclasses.replace(config(root), windows=dataclasses.replace(config(root).windows, references=1))
    with pytest.raises(ValueError, match=r"references: 2 -> 1.*replace it with --overwrite"):
        encode(whole, f"{uri}/dataset", settings, QUIET)
    for out in (made, uri):
        encode(whole, f"{out}/dataset", settings, QUIET, overwrite=True)
    assert digests(made).keys() == objects(uri).keys()
    assert _read(f"{uri}/dataset") == _read(made / "dataset")


def test_a_finish_in_a_bucket_goes_on_wherever_it_was_killed(
    server: Server, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each request that writes something: nobody finds half a data set, and the next call makes it whole."""
    clips, out = sets(root, tmp_path / "sets", lambda clip: clip.path), f"{server.bucket}/finish/dataset"
    encode(clips, tmp_path / "dataset", config(root), QUIET)
    encode(clips, out, config(root), QUIET, share=EncodeShare(worker=WorkerShare(0, 1)))
    left, finishing = [0], EncodeShare(only_finish=True)
    fs, _ = bucket_copies.open_storage(out)

    def dying(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call

    deaths = 0
    while True:
        with monkeypatch.context() as patch:
            for name in ("pipe_file", "put_file", "cp_file", "rm", "rm_file"):
                patch.setattr(fs, name, dying(getattr(fs, name)))
            left[0] = deaths
            try:
                encode(clips, out, config(root), QUIET, share=finishing)
                break
            except KeyboardInterrupt:
                deaths += 1
        found = objects(out)
        assert "manifest.json" not in found or "encode.json" in found
        leases = [name for name in objects(f"{server.bucket}/finish") if "dataset.encoding.lease" in name]
        for name in leases:  # what holds them is this very process, which lives
            fs.rm_file(f"{BUCKET}/finish/{name}")
    assert deaths > 16
    on_disk, there = digests(tmp_path / "dataset"), objects(out)
    assert on_disk.keys() == there.keys()
    assert {name for name in there if there[name] != on_disk[name]} <= OF_PLACE
    assert {name.partition("/")[0] for name in objects(f"{server.bucket}/finish")} == {"dataset"}


@pytest.mark.slow
def test_workers_that_are_killed_make_the_data_set_in_a_bucket(server: Server, root: Path, tmp_path: Path) -> None:
    """SIGKILL at ten moments, another number of workers each time, 503 for every thirteenth request."""
    clips = sets(root, tmp_path / "sets", lambda clip: clip.path)
    encode(clips, tmp_path / "expected", config(root), QUIET)
    out, log, rng = f"{server.bucket}/killed/dataset", tmp_path / "log", random.Random(2)
    command = arguments(root, clips, out)
    server.proxy.faults = lambda method, path, number: 503 if number % 13 == 0 else None
    try:
        for number in range(10):
            count = 1 + number % 3
            running = [start([*command, f"--worker={index}/{count}"], log) for index in range(count)]
            time.sleep(rng.uniform(4.0, 10.0))
            for process in running:
                kill(process)
        finish(start([*command, "--worker=0/1"], log), log)
        finish(start([*command, "--finish"], log), log)
    finally:
        server.proxy.faults = lambda method, path, number: None
    on_disk, there = digests(tmp_path / "expected"), objects(out)
    assert on_disk.keys() == there.keys()
    assert {name for name in there if there[name] != on_disk[name]} <= OF_PLACE
    assert {name.partition("/")[0] for name in objects(f"{server.bucket}/killed")} == {"dataset"}
