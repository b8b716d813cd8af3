"""What curate leaves behind and encode reads: a row a clip in `clips.jsonl`, and each clip's landmarks beside it.

Every file is written whole or not at all, and none holds a path of the machine: a row names its video relative to the
folder of `clips.jsonl`.
"""

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from omnihuman_jax.conditions import ConditionSet
from omnihuman_jax.data.keypoints import NUM_KEYPOINTS
from omnihuman_jax.runtime import file_names, files
from omnihuman_jax.serving.poses_omnihuman import wrong_keypoint

CLIPS_FILE = "clips.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A shot, or a part of one, on its video's 25 fps grid: frames `start_frame` .. `end_frame` - 1 of
    `media.read_video`.

    `height` and `width` are displayed pixels, the unit of the landmarks. `scores` are raw numbers, so that tags can be
    made again with other thresholds. `reasons` has an entry for each condition that is not in `eligible`: the first
    check that failed, its score and its threshold. `video` and `path` are text (`file_names.plain`), whatever bytes the
    file's name has. `split` is "train", or the name of what is held out.
    """

    clip_id: str
    video: str
    path: str
    sha256: str
    start_frame: int
    end_frame: int
    fps: int
    height: int
    width: int
    has_audio: bool
    caption: str
    caption_source: str
    landmarks: str
    scores: dict[str, float]
    eligible: tuple[str, ...]
    reasons: dict[str, dict[str, Any]]
    split: str = "train"

    @property
    def frames(self) -> int:
        return self.end_frame - self.start_frame

    @property
    def seconds(self) -> float:
        return self.frames / self.fps

    @property
    def start_s(self) -> float:
        return self.start_frame / self.fps

    @property
    def conditions(self) -> ConditionSet:
        return ConditionSet.from_labels(self.eligible)

    def video_path(self, clips_dir: str | os.PathLike[str]) -> Path:
        """The video, wherever `clips_dir` lies now; FileNotFoundError if it moved away."""
        path = Path(os.path.normpath(Path(clips_dir) / file_names.raw(self.path)))
        if not path.is_file():
            raise FileNotFoundError(
                f"{file_names.plain(path)}: the video of clip {self.clip_id} is gone; put it back, or run curate again"
            )
        return path


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Landmarks:
    """What was seen of the person in T frames; pixels of the displayed frame.

    keypoints_TJ3  float32, x, y, confidence of `omnihuman_jax.data.keypoints.KEYPOINT_NAMES`; (0, 0, 0) where not found
    lips_TK2       float32, the 40 points of the lips' contours
    mouth_box_T4   float32, x0, y0, x1, y1 around the lips with half their height as margin
    face_box_T4    float32, x0, y0, x1, y1 around the face's points
    aperture_T     float32, gap between the inner lips over the height of the face; NaN without a face
    face_T         bool, a face was found: where false, lips and boxes are zero
    faces_T        int32, how many faces were found (two at most are looked for)
    """

    keypoints_TJ3: np.ndarray
    lips_TK2: np.ndarray
    mouth_box_T4: np.ndarray
    face_box_T4: np.ndarray
    aperture_T: np.ndarray
    face_T: np.ndarray
    faces_T: np.ndarray

    def save(self, path: Path) -> None:
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        with files.whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Landmarks":
        """ValueError if the file is not what `save` writes."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                landmarks = cls(**{field.name: stored[field.name] for field in dataclasses.fields(cls)})
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: no landmarks; run curate again") from None
        except (KeyError, OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path}: not a landmarks file ({error}); delete it and run curate again") from error
        if landmarks.keypoints_TJ3.ndim != 3 or landmarks.keypoints_TJ3.shape[1:] != (NUM_KEYPOINTS, 3):
            raise ValueError(
                f"{path}: keypoints {landmarks.keypoints_TJ3.shape}, expected [T, {NUM_KEYPOINTS}, 3]; run curate again"
            )
        if wrong := wrong_keypoint(landmarks.keypoints_TJ3):
            raise ValueError(f"{path}: keypoints_TJ3: {wrong}; delete it and run curate again")
        return landmarks


def load_landmarks(clips_dir: str | os.PathLike[str], clip: Clip) -> Landmarks:
    """The landmarks of a clip; ValueError unless there is one row a frame."""
    path = Path(clips_dir) / clip.landmarks
    landmarks = Landmarks.load(path)
    if landmarks.keypoints_TJ3.shape[0] != clip.frames:
        raise ValueError(
            f"{path}: {landmarks.keypoints_TJ3.shape[0]} rows for a clip of {clip.frames} frames; run curate again"
        )
    return landmarks


def write_clips(clips_dir: str | os.PathLike[str], clips: Iterable[Clip]) -> None:
    write_text(Path(clips_dir) / CLIPS_FILE, "".join(json.dumps(dataclasses.asdict(clip)) + "\n" for clip in clips))


def read_clips(clips_dir: str | os.PathLike[str]) -> list[Clip]:
    """The rows of `clips.jsonl`, in its order.

    Raises:
        FileNotFoundError: `clips_dir` was not made by curate.
        ValueError: a row is damaged or has another layout; names the line.
    """
    path = Path(clips_dir) / CLIPS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; make it with `omnihuman curate --videos DIR --out {clips_dir}`")
    clips = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            clips.append(Clip(**{**row, "eligible": tuple(row["eligible"])}))
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{path}:{number}: not a clip ({error}); run curate again") from error
    return clips


def write_text(path: Path, text: str) -> None:
    """Writes the file whole or not at all, in a folder that is made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text)
