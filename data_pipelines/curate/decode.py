"""Finds videos, reads their headers, and decodes clips of them."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.typing import FPS, SAMPLE_RATE_HZ

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv"}
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Video:
    """A file of the folder and what its header says; `name` is its path below the folder, `video_id` a file-name-safe
    form.
    """

    name: str
    video_id: str
    path: str
    sha256: str
    height: int
    width: int
    source_fps: float
    duration_s: float
    bits_per_pixel: float
    has_audio: bool


def list_videos(folder: str | os.PathLike[str]) -> list[str]:
    """Paths below `folder` of its videos, by suffix, in order.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: there is no video in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; give the folder that holds the videos")
    names = sorted(
        str(p.relative_to(root)) for p in root.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file()
    )
    if not names:
        raise ValueError(f"{root}: no videos in it; files of these kinds are read: {' '.join(sorted(VIDEO_SUFFIXES))}")
    return names


def video_ids(names: list[str]) -> dict[str, str]:
    """Name -> an id that is safe in file names; names that would share one keep their suffix, or get a digest."""
    plain = {name: re.sub(r"[^\w.-]+", "_", str(Path(name).with_suffix("")).replace(os.sep, "__")) for name in names}
    taken = [value.casefold() for value in plain.values()]
    return {
        name: value
        if taken.count(value.casefold()) == 1
        else f"{value}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        for name, value in plain.items()
    }


def inspect(path: str | os.PathLike[str], name: str, video_id: str, sha256: str) -> Video:
    """The header of a video; `media.MediaError` if it is not one or its first picture cannot be decoded."""
    header = media_omnihuman.probe(path)
    pixels_per_s = header.height * header.width * header.fps
    return Video(
        name=name,
        video_id=video_id,
        path=os.fspath(path),
        sha256=sha256,
        height=header.height,
        width=header.width,
        source_fps=header.fps,
        duration_s=header.duration_s,
        bits_per_pixel=header.bit_rate / pixels_per_s if pixels_per_s else 0.0,
        has_audio=header.has_audio,
    )


def clip_frames(path: str | os.PathLike[str], start_frame: int, end_frame: int) -> Iterator[np.ndarray]:
    """RGB uint8 [H, W, 3], one a frame of the 25 fps grid."""
    return media_omnihuman.iter_video(
        path, fps=FPS, start_s=start_frame / FPS, duration_s=(end_frame - start_frame) / FPS
    )


def clip_audio(path: str | os.PathLike[str], start_frame: int, end_frame: int) -> np.ndarray | None:
    """Mono float32 at 16 kHz, as long as the clip; None without a track."""
    return media_omnihuman.read_audio(path, SAMPLE_RATE_HZ, start_frame / FPS, (end_frame - start_frame) / FPS)


def caption_of(path: str | os.PathLike[str], default: str) -> tuple[str, str]:
    """(caption, "sidecar" or "default"): the text of the `.txt` beside the video, in one line."""
    sidecar = Path(path).with_suffix(".txt")
    if sidecar.is_file():
        text = " ".join(sidecar.read_text(encoding="utf-8", errors="replace").split())
        if text:
            return text, "sidecar"
    return default, "default"
