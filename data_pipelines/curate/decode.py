"""Reads the headers of videos, and decodes clips of them; finding them is `footage.py`, their text `captions.py`."""

import dataclasses
import os
from collections.abc import Iterator

import numpy as np

from data_pipelines.curate.captions import caption_of
from data_pipelines.curate.footage import VIDEO_SUFFIXES, list_videos, video_ids
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.typing import FPS, SAMPLE_RATE_HZ

__all__ = ["VIDEO_SUFFIXES", "Video", "caption_of", "clip_audio", "clip_frames", "inspect", "list_videos", "video_ids"]


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
