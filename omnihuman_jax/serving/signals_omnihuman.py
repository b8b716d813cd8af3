"""What drives a video, read from files: picture, pose, and how long it becomes. For `pipeline_omnihuman.py`; needs
numpy and av.
"""

import dataclasses
import json
import math
from pathlib import Path

import media_omnihuman as media
import numpy as np
from windows_omnihuman import FPS, TOKEN_STRIDE, place


@dataclasses.dataclass(kw_only=True)
class Signals:
    """What drives a video, on its clock: row i of audio and keypoints is frame i."""

    frames: int
    reference_HWC: np.ndarray
    text_SE: np.ndarray
    pooled_E: np.ndarray
    has_text: bool
    audio_TE: np.ndarray | None
    keypoints_TJ3: np.ndarray | None
    wave: np.ndarray | None


def read_reference(image: str | Path, size: tuple[int, int]) -> np.ndarray:
    """The picture laid over the video's frame: float32 [1, H, W, 3] in [-1, 1]."""
    height, width = media.read_image(image).shape[:2]
    at = place(height, width, size)
    scaled = (max(size[0], round(height * at.scale_y)), max(size[1], round(width * at.scale_x)))
    picture = media.read_image(image, size=scaled)[round(at.top) :, round(at.left) :][: size[0], : size[1]]
    return (np.asarray(picture, np.float32) / 127.5 - 1.0)[None]


def read_pose(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Keypoints [T, J, 3] at 25 fps in tokens of pictures of `size`; their picture is laid over the video's like the
    image.
    """
    if path.suffix != ".npz":
        raise ValueError(f"{path}: give keypoints (.npz) of `omnihuman curate`, which finds them in a video")
    with np.load(path, allow_pickle=False) as stored:
        if "keypoints_TJ3" not in stored:
            raise ValueError(f"{path}: has no keypoints_TJ3; give keypoints of `omnihuman curate`")
        keypoints = stored["keypoints_TJ3"].astype(np.float32)
        given = (int(stored["height"]), int(stored["width"])) if "height" in stored and "width" in stored else None
    if not (keypoints[..., 2] > 0).any():
        raise ValueError(f"{path}: no person in any frame")
    height, width = given or _clip_size(path)
    at = place(height, width, size)
    moved = keypoints.copy()
    moved[..., 0] = (keypoints[..., 0] * at.scale_x - at.left) / TOKEN_STRIDE
    moved[..., 1] = (keypoints[..., 1] * at.scale_y - at.top) / TOKEN_STRIDE
    moved[keypoints[..., 2] <= 0] = 0
    return moved


def _clip_size(path: Path) -> tuple[int, int]:
    """Height and width of the clip whose landmarks `path` are, from the row of curate's clips.jsonl in a folder
    above.
    """
    for folder in path.resolve().parents[:3]:
        file = folder / "clips.jsonl"
        for row in map(json.loads, file.read_text().splitlines() if file.is_file() else []):
            if (folder / row["landmarks"]).resolve() == path.resolve():
                return row["height"], row["width"]
    raise ValueError(f"{path}: no clips.jsonl above it names it, and it has no height and width of its own")


def frames_to_make(seconds: float | None, available: dict[str, int], segment_frames: int) -> int:
    """Frames of the video; ValueError names the driving file that is shorter than `seconds`."""
    for path, count in available.items():
        if not count:
            raise ValueError(f"{path} is shorter than one frame ({1 / FPS:.2f} s): give a longer file")
    if seconds is None:
        return min(available.values(), default=segment_frames)
    if not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(f"seconds must be > 0, not {seconds}")
    frames = max(1, math.ceil(seconds * FPS - 1e-6 * FPS))
    for path, count in available.items():
        if count + 1 < frames:
            raise ValueError(f"{path} lasts {count / FPS:.2f} s, shorter than {seconds:g} s: give a longer file")
    return frames
