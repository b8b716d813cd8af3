"""Which videos are held out: `splits.json` of a folder of videos, {"NAME.mp4": "SPLIT"}."""

import json
import os
from pathlib import Path

SPLITS_FILE = "splits.json"


def read_splits(videos_dir: str | os.PathLike[str]) -> dict[str, str]:
    """Video -> its split. A video that the file does not name, like every video where there is no file, is of "train".

    Raises:
        ValueError: the file is no table of names.
    """
    path = Path(videos_dir) / SPLITS_FILE
    if not path.is_file():
        return {}
    return splits_in(str(path), path.read_bytes())


def splits_in(path: str, data: bytes) -> dict[str, str]:
    """The splits of the bytes of a `splits.json`; errors as `read_splits` has them."""
    try:
        splits = json.loads(data.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f'{path}: not JSON ({error}); write {{"NAME.mp4": "SPLIT"}}, or delete it') from error
    if not isinstance(splits, dict) or not all(isinstance(split, str) and split for split in splits.values()):
        raise ValueError(f'{path}: must be one table {{"NAME.mp4": "SPLIT"}}; correct it, or delete it')
    return splits
