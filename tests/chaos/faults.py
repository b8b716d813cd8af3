"""The faults: what is done to a run, and when."""

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from omnihuman_jax.checkpoint import manifest

KILL, TERMINATE, STOP, RAISE, KILL_IN_SAVE, TRUNCATE, FLIP, DISK_FULL, PROCESSES = (
    "kill -9 of a rank", "SIGTERM to a rank", "SIGSTOP of a rank", "Python exception in a rank",
    "kill -9 during a save", "checkpoint file cut short", "bit flipped in a checkpoint file", "disk full while saving",
    "restart on another process count",
)  # fmt: skip
TERMINATE_RESTORING = "SIGTERM to a rank while a resumed run restores"
TERMINATE_COMPILING = "SIGTERM to a rank while a resumed run compiles"
EARLY = {TERMINATE_RESTORING: "restoring", TERMINATE_COMPILING: "compiling"}
"""Those that strike before an attempt's first step, at a moment of `tests.training.moments`."""
KINDS = (KILL, TERMINATE, *EARLY, STOP, RAISE, KILL_IN_SAVE, TRUNCATE, FLIP, DISK_FULL)
"""Those that leave the final bits as they are; PROCESSES changes the order in which gradients are added."""


@dataclasses.dataclass(kw_only=True, slots=True)
class Fault:
    """One fault and what came of it; times in seconds since 1970, 0 where it has not happened.

    step: logged step at which it strikes, after a delay of `delay_s`
    rank: of the process that it strikes
    newest: the newest whole checkpoint when the run was restarted; resumed: the step that it went on from
    reached: the last step logged before it struck
    """

    kind: str
    step: int
    rank: int
    delay_s: float = 0.0
    struck: float = 0.0
    detected: float = 0.0
    recovered: float = 0.0
    codes: list[int] = dataclasses.field(default_factory=list)
    newest: int = 0
    resumed: int | None = None
    reached: int = 0

    @property
    def restarts(self) -> bool:
        """Whether it ends the attempt: a full disk does not."""
        return self.kind != DISK_FULL

    @property
    def is_early(self) -> bool:
        """Whether it strikes an attempt before its first step."""
        return self.kind in EARLY


def newest_whole(checkpoints: Path | epath.Path) -> int:
    """The newest step that is complete and as its manifest says, 0 if there is none: where a run has to go on."""
    steps = [int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()] if checkpoints.is_dir() else []
    return max((step for step in steps if not manifest.damage(epath.Path(checkpoints / str(step)))), default=0)


def damage_newest(checkpoints: Path | epath.Path, kind: str, rng: random.Random) -> None:
    """Cuts a data file of the newest whole step short, or flips one bit of it."""
    step = newest_whole(checkpoints)
    # Data, not JSON: a bit flip there is what nobody else notices.
    folder = epath.Path(checkpoints / str(step))
    sizes = manifest.files_of(folder)
    path = folder / rng.choice([name for name, size in sizes.items() if Path(name).parent.name == "d" and size > 64])
    data = bytearray(path.read_bytes())
    if kind == TRUNCATE:
        data = data[: rng.randrange(len(data))]
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def strike(pid: int, kind: str) -> None:
    """The signal of a kind; KILL for those that begin with a crash."""
    terminated = (TERMINATE, *EARLY, PROCESSES)
    number = signal.SIGTERM if kind in terminated else signal.SIGSTOP if kind == STOP else signal.SIGKILL
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def is_saving(checkpoints: Path | epath.Path) -> bool:
    """Whether a step is being written: Orbax's temporary folder is there, or a folder without its manifest."""
    if not checkpoints.is_dir():
        return False
    names = [path.name for path in checkpoints.iterdir()]
    return any(manifest.PARTIAL in name for name in names) or any(
        name.isdigit() and not (checkpoints / name / manifest.MANIFEST).exists() for name in names
    )


def fill(folder: Path) -> Path:
    """Fills the file system of `folder` to the last byte; the file to remove again."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    return filler


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """A file system of its own at `folder` (tmpfs, needs root): True. Where it cannot be had: False, and a plain
    folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            for _ in range(50):
                if subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode == 0:
                    break
                time.sleep(0.1)
