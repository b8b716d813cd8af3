"""How well a mouth can be read at all, by the size of the pictures: the readout of `evaluate --suite theatre` on the
codec's round trip, before anything is trained. The figures of docs/theatre.md.

    omnihuman theatre --out runs/speaking --hours 0.5 --seed 5 --programme speaking_bodies
    python -m tests.benchmarks.mouth_ceiling --theatre runs/speaking

A correlation at one size bounds what a model of that size can be seen to do.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.puppet_theatre.truth import Truth
from omnihuman_jax.codecs.dct import DctCodec
from omnihuman_jax.evaluation import mouth
from omnihuman_jax.serving import media_omnihuman

_FRAMES = 25
_MEASURED = 2  # windows of a clip


def read(video: Path, truth: Truth, size: tuple[int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(read, true) openings of the first windows of a clip; each readout is fitted on the clip's other windows."""
    drawn_height, drawn_width = truth.facts["size_px"]
    frames = media_omnihuman.read_video(video, size=size)
    scale = np.array([size[1] / drawn_width, size[0] / drawn_height] * 2)
    boxes = truth.mouth_box_T4
    reach_4 = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)]) * scale
    codec, crops, openings = DctCodec(), [], []
    for start in range(0, len(frames) - _FRAMES + 1, _FRAMES):
        window = frames[start : start + _FRAMES].astype(np.float32) / 127.5 - 1
        crops.append(mouth.crop(np.asarray(codec.decode(codec.encode(window))), reach_4))
        openings.append(truth.opening_T[start : start + _FRAMES])
    pairs = []
    for measured in range(min(_MEASURED, len(crops))):
        others = [k for k in range(len(crops)) if k != measured]
        readout = mouth.fit_readout(
            np.concatenate([crops[k] for k in others]), np.concatenate([openings[k] for k in others])
        )
        pairs.append((readout(crops[measured]), openings[measured]))
    return pairs


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--theatre", required=True, type=Path, help="folder of `omnihuman theatre`")
    parser.add_argument("--clips", type=int, default=24, help="so many of its clips (%(default)s)")
    parser.add_argument("--sizes", default="64x48,80x64,96x80,128x96", help="height x width (%(default)s)")
    options = parser.parse_args(argv)
    truths = sorted((options.theatre / "truth").glob("*.npz"))[: options.clips]
    print("| size | windows | mouth's ceiling |\n|---|---|---|")
    for name in options.sizes.split(","):
        height, width = map(int, name.split("x"))
        seen, true, people = [], [], []
        for path in truths:
            truth = Truth.load(path)
            for a, b in read(options.theatre / "videos" / f"{path.stem}.mp4", truth, (height, width)):
                seen.append(a), true.append(b), people.append(str(truth.facts["plan"]["person"]))
        print(f"| {height} x {width} | {len(seen)} | {mouth.correlation_interval(seen, true, people)} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
