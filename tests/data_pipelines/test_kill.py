"""SIGKILL at any moment, and other workers after it: the table, the sets and the shards are those of an undisturbed
run, to the last bit, and nothing is left over.
"""

import dataclasses
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from data_pipelines.curate import clip_records, stage_parts
from data_pipelines.curate.clips import Clip
from data_pipelines.curate.known_clips import write_clips
from data_pipelines.encode import dataset_finish, leases
from data_pipelines.encode.clip_encoder import ClipEncoder, WindowConfig
from data_pipelines.encode.encode import EncodeConfig, EncodeShare, encode
from data_pipelines.encode.leases import LeaseHolder, read_lease, written
from data_pipelines.sample_media import SampleMedia
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.runtime import files
from omnihuman_jax.runtime.worker_share import WorkerShare
from omnihuman_jax.serving import media_omnihuman
from tests.data_pipelines.test_encode import ALL, _clip, _pictures
from tests.encoders import tiny_networks

KILLS = 20
# They say where the sets are, or have the digest of the file that does.
OF_PLACE = {"encode.json", "manifest.json"}
CLI = (sys.executable, "-m", "omnihuman_jax.cli")


def digests(folder: Path) -> dict[str, str]:
    """Every file of a folder, hidden ones too."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def start(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    with log.open("ab") as file:
        return subprocess.Popen([*CLI, *arguments], env=environment, stdout=file, stderr=file, start_new_session=True)


def kill(process: subprocess.Popen[bytes]) -> None:
    """The whole group: whoever loses a machine loses all of its processes."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    assert process.wait(timeout=900) == 0, log.read_text(errors="replace")[-2000:]


@pytest.fixture(scope="module")
def videos(sample_media: SampleMedia, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight short videos, cut out of the sample media: a few seconds of work each."""
    folder = tmp_path_factory.mktemp("kill") / "media"
    folder.mkdir()
    names = ("jwpIntro", "testMovie", "bikes", "carphone_pristine")
    for number, (name, begin) in enumerate((name, begin) for name in names for begin in (0, 2)):
        path = sample_media.videos / f"{name}.mp4"
        frames = media_omnihuman.read_video(path, size=(144, 192), start_s=begin, duration_s=1.2)
        sound = media_omnihuman.read_audio(path, 16000, begin, 1.2)
        media_omnihuman.write_video(folder / f"{number}.mp4", frames, audio=sound, sample_rate=16000)
    return folder


def curating(root: Path, task_minutes: float = 0.01) -> list[str]:
    """The command for the videos in `root`: two clips a video, and a clip a task unless more is asked for."""
    config = {"shots": {"min_s": 0.3, "max_s": 0.7}, "task_minutes": task_minutes}
    (root / "config.json").write_text(json.dumps(config))
    sources = ["--source", str(root / "media"), "--config", str(root / "config.json")]
    return ["curate", *sources, "--out", str(root / "table")]


@pytest.fixture(scope="module")
def undisturbed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    table = tmp_path_factory.mktemp("undisturbed") / "table"
    shutil.copytree(videos, table.parent / "media")
    log = table.parent / "log"
    finish(start(curating(table.parent, task_minutes=10), log), log)
    found = digests(table)
    assert sum("@" in name for name in found) == 8 * 6
    return found


@pytest.mark.slow
@pytest.mark.parametrize("way", ["local", "workers"])
def test_a_table_is_the_same_however_often_it_is_killed(
    way: str, videos: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(videos, tmp_path / "media")
    table, log, rng = tmp_path / "table", tmp_path / "log", random.Random(0)
    command = curating(tmp_path)
    for number in range(KILLS):
        count = 1 + number % 4  # another number of processes each time
        shares = [[f"--worker={i}/{count}", "--workers=1"] for i in range(count)]
        ways = shares if way == "workers" else [[f"--workers={count}"]]
        running = [start([*command, *options], log) for options in ways]
        time.sleep(rng.uniform(1.0, 9.0))
        for process in running:
            kill(process)
    for left in table.rglob(".*.part"):
        os.utime(left, (time.time() - 7200,) * 2)  # as hours later: what is younger may be another's
    finish(start([*command, "--workers=2"], log), log)
    assert digests(table) == undisturbed


@pytest.mark.slow
def test_two_in_one_table_at_once_do_not_disturb_each_other(
    videos: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """Nobody told them to share: each part is made twice at most, and is the same."""
    shutil.copytree(videos, tmp_path / "media")
    table, log = tmp_path / "table", tmp_path / "log"
    command = [*curating(tmp_path), "--workers=2"]
    for process in [start(command, log) for _ in range(2)]:
        finish(process, log)
    assert digests(table) == undisturbed


def test_a_sweep_leaves_what_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, schema = tmp_path / "part-00000.parquet", stage_parts.SCHEMAS["scan"]
    stale = tmp_path / ".part-00000.parquet.0123abcd.part"
    stale.write_bytes(b"half")
    with clip_records.RecordWriter(part) as writer:
        files.remove_stale(part.parent, part.name)
        assert not stale.exists() and len(os.listdir(tmp_path)) == 1
        writer.write({"x": np.zeros(3)})
        # Not even while it is brought to the disk, which takes a while.
        monkeypatch.setattr(files, "sync", lambda path: files.remove_stale(part.parent, part.name))
    assert np.array_equal(clip_records.read_record(part, 0)["x"], np.zeros(3))
    stage_parts.write_part(part, [], schema)
    assert os.listdir(tmp_path) == [part.name]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips of one video, and two tiny networks."""
    root = tmp_path_factory.mktemp("shards")
    (root / "clips" / "videos").mkdir(parents=True)
    video = root / "clips" / "videos" / "talk.mp4"
    media_omnihuman.write_video(video, _pictures(12 * 20, 96, 128), audio=tiny_networks.wave(9.6))
    ranges = [(20 * n, 20 * n + 20) for n in range(12)]
    write_clips(root / "clips", [_clip(root / "clips", "talk.mp4", *r, (96, 128), ALL) for r in ranges])
    tiny_networks.write_bert(root / "bert")
    tiny_networks.write_whisper(root / "whisper")
    return root


def config(root: Path) -> EncodeConfig:
    return EncodeConfig(
        text_encoder=str(root / "bert"),
        speech_encoder=str(root / "whisper"),
        speech_layers=(0, 2),
        windows=WindowConfig(area=64 * 48, frames=(1, 5, 17), references=2, margin=2),
        shard_mib=0.05,
    )


def arguments(root: Path, out: Path) -> list[str]:
    return [
        *("encode", str(root / "clips"), "--out", str(out), "--text-encoder", str(root / "bert")),
        *("--speech-encoder", str(root / "whisper"), "--speech-layers", "0,2", "--area", "64x48"),
        *("--window-frames", "1,5,17", "--references", "2", "--margin", "2", "--shard-mib", "0.05"),
    ]


@pytest.mark.slow
def test_shards_are_the_same_whoever_makes_them(clips: Path, tmp_path: Path) -> None:
    """Alone; and by three in turn, each of which leaves the last to the next, joined by a fourth."""
    encode(clips / "clips", tmp_path / "alone" / "dataset", config(clips), Console(quiet=True))
    out = tmp_path / "shared" / "dataset"
    for index in range(3):
        share = EncodeShare(worker=WorkerShare(index, 3))
        assert not encode(clips / "clips", out, config(clips), Console(quiet=True), share=share)
        marks = sorted((out.parent / "dataset.encoding").glob("part-*.json"))
        assert not out.exists() and not list((out.parent / "dataset.encoding").glob("*.lease"))
        if index == 0:
            for path in marks[::2]:  # as if it had been killed before these
                path.unlink()
    encode(clips / "clips", out, config(clips), Console(quiet=True), share=EncodeShare(only_finish=True))
    made, alone = digests(out), digests(tmp_path / "alone" / "dataset")
    assert made.keys() == alone.keys() and sum(".array_record-" in name for name in made) > 3
    assert {name for name in made if made[name] != alone[name]} <= OF_PLACE
    assert os.listdir(out.parent) == ["dataset"]


def test_a_killed_finish_goes_on(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed with the shards renamed, and with everything written but the folder's name."""
    share, out = EncodeShare(worker=WorkerShare(0, 1)), tmp_path / "dataset"
    encode(clips / "clips", out, config(clips), Console(quiet=True), share=share)
    shutil.copytree(tmp_path, tmp_path.parent / "kept")
    encode(clips / "clips", out, config(clips), Console(quiet=True), share=EncodeShare(only_finish=True))
    whole, finishing = digests(out), EncodeShare(only_finish=True)
    for name in ("write_dataset_metadata", "replace_folder"):
        other = tmp_path.parent / name
        shutil.copytree(tmp_path.parent / "kept", other)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            target = dataset_finish if hasattr(dataset_finish, name) else dataset_finish.folders
            patch.setattr(target, name, _interrupted)
            encode(clips / "clips", other / "dataset", config(clips), Console(quiet=True), share=finishing)
        assert not (other / "dataset").exists()
        encode(clips / "clips", other / "dataset", config(clips), Console(quiet=True), share=finishing)
        assert digests(other / "dataset") == whole


def _interrupted(*arguments: object) -> None:
    raise KeyboardInterrupt


def test_shards_that_are_not_made_are_counted(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    finishing = EncodeShare(only_finish=True)
    with pytest.raises(FileNotFoundError, match="without --finish first"):
        encode(clips / "clips", out, config(clips), Console(quiet=True), share=finishing)
    encode(clips / "clips", out, config(clips), Console(quiet=True), share=EncodeShare(worker=WorkerShare(0, 1)))
    (tmp_path / "dataset.encoding" / "part-00002.json").unlink()
    with pytest.raises(ValueError, match=r"1 of .* shards are not made yet, the first is 2"):
        encode(clips / "clips", out, config(clips), Console(quiet=True), share=finishing)
    other = config(clips)
    other.windows.references = 1
    with pytest.raises(ValueError, match="shards of other clips, settings or networks are being made there"):
        encode(clips / "clips", out, other, Console(quiet=True))


def test_a_lease_is_one_process_s_until_it_is_over(tmp_path: Path) -> None:
    path, other = tmp_path / "part.lease", tmp_path / "other.lease"
    with LeaseHolder(seconds=0.3) as mine:
        assert mine.take(path) and mine.take(path)
        first = read_lease(path)
        other.write_text(json.dumps({"owner": "elsewhere:1", "deadline": time.time() + 60}))
        assert not mine.take(other)
        other.write_text(json.dumps({"owner": "elsewhere:1", "deadline": 1.0}))
        assert mine.take(other)
        time.sleep(0.3)
        renewed = read_lease(path)
        assert first is not None and renewed is not None and renewed.deadline > first.deadline and not renewed.is_over
    assert not path.exists() and not list(tmp_path.iterdir())


def test_of_two_that_find_a_lease_over_one_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "part.lease"
    path.write_text(json.dumps({"owner": "elsewhere:1", "deadline": 1.0}))
    with LeaseHolder() as first, LeaseHolder() as second:
        assert first.take(path)
        # The second one had looked before the first one took it.
        with monkeypatch.context() as patch:
            patch.setattr(leases, "written", lambda at: [path])
            assert not second.take(path)
        assert not second.take(path) and written(path) == [path, tmp_path / "part.lease-1"]
        assert (now := read_lease(written(path)[-1])) is not None and now.owner == first._owner
    assert not list(tmp_path.iterdir())


def test_a_lease_that_was_taken_over_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, kept = tmp_path / "part.lease", tmp_path / "kept.lease"
    write, full = files.write_text, [True]

    def write_text(at: Path, text: str) -> None:
        if at == kept and full:  # once
            full.clear()
            raise OSError(errno.ENOSPC, "No space left on device")
        write(at, text)

    with LeaseHolder(seconds=0.3) as mine:
        assert mine.take(path) and mine.take(kept)
        begun = read_lease(kept)
        monkeypatch.setattr(files, "write_text", write_text)
        path = tmp_path / "part.lease-1"
        path.write_text(other := json.dumps({"owner": "elsewhere:1", "deadline": time.time() + 60}))
        for _ in range(100):
            time.sleep(0.05)
            if read_lease(kept) != begun:
                break
        renewed = read_lease(kept)
        assert not full and begun is not None and renewed is not None and renewed.deadline > begun.deadline
        assert path.read_text() == other
        mine.give_back(tmp_path / "part.lease")
    assert path.read_text() == other and not kept.exists()


def test_two_that_work_on_one_shard_make_the_same_bytes(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one begins while the first is at its second clip, and is done before it."""
    seen: list[str] = []
    original = ClipEncoder.open
    few = dataclasses.replace(config(clips), shard_mib=1000)

    def watched(self: ClipEncoder, clip: Clip) -> Any:
        seen.append(clip.clip_id)
        if len(seen) == 2:
            with monkeypatch.context() as patch:
                patch.setattr(LeaseHolder, "take", lambda holder, path: True)
                encode(clips / "clips", out, few, Console(quiet=True), share=EncodeShare(worker=WorkerShare(0, 1)))
            made.update(digests(tmp_path / "dataset.encoding"))
            (tmp_path / "dataset.encoding" / "part-00000.json").unlink()
        return original(self, clip)

    out, made = tmp_path / "dataset", dict[str, str]()
    monkeypatch.setattr(ClipEncoder, "open", watched)
    encode(clips / "clips", out, few, Console(quiet=True), share=EncodeShare(worker=WorkerShare(0, 1)))
    assert len(seen) == 24 and digests(tmp_path / "dataset.encoding").items() <= made.items()


@pytest.mark.slow
def test_shards_are_the_same_however_often_encode_is_killed(clips: Path, tmp_path: Path) -> None:
    encode(clips / "clips", tmp_path / "alone" / "dataset", config(clips), Console(quiet=True))
    out, log, rng = tmp_path / "killed" / "dataset", tmp_path / "log", random.Random(1)
    out.parent.mkdir()
    for number in range(KILLS):
        count = 1 + number % 4
        running = [start([*arguments(clips, out), f"--worker={i}/{count}"], log) for i in range(count)]
        time.sleep(rng.uniform(3.0, 9.0))
        for process in running:
            kill(process)
    last = start([*arguments(clips, out), "--worker=0/1"], log)
    finish(last, log)
    finish(start([*arguments(clips, out), "--finish"], log), log)
    made, alone = digests(out), digests(tmp_path / "alone" / "dataset")
    assert {name for name in made.keys() | alone.keys() if made.get(name) != alone.get(name)} <= OF_PLACE
    ids = Catalog.load(out).window_id
    assert os.listdir(out.parent) == ["dataset"] and len(ids) == len(set(ids))
