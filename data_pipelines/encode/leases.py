"""Who works on what, among processes that share nothing but a folder: a lease has an owner and a deadline.

A lease that is over may be taken by anybody: its deadline passed, or its owner was a process of this machine that is no
more. Two that work on one part after all (a machine that slept through its deadline) make the same bytes.
"""

import dataclasses
import json
import os
import socket
import threading
import time
from pathlib import Path

from omnihuman_jax.runtime import files

LEASE_S = 600.0


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
        """Whether the lease at `path` is this process's now."""
        if (held := read_lease(path)) is not None and not (held.is_over or held.owner == self._owner):
            return False
        if held is not None:
            files.write_text(path, self._text())
        elif not files.claim(path, lambda beside: beside.write_text(self._text())):
            return False
        if (now := read_lease(path)) is None or now.owner != self._owner:
            return False
        with self._lock:
            self._held.add(path)
        return True

    def give_back(self, path: Path) -> None:
        with self._lock:
            self._held.discard(path)
            path.unlink(missing_ok=True)

    def _text(self) -> str:
        return json.dumps({"owner": self._owner, "deadline": time.time() + self._seconds})

    def _renew(self) -> None:
        while not self._closed.wait(self._seconds / 3):
            with self._lock:
                for path in self._held:
                    files.write_text(path, self._text())


def read_lease(path: Path) -> Lease | None:
    """None where there is none; one that cannot be read is over."""
    try:
        stored = json.loads(path.read_text())
        return Lease(str(stored["owner"]), float(stored["deadline"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return Lease(":0", 0.0)
