"""A run's folder in a bucket: logs grow in parts, and what is read back is what was written, whenever it ended.

The bucket is fsspec's own, in memory; real servers are in `tests/storage`.
"""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from omnihuman_jax.runtime import bucket_folder, files, signals
from omnihuman_jax.runtime.bucket_folder import Mirror

HOME = "memory://runs/one"


@pytest.fixture(autouse=True)
def bucket() -> Iterator[Any]:
    """An empty one."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


def names(bucket: Any) -> list[str]:
    return sorted(name.removeprefix("/runs/one/") for name in bucket.find("/runs/one"))


def mirror(folder: Path) -> Mirror:
    folder.mkdir(parents=True, exist_ok=True)
    opened = Mirror(folder, HOME)  # type: ignore[arg-type]
    opened.download()
    return opened


def read(tmp_path: Path, name: str) -> bytes:
    """As another process finds it."""
    folder = tmp_path / f"reader-{time.monotonic_ns()}"
    mirror(folder)
    return (folder / name).read_bytes()


def append(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)


def test_a_log_goes_up_in_parts_of_whole_lines(tmp_path: Path, bucket: Any) -> None:
    log = tmp_path / "a" / "events" / "0000-0.jsonl"
    ours = mirror(tmp_path / "a")
    append(log, '{"step": 1}\n{"step": 2}\n{"st')
    ours.upload()
    ours.upload()  # nothing new
    append(log, 'ep": 3}\n')
    ours.upload()
    assert names(bucket) == ["events/0000-0.jsonl.parts/000000000000", "events/0000-0.jsonl.parts/000000000024"]
    assert read(tmp_path, "events/0000-0.jsonl") == log.read_bytes()


def test_a_restart_continues_the_log_and_other_files_are_replaced(tmp_path: Path, bucket: Any) -> None:
    first = mirror(tmp_path / "a")
    append(tmp_path / "a" / "metrics.jsonl", "one\ntwo\n")
    (tmp_path / "a" / "config.json").write_text("old")
    first.upload()
    second = mirror(tmp_path / "b")
    append(tmp_path / "b" / "metrics.jsonl", "three\n")
    (tmp_path / "b" / "config.json").write_text("newer")
    second.upload()
    assert read(tmp_path, "metrics.jsonl") == b"one\ntwo\nthree\n"
    assert read(tmp_path, "config.json") == b"newer"


@pytest.mark.parametrize("kept", [b"one\n", b"", b"other\nlines\nand longer ones than before\n"])
def test_a_log_that_is_rewritten_replaces_its_parts(tmp_path: Path, bucket: Any, kept: bytes) -> None:
    log = tmp_path / "a" / "metrics.jsonl"
    ours = mirror(tmp_path / "a")
    for line in ("one\n", "two\n", "three\n"):
        append(log, line)
        ours.upload()
    files.write_bytes(log, kept)  # as a resume takes lines back
    append(log, "four\n")
    ours.upload()
    assert read(tmp_path, "metrics.jsonl") == kept + b"four\n"


@pytest.mark.parametrize("dies_after", range(4))
def test_whenever_a_rewrite_ends_a_beginning_is_left(
    tmp_path: Path, bucket: Any, dies_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "a" / "metrics.jsonl"
    ours = mirror(tmp_path / "a")
    for line in ("one\n", "two\n", "three\n"):
        append(log, line)
        ours.upload()
    files.write_bytes(log, b"one\nother\n")
    acts = [0]

    def dying(act: Callable[..., None]) -> Callable[..., None]:
        def run(*args: Any) -> None:
            if acts[0] == dies_after:
                raise ConnectionError("planted")
            acts[0] += 1
            act(*args)

        return run

    monkeypatch.setattr(ours._fs, "rm_file", dying(ours._fs.rm_file))
    monkeypatch.setattr(ours._fs, "pipe_file", dying(ours._fs.pipe_file))
    ours.try_upload()
    beginnings = [b"one\ntwo\nthree\n", b"one\ntwo\n", b"one\n", b"one\nother\n"]
    assert read(tmp_path, "metrics.jsonl") == beginnings[dies_after]
    monkeypatch.undo()
    ours.upload()
    assert read(tmp_path, "metrics.jsonl") == b"one\nother\n"


def test_many_parts_become_one(tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_folder, "_MAX_PARTS", 4)
    log, ours = tmp_path / "a" / "metrics.jsonl", mirror(tmp_path / "a")
    for number in range(11):
        append(log, f"line {number}\n")
        ours.upload()
    assert len(names(bucket)) <= 4
    assert read(tmp_path, "metrics.jsonl") == log.read_bytes()


@pytest.mark.parametrize("comes_back", [True, False], ids=["the process goes on", "another one reads"])
@pytest.mark.parametrize("fails_at", range(4))
def test_whenever_a_request_fails_while_parts_become_one_nothing_is_lost(
    tmp_path: Path, bucket: Any, fails_at: int, comes_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_folder, "_MAX_PARTS", 4)
    log, ours, requests = tmp_path / "a" / "metrics.jsonl", mirror(tmp_path / "a"), [0]
    for number in range(5):
        if number == 4:

            def failing(act: Callable[..., None]) -> Callable[..., None]:
                def run(*args: Any) -> None:
                    requests[0] += 1
                    if requests[0] == fails_at + 1:
                        raise ConnectionError("planted")
                    act(*args)

                return run

            monkeypatch.setattr(ours._fs, "rm_file", failing(ours._fs.rm_file))
            monkeypatch.setattr(ours._fs, "pipe_file", failing(ours._fs.pipe_file))
        append(log, f"line {number}\n")
        before = log.read_bytes()
        ours.try_upload()
    assert before.startswith(read(tmp_path, "metrics.jsonl")) and len(read(tmp_path, "metrics.jsonl")) >= 4 * 7
    going_on = ours if comes_back else mirror(tmp_path / "b")
    if not comes_back:
        log = tmp_path / "b" / "metrics.jsonl"
        before = log.read_bytes()
    for number in range(5, 12):
        append(log, f"line {number}\n")
        before += f"line {number}\n".encode()
        going_on.upload()
        assert read(tmp_path, "metrics.jsonl") == log.read_bytes() == before
    assert len(names(bucket)) <= 4 or not comes_back


def test_a_part_that_continues_nothing_is_passed_over(
    tmp_path: Path, bucket: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.pipe_file("/runs/one/metrics.jsonl.parts/000000000000", b"one\n")
    bucket.pipe_file("/runs/one/metrics.jsonl.parts/000000000009", b"three\n")
    assert read(tmp_path, "metrics.jsonl") == b"one\n"
    assert "000000000009 does not continue the parts before it" in caplog.text


def test_checkpoints_and_what_is_being_written_stay_out(tmp_path: Path, bucket: Any) -> None:
    bucket.pipe_file("/runs/one/checkpoints/3/manifest.json", b"{}")
    bucket.pipe_file("/runs/one/config.json", b"{}")
    ours = mirror(tmp_path / "a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["config.json"]
    (tmp_path / "a" / ".config.json.1234.part").write_text("half")
    append(tmp_path / "a" / "checkpoints" / "local", "x")
    ours.upload()
    assert names(bucket) == ["checkpoints/3/manifest.json", "config.json"]


def test_a_bucket_that_does_not_answer_ends_nothing_and_is_said_once(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ours = mirror(tmp_path / "a")
    append(tmp_path / "a" / "metrics.jsonl", "one\n")

    def fails(*_: Any) -> None:
        raise ConnectionError("planted")

    monkeypatch.setattr(ours._fs, "pipe_file", fails)
    assert not ours.try_upload() and not ours.try_upload()
    assert caplog.text.count("does not take the run's logs (ConnectionError: planted)") == 1
    monkeypatch.undo()
    assert ours.try_upload() and "takes the run's logs again" in caplog.text
    assert read(tmp_path, "metrics.jsonl") == b"one\n"


def test_a_request_that_is_never_answered_does_not_keep_a_process(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ours = mirror(tmp_path / "a")
    append(tmp_path / "a" / "metrics.jsonl", "one\n")
    monkeypatch.setattr(ours._fs, "pipe_file", lambda *_: time.sleep(30))
    began = time.monotonic()
    ours.upload_last(0.3)
    assert time.monotonic() - began < 10 and "did not take the last lines" in caplog.text


def test_opened_uploads_at_the_end_and_before_an_exit_that_unwinds_nothing(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.pipe_file("/runs/one/config.json", b"{}")
    home: Any = HOME
    monkeypatch.setattr(signals.os, "_exit", lambda code: None)
    with bucket_folder.opened(home, lambda what, look: look()) as folder:
        assert (folder / "config.json").read_bytes() == b"{}" and folder.parts[-3:] == ("memory", "runs", "one")
        append(folder / "metrics.jsonl", "one\n")
        monkeypatch.setattr(signals.logging, "shutdown", lambda: None)
        signals.exit_now(42)
        assert read(tmp_path, "metrics.jsonl") == b"one\n"
        append(folder / "metrics.jsonl", "two\n")
    assert read(tmp_path, "metrics.jsonl") == b"one\ntwo\n" and not folder.exists()


def test_a_folder_of_this_machine_is_itself(tmp_path: Path) -> None:
    with bucket_folder.opened(tmp_path / "run", lambda what, look: look()) as folder:
        assert folder == tmp_path / "run"
    assert bucket_folder.copy_of(tmp_path / "run") == tmp_path / "run"
    assert bucket_folder.output_of(tmp_path, "report.html") == tmp_path / "report.html"
    assert bucket_folder.output_of("gs://bucket/run", "report.html") == Path("report.html")
