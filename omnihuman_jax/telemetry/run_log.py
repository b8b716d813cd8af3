"""What a training process prints: its own lines, and no library's noise.

`text` is for people (`kubectl logs`, a SLURM file), `json` one object a line for a log collector. All lines go to
stdout. A record may carry `extra=fields(...)`: the values behind its sentence, which `json` keeps.

What native code writes to stderr by itself (XLA's last words before it aborts, the watchdog's stacks) is left as it is:
a process that dies must not lose it on the way.
"""

import contextlib
import datetime
import json
import logging
import math
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

from omnihuman_jax.runtime import exit_codes, file_names, processes

logger = logging.getLogger(__name__)

FORMATS = ("text", "json")
FORMAT_VARIABLE = "OMNIHUMAN_LOG_FORMAT"
LEVELS = ("debug", "info", "warning")

# Loggers that are the project's own; of all others, what is below a warning is noise.
_OWN = ("omnihuman_jax", "data_pipelines", "launch", "__main__")
# Libraries whose warnings are of tries that they repeat themselves, tracebacks included.
_RETRIES = ("gcsfs", "fsspec", "aiohttp", "aiobotocore", "botocore", "urllib3")


def fields(event: str, **values: Any) -> dict[str, Any]:
    """For `logger.info(..., extra=fields("saved", step=5))`: what a line is about, and its values."""
    return {"fields": {"event": event, **values}}


def set_up(form: str = "text", level: str = "info", process: int | None = None) -> None:
    """From now on the root logger writes here, and nowhere else.

    Args:
        form: one of `FORMATS`.
        level: one of `LEVELS`; what is below it is dropped.
        process: index of this one until it has joined the others, None if it is alone or does not know.
    """
    if form not in FORMATS:
        raise ValueError(f"log format {form!r} is unknown; it is one of {', '.join(FORMATS)}")
    handler = _Stdout()
    handler.setFormatter((_Json if form == "json" else _Text)(process))
    handler.addFilter(_Noise(getattr(logging, level.upper()), keeps_incidents=form == "json"))
    # By force: a library that is imported before may have set the root logger up, at its own level.
    logging.basicConfig(level=getattr(logging, level.upper()), handlers=[handler], force=True)
    logging.getLogger("gcsfs").setLevel(logging.NOTSET)  # a command without a log keeps it quiet
    logging.captureWarnings(True)


class _Stdout(logging.StreamHandler[Any]):
    """To whatever `sys.stdout` is now: a bar that is being drawn puts itself there, and draws lines above it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stdout

    @stream.setter
    def stream(self, _value: Any) -> None:
        raise AttributeError("the stream is sys.stdout")


class _Noise(logging.Filter):
    """Libraries' small talk becomes debug lines; an incident is dropped where its sentence was a line already."""

    def __init__(self, level: int, *, keeps_incidents: bool):
        super().__init__()
        self._level, self._keeps_incidents = level, keeps_incidents

    def filter(self, record: logging.LogRecord) -> bool:
        room = record.name.split(".")[0]
        if room not in _OWN and record.levelno < (logging.ERROR if room in _RETRIES else logging.WARNING):
            record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        if getattr(record, "fields", {}).get("event") == "incident" and not self._keeps_incidents:
            return False
        return record.levelno >= self._level


class _Formatter(logging.Formatter):
    def __init__(self, process: int | None):
        super().__init__()
        self._process = process

    def index(self) -> int | None:
        """Of this process; None where there is only one."""
        return processes.own_index() if processes.own_count() > 1 else self._process


class _Text(_Formatter):
    """`2026-01-31 12:00:00 [process 1] WARNING: ...`: the tag where there are several, the level from a warning on."""

    def format(self, record: logging.LogRecord) -> str:
        when = self.formatTime(record, "%Y-%m-%d %H:%M:%S")
        tag = "" if (index := self.index()) is None else f"[process {index}] "
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        text = f"{when} {tag}{level}{_harmless(record.getMessage())}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _Json(_Formatter):
    """One object a line: time (UTC), level, process, logger, message, the fields of the record, and `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self.index() or 0,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(_plain(line), default=str)


def _harmless(message: str) -> str:
    """A library's message may have lines; what it quotes (the name of a window, of a file) does nothing."""
    return "\n".join(map(file_names.printable, message.replace("\t", " ").split("\n")))


def _plain(value: Any) -> Any:
    """Without NaN and infinity, which JSON has not: their names, as metrics.jsonl has them."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def hear_native_stdout() -> None:
    """From now on what native code prints to stdout ("[Gloo] Rank 0 is connected ...") is a debug line.

    Python's own stdout goes where it went. Nothing waits: what the reader is too slow for is lost.
    """
    try:
        if sys.stdout.fileno() != 1:
            return
    except (OSError, ValueError):  # no file behind it: somebody captures it
        return
    sys.stdout.flush()
    kept, (reader, writer) = os.dup(1), os.pipe()
    os.set_blocking(writer, False)
    os.dup2(writer, 1)
    os.close(writer)
    sys.stdout = open(kept, "w", buffering=1, encoding=sys.stdout.encoding, errors="replace")  # noqa: SIM115

    def read() -> None:
        with open(reader, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if text := line.strip():
                    logging.getLogger("native").debug("%s", text)

    threading.Thread(target=read, name="omnihuman-native-stdout", daemon=True).start()


@contextlib.contextmanager
def last_words(form: str) -> Iterator[None]:
    """Around a command whose lines are `json`: the error that ends it is a line too, and SystemExit has its code."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if form != "json":
            raise
        code = exit_codes.of_error(error)
        reason = " ".join(str(error).split()) or type(error).__name__
        logger.error("%s", reason, exc_info=error if code == exit_codes.FAILURE else None)
        raise SystemExit(code) from None
