"""The folder, or bucket, of a run's checkpoints: where it is, that it is still the same one, how long it is waited for.

A run opens it with `open_folder`, which gives it an identity and patience. Whoever only reads makes a plain
`CheckpointFolder`: it verifies nothing and does not wait.
"""

import json
import logging
from collections.abc import Callable
from typing import TypeVar

import jax
from etils import epath

from omnihuman_jax.checkpoint import manifest
from omnihuman_jax.checkpoint.record import CheckpointError
from omnihuman_jax.runtime import locations, processes, storage

logger = logging.getLogger(__name__)

Found = TypeVar("Found")


def checkpoint_directory(run_dir: locations.StrPath) -> locations.StrPath:
    """Where a run's checkpoints are, as its own config.json says."""
    run = locations.location(run_dir)
    file = run / "config.json"
    stored = json.loads(file.read_text()) if file.is_file() else {}
    return stored.get("checkpoint", {}).get("directory") or run / "checkpoints"


class CheckpointFolder:
    """Where checkpoints are stored; `str` of it is its path or URI.

    Args:
        directory: a folder, or a URI such as gs://bucket/run.
        identity: what `storage.identify` gave it; "": any folder will do.
        retries, delay_s: of storage that does not answer, after doubling pauses from the delay on; None: no waiting.
    """

    def __init__(
        self, directory: locations.StrPath, *, identity: str = "", retries: int | None = None, delay_s: float = 0.0
    ) -> None:
        place = locations.location(directory)
        self.directory = str(place) if locations.is_remote(place) else str(place.absolute())
        self.path = epath.Path(self.directory)
        self.identity = identity
        self._retries, self._delay_s = retries, delay_s

    def __str__(self) -> str:
        return self.directory

    def step(self, step: int) -> epath.Path:
        """The folder of a step."""
        return self.path / str(step)

    def retry(self, what: str, look: Callable[[], Found]) -> Found:
        """What `look` finds, once storage answers all processes, which all call this; CheckpointError (RunEnded, for a
        restart, after the retries) if it does not.
        """
        if self._retries is not None:
            return storage.retry(what, look, retries=self._retries, delay_s=self._delay_s)
        try:
            return look()
        except OSError as error:
            if storage.does_not_answer(error):
                raise CheckpointError(f"{what}: storage does not answer: {storage.cause(error)}") from error
            raise

    def verify(self) -> None:
        """`storage.Gone` if this is not the folder that was opened."""
        if self.identity:
            storage.verify(self.path, self.identity)


def open_folder(directory: locations.StrPath, *, retries: int, delay_s: float, expected: str = "") -> CheckpointFolder:
    """The folder that a run saves to, which is made where it is not there; all processes call this.

    `expected`: why there must be checkpoints ("has saved step 30"), where there must: a folder without any is storage
    that is gone.

    Raises:
        CheckpointError: nothing can be written there.
        RunEnded: storage did not answer, or had nothing of what this run has saved, however often it was asked.
    """
    folder = CheckpointFolder(directory, retries=retries, delay_s=delay_s)
    what, lead = f"opening {folder}", jax.process_index() == 0
    identity = processes.gather(folder.retry(what, lambda: _identity(folder, expected) if lead else ""))[0]
    folder.retry(what, lambda: storage.verify(folder.path, identity))
    return CheckpointFolder(directory, identity=identity, retries=retries, delay_s=delay_s)


def _identity(folder: CheckpointFolder, expected: str) -> str:
    """Of a folder without what a save that died has left."""
    if expected and not (manifest.committed_steps(folder.path) or manifest.aside(folder.path)):
        raise storage.Gone(
            f"no checkpoint in {folder}, which is {'empty' if folder.path.is_dir() else 'not there'}, but"
            f" this run {expected}; bring it back, or remove the run directory to start over"
        )
    try:
        identity = storage.identify(folder.path)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        if expected:
            raise storage.Gone(f"{folder}: {error.strerror}") from error
        raise CheckpointError(f"checkpoints cannot be written to {folder}: {error.strerror}") from error
    for name in manifest.remove_partial(folder.path):
        logger.info("removed %s/%s, left by a save that was cut short", folder, name)
    return identity
