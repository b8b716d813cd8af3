"""Whatever lies in a source: each file is a dead letter with its stage and a reason, or passed over by name, and the
good one beside them is curated; whatever became of a table: a line that names the file and the cure.
"""

import os
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.curate import stage_parts
from data_pipelines.curate.clip_sets import read_clips
from data_pipelines.curate.curate import CurateConfig, curate
from data_pipelines.curate.selection import select
from data_pipelines.curate.stage_parts import Table
from data_pipelines.curate.tagging import Thresholds
from data_pipelines.sample_media import SampleMedia
from omnihuman_jax.serving import media_omnihuman


def write_bad(folder: Path, good: bytes) -> dict[str, str]:
    """Name -> what its reason has to say."""
    noise = np.random.default_rng(0)
    media_omnihuman.write_video(folder / "one.mp4", np.zeros((1, 32, 32, 3), np.uint8))
    one = (folder / "one.mp4").read_bytes()
    (folder / "one.mp4").unlink()
    head, middle = good.find(b"moov"), len(good) // 2
    flipped = bytearray(good)
    flipped[middle : middle + 20_000] = noise.bytes(20_000)
    files = {
        "empty.mp4": (b"", ""),
        "text.mp4": (b"not a video at all\n" * 100, ""),
        "noise.mp4": (noise.bytes(30_000), ""),
        "zeros.mkv": (bytes(50_000), ""),
        "half.mp4": (good[: len(good) // 2], ""),
        "head only.mp4": (good[:64], ""),
        "no index.mp4": (good[:head] + b"junk" + good[head + 4 :], ""),
        "cut picture.mp4": (one[:-8], "truncated"),
        "playlist.mp4": (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", ""),
        "concat.mov": (b"ffconcat version 1.0\nfile /etc/passwd\n", ""),
        "picture.mp4": (b"\x89PNG\r\n\x1a\n" + bytes(64), ""),
        "page.webm": (b"<!doctype html><title>403 Forbidden</title>", ""),
        "json.avi": (b'{"error": "not found"}', ""),
        "sound.mp4": (_wav(), ""),
        "no size.mp4": (_without_size(good), ""),
        "pickle.mp4": (b"\x80\x04\x95" + bytes(40), ""),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return {name: word for name, (_, word) in files.items()}


def _without_size(mp4: bytes) -> bytes:
    """0 x 0, wherever the file says what it is: in its track's header, its sample's description and its codec's."""
    data = bytearray(mp4)
    sample = data.find(b"avc1", data.find(b"stsd"))
    codec, track = data.find(b"avcC"), data.find(b"tkhd")
    end = track - 4 + int.from_bytes(data[track - 4 : track], "big")
    for place, count in ((sample + 28, 4), (codec + 12, 22), (end - 8, 8)):
        data[place : place + count] = bytes(count)
    return bytes(data)


def _write_negative(path: Path, frames: np.ndarray) -> None:
    """As cameras do that record before the button is pressed: the first ten pictures are before time 0."""
    import av

    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as file:
        stream = file.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.height, stream.width = frames.shape[1:3]
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts, frame.time_base = number - 10, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def _wav() -> bytes:
    import io

    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(16000, np.float32), 16000, format="WAV")
    return stream.getvalue()


@pytest.fixture(scope="module")
def curated(sample_media: SampleMedia, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("bad")
    (root / "media").mkdir()
    frames = media_omnihuman.read_video(sample_media.videos / "carphone_pristine.mp4", size=(96, 128), duration_s=1.2)
    media_omnihuman.write_video(root / "media" / "good.mp4", frames)
    mirrored = frames[:, :, ::-1]  # or it would be a copy of the good one
    _write_negative(root / "media" / "negative.mp4", np.concatenate([mirrored[9::-1], mirrored]))
    words = write_bad(root / "media", (root / "media" / "good.mp4").read_bytes())
    (root / "media" / "folder.mp4").mkdir()
    os.symlink(root / "nowhere.mp4", root / "media" / "link.mp4")
    (root / "media" / "lonely.txt").write_text("a caption of nothing")
    return root, words


def test_every_bad_file_is_a_dead_letter_and_the_rest_is_finished(curated: tuple[Path, dict[str, str]]) -> None:
    root, words = curated
    funnel = curate(root / "media", root / "table", CurateConfig(workers=1, part_videos=100))
    letters = {row["video"]: row for row in funnel["quarantine"]}
    assert set(letters) == set(words)
    for name, row in letters.items():
        assert row["stage"] == "scan" and row["reason"] and row["exception"] and row["tries"] == 1
        assert words[name] in row["reason"] and str(root) not in row["reason"] and row["reason"].isprintable()
    assert funnel["passed_over"] == {"captions without a video": ["lonely.txt"], "links to nothing": ["link.mp4"]}
    clips = {clip.video: (clip.start_frame, clip.end_frame) for clip in read_clips(root / "table")}
    assert clips == {"good.mp4": (0, 30), "negative.mp4": (0, 30)}, "what is before time 0 is not shown by players"
    again = curate(root / "media", root / "table", CurateConfig(workers=1))
    assert again["computed"] == {"videos": 0, "clips": 0}  # what is bad is not read again


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-20:-12] = b"\xff" * 8  # of the footer, which a reader trusts
    path.write_bytes(data)


def test_a_flipped_bit_in_a_part_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    """Compressed numbers have no redundancy of their own: without checksums most flips are read as other numbers."""
    random = np.random.default_rng(0)
    schema = pa.schema([pa.field(name, pa.float64()) for name in "abc"])
    rows = [dict(zip("abc", values, strict=True)) for values in random.random((200, 3)).tolist()]
    stage_parts.write_part(path := tmp_path / "part-00000.parquet", rows, schema)
    whole, noticed = path.read_bytes(), 0
    for at in random.integers(4, len(whole) - 8, 60).tolist():
        data = bytearray(whole)
        data[at] ^= 1 << int(random.integers(8))
        path.write_bytes(data)
        try:
            assert stage_parts.read_part(path).to_pylist() == rows, at
        except ValueError as error:
            assert "not a readable part" in str(error)
            noticed += 1
    assert noticed > 50


DAMAGE: dict[str, tuple[Callable[[Table], None], str]] = {
    "a part with a flipped byte": (lambda t: flip(_part(t, "look")), "not a readable part"),
    "a part cut short": (
        lambda t: _part(t, "scan").write_bytes(_part(t, "scan").read_bytes()[:100]),
        "not a readable part",
    ),
    "a part of another kind": (lambda t: _part(t, "scan").write_text("hello"), "not a readable part"),
    "foreign Parquet": (
        lambda t: pq.write_table(pa.table({"a": [1]}), _part(t, "listen")),
        "lacks the columns",
    ),
    "no head": (lambda t: (t.folder / "table.json").unlink(), "omnihuman curate --source"),
    "a head that is none": (lambda t: (t.folder / "table.json").write_text("[]"), "not the head of a table"),
    "no listing": (lambda t: shutil.rmtree(t.folder / "listings"), "nothing is listed"),
    "no part at all": (lambda t: shutil.rmtree(t.stage_folder("listen")), "none of its .* parts is finished"),
}


def _part(table: Table, stage: str) -> Path:
    """Of the part that the good video is in."""
    return table.part(stage, read_clips(table.folder)[0].part)


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_table_is_refused_by_name(
    damage: Callable[[Table], None], message: str, curated: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    shutil.copytree(curated[0] / "table", tmp_path / "table")
    damage(Table.open(tmp_path / "table"))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        select(tmp_path / "table", Thresholds(), tmp_path / "sets")
    assert "\n" not in str(error.value)


def test_a_table_in_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "splits.json").write_text("[1]")
    (tmp_path / "media" / "a.mp4").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"splits\.json: must be one table"):
        curate(tmp_path / "media", tmp_path / "table")
