"""From scores to the set of conditions that a clip is eligible for, with the reason for each that it is not.

A clip that fails a strong condition's check still serves the weaker ones (the paper's Principle 1); a clip that fails a
quality check serves none. Pure: other thresholds on the same scores need no decoding and no network.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from omnihuman_jax.conditions import Condition

# By the end of a field's name; the others are at least 0.
_LIMITS = {
    "_share": (0, 1),
    "body_confidence": (0, 1),
    "lip_sync_confidence": (0, 2),
    "_brightness": (0, 255),
    "_dbfs": (-120, 0),
}


# A score of 0 where a file does not say: it passes, for nothing is known against it.
_UNKNOWN = float("inf")


@dataclasses.dataclass(kw_only=True, slots=True)
class Thresholds:
    """What a clip must reach, in the units of `scores.py` and `lipsync.py`. The defaults admit small web and test
    clips.

    For footage to train a large model on, raise at least min_short_side_px (480), min_face_px (96) and min_seconds (3).
    """

    # Every condition.
    min_short_side_px: float = 128
    min_source_fps: float = 10
    min_bits_per_pixel: float = 0.005
    min_sharpness: float = 15
    min_brightness: float = 10
    max_brightness: float = 245
    min_motion: float = 0.001
    max_motion: float = 1.0
    max_frozen_share: float = 0.6
    # Reference: a window of a second leaves other frames of the clip to be the reference.
    min_reference_s: float = 1.0
    min_reference_face_share: float = 0.0
    # Audio: speech that the one visible face says.
    min_loudness_dbfs: float = -60
    min_speech_share: float = 0.2
    min_audio_s: float = 5
    min_audio_face_share: float = 0.95
    min_face_px: float = 48
    max_faces_share: float = 0.1
    min_lip_sync_confidence: float = 0.35
    max_lip_sync_offset_s: float = 0.2
    # Pose: one person whose body, be it head and shoulders only, is seen throughout. Hands are scored, not required.
    min_pose_share: float = 0.8
    min_pose_face_share: float = 0.5
    min_body_confidence: float = 0.5
    min_hand_share: float = 0.0

    def validate(self) -> None:
        """ValueError with the field, the value and what it may be."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
                raise ValueError(f"thresholds: {field.name} must be a finite number, not {value!r}")
            low, high = next((limits for end, limits in _LIMITS.items() if field.name.endswith(end)), (0, math.inf))
            if not low <= value <= high:
                allowed = f"in [{low}, {high}]" if math.isfinite(high) else f"at least {low}"
                raise ValueError(f"thresholds: {field.name} must be {allowed}, not {value}")
        for name in ("brightness", "motion"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low > high:
                raise ValueError(f"thresholds: min_{name} {low} must not be above max_{name} {high}")


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One comparison of a score with its threshold; `reason` says what it means to fail."""

    reason: str
    score: float
    threshold: float
    at_least: bool = True

    @property
    def passed(self) -> bool:
        return self.score >= self.threshold if self.at_least else self.score <= self.threshold


def tag(scores: Mapping[str, float], thresholds: Thresholds) -> tuple[tuple[str, ...], dict[str, dict[str, Any]]]:
    """(eligible labels, reasons): for each condition that is not eligible the first check that failed."""
    eligible: list[str] = []
    reasons: dict[str, dict[str, Any]] = {}
    for condition in Condition:
        failed = next((check for check in _checks(condition, scores, thresholds) if not check.passed), None)
        if failed is None:
            eligible.append(condition.label)
        else:
            reasons[condition.label] = {"reason": failed.reason, "score": failed.score, "threshold": failed.threshold}
    return tuple(eligible), reasons


def _checks(condition: Condition, s: Mapping[str, float], t: Thresholds) -> Iterator[Check]:
    """The checks of a condition, cheap and telling ones first; later ones may need scores that only exist if earlier
    passed.
    """
    yield Check("too small", s["short_side_px"], t.min_short_side_px)
    yield Check("too few frames a second", s["source_fps"] or _UNKNOWN, t.min_source_fps)
    yield Check("compressed too hard", s["bits_per_pixel"] or _UNKNOWN, t.min_bits_per_pixel)
    yield Check("blurred", s["sharpness"], t.min_sharpness)
    yield Check("too dark", s["brightness"], t.min_brightness)
    yield Check("too bright", s["brightness"], t.max_brightness, at_least=False)
    yield Check("hardly any motion", s["motion"], t.min_motion)
    yield Check("too much motion", s["motion"], t.max_motion, at_least=False)
    yield Check("frozen picture", s["frozen_share"], t.max_frozen_share, at_least=False)
    if condition is Condition.REFERENCE:
        yield Check("too short for a reference outside the window", s["seconds"], t.min_reference_s)
        yield Check("no face to refer to", s["face_share"], t.min_reference_face_share)
    elif condition is Condition.AUDIO:
        yield Check("no audio track", s["audio_tracks"], 1)
        yield Check("silent", s["loudness_dbfs"], t.min_loudness_dbfs)
        yield Check("too short to judge lip-sync", s["seconds"], t.min_audio_s)
        yield Check("too little speech", s["speech_share"], t.min_speech_share)
        yield Check("face not seen throughout", s["face_share"], t.min_audio_face_share)
        yield Check("face too small", s["face_px"], t.min_face_px)
        yield Check("more than one face", s["faces_share"], t.max_faces_share, at_least=False)
        yield Check("lips do not follow the sound (phone proxy)", s["lip_sync_confidence"], t.min_lip_sync_confidence)
        yield Check(
            "sound and lips apart (phone proxy)", abs(s["lip_sync_offset_s"]), t.max_lip_sync_offset_s, at_least=False
        )
    elif condition is Condition.POSE:
        yield Check("body not seen throughout", s["pose_share"], t.min_pose_share)
        yield Check("face not seen", s["face_share"], t.min_pose_face_share)
        yield Check("body seen unclearly", s["body_confidence"], t.min_body_confidence)
        yield Check("hands not seen", s["hand_share"], t.min_hand_share)
