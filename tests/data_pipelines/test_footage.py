"""A folder as people have it: every entry is taken, or passed over with a reason; names become text and safe ids."""

import os
import socket
from pathlib import Path

import pytest

from data_pipelines.curate import footage
from data_pipelines.curate.footage import look_into


def touch(folder: Path, *names: str | bytes, data: bytes = b"x") -> None:
    for name in names:
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + os.fsencode(name)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@pytest.mark.parametrize("suffix", [
    "MTS", "m2ts", "3gp", "ts", "mkv", "webm", "avi", "mpg", "mpeg", "mov", "mp4", "m4v", "wmv", "flv", "mxf", "ogv",
])  # fmt: skip
def test_the_usual_camera_types_are_taken_in_any_case(suffix: str, tmp_path: Path) -> None:
    touch(tmp_path, f"a.{suffix.lower()}", f"b.{suffix.upper()}", f"c.{suffix.title()}")
    assert [name[0] for name in look_into(tmp_path).videos] == ["a", "b", "c"]


def test_nothing_is_passed_over_without_a_word(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "footage", tmp_path / "elsewhere"
    touch(root, "a.mp4", "day 1/b.MOV", "day 1/c.jpg", "sound.wav", "clip.lrv", "no_suffix", "x.txt.bak")
    touch(root, "a.txt", data=b"a man talks")
    touch(root, "day 1/b.txt", data=b"\xef\xbb\xbf \r\n")
    touch(root, "lost.txt", "a.mp4.txt")
    touch(root, ".DS_Store", "._a.mp4", "Thumbs.db", "day 1/desktop.ini", ".git/config", "@eaDir/a.mp4", ".hidden.mp4")
    touch(elsewhere, "d.mp4")
    (root / "linked").symlink_to(elsewhere)
    (root / "linked.mp4").symlink_to(elsewhere / "d.mp4")
    (root / "gone.mp4").symlink_to(elsewhere / "nothing.mp4")
    os.mkfifo(root / "pipe.mp4")
    touch(root, "out/table.json")
    found = look_into(root, besides=root / "out")
    assert list(found.videos) == ["a.mp4", "day 1/b.MOV", "linked.mp4"]
    assert set(found.passed_over.pop(footage.SYSTEM)) == {
        ".DS_Store", "._a.mp4", "Thumbs.db", "day 1/desktop.ini", ".git/", "@eaDir/", ".hidden.mp4",
    }  # fmt: skip
    assert found.passed_over == {
        footage.OTHER_TYPE: ["clip.lrv", "day 1/c.jpg", "no_suffix", "sound.wav", "x.txt.bak"],
        footage.EMPTY_SIDECAR: ["day 1/b.txt"],
        footage.LONE_SIDECAR: ["a.mp4.txt", "lost.txt"],
        footage.LINKED_FOLDER: ["linked"],
        footage.BROKEN_LINK: ["gone.mp4"],
        footage.NO_FILE: ["pipe.mp4"],
    }
    lines = footage.passed_over_lines(found.passed_over, listed=2)
    assert "files of other types: 5 (clip.lrv, day 1/c.jpg and 3 more)" in lines


def test_a_socket_is_no_file_and_a_folder_may_end_like_a_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the address of a socket is short
    touch(tmp_path, "take.mp4/inside.mp4")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s.mp4")
        found = look_into(tmp_path)
    assert list(found.videos) == ["take.mp4/inside.mp4"] and found.passed_over == {footage.NO_FILE: ["s.mp4"]}


def test_a_folder_without_videos_says_what_there_is_instead(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", ".x")
    message = r"no videos in it; .*\.mts.*; there are: files of other types: 1 \(a\.jpg\); hidden and system files: 1"
    with pytest.raises(ValueError, match=message):
        footage.check_any(tmp_path, look_into(tmp_path))


def test_a_name_is_text_and_its_path_opens_it(tmp_path: Path) -> None:
    names = [
        b"caf\xe9.mp4",
        b"caf\\xe9.mp4",
        b"a\nb.mp4",
        b"\x1b[2J.mp4",
        "tr\u202emp4.x.mp4".encode(),
        b"\xff/\xfe.mp4",
    ]
    for number, name in enumerate(names):
        touch(tmp_path, name, data=bytes([number]))
    found = look_into(tmp_path)
    assert len(found.videos) == len(names)
    for name, path in found.videos.items():
        assert name.isprintable() and name.encode()
        assert names[path.read_bytes()[0]] == os.fsencode(path.relative_to(tmp_path))
    assert "caf\\xe9.mp4" in found.videos and "caf\\\\xe9.mp4" in found.videos
