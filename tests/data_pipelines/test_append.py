"""An append is a new generation: what is new is encoded, what was there stays as it is, whoever is killed."""

import dataclasses
import errno
import hashlib
import io
import json
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from jax.errors import JaxRuntimeError
from rich.console import Console

from data_pipelines.curate.clip_sets import load_landmarks, read_clips
from data_pipelines.curate.clips import Clip, Landmarks
from data_pipelines.curate.known_clips import write_clips
from data_pipelines.encode import claim, dataset_finish
from data_pipelines.encode.clip_encoder import ClipEncoder, WindowConfig
from data_pipelines.encode.dead_letters import DeadLetters
from data_pipelines.encode.encode import EncodeConfig, EncodeShare, encode
from data_pipelines.encode.leases import LeaseHolder
from omnihuman_jax import cli
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.dataset_check import check_dataset
from omnihuman_jax.data.generations import read_manifest
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.data.records import encode_record
from omnihuman_jax.runtime.worker_share import WorkerShare
from omnihuman_jax.serving import media_omnihuman
from tests.data_pipelines.test_encode import ALL, _clip, _pictures
from tests.data_pipelines.test_kill import digests, finish, kill, start
from tests.encoders import tiny_networks

QUIET = Console(quiet=True)
Known = tuple[Clip, Landmarks]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video, and two tiny networks."""
    root = tmp_path_factory.mktemp("append")
    (root / "videos").mkdir()
    media_omnihuman.write_video(root / "videos" / "talk.mp4", _pictures(160, 96, 128), audio=tiny_networks.wave(6.4))
    tiny_networks.write_bert(root / "bert")
    tiny_networks.write_whisper(root / "whisper")
    return root


@pytest.fixture
def clips(root: Path, tmp_path: Path) -> Callable[..., Path]:
    """A table of the clips of these numbers, each of 20 frames; `change` makes others of them."""

    def write(name: str, numbers: Sequence[int], change: Callable[[Known], Known] = lambda known: known) -> Path:
        folder = tmp_path / name
        shutil.copytree(root / "videos", folder / "videos")
        known = [_clip(folder, "talk.mp4", 20 * n, 20 * n + 20, (96, 128), ALL) for n in numbers]
        for _, landmarks in known:
            landmarks.keypoints_TJ3[:, 0, 0] %= 128  # within the picture
        write_clips(folder, map(change, known))
        return folder

    return write


def config(root: Path) -> EncodeConfig:
    return EncodeConfig(
        text_encoder=str(root / "bert"),
        speech_encoder=str(root / "whisper"),
        speech_layers=(0, 2),
        windows=WindowConfig(area=64 * 48, frames=(1, 17), references=2, margin=2),
        shard_mib=0.05,
    )


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the clips that were encoded."""
    seen: list[str] = []
    original = ClipEncoder.open

    def watched(self: ClipEncoder, clip: Clip):  # type: ignore[no-untyped-def]
        seen.append(clip.clip_id)
        return original(self, clip)

    monkeypatch.setattr(ClipEncoder, "open", watched)
    return seen


def contents(dataset: str) -> dict[str, tuple[bytes, tuple[object, ...]]]:
    """Window id -> the bytes of its record, and its row but the record's place."""
    source, catalog, found = open_records(dataset), Catalog.load(dataset), {}
    for row, window in enumerate(catalog.window_id.tolist()):
        record = source[int(catalog.record[row])]
        assert record is not None and record.window_id == window
        names = ("start_frame", "height", "width", "text_tokens", "num_references", "duration_s", "eligible")
        rows = tuple(getattr(catalog, name)[row].item() for name in names)
        found[window] = (encode_record(record, source.spec), (*rows, catalog.split[row], catalog.clip_id[row]))
    assert len(found) == len(catalog)
    return found


def names(numbers: Sequence[int]) -> list[str]:
    return [f"talk-{20 * n:03d}" for n in numbers]


def test_an_append_encodes_what_is_new_and_leaves_the_rest_as_it_is(
    root: Path, clips: Callable[..., Path], tmp_path: Path, encoded: list[str]
) -> None:
    out = tmp_path / "dataset"
    encode(clips("few", [0, 3, 5]), out, config(root), QUIET)
    before, first = digests(out), contents(str(out))
    assert encoded == names([0, 3, 5]) and read_manifest(out)[0].windows == len(first)
    del encoded[:]
    summary = encode(clips("more", range(7)), out, config(root), QUIET)
    assert encoded == names([1, 2, 4, 6])
    assert os.listdir(out / "generations") == ["00002"] and not (tmp_path / "dataset.encoding").exists()
    assert {name: digest for name, digest in digests(out).items() if name in before and name != "manifest.json"} == {
        name: digest for name, digest in before.items() if name != "manifest.json"
    }
    # The first is the same, and the second that of one encode of all.
    assert contents(f"{out}@1") == first
    encode(tmp_path / "more", tmp_path / "whole", config(root), QUIET)
    whole = contents(str(tmp_path / "whole"))
    assert contents(str(out)) == contents(f"{out}@2") == whole and first.items() < whole.items()
    assert (summary["generation"], summary["windows"]) == (2, len(whole))
    assert summary["added_windows"] == len(whole) - len(first) and summary["left_out_records"] == 0
    assert summary["latent_std"] == json.loads((tmp_path / "whole" / "encode.json").read_text())["latent_std"]
    # What it adds is a data set of its own for tensorflow-datasets.
    added = tfds.builder_from_directory(str(out / "generations" / "00002")).as_data_source(split="train")
    assert {example["window_id"].decode() for example in added} == whole.keys() - first.keys()
    for generation in ("", "@1", "@2"):
        assert not list(check_dataset(f"{out}{generation}"))
    again = digests(out)
    assert encode(tmp_path / "more", out, config(root), QUIET) == summary and digests(out) == again


def test_clips_that_went_or_changed_are_left_out_of_the_new_generation_alone(
    root: Path, clips: Callable[..., Path], tmp_path: Path, encoded: list[str]
) -> None:
    out = tmp_path / "dataset"
    encode(clips("sets", range(4)), out, config(root), QUIET)
    first = contents(str(out))

    def change(known: Known) -> Known:
        clip, landmarks = known
        if clip.clip_id == "talk-020":
            clip = dataclasses.replace(clip, eligible=("text", "audio"))
        if clip.clip_id == "talk-040":
            clip = dataclasses.replace(clip, eligible=("text", "reference"))
        if clip.clip_id == "talk-060":
            landmarks.keypoints_TJ3[0, 0, 0] += 1
        return clip, landmarks

    del encoded[:]
    encode(clips("other", [1, 2, 3, 4], change), out, config(root), QUIET)
    assert encoded == names([1, 2, 3, 4])  # the first went, three are others by now
    encode(tmp_path / "other", tmp_path / "whole", config(root), QUIET)
    assert contents(str(out)) == contents(str(tmp_path / "whole")) and contents(f"{out}@1") == first
    del encoded[:]
    # Fewer clips: nothing is encoded, and the generation has no shard.
    summary = encode(clips("fewer", [2, 3], change), out, config(root), QUIET)
    assert not encoded and summary["added_windows"] == 0 and not summary["shards"]
    assert not list((out / "generations" / "00003").glob("*.array_record*"))
    assert set(Catalog.load(out).clip_id) == {"talk-040", "talk-060"}
    # And more again: what the second had is not in the third, so it is made anew.
    encode(clips("again", [1, 2, 3, 4], change), out, config(root), QUIET)
    assert encoded == names([1, 4]) and contents(f"{out}@4") == contents(f"{out}@2")
    for number in range(1, 5):
        assert not list(check_dataset(f"{out}@{number}"))
    assert read_manifest(out)[3].records == len(contents(str(out))) - len(contents(f"{out}@3"))


def test_clips_that_cannot_be_encoded_are_tried_again_by_the_next_append(
    root: Path, clips: Callable[..., Path], tmp_path: Path, encoded: list[str]
) -> None:
    sets = clips("sets", [0, 1])
    landmarks = [load_landmarks(sets, clip) for clip in read_clips(sets)]
    landmarks[1].keypoints_TJ3[7, 3, 1] = 1e9
    out = tmp_path / "dataset"
    broken = tmp_path / "broken"
    shutil.copytree(root / "videos", broken / "videos")
    write_clips(broken, list(zip(read_clips(sets), landmarks, strict=True)))
    (broken / "videos" / "talk.mp4").unlink()
    with pytest.raises(ValueError, match="none of the 2 clips can be encoded"):
        encode(broken, out, config(root), QUIET)
    encode(sets, out, config(root), QUIET)
    del encoded[:]
    more = clips("more", [0, 1, 2])
    (more / "videos" / "talk.mp4").rename(tmp_path / "away.mp4")
    summary = encode(more, out, config(root), QUIET)
    assert [row["clip_id"] for row in summary["quarantine"]] == ["talk-040"] and summary["added_windows"] == 0
    (tmp_path / "away.mp4").rename(more / "videos" / "talk.mp4")
    del encoded[:]
    encode(clips("most", [0, 1, 2, 3]), out, config(root), QUIET)
    assert encoded == names([2, 3]) and len(read_manifest(out)) == 3


def _raises(problem: Exception, clip_id: str) -> Callable[[DeadLetters, Clip], None]:
    def check(self: DeadLetters, clip: Clip) -> None:
        if clip.clip_id == clip_id:
            raise problem

    return check


@pytest.mark.parametrize(
    "problem",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        MemoryError("Unable to allocate"),
        JaxRuntimeError("INTERNAL"),
        TimeoutError("no answer"),
    ],
)
def test_what_is_no_fault_of_a_clip_ends_the_command_which_then_goes_on(
    problem: Exception, root: Path, clips: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, sets = tmp_path / "dataset", clips("sets", [0, 1])
    with monkeypatch.context() as patch, pytest.raises(type(problem)) as raised:
        patch.setattr(DeadLetters, "_check_video", _raises(problem, "talk-020"))
        encode(sets, out, config(root), QUIET)
    assert "encode was at clip talk-020 of " in raised.value.__notes__[0]
    may_be_the_clip = isinstance(problem, MemoryError | JaxRuntimeError)
    assert ["take that video out" in note for note in raised.value.__notes__[1:]] == [True] * may_be_the_clip
    assert not out.exists()
    assert encode(sets, out, config(root), QUIET)["dead_letters"] == 0
    assert set(Catalog.load(out).clip_id) == set(names([0, 1]))


def test_clips_that_could_not_be_encoded_are_tried_again_where_asked(
    root: Path, clips: Callable[..., Path], tmp_path: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, sets = tmp_path / "dataset", clips("sets", [0, 1])
    with monkeypatch.context() as patch:
        patch.setattr(DeadLetters, "_check_video", _raises(RuntimeError("a bug"), "talk-020"))
        summary = encode(sets, out, config(root), QUIET)
        before = digests(tmp_path)
        assert [row["clip_id"] for row in summary["quarantine"]] == ["talk-020"]
        # Nothing comes of it, and it makes no generation.
        assert encode(sets, out, config(root), QUIET, retry_dead=True) == summary and digests(tmp_path) == before
    told = Console(record=True, width=500, quiet=False, file=io.StringIO())
    assert encode(sets, out, config(root), told) == summary
    assert "1 of 2 clips could not be encoded: --retry-dead tries them again" in told.export_text()
    del encoded[:]
    assert encode(sets, out, config(root), QUIET, retry_dead=True)["added_windows"] > 0 and encoded == ["talk-020"]
    assert len(read_manifest(out)) == 2 and set(Catalog.load(out).clip_id) == set(names([0, 1]))
    del encoded[:]
    encode(sets, out, config(root), QUIET, retry_dead=True)
    assert not encoded and len(read_manifest(out)) == 2


def test_other_settings_are_named_and_another_place_of_a_network_is_none(
    root: Path, clips: Callable[..., Path], tmp_path: Path
) -> None:
    out, sets, more = tmp_path / "dataset", clips("sets", [0]), clips("more", [0, 1])
    encode(sets, out, config(root), QUIET)
    before = digests(out)
    for change, named in (
        ({"max_text_tokens": 40}, "max_text_tokens: 128 -> 40"),
        ({"windows": dataclasses.replace(config(root).windows, margin=3)}, "windows.margin: 2 -> 3"),
        ({"speech_encoder": "", "speech_layers": ()}, "speech_encoder: .*whisper -> none"),
    ):
        with pytest.raises(ValueError, match=rf"made with other settings.*{named}.*choose another --out"):
            encode(more, out, dataclasses.replace(config(root), **change), QUIET)
    with pytest.raises(ValueError, match="an append makes the next generation by itself"):
        encode(more, f"{out}@2", config(root), QUIET)
    (out / "clips.parquet").rename(tmp_path / "clips.parquet")
    with pytest.raises(ValueError, match=r"does not say which clips it has \(clips.parquet\)"):
        encode(more, out, config(root), QUIET)
    (tmp_path / "clips.parquet").rename(out / "clips.parquet")
    assert digests(out) == before and sorted(os.listdir(tmp_path)) == ["dataset", "more", "sets"]
    moved = shutil.copytree(root / "bert", tmp_path / "bert")
    encode(more, out, dataclasses.replace(config(root), text_encoder=str(moved), shard_mib=1), QUIET)
    assert len(read_manifest(out)) == 2
    with pytest.raises(ValueError, match=r"dataset@7: there is no such generation; .*dataset has 1 to 2"):
        Catalog.load(f"{out}@7")
    with pytest.raises(FileNotFoundError, match="nowhere: no dataset here"):
        Catalog.load(tmp_path / "nowhere@2")


def _interrupted(*arguments: object) -> None:
    raise KeyboardInterrupt


MOMENTS = ("write_dataset_metadata", "write_known", "write_text", "move_into_place", "write_manifest")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_append_goes_on(
    moment: str, root: Path, clips: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the shards renamed, before the summary, before the folder has its name, before the manifest has it."""
    out, more = tmp_path / "dataset", clips("more", range(3))
    encode(clips("sets", [1]), out, config(root), QUIET)
    before = contents(str(out))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if moment == "move_into_place":
            move = dataset_finish.files.move_into_place
            named = lambda source, to: _interrupted() if to.parent.name == "generations" else move(source, to)  # noqa: E731
            patch.setattr(dataset_finish.files, moment, named)
        else:
            patch.setattr(
                dataset_finish if hasattr(dataset_finish, moment) else dataset_finish.files, moment, _interrupted
            )
        encode(more, out, config(root), QUIET, share=EncodeShare(worker=None))
    # Until the manifest names it there is no second one, for whoever reads.
    assert contents(str(out)) == before
    if moment == "write_manifest":
        assert [problem.kind for problem in check_dataset(out)] == ["extra generation"]
    encode(tmp_path / "sets", tmp_path / "clean", config(root), QUIET)
    encode(more, tmp_path / "clean", config(root), QUIET)
    share = EncodeShare(only_finish=True)
    summary = encode(more, out, config(root), QUIET, share=share if moment != "write_text" else None)
    assert summary["generation"] == 2 and digests(out) == digests(tmp_path / "clean")
    assert sorted(os.listdir(tmp_path)) == ["clean", "dataset", "more", "sets"]


def test_workers_append_and_one_finishes(root: Path, clips: Callable[..., Path], tmp_path: Path) -> None:
    out, more = tmp_path / "dataset", clips("more", range(6))
    encode(clips("sets", [2]), out, config(root), QUIET)
    with pytest.raises(ValueError, match="is there already"):
        encode(more, out, config(root), QUIET, share=EncodeShare(only_finish=True))
    encode(more, out, config(root), QUIET, share=EncodeShare(worker=WorkerShare(1, 2)))
    marks = sorted((tmp_path / "dataset.encoding").glob("part-*.json"))
    assert len(marks) > 2
    for path in marks[::2]:  # as if it had been killed before these
        path.unlink()
    with pytest.raises(ValueError, match="shards are not made yet"):
        encode(more, out, config(root), QUIET, share=EncodeShare(only_finish=True))
    with pytest.raises(ValueError, match="shards of other clips, settings or networks are being made there"):
        encode(clips("other", [2, 3]), out, config(root), QUIET)
    encode(more, out, config(root), QUIET, share=EncodeShare(worker=WorkerShare(0, 2)))
    encode(more, out, config(root), QUIET, share=EncodeShare(only_finish=True))
    encode(more, tmp_path / "whole", config(root), QUIET)
    assert contents(str(out)) == contents(str(tmp_path / "whole"))


def test_who_waits_while_another_finishes_has_its_dataset(
    root: Path, clips: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[str]
) -> None:
    out, sets, take = tmp_path / "dataset", clips("sets", [0, 1]), LeaseHolder.take

    def taken(self: LeaseHolder, path: Path) -> bool:
        """The first shard is the other one's, who makes all and finishes."""
        monkeypatch.setattr(LeaseHolder, "take", take)
        encode(sets, out, config(root), QUIET)
        return False

    monkeypatch.setattr(LeaseHolder, "take", taken)
    summary = encode(sets, out, config(root), QUIET)
    assert summary == json.loads((out / "encode.json").read_text()) and encoded == names([0, 1])
    assert sorted(os.listdir(tmp_path)) == ["dataset", "sets"]


def test_one_at_a_time_finishes(
    root: Path, clips: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one has all shards too, and waits."""
    out, sets, waiting = tmp_path / "dataset", clips("sets", [0, 1]), list[threading.Thread]()
    summaries: list[dict[str, Any]] = []
    write = dataset_finish.write_known

    def slowly(*arguments: Any) -> None:
        monkeypatch.setattr(dataset_finish, "write_known", write)
        waiting.append(threading.Thread(target=lambda: summaries.append(encode(sets, out, config(root), QUIET))))
        waiting[0].start()
        made, end = tmp_path / "dataset.encoding", time.time() + 60
        while waiting[0].is_alive() and time.time() < end and not looked.is_set():
            time.sleep(0.05)
        assert made.is_dir() and waiting[0].is_alive()
        write(*arguments)

    looked, take = threading.Event(), LeaseHolder.take

    def taken(self: LeaseHolder, path: Path) -> bool:
        if waiting and path.name == "dataset.encoding.lease":
            monkeypatch.setattr(self, "_owner", "another:1")  # it is a process of its own
            looked.set()
        return take(self, path)

    monkeypatch.setattr(LeaseHolder, "take", taken)
    monkeypatch.setattr(dataset_finish, "write_known", slowly)
    summary = encode(sets, out, config(root), QUIET)
    waiting[0].join()
    assert summaries == [summary] and sorted(os.listdir(tmp_path)) == ["dataset", "sets"]


def test_shards_of_another_plan_do_not_count(root: Path, clips: Callable[..., Path], tmp_path: Path) -> None:
    out, folder = tmp_path / "dataset", tmp_path / "dataset.encoding"
    encode(clips("few", [0, 1]), out, config(root), QUIET, share=EncodeShare(worker=WorkerShare(0, 1)))
    for name in ("plan.json", "made_by.json", "dataset.json"):
        (folder / name).unlink()
    assert list(folder.glob("part-*.json"))
    encode(clips("other", [2, 3]), out, config(root), QUIET)
    assert set(Catalog.load(out).clip_id) == set(names([2, 3])) and not list(check_dataset(out))


def test_of_two_that_begin_at_once_with_other_settings_one_is_refused(
    root: Path, clips: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one begins while clips are being planned."""
    out, sets, one = tmp_path / "dataset", clips("sets", [0, 1]), EncodeShare(worker=WorkerShare(0, 1))
    other = dataclasses.replace(config(root), windows=dataclasses.replace(config(root).windows, area=32 * 32))
    original = claim.plan_shards

    def plan(*arguments: Any) -> Any:
        monkeypatch.setattr(claim, "plan_shards", original)
        encode(sets, out, other, QUIET, share=one)
        return original(*arguments)

    monkeypatch.setattr(claim, "plan_shards", plan)
    with pytest.raises(ValueError, match="shards of other clips, settings or networks are being made there"):
        encode(sets, out, config(root), QUIET)
    encode(sets, out, other, QUIET)
    assert len(set(zip(Catalog.load(out).height, Catalog.load(out).width, strict=True))) == 1


def test_a_damaged_generation_is_found_and_the_page_shows_all(
    root: Path, clips: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dataset"
    encode(clips("sets", [0, 1]), out, config(root), QUIET)
    encode(clips("more", [1, 2]), out, config(root), QUIET)
    page = tmp_path / "page.html"
    assert cli.main(["data", "report", str(out), "--out", str(page)]) == 0
    assert (
        "<h3>Generations</h3>" in page.read_text()
        and f"{len(Catalog.load(out))} windows of 2 clips" in page.read_text()
    )
    assert cli.main(["data", "report", f"{out}@1", "--out", str(page)]) == 0
    assert "Generations" not in page.read_text()
    shard = next((out / "generations" / "00002").glob("*.array_record-*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0x40
    shard.write_bytes(data)
    kinds = {(problem.kind, problem.where.split("/")[0]) for problem in check_dataset(out)}
    assert ("changed shard", "generations") in kinds
    assert cli.main(["data", "check", f"{out}@1"]) == 0
    (out / "manifest.json").write_text(json.dumps({"version": 1, "generations": []}))
    assert [problem.kind for problem in check_dataset(out)] == ["manifest"]
    assert cli.main(["data", "check", f"{out}@1"]) == 2
    assert "not 1, 2, ..." in capsys.readouterr().out


@pytest.mark.slow
def test_an_append_is_the_same_however_often_it_is_killed(
    root: Path, clips: Callable[..., Path], tmp_path: Path
) -> None:
    """SIGKILL at eight seeded moments, each time with another number of workers."""
    out, more, log, rng = tmp_path / "dataset", clips("more", range(8)), tmp_path / "log", random.Random(2)
    encode(clips("sets", [3]), out, config(root), QUIET)
    shutil.copytree(out, tmp_path / "clean")
    encode(more, tmp_path / "clean", config(root), QUIET)
    old = {name: digest for name, digest in digests(out).items() if name != "manifest.json"}
    command = ["encode", str(more), "--out", str(out), "--text-encoder", str(root / "bert"), "--area", "64x48"]
    command += ["--speech-encoder", str(root / "whisper"), "--speech-layers", "0,2", "--window-frames", "1,17"]
    command += ["--references", "2", "--margin", "2", "--shard-mib", "0.05"]
    for number in range(8):
        count = 1 + number % 3
        running = [start([*command, f"--worker={i}/{count}"], log) for i in range(count)]
        time.sleep(rng.uniform(3.0, 9.0))
        for process in running:
            kill(process)
        assert {name: digests(out)[name] for name in old} == old and len(read_manifest(out)) == 1
    finish(start(command, log), log)
    assert digests(out) == digests(tmp_path / "clean") and not list(check_dataset(out))
    assert hashlib.sha256((out / "manifest.json").read_bytes()).hexdigest() != old.get("manifest.json")
    assert np.unique(Catalog.load(out).record).size == len(Catalog.load(out))
