"""The persistent compilation cache: a second start of the same program loads it instead of compiling it.

Trust: what is in the cache is *run*, and JAX checks nothing about it. It is as trusted as the code: a folder (or a
bucket's prefix) that only those may write who may also change this code. A folder that other users of the machine can
write to is refused. The processes of a job share one cache, on a file system that all of them see.
"""

import os
import stat
from pathlib import Path

import jax

from omnihuman_jax.runtime import locations

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def use(folder: str | None) -> str | None:
    """Switches the cache on in `folder`, or where JAX's own variable says; returns the folder in use, None without one.

    Args:
        folder: made if missing, for this user alone. A URL (gs://...) is passed on: who may write there is the bucket's
            matter.

    Raises:
        ValueError: other users can write there (or it is another user's), with the cure.
    """
    chosen = folder or os.environ.get(VARIABLE)
    if not chosen:
        return None
    if not locations.check_scheme(chosen, "the compilation cache"):
        path = Path(chosen)
        if not path.exists():
            path.mkdir(parents=True, mode=0o700)
        check_trust(path)
    jax.config.update("jax_compilation_cache_dir", chosen)
    return chosen


def check_trust(path: Path) -> None:
    """ValueError unless `path` is a folder of this user (or of root) that no other user may write to."""
    if not path.is_dir():
        raise ValueError(f"compilation cache {path} is no folder")
    status = path.stat()
    if status.st_uid not in (os.getuid(), 0):
        raise ValueError(
            f"compilation cache {path} belongs to user {status.st_uid}, this process runs as {os.getuid()}: programs in"
            " it would be run; name a folder of your own"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(
            f"compilation cache {path} can be written by other users (mode {stat.S_IMODE(status.st_mode):o}): programs"
            f" in it would be run; chmod go-w {path}, or name a folder of your own"
        )
