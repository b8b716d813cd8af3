"""Storage that goes away and comes back: the errors that mean so, retries, and whether it is the same storage.

A folder of checkpoints has an identity, a small file that its first start writes. A mount that is gone leaves an empty
folder, or none: a save would write to the disk below it, a read would find that nothing was ever trained. Without its
identity a folder is neither written to nor read.
"""

import errno
import json
import logging
import secrets
import time
from collections.abc import Callable
from typing import TypeVar

from etils import epath

from omnihuman_jax.runtime import exit_codes, files, processes, variables

logger = logging.getLogger(__name__)

IDENTITY = "identity.json"

# As errno has it, and as TensorStore does.
_NO_ROOM = ("No space left", "Disk quota", "File too large", "ENOSPC", "RESOURCE_EXHAUSTED")
# A fault of the way there, not of the bytes.
_NO_ANSWER = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "Input/output error", "Stale file handle", "Connection", "timed out",
              "Server disconnected", "SlowDown", "reduce your request rate")  # fmt: skip
_SERVER_SAYS = {408, 429, 500, 502, 503, 504}
_ERRNOS = {
    errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO, errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED,
}  # fmt: skip

Found = TypeVar("Found")


class Gone(OSError):
    """A folder that was there, or has to be, and is not."""


def cause(error: BaseException) -> str:
    """One line of the innermost cause: Orbax wraps the real one in a misleading one."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = (str(error).strip().splitlines() or [""])[0]
    # TensorStore names the file, which may be long, before it says what is wrong with it.
    return f"{type(error).__name__}: {line if len(line) <= 300 else f'{line[:180]} ... {line[-110:]}'}"


def cache_limit(variable: str, default_gb: str) -> int:
    """Bytes that a cache on local disk may take: GB in an environment variable, or the default; ValueError for what is
    no number above 0.
    """
    return int(variables.number(variable, float(default_gb), "GB") * 1e9)


def has_no_room(reason: str) -> bool:
    """Whether a save failed (`cause`) of a full disk or a quota."""
    return any(mark in reason for mark in _NO_ROOM)


def does_not_answer(error: BaseException | None) -> bool:
    """Whether an error, or what is behind it, is one of the way to the storage: the next try may find it healed."""
    while error is not None:
        if isinstance(error, Gone | TimeoutError | ConnectionError) or (
            isinstance(error, OSError) and error.errno in _ERRNOS
        ):
            return True
        # gcsfs: what the server said, after the driver's own tries.
        if getattr(error, "code", None) in _SERVER_SAYS:
            return True
        if any(mark in str(error) for mark in _NO_ANSWER):
            return True
        error = error.__cause__
    return False


def retry(what: str, look: Callable[[], Found], *, retries: int, delay_s: float) -> Found:
    """The result of `look`, retried on all processes until storage answers each of them; all of them call this.

    The pauses double from `delay_s` on. After `retries` retries all processes end, for a restart. Other errors of
    `look` are raised as they are.
    """
    for attempt in range(retries + 1):
        found, reason = None, ""
        try:
            found = look()
        except Exception as error:
            if not does_not_answer(error):
                raise
            reason = cause(error)
        reasons = [why for why in processes.gather(reason) if why]
        if not reasons:
            return found  # type: ignore[return-value]
        if attempt < retries:
            pause = delay_s * 2**attempt
            logger.warning("%s: storage does not answer (%s); try %d in %g s", what, reasons[0], attempt + 2, pause)
            time.sleep(pause)
    raise processes.RunEnded(f"{what}: storage did not answer in {retries + 1} tries: {reasons[0]}", exit_codes.RETRY)


def identify(folder: epath.Path) -> str:
    """The identity of a folder, which gets one, and is made, where it has none."""
    if not (folder / IDENTITY).exists():
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / IDENTITY, json.dumps({"id": secrets.token_hex(8)}) + "\n")
    return str(json.loads((folder / IDENTITY).read_text())["id"])


def verify(folder: epath.Path, identity: str) -> None:
    """`Gone` unless this is the folder of that identity, seen from this process."""
    try:
        found = json.loads((folder / IDENTITY).read_text())["id"]
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise Gone(f"{folder} is not there any more, or not what it was ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Gone(f"{folder / IDENTITY} cannot be read ({type(error).__name__})") from error
    if found != identity:
        raise Gone(f"{folder} is another folder than it was: identity {found}, not {identity}")
