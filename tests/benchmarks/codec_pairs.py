"""Four pieces of real talking clips as pairs, each beside itself: what docs/evaluation.md's codec check is of.

python -m tests.benchmarks.codec_pairs runs/pairs
omnihuman evaluate --suite field --pairs runs/pairs --codec-check --out runs/codec_check
"""

import sys
from pathlib import Path

from data_pipelines.sample_media import fetch
from omnihuman_jax.serving import media_omnihuman

PIECES = (("jwpIntro", 1.0), ("testMovie", 2.0), ("jwpIntro", 3.0), ("testMovie", 5.0))
SECONDS, SIZE = 2.0, (240, 320)


def write(folder: Path) -> None:
    """Writes `folder`/made and `folder`/true."""
    videos = fetch().videos
    for name, start in PIECES:
        path = videos / f"{name}.mp4"
        frames = media_omnihuman.read_video(path, start_s=start, duration_s=SECONDS, size=SIZE)
        wave = media_omnihuman.read_audio(path, start_s=start, duration_s=SECONDS)
        for side in ("true", "made"):
            media_omnihuman.write_video(folder / side / f"{name}_{start:g}.mp4", frames, audio=wave)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
