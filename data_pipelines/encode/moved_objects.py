"""A data set that was made in one folder of a bucket, given its place in another: a bucket cannot rename.

The storage itself copies the objects; what says that a data set is there comes last. What a killed call has copied
stays, and the next one goes on behind it.
"""

import concurrent.futures
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from omnihuman_jax.data.dataset_files import is_shard
from omnihuman_jax.data.shard_cache import StoredObject
from omnihuman_jax.runtime import bucket_copies, files, folders
from omnihuman_jax.runtime.locations import Location

_THREADS = 8


def bring(work: Path, folder: Location, last: str) -> None:
    """Uploads the files of a local folder that are no shards, `last` behind all others."""
    names = [path.relative_to(work).as_posix() for path in sorted(work.rglob("*")) if path.is_file()]
    for name in sorted(filter(lambda name: not is_shard(name), names), key=lambda name: name == last):
        files.write_bytes(folder / name, (work / name).read_bytes())


def remove(folder: Location, last: str) -> None:
    """Removes a folder, and `last` behind all others."""
    fs, root = bucket_copies.open_storage(str(folder))
    for some in ([name for name in names_in(folder) if name != last], [last]):
        with contextlib.suppress(FileNotFoundError):
            if some:
                fs.rm([f"{root}/{name}" for name in some])


def names_in(folder: Location) -> list[str]:
    """Of all objects below a folder, relative to it."""
    fs, root = bucket_copies.open_storage(str(folder))
    return sorted(name.removeprefix(f"{root}/") for name in fs.find(root))


def copy(folder: Location, target: Location, names: Mapping[str, str], last: Sequence[str], *, alone: bool) -> None:
    """Copies objects of `folder`, name -> name in `target`, those of `last` behind all others. alone: what else lies in
    `target`, and what has the names of `last`, is removed first; meanwhile it says that it is incomplete.
    """
    fs, root = bucket_copies.open_storage(str(folder))
    _, there = bucket_copies.open_storage(str(target))
    own = {name.removeprefix(f"{root}/"): info for name, info in fs.find(root, detail=True).items()}
    if gone := sorted(set(names) - set(own)):  # another finish was first: what it made must not be touched
        raise FileNotFoundError(f"{folder}/{gone[0]}: not there any more; run the same command again")
    if alone:
        files.write_text(target / folders.INCOMPLETE, "")
    found = {name.removeprefix(f"{there}/"): info for name, info in fs.find(there, detail=True).items()}
    stays = {*names.values(), folders.INCOMPLETE} - {*last}
    if alone and (strange := [name for name in found if name not in stays]):
        fs.rm([f"{there}/{name}" for name in strange])
        found = {name: info for name, info in found.items() if name in stays}

    def bring_one(name: str) -> None:
        mine, its = StoredObject.of(own[name]), found.get(names[name])
        theirs = None if its is None else StoredObject.of(its)
        if theirs is None or not mine.md5 or (theirs.size, theirs.md5) != (mine.size, mine.md5):
            fs.cp_file(f"{root}/{name}", f"{there}/{names[name]}")

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(bring_one, [name for name in names if names[name] not in last]):
            pass
    for name in sorted((name for name in names if names[name] in last), key=lambda name: last.index(names[name])):
        bring_one(name)
