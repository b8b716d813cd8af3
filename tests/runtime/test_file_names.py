"""A file's name as text that does nothing, and back."""

import os

import pytest

from omnihuman_jax.runtime.file_names import plain, printable, raw

NAMES = [
    b"talk.mp4", "\u6f22 \u00fc \U0001f600.mp4".encode(), b"caf\xe9", b"\xff\xfe\x80", b"a\nb\r\tc", b"\x1b]0;x\x07",
    b"back\\slash", b"caf\\xe9", b"\\u001b", b"\\\\x41", "tr\u202eb\u2066\u2028\u0085\ufeff".encode(), b"-rf", b"\x7f",
    b"[red]<b>$(x)`'\"&",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_one_line_of_text_and_the_text_is_the_name(name: bytes) -> None:
    text = plain(os.fsdecode(name))
    text.encode()
    assert len(text.splitlines()) == 1 and "\x1b" not in text and "\u202e" not in text
    assert os.fsencode(raw(text)) == name
    assert printable(text) == text


def test_no_two_names_are_one_text() -> None:
    assert len({plain(os.fsdecode(name)) for name in NAMES}) == len(NAMES)


def test_what_people_write_stays_as_it_is() -> None:
    for text in (
        "\u00c4 \u00fc \u6f22\u5b57",
        "\u0646\u06cc\u200c\u0645",
        "\U0001f468\u200d\U0001f469",
        "a\\b",
        "[link=x]<b>",
    ):
        assert printable(text) == text
    assert printable("a\tb\x9bc") == "a\\u0009b\\u009bc"
