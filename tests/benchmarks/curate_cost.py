"""What curate's stages cost: CPU seconds (of all threads) a minute of video, and the whole with a share of clips past
the preview.

    python -m tests.benchmarks.curate_cost --videos FOLDER
    python -m tests.benchmarks.curate_cost --videos FOLDER --names jwpIntro --lines 1080

The stages are called as `curate` calls them, in this process, one clip after the other; networks are loaded before the
first. `--lines` brings the videos to that many lines first (H.264, with their sound).
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.curate import file_stages
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.typing import FPS, SAMPLE_RATE_HZ

# Those of `look` and of the lips count by the share of clips that get there.
PARTS = ("scan", "preview", "look", "listen: loudness", "listen: lip-sync")
BY_SHARE = ("look", "listen: lip-sync")


def scaled(path: Path, lines: int, folder: Path) -> Path:
    """A copy of a video with so many lines."""
    header = media_omnihuman.probe(path)
    size = (lines, 2 * round(header.width * lines / header.height / 2))
    frames = media_omnihuman.iter_video(path, size=size)
    media_omnihuman.write_video(
        folder / path.name, frames, audio=media_omnihuman.read_audio(path, SAMPLE_RATE_HZ), sample_rate=SAMPLE_RATE_HZ
    )
    return folder / path.name


class Meter:
    """Sums of process time by part."""

    def __init__(self) -> None:
        self.cpu_s = dict.fromkeys(PARTS, 0.0)
        self.minutes = 0.0

    def watch(self, path: str, max_seconds: float | None = None) -> None:
        found = self._timed("scan", file_stages.scan, path, file_stages.ScanOptions(max_seconds=max_seconds))
        size = (found.video.height, found.video.width)
        for start, end in found.ranges:
            self.minutes += (end - start) / FPS / 60
            self._timed("preview", file_stages.preview, path, start, end, *size)
            _, landmarks = self._timed("look", file_stages.look, path, start, end, *size)
            before = self.cpu_s["listen: loudness"]
            self._timed("listen: loudness", file_stages.listen, path, start, end, None, found.video.has_audio)
            loudness = self.cpu_s["listen: loudness"] - before
            args = (path, start, end, landmarks.aperture_T, found.video.has_audio)
            self._timed("listen: lip-sync", file_stages.listen, *args)
            self.cpu_s["listen: lip-sync"] -= loudness

    def _timed(self, part, function, *arguments):  # type: ignore[no-untyped-def]
        began = time.process_time()
        result = function(*arguments)
        self.cpu_s[part] += time.process_time() - began
        return result

    def table(self, share: float) -> str:
        cost = {part: seconds / self.minutes for part, seconds in self.cpu_s.items()}
        some = sum(value * (share if part in BY_SHARE else 1) for part, value in cost.items())
        rows = [f"| {part} | {value:.1f} |" for part, value in cost.items()]
        rows += [f"| all clips looked at | {sum(cost.values()):.1f} |", f"| {share:.0%} of them | {some:.1f} |"]
        return "\n".join(["| part | CPU s a minute |", "|---|---|", *rows])


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Which videos are measured, at which size."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", required=True, type=Path, help="folder of .mp4")
    parser.add_argument("--names", default="", help="only these, by commas")
    parser.add_argument("--lines", type=int, default=0, help="bring them to so many lines")
    return parser


def chosen(options: argparse.Namespace, folder: Path) -> list[Path]:
    """The videos, or copies in `folder` of the size that is asked for."""
    names = options.names.split(",") if options.names else [path.stem for path in sorted(options.videos.glob("*.mp4"))]
    paths = [options.videos / f"{name}.mp4" for name in names]
    return [scaled(path, options.lines, folder) for path in paths] if options.lines else paths


def main(argv: Sequence[str]) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--past", type=float, default=0.3, help="share of clips past the preview")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        paths = chosen(options, Path(folder))
        Meter().watch(str(paths[0]), 1.2)  # loads the networks
        meter = Meter()
        for path in paths:
            meter.watch(str(path))
    print(f"{len(paths)} videos, {meter.minutes * 60:.1f} s\n\n{meter.table(options.past)}")


if __name__ == "__main__":
    main(sys.argv[1:])
