"""A pose read from its file. numpy alone, and no file beside this one."""

import json
import zipfile
from pathlib import Path

import numpy as np

# Further from the picture than any display is wide: no pixel, but a wrong unit or a damaged file.
_MAX_PIXELS = 1 << 16


def wrong_keypoint(keypoints_TJ3: np.ndarray) -> str:
    """What is wrong with the first keypoint that is none (x, y in pixels, confidence in [0, 1]), and where; "" if all
    are right.
    """
    limits = np.array([[-_MAX_PIXELS, -_MAX_PIXELS, 0], [_MAX_PIXELS, _MAX_PIXELS, 1]], np.float32)
    wrong = ~((keypoints_TJ3 >= limits[0]) & (keypoints_TJ3 <= limits[1]))
    if not wrong.any():
        return ""
    frame, joint, column = np.unravel_index(int(wrong.argmax()), wrong.shape)
    low, high = limits[:, column]
    return (
        f"{('x', 'y', 'confidence')[column]} of keypoint {joint} in frame {frame} is"
        f" {keypoints_TJ3[frame, joint, column]:g}; it must be in [{low:g}, {high:g}]"
    )


def read_keypoints(path: Path) -> tuple[np.ndarray, int, int]:
    """(keypoints [T, J, 3] float32 in pixels at 25 fps, height, width of their pictures) of a .npz: one that
    `omnihuman curate` left in its folder, or any with keypoints_TJ3, height and width.
    """
    if path.suffix != ".npz":
        raise ValueError(f"{path}: give keypoints (.npz) of `omnihuman curate`, which finds them in a video")
    try:
        with np.load(path, allow_pickle=False) as stored:
            keypoints = stored["keypoints_TJ3"].astype(np.float32)
            size = (int(stored["height"]), int(stored["width"])) if {"height", "width"} <= set(stored.files) else None
    except (KeyError, OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: no keypoints ({error}); give those of `omnihuman curate`") from error
    if keypoints.ndim != 3 or keypoints.shape[2] != 3:
        raise ValueError(f"{path}: keypoints {list(keypoints.shape)}, expected [T, J, 3]; run curate again")
    if not len(keypoints):
        raise ValueError(f"{path}: keypoints of no frame; run curate again")
    if wrong := wrong_keypoint(keypoints):
        raise ValueError(f"{path}: {wrong}; run curate again")
    if size is not None and min(size) < 1:
        raise ValueError(f"{path}: height and width {size} must be at least 1 pixel")
    return keypoints, *(size or _clip_size(path))


def _clip_size(path: Path) -> tuple[int, int]:
    """Height and width of the clip whose landmarks `path` are, from the row of curate's clips.jsonl in a folder
    above.
    """
    path = path.resolve()
    for folder in path.parents[:3]:
        file = folder / "clips.jsonl"
        try:
            for row in map(json.loads, file.read_text().splitlines() if file.is_file() else []):
                if (folder / row["landmarks"]).resolve() == path:
                    return row["height"], row["width"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: not the rows of clips ({error}); run curate again") from None
    raise ValueError(
        f"{path}: no row of a clips.jsonl above it names it, and it has no height and width of its own; give a file in"
        " the folder of `omnihuman curate`"
    )
