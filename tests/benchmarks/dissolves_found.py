"""How many dissolves between the clips of a theatre are found, how well, and in how many clips one is found that is
not there: the figures of docs/data.md.

    omnihuman theatre --out runs/bodies --hours 0.35 --seed 2 --programme biased
    python -m tests.benchmarks.dissolves_found --theatre runs/bodies

Each clip goes over into the next one, in 6 to 39 frames, while both go on.
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.curate.dissolves import Dissolve, DissolveFinder
from data_pipelines.curate.shots import ShotConfig
from data_pipelines.puppet_theatre.truth import Truth
from omnihuman_jax.serving import media_omnihuman

_SIZE = (48, 64)
_WIDTHS, _STARTS = (6, 40), (30, 60)
_AFTER = 45


def found(frames: Sequence[np.ndarray]) -> list[Dissolve]:
    finder = DissolveFinder(ShotConfig().min_change)
    for frame in frames:
        finder.add(frame)
    return finder.dissolves()


def mixed(one: np.ndarray, other: np.ndarray, start: int, width: int) -> np.ndarray:
    """uint8: `one` to frame `start`, over into `other` in `width` frames."""
    share = (np.arange(1, width + 1) / (width + 1))[:, None, None, None]
    between = one[start : start + width] * (1 - share) + other[:width] * share
    return np.concatenate([one[:start], np.round(between).astype(np.uint8), other[width : width + _AFTER]])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--theatre", required=True, type=Path, help="folder of `omnihuman theatre`")
    parser.add_argument("--clips", type=int, default=90, help="so many of its clips (%(default)s)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each (%(default)s)")
    options = parser.parse_args(argv)
    clips = []
    for path in sorted((options.theatre / "videos").glob("*.mp4"))[: options.clips]:
        truth = Truth.load(options.theatre / "truth" / f"{path.stem}.npz")
        if truth.facts["plan"]["fault"] != "cut":
            clips.append(media_omnihuman.read_video(path, size=_SIZE, duration_s=options.seconds))
    frames, began = sum(len(clip) for clip in clips), time.process_time()
    false = sum(bool(found(clip)) for clip in clips)
    used = time.process_time() - began
    random = np.random.default_rng(1)
    early, late, missed = [], [], 0
    for one, other in itertools.pairwise(clips):
        width, start = int(random.integers(*_WIDTHS)), int(random.integers(*_STARTS))
        dissolves = found(mixed(one, other, start, width))
        if len(dissolves) != 1:
            missed += 1
            continue
        early.append(dissolves[0].start - start)
        late.append(dissolves[0].end - start - width)
    off = np.abs([early, late])
    result = {
        "clips": len(clips),
        "clips with a dissolve that is none": false,
        "dissolves": len(clips) - 1,
        "missed, or found as two": missed,
        "both ends within 1 frame": int((off <= 1).all(0).sum()),
        "both ends within 3 frames": int((off <= 3).all(0).sum()),
        "worst": int(off.max()),
        "CPU seconds a minute of video": round(used / frames * 25 * 60, 2),
    }
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
