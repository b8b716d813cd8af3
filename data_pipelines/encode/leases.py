"""Who works on what, among processes that share nothing but a folder: a lease has an owner and a deadline.

A lease that is over may be taken by anybody: its deadline passed, or its owner was a process of this machine that is no
more. Two that work on one part after all (a machine that slept through its deadline) make the same bytes, and neither
disturbs the other.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path

from omnihuman_jax.runtime import files

LEASE_S = 600.0
LOOK_AGAIN_S = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Lease:
    """`owner` is HOST:PID; `deadline` in seconds since the epoch."""

    owner: str
    deadline: float

    @property
    def is_over(self) -> bool:
        host, _, pid = self.owner.rpartition(":")
        return self.deadline < time.time() or (host == socket.gethostname() and not files.is_running(int(pid)))


class LeaseHolder:
    """Takes leases for this process, and renews those that it holds until it is closed."""

    def __init__(self, seconds: float = LEASE_S) -> None:
        self._seconds = seconds
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        self._held: set[Path] = set()
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def __enter__(self) -> "LeaseHolder":
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        self._thread.join()
        for path in list(self._held):
            self.give_back(path)

    def take(self, path: Path) -> bool:
        """Whether the lease at `path` is this process's now; in a folder that is not there (any more) nothing is."""
        if (held := read_lease(path)) is not None and not (held.is_over or held.owner == self._owner):
            return False
        if not (self._take_over(path, held) if held is not None else self._claim(path)):
            return False
        with self._lock:
            self._held.add(path)
        return True

    def give_back(self, path: Path) -> None:
        with self._lock:
            if path in self._held and self._is_mine(path):
                path.unlink(missing_ok=True)
            self._held.discard(path)

    def _claim(self, path: Path) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return files.claim(path, lambda beside: beside.write_text(self._text()))
        return False

    def _take_over(self, path: Path, held: Lease) -> bool:
        """Of those that find a lease over, one replaces it: who has its lock, and finds it there still."""
        with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:  # a file system without locks
                pass
            if read_lease(path) == held:
                files.write_text(path, self._text())
                return True
        return False

    def _is_mine(self, path: Path) -> bool:
        return (now := read_lease(path)) is not None and now.owner == self._owner

    def _text(self) -> str:
        return json.dumps({"owner": self._owner, "deadline": time.time() + self._seconds})

    def _renew(self) -> None:
        while not self._closed.wait(self._seconds / 3):
            with self._lock:
                for path in list(self._held):
                    # What a full disk or a server prevents now is tried again before the lease is over.
                    with contextlib.suppress(OSError):
                        if self._is_mine(path):
                            files.write_text(path, self._text())
                        else:  # taken over, as it was not renewed in time
                            self._held.discard(path)


def read_lease(path: Path) -> Lease | None:
    """None where there is none; one that cannot be read is over."""
    try:
        stored = json.loads(path.read_text())
        return Lease(str(stored["owner"]), float(stored["deadline"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return Lease(":0", 0.0)
