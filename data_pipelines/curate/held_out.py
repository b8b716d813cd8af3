"""Which videos are held out: `splits.json` of a folder of videos, {"NAME.mp4": "SPLIT"}."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.curate.clips import Clip

SPLITS_FILE = "splits.json"


def with_splits(videos_dir: str | os.PathLike[str], clips: Sequence[Clip]) -> list[Clip]:
    """The clips, each of the split of its video. A video that the file does not name, like every video where there is
    no file, is of "train".

    Raises:
        ValueError: the file is no table of names.
    """
    path = Path(videos_dir) / SPLITS_FILE
    if not path.is_file():
        return list(clips)
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f'{path}: not JSON ({error}); write {{"NAME.mp4": "SPLIT"}}, or delete it') from error
    if not isinstance(splits, dict) or not all(isinstance(split, str) and split for split in splits.values()):
        raise ValueError(f'{path}: must be one table {{"NAME.mp4": "SPLIT"}}; correct it, or delete it')
    return [dataclasses.replace(clip, split=splits.get(clip.video, clip.split)) for clip in clips]
