"""A pose read from its file. numpy alone, and no file beside this one."""

import zipfile
from pathlib import Path

import numpy as np

# Further from the picture than any display is wide: no pixel, but a wrong unit or a damaged file.
_MAX_PIXELS = 1 << 16
_FPS = 25.0


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
    """(keypoints [T, J, 3] float32 in pixels at 25 fps, height, width of their pictures) of a .npz with
    keypoints_TJ3, height and width, such as `omnihuman data pose` writes; if it has fps, that must be 25.
    """
    if path.suffix != ".npz":
        raise ValueError(
            f"{path}: give keypoints (.npz) of `omnihuman data pose`, which takes them out of what curate found"
        )
    try:
        with np.load(path, allow_pickle=False) as stored:
            given = stored["keypoints_TJ3"]
            size = (int(stored["height"]), int(stored["width"]))
            fps = float(stored["fps"]) if "fps" in stored else _FPS
    except (KeyError, OSError, ValueError, TypeError, OverflowError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: no keypoints with height and width ({error}); write them with `omnihuman data pose`"
        ) from error
    if given.ndim != 3 or given.shape[2] != 3 or given.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: keypoints {given.dtype} {list(given.shape)}, expected numbers [T, J, 3]; run curate again"
        )
    if fps != _FPS:
        raise ValueError(f"{path}: fps is {fps:g}; keypoints must be at {_FPS:g} a second: resample them")
    with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite, and is refused
        keypoints = given.astype(np.float32)
    if not len(keypoints):
        raise ValueError(f"{path}: keypoints of no frame; run curate again")
    if wrong := wrong_keypoint(keypoints):
        raise ValueError(f"{path}: {wrong}; run curate again")
    if min(size) < 1 or max(size) > _MAX_PIXELS:
        raise ValueError(f"{path}: height and width {size} must be 1 to {_MAX_PIXELS} pixels")
    return keypoints, *size
