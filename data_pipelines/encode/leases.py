"""Who works on what, among processes that share nothing but a folder, of a disk or a bucket: a lease has an owner and
a deadline.

    part-00007.lease      as it was taken first
    part-00007.lease-1    as it was taken over, once that was over

A lease that is over may be taken by anybody: its deadline passed, or its owner was a process of this machine that is no
more. Who writes the next number takes it, and of several only one can: all that is asked of the storage is that what is
there is not written again. Two that work on one part after all (a machine that slept through its deadline) make the
same bytes, and neither disturbs the other.
"""

import contextlib
import dataclasses
import glob
import json
import os
import re
import secrets
import socket
import threading
import time

from omnihuman_jax.runtime import files, folders
from omnihuman_jax.runtime.locations import Location

LEASE_S = 600.0
LOOK_AGAIN_S = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Lease:
    """`owner` is HOST/PROCESSES/HOLDER:PID, where PROCESSES tells one machine's containers apart; `deadline` in seconds
    since the epoch.
    """

    owner: str
    deadline: float

    @property
    def is_over(self) -> bool:
        if self.deadline < time.time():
            return True
        holder, _, pid = self.owner.rpartition(":")
        return holder.rpartition("/")[0] == _where() and not files.is_running(int(pid))


def _where() -> str:
    """This host, and whose processes have the numbers that this one sees: not those of another container."""
    return f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"


class LeaseHolder:
    """Takes leases for this process, and renews those that it holds until it is closed."""

    def __init__(self, seconds: float = LEASE_S) -> None:
        self._seconds = seconds
        self._owner = f"{_where()}/{secrets.token_hex(8)}:{os.getpid()}"
        self._held: dict[Location, Location] = {}
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

    def take(self, path: Location) -> bool:
        """Whether the lease at `path` is this process's now; in a folder that is not there (any more) nothing is."""
        if self._is_mine(path):
            return True
        there = written(path)
        if there and (held := read_lease(there[-1])) is not None and not held.is_over:
            return False
        following = _numbered(path, _number_of(path, there[-1]) + 1) if there else path
        try:
            is_taken = files.claim(following, lambda beside: beside.write_text(self._text()))
        except FileNotFoundError:
            return False
        if is_taken:
            with self._lock:
                self._held[path] = following
        return is_taken

    def give_back(self, path: Location) -> None:
        with self._lock:
            if self._is_mine(path):
                for one in written(path):  # the newest last: without it an older one would be the newest
                    files.remove(one)
            self._held.pop(path, None)

    def _is_mine(self, path: Location) -> bool:
        return path in self._held and self._held[path] in written(path)[-1:]

    def _text(self) -> str:
        return json.dumps({"owner": self._owner, "deadline": time.time() + self._seconds})

    def _renew(self) -> None:
        while not self._closed.wait(self._seconds / 3):
            with self._lock:
                for path, own in list(self._held.items()):
                    # What a full disk or a server prevents now is tried again before the lease is over; what a
                    # bucket's driver raises need not be an OSError.
                    with contextlib.suppress(Exception):
                        if self._is_mine(path):
                            files.write_text(own, self._text())
                        else:  # taken over, as it was not renewed in time
                            del self._held[path]


def written(path: Location) -> list[Location]:
    """What was written of a lease, the newest last, which is the one that counts."""
    found = [one for one in folders.matching(path.parent, f"{glob.escape(path.name)}*") if _number_of(path, one) >= 0]
    return sorted(found, key=lambda one: _number_of(path, one))


def _numbered(path: Location, number: int) -> Location:
    return path.with_name(f"{path.name}-{number}") if number else path


def _number_of(path: Location, one: Location) -> int:
    """How often the lease was taken over before; -1 of something else."""
    behind = one.name.removeprefix(path.name)
    return int(behind[1:]) if re.fullmatch(r"-[0-9]+", behind) else -1 if behind else 0


def read_lease(path: Location) -> Lease | None:
    """None where there is none; one that cannot be read is over."""
    try:
        stored = json.loads(files.read_bytes(path))
        return Lease(str(stored["owner"]), float(stored["deadline"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return Lease(":0", 0.0)
