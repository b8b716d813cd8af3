"""Makes the corpus: videos with planted faults, and what is true of each.

    python -m tests.data_pipelines.corpus.make --out runs/corpus [--each 2]

`OUT/videos` is what `omnihuman curate` reads, `OUT/truth.json` what `score.py` compares with: a row a video. The same
seed gives the same bytes.
"""

import argparse
import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from omnihuman_jax.runtime import files
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.typing import FPS, SAMPLE_RATE_HZ
from tests.data_pipelines.corpus import scenes
from tests.data_pipelines.corpus.plan import DISSOLVE, LATE, Planned, plan, subset
from tests.data_pipelines.corpus.scenes import SCENES
from tests.data_pipelines.written_text import layer_of
from tests.serving import footage_maker

TRUTH_FILE = "truth.json"
# Size of what is put together of two scenes, and of each of two faces.
_JOINT, _HALF = (288, 384), (288, 240)
# Where the hands of the scene `hands` are: right of and below these shares of the picture.
_PANEL_X, _PANEL_Y = 0.42, 0.36
_WORDS = {
    "subtitle": ("I never said that to him", "Then who was it?", "We leave tomorrow at six"),
    "watermark": ("STUDIO 7", "CANAL NORD", "@mirela.k"),
    "banner": ("LIVE  Markets fall for a third day", "NEWS  Bridge closed until Monday", "MARTA KLEIN, Engineer"),
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrueVideo:
    """What is true of a video.

    shots      frames [begin, end) of the 25 fps grid; of a dissolve, which lies between two of them, without it
    black      of each shot, whether it is all black
    height, width  as it is displayed;  fps  of the file; 0: varies
    faces      that look out of the picture;  hands  whether one is seen, None where nobody looked
    text       kind of text that is laid over it, "" without;  scene_text  whether letters are in the scene itself
    sound      "own", "other", "silence", "none";  late_s  how much it is late
    letterbox  share of the lines that are bars;  turned  degrees that a player turns it by
    start      first frame of the scene that is seen;  mirrored  whether left and right are exchanged
    original   of a duplicate, the other video
    """

    name: str
    fault: str
    scene: str
    start: int
    mirrored: bool
    shots: list[list[int]]
    black: list[bool]
    height: int
    width: int
    faces: int
    hands: bool | None
    scene_text: bool
    sound: str
    fps: float = FPS
    text: str = ""
    late_s: float = 0.0
    letterbox: float = 0.0
    turned: int = 0
    frozen: bool = False
    original: str = ""
    how: Any = ""

    @property
    def frames(self) -> int:
        return self.shots[-1][1]


def make(out: Path, videos: Sequence[Planned]) -> list[TrueVideo]:
    """Writes the videos and their truth; the folder is emptied first."""
    scenes.fetch()
    folder = out / "videos"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    truths: dict[str, TrueVideo] = {}
    # Scenes are decoded once: videos of one scene follow each other, duplicates come last.
    for video in sorted(videos, key=lambda video: (bool(video.original), video.scene, video.name)):
        path = folder / video.name
        if video.original:
            _copy(folder / video.original, path, video.how)
            truths[video.name] = _truth_of_copy(path, video, truths[video.original])
        else:
            truths[video.name] = _write(path, video)
    files.write_text(
        out / TRUTH_FILE, json.dumps([dataclasses.asdict(truths[v.name]) for v in videos], indent=1) + "\n"
    )
    return [truths[video.name] for video in videos]


def read_truth(out: Path) -> list[TrueVideo]:
    return [TrueVideo(**row) for row in json.loads((out / TRUTH_FILE).read_text())]


def _write(path: Path, video: Planned) -> TrueVideo:
    scene = SCENES[video.scene]
    frames, wave = seen(video), heard(video)
    facts: dict[str, Any] = {"hands": scene.hands, "scene_text": scene.text, "faces": scene.faces}
    if video.fault == "vfr":
        facts["fps"] = 0.0
        _write_uneven(path, frames, wave, video)
    elif video.fault == "rotated":
        facts["turned"] = video.how
        _write_turned(path, frames, wave, video.how)
    elif video.fault == "fps12":
        facts["fps"] = 12.0
        at = np.round(np.arange(len(frames) * 12 // FPS) * FPS / 12).astype(int)
        media_omnihuman.write_video(path, frames[at], fps=12, audio=wave, sample_rate=SAMPLE_RATE_HZ)
    else:
        media_omnihuman.write_video(path, frames, audio=wave, sample_rate=SAMPLE_RATE_HZ)
    count = len(frames)
    shots, black = [[0, count]], [False]
    match video.fault:
        case "cut":
            shots, black = [[0, video.how], [video.how, count]], [False, False]
        case "dissolve":
            shots, black = [[0, video.how], [video.how + DISSOLVE, count]], [False, False]
        case "black" if video.how == "half":
            shots, black = [[0, count // 2], [count // 2, count]], [False, True]
        case "black":
            black = [True]
        case "hands_hidden":
            facts["hands"] = False
        case "late":
            facts["late_s"] = LATE / FPS
        case "letterbox":
            facts["letterbox"] = 2 * _bar(video, frames.shape[1]) / frames.shape[1]
        case "text":
            facts["text"] = video.how
        case "two_faces":
            facts["faces"] = 2
            facts["scene_text"] |= bool(video.other) and SCENES[video.other].text
    if video.fault in ("cut", "dissolve"):
        facts |= {"hands": None, "faces": -1, "scene_text": scene.text or SCENES[video.other].text}
    own = video.heard == video.scene
    return TrueVideo(
        name=video.name,
        fault=video.fault,
        scene=video.scene,
        start=video.start,
        mirrored=video.mirrored,
        shots=shots,
        black=black,
        height=frames.shape[1],
        width=frames.shape[2],
        sound="own" if own else {"": "none", "silence": "silence"}.get(video.heard, "other"),
        frozen=video.fault == "frozen",
        how=video.how,
        **facts,
    )


def seen(video: Planned) -> np.ndarray:
    """The pictures, RGB uint8 [T, H, W, 3], as a player shows them on the 25 fps grid."""
    frames = _stretch(video, video.scene, video.start)
    match video.fault:
        case "cut" | "dissolve":
            first, second = _filled(frames, _JOINT), _filled(_stretch(video, video.other, video.other_start), _JOINT)
            width = DISSOLVE if video.fault == "dissolve" else 0
            share_T = np.clip((np.arange(video.frames) - video.how + 1) / (width + 1), 0, 1)
            share_T = share_T if width else (np.arange(video.frames) >= video.how) * 1.0
            mixed = [a * (1 - share) + b * share for a, b, share in zip(first, second, share_T, strict=True)]
            return np.round(mixed).astype(np.uint8)
        case "black":
            frames = frames.copy()
            frames[0 if video.how == "whole" else video.frames // 2 :] = 0
        case "letterbox":
            bar = _bar(video, frames.shape[1])
            frames = frames.copy()
            frames[:, :bar] = frames[:, frames.shape[1] - bar :] = 0
        case "text":
            return _with_text(frames, video)
        case "vertical":
            height = frames.shape[1]
            return _filled(frames, (height, 2 * round(height * 9 / 32)), _centre(video, video.scene))
        case "hands_hidden":
            frames = frames.copy()
            y, x = round(frames.shape[1] * _PANEL_Y), round(frames.shape[2] * _PANEL_X)
            part = slice(x, None) if not video.mirrored else slice(None, frames.shape[2] - x)
            frames[:, y:, part] = (92, 84, 70)
        case "two_faces" if video.other:
            other = _stretch(video, video.other, video.other_start)
            sides = [
                _filled(picture, _HALF, _centre(video, name))
                for picture, name in ((frames, video.scene), (other, video.other))
            ]
            return np.concatenate(sides, axis=2)
        case "frozen":
            return np.repeat(frames[:1], video.frames, 0)
    return frames


def heard(video: Planned) -> np.ndarray | None:
    """Mono float32 at 16 kHz as long as the pictures; None for no track."""
    if not video.heard:
        return None
    samples = video.frames * SAMPLE_RATE_HZ // FPS
    if video.heard == "silence":
        return np.zeros(samples, np.float32)
    begin = video.heard_start * SAMPLE_RATE_HZ // FPS
    wave = scenes.sound(video.heard)[begin : begin + samples]
    assert len(wave) == samples, (video.name, len(wave), samples)
    return wave


def _stretch(video: Planned, name: str, start: int) -> np.ndarray:
    """The frames of a scene, back and forth where it is too short, a part of each of them."""
    whole = scenes.pictures(name)
    back_and_forth = np.concatenate([np.arange(len(whole)), np.arange(len(whole) - 2, 0, -1)])
    frames = whole[back_and_forth[(start + np.arange(video.frames)) % len(back_and_forth)]]
    height, width = frames.shape[1:3]
    if name == "park":  # a still picture, so the camera moves
        high, wide = round(height * 0.7), round(width * 0.7)
        top, lefts = (height - high) // 2, np.round(np.linspace(0.1, 0.9, len(frames)) * (width - wide)).astype(int)
        panned = [frame[top : top + high, x : x + wide] for frame, x in zip(frames, lefts, strict=True)]
        frames = np.stack([cv2.resize(frame, (width, height)) for frame in panned])
    cut_h, cut_w = 2 * round(height * video.zoom / 2), 2 * round(width * video.zoom / 2)
    y, x = round((height - cut_h) * video.at[1]), round((width - cut_w) * video.at[0])
    frames = frames[:, y : y + cut_h, x : x + cut_w]
    return np.ascontiguousarray(frames[:, :, ::-1] if video.mirrored else frames)


def _centre(video: Planned, name: str) -> float:
    """Where a scene's face is in the part of it that is used, in shares of the width."""
    x = (SCENES[name].centre - (1 - video.zoom) * video.at[0]) / video.zoom
    return 1 - x if video.mirrored else x


def _filled(frames: np.ndarray, size: tuple[int, int], centre: float = 0.5) -> np.ndarray:
    """The frames in another size: as much of them as has its shape, around a share of the width."""
    height, width = frames.shape[1:3]
    wide, high = min(width, round(height * size[1] / size[0])), min(height, round(width * size[0] / size[1]))
    x = int(np.clip(round(width * centre - wide / 2), 0, width - wide))
    y = (height - high) // 2
    part = frames[:, y : y + high, x : x + wide]
    return np.stack([cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA) for frame in part])


def _bar(video: Planned, height: int) -> int:
    """Lines of each of two bars: an even number, so that no line of colour is shared with the picture."""
    return 2 * round(height * video.how / 4)


def _with_text(frames: np.ndarray, video: Planned) -> np.ndarray:
    words = _WORDS.get(video.how, ())
    texts = (words[int(video.name[-6:-4]) // 4 % len(words)],) if words else ()
    layer = layer_of(video.how, *frames.shape[1:3], texts)
    return np.stack([
        np.asarray(Image.alpha_composite(Image.fromarray(frame).convert("RGBA"), layer).convert("RGB"))
        for frame in frames
    ])  # fmt: skip


_MP4 = footage_maker.Format(suffix="mp4", options=(("crf", "18"), ("x264-params", "mbtree=0")))


def _write_uneven(path: Path, frames: np.ndarray, wave: np.ndarray | None, video: Planned) -> None:
    """Pictures that last from one to three frames each, as cameras of phones make them."""
    rng = np.random.default_rng([*video.name.encode()])
    at, times = 0.0, []
    while at < len(frames) - 0.5:
        times.append(at)
        at += float(rng.uniform(0.7, 3.0)) if rng.random() < 0.4 else 1.0
    pictures = [(time / FPS, frames[min(round(time), len(frames) - 1)]) for time in times]
    footage_maker.write(path, _MP4, pictures, _at_48k(wave))


def _write_turned(path: Path, frames: np.ndarray, wave: np.ndarray | None, degrees: int) -> None:
    """Stored turned, with the matrix by which a player turns it back."""
    stored = np.rot90(frames, degrees // 90, axes=(1, 2))
    pictures = [(number / FPS, np.ascontiguousarray(frame)) for number, frame in enumerate(stored)]
    footage_maker.write(path, _MP4, pictures, _at_48k(wave))
    # Clockwise by 90, 180 and 270 degrees: what np.rot90 did the other way round.
    a, b, c, d = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    footage_maker.with_matrix(path, a, b, c, d)


def _at_48k(wave: np.ndarray | None) -> np.ndarray | None:
    if wave is None:
        return None
    from scipy.signal import resample_poly

    return resample_poly(wave, 3, 1).astype(np.float32)


def _copy(original: Path, path: Path, how: str) -> None:
    """The bytes, or the same film encoded once more."""
    if how == "bytes":
        shutil.copyfile(original, path)
        return
    header = media_omnihuman.probe(original)
    size = None
    if how == "smaller":
        size = (2 * round(header.height * 0.4), 2 * round(header.width * 0.4))
    frames = media_omnihuman.read_video(original, size=size)
    wave = media_omnihuman.read_audio(original, SAMPLE_RATE_HZ)
    codec = "libx265" if how == "h265" else "libx264"
    media_omnihuman.write_video(
        path, frames, audio=wave, sample_rate=SAMPLE_RATE_HZ, crf=32 if how == "crf" else 24, codec=codec
    )


def _truth_of_copy(path: Path, video: Planned, original: TrueVideo) -> TrueVideo:
    header = media_omnihuman.probe(path)
    return dataclasses.replace(
        original,
        name=video.name,
        fault="duplicate",
        original=video.original,
        how=video.how,
        height=header.height,
        width=header.width,
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=0, help="only so many of each fault (default: all)")
    options = parser.parse_args(argv)
    videos = plan(options.seed)
    made = make(options.out, list(subset(videos, options.each)) if options.each else videos)
    print(f"{options.out}: {len(made)} videos, {sum(video.frames for video in made) / FPS:.0f} s")


if __name__ == "__main__":
    main()
