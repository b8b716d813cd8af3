"""From scores to the set of conditions that a clip is eligible for, with the reason for each that it is not.

A clip that fails a strong condition's check still serves the weaker ones (the paper's Principle 1); a clip that fails a
quality check serves none. Pure: other thresholds on the same scores need no decoding and no network.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from omnihuman_jax.conditions import Condition

# By the end of a field's name; the others are at least 0.
_LIMITS = {
    "_share": (0, 1),
    "body_confidence": (0, 1),
    "lip_sync_confidence": (0, 2),
    "_syncnet_distance": (0, 100),
    "_syncnet_offset_s": (0, 1),
    "_brightness": (0, 255),
    "_brisque": (0, 1000),
    "_camera_motion": (0, 100),
    "_similarity": (0, 1),
    "_copy_distance": (0, 1),
    "_dbfs": (-120, 0),
}


@dataclasses.dataclass(kw_only=True, slots=True)
class Thresholds:
    """What a clip must reach, in the units of `scores.py` and `lipsync.py`. The defaults admit small web and test
    clips.

    For footage to train a large model on, raise at least min_short_side_px (480) and min_face_px (96).
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
    # These ask for nothing unless they are set: docs/data.md says what for large corpora.
    max_letterbox_share: float = 1.0
    max_pillarbox_share: float = 1.0
    max_dark_share: float = 1.0
    max_bright_share: float = 1.0
    max_text_area_share: float = 1.0
    max_brisque: float = 1000
    max_camera_motion: float = 100
    min_subject_motion: float = 0.0
    min_aesthetic: float = 0.0
    min_technical: float = 0.0
    # Not of a clip but of two: of those whose embeddings have a higher cosine, one stays (`duplicates.py`).
    max_similarity: float = 1.0
    # How far apart the hashes of two clips must be for both to stay, in shares of `near_copies.MAX_BITS`; 0 asks for
    # nothing, and no hashes are read.
    min_copy_distance: float = 1.0
    # Reference: a window of a second leaves other frames of the clip to be the reference.
    min_reference_s: float = 1.0
    min_reference_face_share: float = 0.0
    # Audio: speech that the one visible face says.
    min_loudness_dbfs: float = -60
    min_speech_share: float = 0.2
    min_voice_share: float = 0.0
    min_audio_s: float = 5
    min_audio_face_share: float = 0.95
    min_face_px: float = 48
    max_faces_share: float = 0.1
    min_lip_sync_confidence: float = 0.35
    max_lip_sync_offset_s: float = 0.2
    # By SyncNet, of a table that was curated with one; these ask for nothing unless they are set.
    min_syncnet_confidence: float = 0.0
    max_syncnet_distance: float = 100.0
    max_syncnet_offset_s: float = 1.0
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
            low, high = _limits(field.name)
            if not low <= value <= high:
                allowed = f"in [{low}, {high}]" if math.isfinite(high) else f"at least {low}"
                raise ValueError(f"thresholds: {field.name} must be {allowed}, not {value}")
        for name in ("brightness", "motion"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low > high:
                raise ValueError(f"thresholds: min_{name} {low} must not be above max_{name} {high}")


def _limits(name: str) -> tuple[float, float]:
    return next((limits for end, limits in _LIMITS.items() if name.endswith(end)), (0, math.inf))


def asks_nothing(threshold: str) -> float:
    """The value of a threshold at which it lets all through."""
    low, high = _limits(threshold)
    return high if threshold.startswith("max_") else low


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One comparison of a score with a threshold; `reason` says what it means to fail.

    threshold: a field of `Thresholds`, which is a lower bound if it begins with `min_`; a number is one too.
    of: the condition that asks for it; None: all do.
    unknown_passes: a score of 0 is where a file does not say, and nothing is known against it.
    """

    reason: str
    score: str
    threshold: str | float
    of: Condition | None = None
    unknown_passes: bool = False

    def limit(self, thresholds: Thresholds) -> float:
        return getattr(thresholds, self.threshold) if isinstance(self.threshold, str) else self.threshold

    def seen(self, value: np.ndarray) -> np.ndarray:
        """The score as it is compared: an offset's size."""
        return np.abs(value) if self.score.endswith("_offset_s") else value

    @property
    def is_upper(self) -> bool:
        return isinstance(self.threshold, str) and self.threshold.startswith("max_")

    def asks(self, thresholds: Thresholds) -> bool:
        """Whether anything can fail: the least lower bound (a share of 0) and the highest upper bound (a share of 1)
        ask for nothing, not even for the score.
        """
        if not isinstance(self.threshold, str):
            return True
        low, high = _limits(self.threshold)
        return self.limit(thresholds) < high if self.is_upper else self.limit(thresholds) > low

    def failed(self, value: np.ndarray, thresholds: Thresholds) -> np.ndarray:
        """Bool [n]; a score that was not computed (NaN) fails."""
        value, limit = self.seen(value), self.limit(thresholds)
        if not self.asks(thresholds):
            return np.zeros(len(value), bool)
        if self.is_upper:
            return ~(value <= limit)
        return ~(value >= limit) & (value != 0) if self.unknown_passes else ~(value >= limit)


NOT_LOOKED_AT = "the preview shows too little of a person"
_REF, _AUDIO, _POSE = Condition.REFERENCE, Condition.AUDIO, Condition.POSE
# In this order, cheap and telling ones first: the first that fails is the reason that a clip gets.
CHECKS = (
    Check("too small", "short_side_px", "min_short_side_px"),
    Check("too few frames a second", "source_fps", "min_source_fps", unknown_passes=True),
    Check("compressed too hard", "bits_per_pixel", "min_bits_per_pixel", unknown_passes=True),
    Check("blurred", "sharpness", "min_sharpness"),
    Check("too dark", "brightness", "min_brightness"),
    Check("too bright", "brightness", "max_brightness"),
    Check("hardly any motion", "motion", "min_motion"),
    Check("too much motion", "motion", "max_motion"),
    Check("frozen picture", "frozen_share", "max_frozen_share"),
    Check("black bars at the top and bottom", "letterbox_share", "max_letterbox_share"),
    Check("black bars at the sides", "pillarbox_share", "max_pillarbox_share"),
    Check("underexposed", "dark_share", "max_dark_share"),
    Check("overexposed", "bright_share", "max_bright_share"),
    Check("text in the picture", "text_area_share", "max_text_area_share"),
    Check("spoilt picture (BRISQUE)", "brisque", "max_brisque"),
    Check("the camera moves too much", "camera_motion", "max_camera_motion"),
    Check("nothing moves but the camera", "subject_motion", "min_subject_motion"),
    Check("low aesthetic score", "aesthetic", "min_aesthetic"),
    Check("low technical score", "technical", "min_technical"),
    Check("too short for a reference outside the window", "seconds", "min_reference_s", _REF),
    Check("no face to refer to", "face_share", "min_reference_face_share", _REF),
    Check("no audio track", "audio_tracks", 1, _AUDIO),
    Check("silent", "loudness_dbfs", "min_loudness_dbfs", _AUDIO),
    Check("too short to judge lip-sync", "seconds", "min_audio_s", _AUDIO),
    Check(NOT_LOOKED_AT, "looked_at", 1, _AUDIO),
    Check("too little voice", "voice_share", "min_voice_share", _AUDIO),
    Check("too little speech", "speech_share", "min_speech_share", _AUDIO),
    Check("face not seen throughout", "face_share", "min_audio_face_share", _AUDIO),
    Check("face too small", "face_px", "min_face_px", _AUDIO),
    Check("more than one face", "faces_share", "max_faces_share", _AUDIO),
    Check("lips do not follow the sound (phone proxy)", "lip_sync_confidence", "min_lip_sync_confidence", _AUDIO),
    Check("sound and lips apart (phone proxy)", "lip_sync_offset_s", "max_lip_sync_offset_s", _AUDIO),
    Check("lips do not follow the sound (SyncNet)", "syncnet_confidence", "min_syncnet_confidence", _AUDIO),
    Check("lips and sound unlike (SyncNet)", "syncnet_distance", "max_syncnet_distance", _AUDIO),
    Check("sound and lips apart (SyncNet)", "syncnet_offset_s", "max_syncnet_offset_s", _AUDIO),
    Check(NOT_LOOKED_AT, "looked_at", 1, _POSE),
    Check("body not seen throughout", "pose_share", "min_pose_share", _POSE),
    Check("face not seen", "face_share", "min_pose_face_share", _POSE),
    Check("body seen unclearly", "body_confidence", "min_body_confidence", _POSE),
    Check("hands not seen", "hand_share", "min_hand_share", _POSE),
)
SCORES = tuple(dict.fromkeys(check.score for check in CHECKS))
PASSED = -1


@dataclasses.dataclass(frozen=True, slots=True)
class Tags:
    """Of n clips: `bits` uint8 [n], the conditions that each is eligible for; `failed` int8 [n, 4], for each condition
    the first check that failed (an index of `CHECKS`), or `PASSED`.
    """

    bits: np.ndarray
    failed: np.ndarray


def tag_all(scores: Mapping[str, np.ndarray], thresholds: Thresholds) -> Tags:
    """The tags of n clips from columns of scores, each float64 [n], NaN where it was not computed."""
    count = len(scores["seconds"])
    failed = np.full((count, len(Condition)), PASSED, np.int8)
    for index in reversed(range(len(CHECKS))):
        check = CHECKS[index]
        if not check.asks(thresholds):
            continue
        rows = check.failed(scores[check.score], thresholds)
        failed[rows, slice(None) if check.of is None else check.of] = index
    bits = np.zeros(count, np.uint8)
    for condition in Condition:
        bits |= np.where(failed[:, condition] == PASSED, np.uint8(1 << condition), np.uint8(0))
    return Tags(bits, failed)


def tag(scores: Mapping[str, float], thresholds: Thresholds) -> tuple[tuple[str, ...], dict[str, dict[str, Any]]]:
    """(eligible labels, reasons) of one clip: for each condition that is not eligible the first check that failed."""
    columns = {name: np.array([scores.get(name, math.nan)]) for name in SCORES}
    found = tag_all(columns, thresholds)
    reasons = {
        c.label: reason_of_check(CHECKS[i], scores, thresholds)
        for c in Condition
        if (i := found.failed[0, c]) != PASSED
    }
    return tuple(c.label for c in Condition if c.label not in reasons), reasons


def reason_of_check(check: Check, scores: Mapping[str, float], thresholds: Thresholds) -> dict[str, Any]:
    score = scores.get(check.score, math.nan)
    if math.isnan(score):
        return {"reason": f"{check.score} was not computed", "score": None, "threshold": check.limit(thresholds)}
    return {"reason": check.reason, "score": float(check.seen(np.asarray(score))), "threshold": check.limit(thresholds)}
