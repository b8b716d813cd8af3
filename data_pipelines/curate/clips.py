"""A clip and its landmarks, as encode gets them out of the SETS of a TABLE (`clip_sets.py`)."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.curate import video_files
from data_pipelines.curate.video_files import Address
from omnihuman_jax.conditions import ConditionSet
from omnihuman_jax.data.keypoints import NUM_KEYPOINTS
from omnihuman_jax.runtime import file_names, files, folders
from omnihuman_jax.runtime.locations import Location, StrPath
from omnihuman_jax.serving.poses_omnihuman import wrong_keypoint


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A shot, or a part of one, on its video's 25 fps grid: frames `start_frame` .. `end_frame` - 1 of
    `media.read_video`.

    `height` and `width` are displayed pixels, the unit of the landmarks. `reasons` has an entry for each condition that
    is not in `eligible`: the first check that failed, its score and its threshold. `video` and `path` are text
    (`file_names.plain`), whatever bytes the file's name has; `path` is relative to the table. `split` is "train", or
    the name of what is held out. `part` and `record` say where its landmarks lie.
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
    scores: Mapping[str, float]
    eligible: tuple[str, ...]
    reasons: Mapping[str, Mapping[str, Any]]
    split: str = "train"
    dataset: str = ""
    weight: float = 1.0
    part: int = 0
    record: int = 0

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

    @property
    def label(self) -> str:
        """For people: the video, and from when to when."""
        begin, end = self.start_frame / self.fps, self.end_frame / self.fps
        return f"{self.video} {begin:.1f}-{end:.1f} s"

    def video_path(self, table: StrPath) -> Path:
        """The video as a file, wherever the table lies now, or a copy of what lies in a bucket or an archive
        (`video_files.local_file`, which has the errors); FileNotFoundError if it moved away.
        """
        address = Address.parse(self.path, table)
        path = video_files.local_file(address)
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
    track_box_TN4  float32, x0, y0, x1, y1 of each of N faces that were followed (`face_tracks.py`), 0 where not seen
    track_aperture_TN  float32, as `aperture_T`, of each of them
    """

    keypoints_TJ3: np.ndarray
    lips_TK2: np.ndarray
    mouth_box_T4: np.ndarray
    face_box_T4: np.ndarray
    aperture_T: np.ndarray
    face_T: np.ndarray
    faces_T: np.ndarray
    track_box_TN4: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0, 4), np.float32))
    track_aperture_TN: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def arrays(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], where: str) -> "Landmarks":
        """ValueError, which begins with `where`, if they are not what `arrays` gives."""
        try:
            names = [f.name for f in dataclasses.fields(cls) if f.name in arrays or not f.name.startswith("track_")]
            landmarks = cls(**{name: arrays[name] for name in names})
        except KeyError as error:
            raise ValueError(f"{where}: no landmarks there ({error} is missing); run curate again") from error
        if landmarks.keypoints_TJ3.ndim != 3 or landmarks.keypoints_TJ3.shape[1:] != (NUM_KEYPOINTS, 3):
            shape = landmarks.keypoints_TJ3.shape
            raise ValueError(f"{where}: keypoints {shape}, expected [T, {NUM_KEYPOINTS}, 3]; run curate again")
        if wrong := wrong_keypoint(landmarks.keypoints_TJ3):
            raise ValueError(f"{where}: keypoints_TJ3: {wrong}; run curate again")
        return landmarks

    def save_pose(self, path: Path, height: int, width: int) -> None:
        """Writes the keypoints as a file that `generate --pose` and an export's pipeline read (.npz)."""
        with files.whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                keypoints_TJ3=self.keypoints_TJ3,
                height=np.array(height),
                width=np.array(width),
                allow_pickle=False,
            )


def write_text(path: Location, text: str) -> None:
    """Writes the file whole or not at all, in a folder that is made for it."""
    folders.make_folder(path.parent)
    files.write_text(path, text)
