"""A folder of this process on the local disk: copies of what lies in a bucket, and what is to go there.

It goes with the process; that of one that was killed goes with the next one's start.

    OMNIHUMAN_VIDEO_CACHE    the folder that holds those of all processes; omnihuman-videos where temporary files go
"""

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
import threading
from multiprocessing.util import Finalize
from pathlib import Path

from omnihuman_jax.runtime import variables

_first = threading.Lock()
FOLDER_VARIABLE = "OMNIHUMAN_VIDEO_CACHE"


def own_folder() -> Path:
    """This process's; ValueError where the variable names no folder."""
    with _first:  # several threads may be the first to ask
        return _folders(os.getpid()).path


@functools.cache
def _folders(process: int) -> "_Folder":
    """That of this process; of a fork it is another's."""
    del process
    return _Folder(variables.folder(FOLDER_VARIABLE, Path(tempfile.gettempdir()) / "omnihuman-videos"))


class _Folder:
    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        with (home / ".lock").open("ab") as alone:
            fcntl.flock(alone, fcntl.LOCK_EX)
            _sweep(home)
            self.path = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=home))
            # Held while the process lives: who finds it free takes the folder away.
            self._lock = (self.path / ".lock").open("ab")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        Finalize(self, shutil.rmtree, (self.path, True), exitpriority=1)


def _sweep(home: Path) -> None:
    """Removes what processes left that are no more."""
    for lock in home.glob("*-*/.lock"):
        with contextlib.suppress(OSError), lock.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
