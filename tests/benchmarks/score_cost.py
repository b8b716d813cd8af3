"""What each score of pictures and voices costs beside decoding: CPU seconds (of all threads) a minute of video.

    python -m tests.benchmarks.score_cost --videos FOLDER
    python -m tests.benchmarks.score_cost --videos FOLDER --lines 1080

Clips are cut as `curate` cuts them; what is done for three stills of a clip costs a minute of long clips less.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_pipelines.curate import decode, file_stages, stills
from data_pipelines.curate.brisque import brisque
from data_pipelines.curate.camera_motion import split_motion
from data_pipelines.curate.text_overlay import text_area_share
from data_pipelines.curate.voice import voice_share
from omnihuman_jax.typing import FPS
from tests.benchmarks.curate_cost import arguments, chosen


class Meter:
    """Sums of process time by score."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = {}
        self.minutes = 0.0
        self.clips = 0

    def timed(self, score: str, function: Callable[..., Any], *arguments: Any) -> None:
        began = time.process_time()
        function(*arguments)
        self.cpu_s[score] = self.cpu_s.get(score, 0.0) + time.process_time() - began

    def watch(self, path: str) -> None:
        found = file_stages.scan(path, file_stages.ScanOptions())
        for start, end in found.ranges:
            self.minutes += (end - start) / FPS / 60
            self.clips += 1
            keeper = stills.Stills(end - start)
            size = (found.video.height, found.video.width)
            flows = list(_flows(keeper.watch(decode.scored_frames(path, start, end, *size))))
            lumas = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in keeper.kept])
            self.timed("text_area_share", text_area_share, keeper.kept)
            self.timed("brisque", lambda frames: [brisque(frame) for frame in frames], keeper.kept)
            self.timed("letterbox_share, pillarbox_share", stills.bars, lumas)
            self.timed("dark_share, bright_share", lambda x: [(x <= 4).mean(), (x >= 251).mean()], lumas)
            self.timed("camera_motion, subject_motion", lambda many: [split_motion(flow) for flow in many], flows)
            if found.video.has_audio:
                self.timed("voice_share", voice_share, decode.clip_audio(path, start, end))


def _flows(frames: Any) -> Any:
    """A flow of the size and number that `PictureMeter` has."""
    for number, frame in enumerate(frames):
        if number and number % 3 == 0:
            width = round(frame.shape[1] * 90 / frame.shape[0])
            yield np.random.default_rng(number).normal(0, 1, (90, width, 2)).astype(np.float32)


def main(argv: Sequence[str]) -> None:
    options = arguments(__doc__).parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        paths = chosen(options, Path(folder))
        Meter().watch(str(paths[0]))  # loads the networks
        meter = Meter()
        for path in paths:
            meter.watch(str(path))
    print(
        f"{len(paths)} videos, {meter.clips} clips, {meter.minutes * 60:.1f} s\n\n| score | CPU s a minute |\n|---|---|"
    )
    for score, seconds in meter.cpu_s.items():
        print(f"| {score} | {seconds / meter.minutes:.2f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
