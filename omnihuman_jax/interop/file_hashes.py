"""sha256 of the files of a model, shared between the processes, and lists of them as `sha256sum` prints them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from omnihuman_jax.runtime.files import file_sha256, num_bytes
from omnihuman_jax.runtime.locations import Location


def hash_files(
    files: Sequence[Location], progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, str]:
    """File name -> sha256. Processes share the work."""
    index, count = jax.process_index(), jax.process_count()
    mine = files[index::count]
    total, done = sum(num_bytes(file) for file in mine), 0
    digests = np.zeros((len(files), 32), np.uint8)

    def on_read(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    for i, path in list(enumerate(files))[index::count]:
        digests[i] = np.frombuffer(bytes.fromhex(file_sha256(path, on_read)), np.uint8)
    if count > 1:
        digests = multihost_utils.process_allgather(digests).sum(axis=0, dtype=np.uint8)
    return {path.name: row.tobytes().hex() for path, row in zip(files, digests)}


def check_hashes(found: Mapping[str, str], expected: Mapping[str, str], folder: Location) -> None:
    """ValueError that lists every file of `folder` that is another one than expected, is not listed, or is not
    there.
    """
    lines = [f"{name} is listed but not there" for name in sorted(expected.keys() - found.keys())]
    lines += [f"{name} is not listed" for name in sorted(found.keys() - expected.keys())]
    lines += [
        f"{name} has sha256 {found[name]}, expected {expected[name]}"
        for name in sorted(found.keys() & expected.keys())
        if found[name] != expected[name].lower()
    ]
    if lines:
        raise ValueError(f"{folder}: {'; '.join(lines)}; fetch these files again, or see whether the list is for them")


def read_hashes(path: Location) -> dict[str, str]:
    """A list as `sha256sum` prints it: digest, two spaces (or space and star), file name."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; `sha256sum *.safetensors *.json > FILE` writes such a list")
    hashes = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        digest, _, name = line.strip().partition(" ")
        if not line.strip():
            continue
        if len(digest) != 64 or not name.strip():
            raise ValueError(f"{path}, line {number}: {line!r} is not `SHA256  FILE`, as sha256sum prints it")
        hashes[Path(name.strip().lstrip("*")).name] = digest
    return hashes
