"""What a checkpoint says about the run that wrote it, and the errors of one that cannot be used."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from omnihuman_jax.runtime import files
from omnihuman_jax.runtime.locations import Location

WEIGHTS = {"raw": "params", "ema": "ema"}
FORMAT = 2
CURE = "remove that folder to go back to the checkpoint before it, or train in another --run"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, with the file and the cure."""


class DamagedError(CheckpointError):
    """A checkpoint whose files are all there, and wrong."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """What a checkpoint says about the run that wrote it: resolved config (JSON), plan fingerprint, finished steps.

    `data` says what the features are that it was trained on (`data.identity`); {} in checkpoints that do not say.
    `origin` says where weights that were not born in this run come from: what `omnihuman import` read, with the sha256
    of every file; a run that starts from an import keeps it. `forks` in it are the runs and steps that the whole state
    was taken over from, the oldest first.
    """

    config: Mapping[str, Any]
    fingerprint: str
    step: int
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT, "config": dict(self.config), "fingerprint": self.fingerprint, "step": self.step,
            "origin": dict(self.origin), "data": dict(self.data),
        }  # fmt: skip

    def save_origin(self, folder: Location) -> None:
        """`origin.json`, where there is something to say."""
        if self.origin:
            files.write_text(folder / "origin.json", json.dumps(dict(self.origin), indent=2) + "\n")

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "RunRecord":
        """Out of what a checkpoint says."""
        return cls(
            config=stored["config"],
            fingerprint=stored["fingerprint"],
            step=stored["step"],
            origin=stored.get("origin", {}),
            data=stored.get("data", {}),
        )

    def part(self, weights: str) -> str:
        """The part that holds these weights (`ema` or `raw`): at step 0, which `omnihuman import` writes, the average
        of the parameters is the parameters, and is stored once."""
        if weights not in WEIGHTS:
            raise ValueError(f"weights {weights!r}: choose ema or raw")
        return "params" if self.step == 0 else WEIGHTS[weights]
