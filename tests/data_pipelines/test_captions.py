"""Captions as other systems write them: read as what they are, or refused by name with the cure."""

import codecs
from pathlib import Path

import pytest

from data_pipelines.curate.captions import CaptionError, caption_of

TEXT = "Ein Mann erkl\u00e4rt etwas \u2026 \u6f22\u5b57"


def caption(folder: Path, data: bytes, encoding: str = "", name: str = "a.txt") -> str:
    (folder / name).write_bytes(data)
    return caption_of(folder / "a.mp4", "default", encoding)[0]


@pytest.mark.parametrize("data", [
    TEXT.encode(), TEXT.encode("utf-8-sig"), TEXT.encode("utf-16"),
    codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"), codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    ("\r\n" + TEXT.replace(" ", "\r\n\t") + "\n").encode("utf-16"),
])  # fmt: skip
def test_utf8_and_marked_utf16_are_read(data: bytes, tmp_path: Path) -> None:
    assert caption(tmp_path, data) == TEXT
    assert caption(tmp_path, data, "cp1252") == TEXT  # what is certain is not asked about


@pytest.mark.parametrize("data", [
    "erkl\u00e4rt".encode("cp1252"), "\u65e5\u672c\u8a9e".encode("shift_jis"), "\u0440\u0443\u0441".encode("koi8-r"),
    "erkl".encode("utf-16-le"), "erkl\u00e4rt".encode("utf-16-be"), TEXT.encode("utf-32"), b"a\x00b", b"a\x1b[31mb",
    codecs.BOM_UTF16_LE + b"abc", codecs.BOM_UTF16_LE + b"\x00\xd8a\x00", b"\xef\xbb\xbfcaf\xe9", b"\xed\xa0\x80",
    "\u65e5\u672c".encode("iso2022_jp"), b"\x00" * 4096,
    "caf\ufffd".encode(), "caf\ufffd".encode("utf-16"), b"\xef\xbf\xbf",
])  # fmt: skip
def test_anything_else_is_refused_by_name_with_the_cure(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(CaptionError, match=r"^a\.txt: .*save it as UTF-8"):
        caption(tmp_path, data)


@pytest.mark.parametrize(("text", "encoding"), [
    ("erkl\u00e4rt", "cp1252"), ("\u65e5\u672c\u8a9e", "shift_jis"), ("\u65e5\u672c", "iso2022_jp"),
    ("erkl\u00e4rt", "utf-16-le"), ("plain", "utf-16-be"),
])  # fmt: skip
def test_a_stated_encoding_is_the_cure(text: str, encoding: str, tmp_path: Path) -> None:
    data = text.encode(encoding)
    with pytest.raises(CaptionError, match="--caption-encoding"):
        caption(tmp_path, data)
    assert caption(tmp_path, data, encoding) == text
    if encoding != "cp1252":
        with pytest.raises(CaptionError, match="neither UTF-8 nor ascii"):
            caption(tmp_path, "erkl\u00e4rt".encode("cp1252"), "ascii")


@pytest.mark.parametrize("data", [b"", b" \r\n", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE + b"\0\n"])
def test_an_empty_sidecar_gives_the_default(data: bytes, tmp_path: Path) -> None:
    assert caption(tmp_path, data) == "default"


def test_the_sidecar_may_be_in_capitals_and_no_book(tmp_path: Path) -> None:
    assert caption(tmp_path, b"x", name="a.TXT") == "x"
    with pytest.raises(CaptionError, match="are no caption; at most"):
        caption(tmp_path, b"x" * (1 << 20) + b"x")
