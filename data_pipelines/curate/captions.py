"""The caption beside a video: a text file of the same name, decoded strictly."""

import codecs
import os
import re
from pathlib import Path

from omnihuman_jax.runtime import file_names

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# Where a caption comes from.
SIDECAR, BY_DEFAULT, BY_COMMAND = "sidecar", "default", "command"
_UTF32_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
MAX_BYTES = 1 << 20
# Not white space, no character of any text: what has one is of another encoding, or none.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_LOST = "\ufffd"  # what some program before us wrote in place of a letter that it could not read


class CaptionError(ValueError):
    """A caption that cannot be read: one line that names the file and the cure."""


def check_encoding(name: str) -> None:
    """ValueError unless Python knows the text encoding ("": none is stated)."""
    try:
        if name:
            "".encode(name)
    except LookupError:
        raise ValueError(f"--caption-encoding {name!r} is unknown; give a name such as cp1252 or shift_jis") from None


def check_text(name: str, text: str) -> None:
    """ValueError if a caption that was given on the command line or in a file has a character that no text has."""
    if control := _CONTROL.search(text):
        raise ValueError(f"{name} has U+{ord(control[0]):04X} at {control.start()}, which is no character of a text")


def caption_of(path: str | os.PathLike[str], default: str, encoding: str = "") -> tuple[str, str]:
    """(caption, "sidecar" or "default"): the text of the `.txt` beside the video `path`, in one line.

    Args:
        path: of the video.
        default: for a video without a sidecar, or with an empty one.
        encoding: of sidecars that have no mark and are not UTF-8; "": there are none.

    Raises:
        CaptionError: neither UTF-8 nor UTF-16 with its mark, nor `encoding`.
    """
    sidecar = next((file for s in (".txt", ".TXT", ".Txt") if (file := Path(path).with_suffix(s)).is_file()), None)
    text = "" if sidecar is None else " ".join(_read(sidecar, encoding).split())
    return (text, SIDECAR) if text else (" ".join(default.split()), BY_DEFAULT)


def _read(sidecar: Path, encoding: str) -> str:
    name = file_names.plain(sidecar.name)
    if sidecar.stat().st_size > MAX_BYTES:
        raise CaptionError(f"{name}: {sidecar.stat().st_size} bytes are no caption; at most {MAX_BYTES}")
    try:
        data = sidecar.read_bytes()
        return decoded(data, encoding)
    except (UnicodeError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CaptionError(f"{name}: {reason}") from error


def caption_in(name: str, data: bytes | None, default: str, encoding: str = "") -> tuple[str, str]:
    """As `caption_of`, of the bytes of the sidecar `name`; None: there is none."""
    if data is not None and len(data) > MAX_BYTES:
        raise CaptionError(f"{file_names.plain(name)}: {len(data)} bytes are no caption; at most {MAX_BYTES}")
    try:
        text = "" if data is None else " ".join(decoded(data, encoding).split())
    except UnicodeError as error:
        raise CaptionError(f"{file_names.plain(name)}: {error}") from error
    return (text, SIDECAR) if text else (" ".join(default.split()), BY_DEFAULT)


def decoded(data: bytes, encoding: str = "") -> str:
    """The text of a caption's bytes; UnicodeError, with the cure, where it is not certain what they mean."""
    if data.startswith(_UTF32_MARKS):
        raise UnicodeError("UTF-32 by its mark; save it as UTF-8")
    mark, stated = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    try:
        return _strictly(data.removeprefix(mark), stated)
    except UnicodeError as error:
        if mark:
            raise UnicodeError(f"{stated} by its mark, but {error}; save it as UTF-8") from None
        if not encoding:
            raise UnicodeError(
                f"not UTF-8 ({error}); save it as UTF-8, or say what it is by --caption-encoding, such as cp1252"
            ) from None
    try:
        return _strictly(data, encoding)
    except UnicodeError as error:
        raise UnicodeError(f"neither UTF-8 nor {encoding} ({error}); save it as UTF-8") from None


def _strictly(data: bytes, encoding: str) -> str:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        byte = data[error.start : error.start + 1].hex()
        raise UnicodeError(f"byte 0x{byte} at {error.start} does not decode") from None
    if control := _CONTROL.search(text):
        raise UnicodeError(f"a control character U+{ord(control[0]):04X} at {control.start()}")
    if _LOST in text:
        raise UnicodeError(f"a letter that was lost before, U+FFFD, at {text.index(_LOST)}")
    return text.removeprefix("\ufeff")
