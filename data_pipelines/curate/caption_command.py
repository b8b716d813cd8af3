"""Captions by a program of the user's, `--caption-command 'PROGRAM {video} ...'`, of videos that have none.

It is run once a clip, with `{video}`, `{start_s}` and `{end_s}` filled in (once a video, if it names neither time), by
no shell: a name is one argument, whatever is in it. What it prints is the caption, in UTF-8. One that ends with another
status than 0, prints nothing, prints no text or takes too long costs that caption and no more.
"""

import dataclasses
import hashlib
import json
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from data_pipelines.curate import captions
from omnihuman_jax.runtime.files import file_sha256
from omnihuman_jax.typing import FPS

# Changes of what is asked; part of the key under which captions are kept.
VERSION = 1
TIMEOUT_S = 600.0

_VIDEO = "video"
_NAMES = (_VIDEO, "start_s", "end_s")
_PLACE = re.compile(r"\{([a-z_]+)\}")
_KEPT_OF_ERRORS = 4096
_READ = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CaptionCommand:
    """arguments: with places to fill in; files among them by their absolute path.

    timeout_s: after it the program is killed. digest: of the arguments, a file among them by its bytes.
    """

    arguments: tuple[str, ...]
    timeout_s: float
    digest: str

    @classmethod
    def parse(cls, text: str, timeout_s: float = TIMEOUT_S) -> "CaptionCommand":
        """ValueError for what is no command, or names no video; FileNotFoundError for a program that is not here."""
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise ValueError(f"--caption-command {text}: {error}; quote it as for a shell") from None
        named = {name for word in words for name in _PLACE.findall(word)}
        if unknown := sorted(named - set(_NAMES)):
            known = ", ".join(f"{{{name}}}" for name in _NAMES)
            raise ValueError(f"--caption-command {text}: {{{unknown[0]}}} must be one of {known}")
        if _VIDEO not in named:
            raise ValueError(f"--caption-command {text}: must name {{video}}, the file that it is to caption")
        if timeout_s <= 0:
            raise ValueError(f"--caption-timeout-s must be greater than 0, not {timeout_s}")
        if shutil.which(words[0]) is None:
            raise FileNotFoundError(f"--caption-command: {words[0]} is no program of this machine; give its path")
        # The program itself is a name for PATH to find, unless it says where it is.
        places = [os.path.abspath(w) if Path(w).is_file() and (n or os.sep in w) else w for n, w in enumerate(words)]
        facts = [file_sha256(Path(p)) if os.path.isabs(p) and Path(p).is_file() else p for p in places]
        digest = hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogatepass")).hexdigest()
        return cls(arguments=tuple(places), timeout_s=timeout_s, digest=digest)

    def filled(self, path: str, start_frame: int, end_frame: int) -> list[str]:
        """The arguments for a clip of the video at `path`."""
        values = {_VIDEO: path, "start_s": f"{start_frame / FPS:.3f}", "end_s": f"{end_frame / FPS:.3f}"}
        return [_PLACE.sub(lambda place: values[place[1]], argument) for argument in self.arguments]

    def caption(self, path: str, start_frame: int, end_frame: int) -> str:
        """The caption of a clip, in one line.

        Raises:
            OSError: the program cannot be started, ended with another status than 0 (ChildProcessError), or was killed
                as it took too long (TimeoutError).
            CaptionError: what it printed is no caption.
        """
        printed = _printed(self.filled(os.path.abspath(path), start_frame, end_frame), self.timeout_s)
        try:
            text = " ".join(captions.decoded(printed).split())
        except UnicodeError as error:
            raise captions.CaptionError(f"what the caption command printed is {error}") from None
        if not text:
            raise captions.CaptionError("the caption command printed nothing")
        return text


def _printed(arguments: list[str], timeout_s: float) -> bytes:
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # so that what it started ends with it
    )
    assert process.stdout is not None and process.stderr is not None
    deadline = time.monotonic() + timeout_s
    too_long = TimeoutError(f"the caption command took longer than {timeout_s:g} s; give a larger --caption-timeout-s")
    text, complaint = b"", b""
    try:
        with process.stdout, process.stderr, selectors.DefaultSelector() as open_ones:
            for pipe in (process.stdout, process.stderr):
                open_ones.register(pipe, selectors.EVENT_READ)
            while open_ones.get_map():
                ready = open_ones.select(max(0.0, deadline - time.monotonic()))
                if time.monotonic() >= deadline:
                    raise too_long
                for key, _ in ready:
                    read = os.read(key.fd, _READ)
                    if not read:
                        open_ones.unregister(key.fileobj)
                    elif key.fileobj is process.stdout:
                        text += read
                    else:
                        complaint = (complaint + read)[-_KEPT_OF_ERRORS:]
                if len(text) > captions.MAX_BYTES:
                    raise captions.CaptionError(
                        f"the caption command printed more than {captions.MAX_BYTES} bytes, which are no caption"
                    )
        try:
            status = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise too_long from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if status:
        last = complaint.decode("utf-8", "replace").strip().splitlines()[-1:]
        ended = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        raise ChildProcessError(f"the caption command {ended}{': ' if last else ''}{''.join(last)}")
    return text
