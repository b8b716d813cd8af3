"""A pose read from its file. numpy alone, and no file beside this one."""

import json
import zipfile
from pathlib import Path

import numpy as np


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
