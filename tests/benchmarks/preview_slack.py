"""How far scores at 5 fps are from those of every frame, and whether a clip is lost by that: the slack of `reach.py`.

    python -m tests.benchmarks.preview_slack --videos FOLDER

Two seconds from several places of each video: as they are, with the camera panning across, brought to a quarter of the
size, covered by a bar now and then, and cut out at another place each frame, which is worse than any camera.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.curate import landmarks, scores
from data_pipelines.curate.file_stages import PREVIEW_EVERY, PREVIEWED
from data_pipelines.curate.reach import within_reach
from data_pipelines.curate.tagging import SCORES, Thresholds, tag
from omnihuman_jax.serving import media_omnihuman

SECONDS = 2.0
BEGIN_S = (0.0, 2.0, 4.0)


def spoilt(frames_THW3: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    import cv2

    count, height, width, _ = frames_THW3.shape
    yield "as it is", frames_THW3
    part = int(0.55 * width)
    left_T = np.linspace(0, width - part, count).astype(int)
    yield "panned", np.stack([f[:, x : x + part] for f, x in zip(frames_THW3, left_T, strict=True)])
    small = np.zeros_like(frames_THW3)
    for canvas, frame in zip(small, frames_THW3, strict=True):
        canvas[8 : 8 + height // 4, 8 : 8 + width // 4] = cv2.resize(
            frame, (width // 4, height // 4), interpolation=cv2.INTER_AREA
        )
    yield "a quarter", small
    covered, at = frames_THW3.copy(), 0
    while at < count:
        length = int(rng.integers(2, 14))
        if rng.random() < 0.35:
            covered[at : at + length, : 3 * height // 4] = 128
        at += length
    yield "covered", covered
    high, wide = 3 * height // 4, 3 * width // 4
    places = zip(rng.integers(0, height - high, count), rng.integers(0, width - wide, count), strict=True)
    yield "shaken", np.stack([f[y : y + high, x : x + wide] for f, (y, x) in zip(frames_THW3, places, strict=True)])


def seen(frames_THW3: np.ndarray) -> dict[str, float]:
    found = scores.landmark_scores(landmarks.extract_landmarks(iter(frames_THW3), hands=False))
    return {name: found[name] for name in PREVIEWED}


def is_of_use(full: dict[str, float]) -> bool:
    """Whether a clip with these landmarks, and otherwise as it should be, serves audio or pose."""
    passes = dict.fromkeys(SCORES, 0.5) | {"seconds": 8, "short_side_px": 480, "sharpness": 100, "brightness": 120}
    passes |= {"source_fps": 25, "audio_tracks": 1, "looked_at": 1, "loudness_dbfs": -20, "lip_sync_offset_s": 0}
    eligible, _ = tag({**passes, **full}, Thresholds())
    return bool({"audio", "pose"} & set(eligible))


def is_looked_at(preview: dict[str, float]) -> bool:
    known = dict.fromkeys(SCORES, 0.5) | {"seconds": 8, "short_side_px": 480, "sharpness": 100, "brightness": 120}
    known |= {"source_fps": 25, "audio_tracks": 1, **{f"preview_{name}": value for name, value in preview.items()}}
    return bool(within_reach({name: np.array([float(v)]) for name, v in known.items()}, Thresholds())[0])


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", required=True, type=Path, help="folder of .mp4")
    rng, above = np.random.default_rng(0), {name: [] for name in PREVIEWED}  # type: ignore[var-annotated]
    useful = looked_at = lost = count = 0
    for path in sorted(parser.parse_args(argv).videos.glob("*.mp4")):
        length_s = media_omnihuman.probe(path).duration_s
        for begin_s in (begin_s for begin_s in BEGIN_S if begin_s + SECONDS <= length_s):
            frames = media_omnihuman.read_video(path, start_s=begin_s, duration_s=SECONDS)
            for _, clip in spoilt(frames, rng):
                full, preview = seen(clip), seen(clip[::PREVIEW_EVERY])
                for name, values in above.items():
                    if name != "face_px":
                        values.append(full[name] - preview[name])
                    elif full[name] and preview[name]:  # in shares of itself
                        values.append(full[name] / preview[name] - 1)
                count += 1
                useful, looked_at = useful + is_of_use(full), looked_at + is_looked_at(preview)
                lost += is_of_use(full) and not is_looked_at(preview)
    print(f"{count} clips; {useful} of use, {looked_at} looked at, {lost} of use and not looked at\n")
    print("| score | full above preview, at most | 95 % | below, at most |\n|---|---|---|---|")
    for name, values in above.items():
        print(f"| {name} | {max(values):.2f} | {np.percentile(values, 95):.2f} | {-min(values):.2f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
