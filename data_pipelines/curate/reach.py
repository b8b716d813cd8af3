"""Which clips are worth landmarks: those whose preview could reach a condition that asks for some.

Landmarks of every frame cost more than all the rest, and few clips of a large corpus show a person whom they could
serve. So `look` computes them only where the scores that are known before (of the file, the pictures and the person on
every fifth frame) leave a condition possible at the loosest thresholds that anybody means to select with. Previewed
scores differ from the full ones, and are given `_SLACK`.
"""

import dataclasses
import json
from collections.abc import Mapping

import numpy as np

from data_pipelines.curate.file_stages import KNOWN_SCORES, LANDMARK_SCORES, PREVIEWED
from data_pipelines.curate.tagging import CHECKS, Check, Thresholds
from omnihuman_jax.conditions import Condition

# Changes of the rule, its slack too.
VERSION = 1
# How much better a full score may be than its preview: shares and confidences, and a width in shares of itself.
_SLACK, _SLACK_OF_WIDTH = 0.3, 0.25
_LANDMARKS = {"looked_at", *LANDMARK_SCORES}
_KNOWN = {"seconds", "short_side_px", "source_fps", "bits_per_pixel", "audio_tracks", *KNOWN_SCORES}


def within_reach(scores: Mapping[str, np.ndarray], loosest: Thresholds) -> np.ndarray:
    """Bool [n]: which of n clips could be eligible for a condition that asks for landmarks, for all that is known
    without them.

    scores: columns, float64 [n] each, of `_KNOWN` and of the preview.
    """
    reached = np.zeros(len(scores["seconds"]), bool)
    for condition in Condition:
        own = [check for check in CHECKS if check.of in (None, condition)]
        if any(check.score in _LANDMARKS and check.asks(loosest) for check in own):
            reached |= ~np.any([_fails_surely(check, scores, loosest) for check in own], axis=0)
    return reached


def _fails_surely(check: Check, scores: Mapping[str, np.ndarray], loosest: Thresholds) -> np.ndarray:
    """Bool [n]: clips that fail a check whatever is not known yet."""
    if not check.asks(loosest):
        return np.zeros(len(scores["seconds"]), bool)
    if check.score in _KNOWN:
        return check.failed(scores[check.score], loosest)
    if check.score in PREVIEWED:
        seen = scores[f"preview_{check.score}"]
        if check.score == "face_px":
            return check.failed(seen * (1 + _SLACK_OF_WIDTH), loosest)
        return check.failed(seen - _SLACK if check.is_upper else seen + _SLACK, loosest)
    return np.zeros(len(scores["seconds"]), bool)


def _fields() -> tuple[str, ...]:
    """The thresholds that the rule reads, in their order."""
    return tuple(dict.fromkeys(
        check.threshold for check in CHECKS
        if isinstance(check.threshold, str) and check.score in (_KNOWN | set(LANDMARK_SCORES))
    ))  # fmt: skip


def looser_of(one: Thresholds, other: Thresholds) -> Thresholds:
    """Of each threshold the looser one."""
    pick = {name: max if name.startswith("max_") else min for name in _names()}
    return Thresholds(**{name: pick[name](getattr(one, name), getattr(other, name)) for name in pick})


def stricter_of(one: Thresholds, other: Thresholds) -> Thresholds:
    """Of each threshold the stricter one."""
    pick = {name: min if name.startswith("max_") else max for name in _names()}
    return Thresholds(**{name: pick[name](getattr(one, name), getattr(other, name)) for name in pick})


def looser_fields(asked: Thresholds, than: Thresholds) -> list[str]:
    """The thresholds of the rule that are looser in `asked`."""
    both = looser_of(asked, than)
    return [name for name in _fields() if getattr(both, name) != getattr(than, name)]


def _names() -> list[str]:
    return [field.name for field in dataclasses.fields(Thresholds)]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """What the rows of `look` were chosen by; written beside them.

    preview: key of the stage.
    """

    loosest: Thresholds
    preview: str
    version: int = VERSION

    def to_json(self) -> str:
        loosest = {name: getattr(self.loosest, name) for name in _fields()}
        return json.dumps({"loosest": loosest, "preview": self.preview, "version": self.version}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Reach":
        stored = json.loads(text)
        known = {name: value for name, value in stored["loosest"].items() if name in _names()}
        return cls(loosest=Thresholds(**known), preview=stored["preview"], version=stored["version"])

    def covers(self, asked: "Reach") -> bool:
        """Whether every clip that `asked` chooses was chosen."""
        same = (self.preview, self.version) == (asked.preview, asked.version)
        return same and not looser_fields(asked.loosest, self.loosest)
