"""Which row is worked on, and which rows have killed the process that worked on them: notes beside what is being made.

A row that kills its process (a decoder's crash, the kernel's answer to a full memory) would do so for ever.
"""

import dataclasses
import json

from omnihuman_jax.runtime import files
from omnihuman_jax.runtime.locations import Location, is_remote


@dataclasses.dataclass(frozen=True, slots=True)
class RowDeaths:
    """The notes of a file that is being made. They go when it is there (`forget`)."""

    of: Location

    @property
    def _at(self) -> Location:
        return self.of.with_name(f".{self.of.stem}.at")

    @property
    def _deaths(self) -> Location:
        return self.of.with_name(f".{self.of.stem}.deaths")

    def begin(self, row: str) -> None:
        """Notes that `row` is worked on."""
        if is_remote(self._at):
            files.write_text(self._at, row)
            return
        self._at.parent.mkdir(parents=True, exist_ok=True)
        self._at.write_text(row)

    def count(self, row: str) -> int:
        """Processes that have died of it."""
        return self._counted().get(row, 0)

    def blame(self) -> bool:
        """Counts a death against the row that was worked on; whether there was one."""
        try:
            row = files.read_bytes(self._at).decode()
        except FileNotFoundError:
            return False
        counted = self._counted()
        files.write_text(self._deaths, json.dumps({**counted, row: counted.get(row, 0) + 1}))
        return True

    def forget(self) -> None:
        """Removes the notes."""
        files.remove(self._at)
        files.remove(self._deaths)

    def _counted(self) -> dict[str, int]:
        try:
            return dict(json.loads(files.read_bytes(self._deaths)))
        except (FileNotFoundError, ValueError):
            return {}
