"""Captions by a program: what it is asked, what becomes of what it answers, and what is asked again."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.curate import file_stages, part_work, source_list, stage_parts, stage_rows
from data_pipelines.curate.adapters import Adapters
from data_pipelines.curate.caption_command import CaptionCommand
from data_pipelines.curate.captions import CaptionError
from data_pipelines.curate.clip_sets import read_clips
from data_pipelines.curate.curate import CurateConfig, Engine, curate
from data_pipelines.curate.file_stages import ScanOptions
from data_pipelines.curate.part_slices import Slice
from data_pipelines.curate.part_tags import NOT_CAPTIONED
from data_pipelines.curate.part_task import PartTask
from data_pipelines.curate.selection import select
from data_pipelines.curate.stage_keys import stage_keys
from data_pipelines.curate.stage_parts import SCHEMAS, Table
from data_pipelines.curate.tagging import Thresholds
from omnihuman_jax.serving import media_omnihuman
from tests.data_pipelines import made_table
from tests.data_pipelines.onnx_models import patch_network


def program(folder: Path, code: str, places: str = "{video} {start_s} {end_s}") -> str:
    """A command that runs `code` with what is filled in as `argv[1:]`."""
    (folder / "caption.py").write_text(f"import os, sys, time\nargv = sys.argv\n{code}\n")
    return f"{sys.executable} '{folder / 'caption.py'}' {places}"


def command(folder: Path, code: str, timeout_s: float = 20, **places: str) -> CaptionCommand:
    return CaptionCommand.parse(program(folder, code, **places), timeout_s)


def test_a_name_is_one_argument_whatever_is_in_it(tmp_path: Path) -> None:
    asked = command(tmp_path, "print('\\n'.join(argv[1:]))", places="--of={video} {start_s} {end_s}")
    name = "-a b;$(touch gone) '{end_s}\" \u00e9.mp4"
    assert asked.caption(name, 25, 60) == f"--of={os.path.abspath(name)} 1.000 2.400"
    assert asked.filled("/v", 25, 60)[2:] == ["--of=/v", "1.000", "2.400"]


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("print('lost', file=sys.stderr); sys.exit(3)", ChildProcessError, "ended with status 3: lost"),
        ("os.kill(os.getpid(), 9)", ChildProcessError, "was killed by signal 9$"),
        ("print(' \\n ')", CaptionError, "printed nothing"),
        ("sys.stdout.buffer.write(b'a\\xff')", CaptionError, "printed is not UTF-8 .byte 0xff at 1"),
        ("print('x' * (2 << 20)); time.sleep(60)", CaptionError, "printed more than 1048576 bytes"),
        ("time.sleep(60)", TimeoutError, "longer than 1 s; give a larger --caption-timeout-s"),
        ("os.close(1); os.close(2); time.sleep(60)", TimeoutError, "longer than 1 s"),
    ],
)
def test_a_program_that_fails_costs_its_caption(
    code: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    began = time.monotonic()
    with pytest.raises(error, match=message):
        command(tmp_path, code, timeout_s=1 if error is TimeoutError else 20).caption("a.mp4", 0, 25)
    assert time.monotonic() - began < 15


def test_what_a_program_started_ends_with_it(tmp_path: Path) -> None:
    code = "child = os.fork() or time.sleep(60); print(child, file=open(argv[1], 'w')); time.sleep(60)"
    with pytest.raises(TimeoutError):
        command(tmp_path, code, timeout_s=2).caption(str(tmp_path / "child"), 0, 25)
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            break
        # Where nobody reaps what is left behind, its entry stays.
        if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        raise AssertionError("it still runs")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("describe a.mp4", r"must name \{video\}"),
        ("describe {video} {begin}", r"\{begin\} must be one of \{video\}, \{start_s\}, \{end_s\}"),
        ("describe '{video}", "No closing quotation; quote it as for a shell"),
        ("no-such-program-at-all {video}", "no-such-program-at-all is no program of this machine; give its path"),
    ],
)
def test_what_is_no_command(text: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        CaptionCommand.parse(text)
    with pytest.raises(ValueError, match="--caption-timeout-s must be greater than 0, not 0"):
        CaptionCommand.parse("cat {video}", 0)


def test_the_digest_is_of_words_and_of_the_bytes_of_files(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one, copy = (command(folder, "print(1)") for folder in (tmp_path, tmp_path / "other"))
    assert one.digest == copy.digest == command(tmp_path, "print(1)", timeout_s=5).digest
    assert len({one.digest, command(tmp_path, "print(2)").digest, command(tmp_path, "1", places="{video}").digest}) == 3
    keys = [stage_keys(ScanOptions(), Adapters(captions=by)) for by in (None, one, command(tmp_path, "2"))]
    assert list(keys[1])[-1] == "caption" and "caption" not in keys[0]
    assert [stage for stage in keys[1] if keys[2][stage] != keys[1][stage]] == ["caption"]


def test_captions_that_failed_are_asked_again_and_no_others(tmp_path: Path) -> None:
    made_table.write(tmp_path / "table", parts=1, videos=4, clips=3)
    for name in "abcd":
        (tmp_path / f"{name}.mp4").touch()
    code = f"""
open({str(tmp_path / "log")!r}, "a").write(os.path.basename(argv[1]) + " ")
if argv[1].endswith("b.mp4") and not os.path.exists({str(tmp_path / "up")!r}):
    sys.exit(1)
print(os.path.basename(argv[1]))
"""
    by = command(tmp_path, code, places="{video}")
    sources = sorted(set(Table.open(tmp_path / "table").read("scan", 0)["source"].to_pylist()))
    task = PartTask(
        table=str(tmp_path / "table"),
        number=0,
        keys={**Table.open(tmp_path / "table").keys, "caption": "made"},
        options=ScanOptions(),
        loosest=Thresholds(),
        sources=tuple(sources),
        paths={source: f"../{name}.mp4" for source, name in zip(sources, "abcd", strict=True)},
        given=Adapters(captions=by),
        uncaptioned=frozenset(sources[:3]),
    )

    def make() -> tuple[list[str | None], list[str]]:
        """(captions, who was asked) with one command a video, whatever clips it has."""
        (tmp_path / "log").write_text("")
        table = task.opened
        part = table.part("caption", 0)
        kept = table.read("caption", 0).to_pylist() if part.is_file() else None
        rows, _ = stage_rows.caption(task, table, kept, Slice(stage="caption", begin=0, end=12), part)
        stage_parts.write_part(part, rows, SCHEMAS["caption"], stage_rows.chosen_by(task, table, "caption"))
        told = table.read("caption", 0, ["caption"])["caption"].to_pylist()
        return told, (tmp_path / "log").read_text().split()

    answers = [["a.mp4"] * 3, [None] * 3, ["c.mp4"] * 3, [None] * 3]
    assert make() == ([one for three in answers for one in three], ["a.mp4", "b.mp4", "b.mp4", "c.mp4"])
    assert "caption" not in part_work.to_make(task)
    (tmp_path / "up").touch()
    assert part_work.forget_dead(task) and "caption" in part_work.to_make(task)
    assert all(task.opened.part(stage, 0).is_file() for stage in ("scan", "preview", "look", "listen"))
    answers[1] = ["b.mp4"] * 3
    assert make() == ([one for three in answers for one in three], ["b.mp4"])
    assert "caption" not in part_work.to_make(task) and not part_work.forget_dead(task)


def test_a_caption_that_is_still_to_be_asked_for_is_none(tmp_path: Path) -> None:
    """What fails, is asked again and is passed over is left out by a select that comes in between."""
    made_table.write(tmp_path, parts=1, videos=3, clips=1)
    table = Table(folder=tmp_path, keys={**Table.open(tmp_path).keys, "caption": "made"})
    table.save()
    listing = tmp_path / "listings" / "made.parquet"
    listed = [{**row, "caption_source": "default"} for row in stage_parts.read_part(listing).to_pylist()]
    stage_parts.write_part(listing, listed, source_list._LISTING)
    failed = {"caption_why": "failed: x", "reason": "x", "exception": "E", "tries": 2, "is_lasting": False}
    answers: list[dict[str, object]] = [{"caption": "a man talks"}, failed, {"caption_why": file_stages.OWN_CAPTION}]
    named = zip(table.read("look", 0, ["clip_id"]).to_pylist(), answers, strict=True)
    stage_parts.write_part(table.part("caption", 0), [one | said for one, said in named], SCHEMAS["caption"], "[]")

    def captions() -> list[str]:
        select(tmp_path, Thresholds(min_copy_distance=0), tmp_path / "sets")
        return [clip.caption for clip in read_clips(tmp_path)]

    assert captions() == ["a man talks"]
    task = PartTask(
        table=str(tmp_path),
        number=0,
        keys=table.keys,
        options=ScanOptions(),
        loosest=Thresholds(),
        sources=tuple(row["source"] for row in listed),
        paths={row["source"]: "x" for row in listed},
        uncaptioned=frozenset(row["source"] for row in listed),
    )
    assert part_work.forget_dead(task)
    assert captions() == ["a man talks"]


def test_captions_of_a_table(tmp_path: Path) -> None:
    """Who is asked, once for each clip; what another program, a caption that goes, and one that fails make again. The
    other stage that a table need not have is made once.
    """
    media, table, log = tmp_path / "media", tmp_path / "table", tmp_path / "log"
    media.mkdir()
    network = patch_network(tmp_path / "net.onnx")
    (tmp_path / "net.json").write_text('{"output": "features"}')
    rng = np.random.default_rng(0)
    for name in ("a $(touch it)", "b", "c"):
        media_omnihuman.write_video(media / f"{name}.mp4", rng.integers(0, 255, (30, 64, 96, 3), np.uint8))
    (media / "b.txt").write_text("told beside it")
    code = f"""
open({str(log)!r}, "a").write(argv[1] + "\\n")
if os.path.exists({str(tmp_path / "down")!r}) and argv[1].endswith("c.mp4"):
    sys.exit("no memory")
print("words on", argv[2], argv[3])
"""

    def run(code: str, **engine: bool) -> tuple[dict[str, int], dict[str, tuple[str, str]], dict[str, object]]:
        log.unlink(missing_ok=True)
        config = CurateConfig(workers=1, caption_command=program(tmp_path, code), embedding_network=str(network))
        funnel = curate(media, table, config, engine=Engine(**engine))  # type: ignore[arg-type]
        told = {clip.video: (clip.caption, clip.caption_source) for clip in read_clips(table)}
        return {name: n for name, n in funnel["computed"].items() if n}, told, funnel

    def asked() -> list[str]:
        return sorted(Path(line).name for line in log.read_text().splitlines()) if log.exists() else []

    computed, told, _ = run(code)
    by_command = ("words on 0.000 1.200", "command")
    assert told == {"a $(touch it).mp4": by_command, "b.mp4": ("told beside it", "sidecar"), "c.mp4": by_command}
    assert asked() == ["a $(touch it).mp4", "c.mp4"] and computed["caption"] == 2 and computed["embed"] == 3
    assert run(code)[:2] == ({}, told) and not asked()

    (media / "b.txt").unlink()
    computed, told, _ = run(code)
    assert computed == {"caption": 1} and asked() == ["b.mp4"] and set(told.values()) == {by_command}

    (tmp_path / "down").touch()
    computed, told, funnel = run(code + "# another program")
    assert computed == {"caption": 3} and set(told) == {"a $(touch it).mp4", "b.mp4"}
    (letter,) = funnel["quarantine"]
    assert (letter["video"], letter["stage"], letter["tries"]) == ("c.mp4", "caption", 2)
    assert letter["reason"] == "ChildProcessError: the caption command ended with status 1: no memory"
    assert NOT_CAPTIONED == "the caption command gave no caption"

    (tmp_path / "down").unlink()
    computed, told, funnel = run(code + "# another program", retry_dead=True)
    assert computed == {"caption": 1} and set(told.values()) == {by_command} and not funnel["quarantine"]
    assert not list(tmp_path.rglob("it"))
