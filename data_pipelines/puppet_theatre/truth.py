"""What is known of a clip because it was drawn: arrays for every frame, and plain values, in one .npz beside it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.curate.clips import Landmarks
from omnihuman_jax.runtime import files


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """Of T frames at 25 fps; pixels of the video's frames.

    opening_T        float32 0..1, how far the mouth is open;  spread_T  -1 (round) .. 1 (wide)
    heard_T          float32 0..1, the opening of the speech that the sound track has at that frame; opening_T itself
                     in a clip in sync, 0 where nobody speaks
    gap_T, width_T   float32, pixels between the inner lips, and from corner to corner
    mouth_seen_T     bool, the mouth is in the picture, uncovered, and not seen from behind
    keypoints_TJ3    float32, x, y, 1 of `data.keypoints.KEYPOINT_NAMES`; (0, 0, 0) where not in the picture
    mouth_box_T4     float32, x0, y0, x1, y1: as far as this mouth can reach;  face_box_T4 of the face
    faces_T          int32, faces that look out of the picture
    gestures_TG      float32, the signals of `gesture_law.SIGNALS`
    facts            plain values: the plan of the clip, colours, what is said, fault, eligible conditions
    """

    opening_T: np.ndarray
    spread_T: np.ndarray
    heard_T: np.ndarray
    gap_T: np.ndarray
    width_T: np.ndarray
    mouth_seen_T: np.ndarray
    keypoints_TJ3: np.ndarray
    mouth_box_T4: np.ndarray
    face_box_T4: np.ndarray
    faces_T: np.ndarray
    gestures_TG: np.ndarray
    facts: dict[str, Any]

    @property
    def frames(self) -> int:
        return len(self.opening_T)

    def save(self, path: Path) -> None:
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "facts"}
        with files.whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, facts=np.array(json.dumps(self.facts)), **arrays, allow_pickle=False)

    @classmethod
    def load(cls, path: Path) -> "Truth":
        """FileNotFoundError, or ValueError if the file is not what `save` writes."""
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no truth of that clip; make it with `omnihuman theatre`")
        names = [field.name for field in dataclasses.fields(cls) if field.name != "facts"]
        try:
            with np.load(path, allow_pickle=False) as stored:
                return cls(facts=json.loads(str(stored["facts"])), **{name: stored[name] for name in names})
        except (KeyError, OSError, ValueError, EOFError) as error:
            raise ValueError(
                f"{path}: not a truth file ({error}); delete it and run `omnihuman theatre` again"
            ) from error

    def landmarks(self, start: int, end: int) -> Landmarks:
        """What `curate` would have found in frames start .. end - 1, had it made no mistake."""
        part = slice(start, end)
        face_T = self.mouth_seen_T[part]
        height_T = self.face_box_T4[part, 3] - self.face_box_T4[part, 1]
        return Landmarks(
            keypoints_TJ3=self.keypoints_TJ3[part],
            lips_TK2=self._lips(part) * face_T[:, None, None],
            mouth_box_T4=self.mouth_box_T4[part] * face_T[:, None],
            face_box_T4=self.face_box_T4[part] * face_T[:, None],
            aperture_T=np.where(face_T, self.gap_T[part] / height_T, np.nan).astype(np.float32),
            face_T=face_T,
            faces_T=self.faces_T[part],
        )

    def _lips(self, part: slice) -> np.ndarray:
        """float32 [T, 40, 2]: forty points around the mouth, an ellipse as wide and open as it is."""
        box_T4 = self.mouth_box_T4[part]
        # The mouth's line lies 7/23 down its box (`stage.py`).
        centre_T2 = np.stack([box_T4[:, [0, 2]].mean(1), box_T4[:, 1] + (box_T4[:, 3] - box_T4[:, 1]) * 7 / 23], 1)
        angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        around_K2 = np.stack([np.cos(angle), np.sin(angle)], 1) / 2
        size_T2 = np.stack([self.width_T[part], self.gap_T[part]], 1)
        return (centre_T2[:, None] + around_K2 * size_T2[:, None]).astype(np.float32)
