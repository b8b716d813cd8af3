"""How many requests a table in a bucket costs: of a clip, and of a part and a command.

    python -m tests.benchmarks.bucket_requests

A video of noise is curated into a server on loopback, once as ten clips and once as twenty: nobody is in the picture,
so that `scan`, `preview`, `look` and `listen` are made, and no landmarks.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

from data_pipelines.curate.curate import CurateConfig, curate
from data_pipelines.curate.shots import ShotConfig
from omnihuman_jax.serving import media_omnihuman
from tests.storage import servers
from tests.storage.servers import Server

_SECONDS, _FPS = 12, 25


def requests(server: Server, video: Path, clips: int) -> tuple[int, int]:
    """(of the command that makes the table; of the same one again)."""
    config = CurateConfig(workers=1, shots=ShotConfig(min_s=0.2, max_s=_SECONDS / clips))
    counted = []
    for _ in range(2):
        before = len(server.proxy.requests)
        made = curate(video.parent, f"{server.bucket}/{clips}", config)
        counted.append(len(server.proxy.requests) - before)
        assert made["clips"] == clips
    return counted[0], counted[1]


def main() -> None:
    """Prints the counts."""
    parser = argparse.ArgumentParser(prog="bucket_requests", description="Requests of a table in a bucket.")
    parser.add_argument("--scheme", choices=("gs", "s3"), default="gs", help="the server (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "videos"
        folder.mkdir()
        low = np.random.default_rng(0).integers(0, 255, (_SECONDS * _FPS, 9, 12, 3), np.uint8)
        sound = np.sin(np.arange(16_000 * _SECONDS) / 9).astype(np.float32)
        media_omnihuman.write_video(folder / "a.mp4", low.repeat(8, 1).repeat(8, 2), audio=sound)
        with {"gs": servers.gcs, "s3": servers.s3}[options.scheme](Path(made)) as server:
            os.environ.update(server.environment)
            (few, again), (many, _) = (requests(server, folder / "a.mp4", clips) for clips in (10, 20))
    each = (many - few) / 10
    whole = few - 10 * each
    print(f"{options.scheme}: {each:.1f} requests a clip, {whole:.0f} a part of a new table, {again} of a made one")


if __name__ == "__main__":
    main()
