"""How small a face may be to be found: faces of the sample clips, brought down, at random places of a grey picture of
640 x 360, by MediaPipe's mesh alone, by its full-range detector, by MTCNN, and as `curate` does it. The table of
docs/data.md.

    omnihuman sample-media --out runs/media
    python -m tests.benchmarks.small_faces --videos runs/media/videos
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipelines import shares
from data_pipelines.curate import mtcnn
from data_pipelines.curate.landmarks import extract_landmarks, quiet_stderr
from omnihuman_jax.serving import media_omnihuman

_NAMES = ("jwpIntro", "testMovie", "carphone_pristine", "WolfgangLanger_Pexels")
_WIDTHS = (60, 48, 36, 24, 18, 14, 10)
_HEIGHT, _WIDTH = 360, 640
_EVERY = 12


def faces(videos: Path) -> Iterator[tuple[np.ndarray, float]]:
    """(a frame, the width of the one face in it in pixels) of every twelfth frame."""
    for name in _NAMES:
        frames = list(media_omnihuman.iter_video(videos / f"{name}.mp4"))[::_EVERY]
        found = extract_landmarks(iter(frames), hands=False)
        for frame, box, seen in zip(frames, found.face_box_T4, found.face_T, strict=True):
            if seen:
                yield frame, float(box[2] - box[0])


def far_away(frame: np.ndarray, scale: float, random: np.random.Generator) -> np.ndarray:
    """The frame, brought down, at a random place of a grey picture."""
    import cv2

    height, width = (max(2, round(side * scale)) for side in frame.shape[:2])
    small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)[:_HEIGHT, :_WIDTH]
    y, x = (int(random.integers(0, room - side + 1)) for room, side in zip((_HEIGHT, _WIDTH), small.shape[:2]))
    picture = np.full((_HEIGHT, _WIDTH, 3), 120, np.uint8)
    picture[y : y + small.shape[0], x : x + small.shape[1]] = small
    return picture


def finders() -> dict[str, Callable[[np.ndarray], bool]]:
    from mediapipe.python.solutions import face_detection, face_mesh

    with quiet_stderr():
        mesh = face_mesh.FaceMesh(static_image_mode=True, max_num_faces=2, refine_landmarks=True)
        full_range = face_detection.FaceDetection(model_selection=1)
    return {
        "mesh alone": lambda picture: bool(mesh.process(picture).multi_face_landmarks),
        "full-range detector": lambda picture: bool(full_range.process(picture).detections),
        "MTCNN": lambda picture: len(mtcnn.find_faces(picture)) > 0,
        "`curate`": lambda picture: bool(extract_landmarks([picture], hands=False).face_T.all()),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", required=True, type=Path, help="the folder `videos` of `omnihuman sample-media`")
    options = parser.parse_args(argv)
    seen, by = list(faces(options.videos)), finders()
    print(f"| face, pixels wide | {' | '.join(by)} |\n|---|{'---|' * len(by)}")
    spent = dict.fromkeys(by, 0.0)
    for width in _WIDTHS:
        random = np.random.default_rng(width)
        pictures = [far_away(frame, width / own, random) for frame, own in seen]
        hits = dict.fromkeys(by, 0)
        for name, find in by.items():
            begun = time.process_time()
            hits[name] = sum(map(find, pictures))
            spent[name] += time.process_time() - begun
        cells = [str(shares.Share(hit, len(pictures))) for hit in hits.values()]
        print(f"| {width} | {' | '.join(cells)} |", flush=True)
    looks = len(seen) * len(_WIDTHS)
    print(f"\n{', '.join(f'{name}: {1000 * seconds / looks:.0f} ms' for name, seconds in spent.items())} a picture")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
