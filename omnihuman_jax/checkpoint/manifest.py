"""The manifest of a checkpoint: its files and their sizes, written once all are there, and compared before a read.

Orbax's own markers say that a step was committed, not that its files are still what was committed; a reader of several
processes that meets a file that is cut short waits minutes for the others. So process 0 notes every file's size after
the commit. A step without a manifest was never finished; one that differs from it is damaged. Either is set aside,
never deleted.
"""

import json
import time
from collections.abc import Sequence
from typing import Any

from etils import epath

from omnihuman_jax.runtime import files

MANIFEST = "manifest.json"
# The name that earlier versions wrote; their checkpoints are read.
_EARLIER = "seal.json"
SET_ASIDE = "damaged"
KEEP = ".keep"
PARTIAL = ".orbax-checkpoint-tmp"


def files_of(folder: epath.Path) -> dict[str, int]:
    """Path within `folder` -> bytes, of every file but the manifest."""
    found: dict[str, int] = {}
    pending = [folder]
    while pending:
        for entry in pending.pop().iterdir():
            if entry.is_dir():
                pending.append(entry)
            elif entry.name not in (MANIFEST, _EARLIER):
                found[entry.relative_to(folder).as_posix()] = int(entry.stat().length)
    return dict(sorted(found.items()))


def write(folder: epath.Path) -> int:
    """Writes the manifest of a committed step, in one piece; the bytes of the step."""
    sizes = files_of(folder)
    files.write_text(folder / MANIFEST, json.dumps({"files": sizes}, indent=0))
    return sum(sizes.values())


def is_complete(folder: epath.Path) -> bool:
    return _file(folder).exists()


def _file(folder: epath.Path) -> epath.Path:
    """The manifest, or that of an earlier version where only that one is there."""
    earlier = folder / _EARLIER
    return earlier if not (folder / MANIFEST).exists() and earlier.exists() else folder / MANIFEST


def damage(folder: epath.Path, share: int = 0, shares: int = 1) -> str:
    """What is wrong with a step, "" if nothing: one of `shares` readers looks at its share of the files."""
    try:
        sizes: dict[str, int] = json.loads(_file(folder).read_text())["files"]
    except FileNotFoundError:
        return "it has no manifest: the process that saved it ended before the save did"
    except (ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({type(error).__name__})"
    for index, (name, size) in enumerate(sizes.items()):
        if index % shares != share:
            continue
        try:
            found = int((folder / name).stat().length)
        except FileNotFoundError:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found} bytes, {size} were written"
    return ""


def committed_steps(directory: epath.Path) -> list[int]:
    """Steps with a folder of their own, complete or not; a save in progress has another name (or, in a bucket, no
    manifest).
    """
    if not directory.is_dir():
        return []
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdigit() and entry.is_dir())


def set_aside(directory: epath.Path, step: int, reason: str, under: str = SET_ASIDE) -> epath.Path:
    """Moves a step out of the way, with a note of why; where it lies now."""
    folder = directory / under
    folder.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir():
        # A bucket has no folders but those of its objects; nothing can be moved into one that is not there.
        (folder / KEEP).write_text("")
    taken = {entry.name for entry in folder.iterdir()}
    target = next(folder / name for n in range(1, 1_000_000) if (name := f"{step}-{n}") not in taken)
    (directory / str(step)).rename(target)
    note: dict[str, Any] = {"step": step, "reason": reason, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    (target / "why.json").write_text(json.dumps(note) + "\n")
    return target


def aside(directory: epath.Path) -> Sequence[str]:
    """What was set aside and had been whole once."""
    folder = directory / SET_ASIDE
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if is_complete(entry))


def remove_partial(directory: epath.Path) -> list[str]:
    """Deletes what saves that died or failed have left; only while nothing is being saved."""
    left = [entry for entry in directory.iterdir() if PARTIAL in entry.name] if directory.is_dir() else []
    for entry in left:
        entry.rmtree()
    return sorted(entry.name for entry in left)
