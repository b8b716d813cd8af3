"""Names of files and other people's texts are data: whoever shows, logs or stores one gets text that does nothing.

A POSIX file name is bytes without `/` and NUL. Python has bytes that are not UTF-8 as lone surrogates, which no UTF-8
file, catalog or record can hold; line breaks, escape sequences and marks that turn the direction of writing act on a
terminal or on a log. Markup (of rich, of HTML) and a shell's characters are left as they are: the one place that
interprets them quotes them.
"""

import os
import re
import unicodedata

# Embeddings, overrides and isolates of bidirectional text, and the mark of a file's beginning.
_ACTING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF}
_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}
_ESCAPE = re.compile(r"\\(?:x([89a-f][0-9a-f])|u([0-9a-f]{4})|(\\))")


def printable(text: str) -> str:
    """`text` in one line that acts on nothing: control characters as `\\u001b`, bytes that are not UTF-8 as `\\xe9`."""
    return text if text.isascii() and text.isprintable() else "".join(map(_shown, text))


def plain(name: str | os.PathLike[str]) -> str:
    """`printable`, with backslashes doubled: another text for every name, which `raw` turns back."""
    return printable(os.fspath(name).replace("\\", "\\\\"))


def raw(text: str) -> str:
    """The file name behind `plain`."""
    return _ESCAPE.sub(lambda m: "\\" if m[3] else chr(0xDC00 + int(m[1], 16) if m[1] else int(m[2], 16)), text)


def _shown(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    acts = unicodedata.category(character) in _CATEGORIES or code in _ACTING
    return f"\\u{code:04x}" if acts else character
