"""Measures videos, and decodes clips of them; finding them is `footage.py`, their text `captions.py`."""

import dataclasses
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from omnihuman_jax.serving import frames_omnihuman, media_omnihuman, streams_omnihuman
from omnihuman_jax.serving.frames_omnihuman import Look, findings
from omnihuman_jax.serving.streams_omnihuman import MediaError
from omnihuman_jax.typing import FPS, SAMPLE_RATE_HZ

# Pictures are scored with so many lines at most: more cost time, and the networks see no more of them.
MAX_LINES = 720


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Video:
    """What was found in a file."""

    sha256: str
    height: int
    width: int
    source_fps: float
    duration_s: float
    bits_per_pixel: float
    has_audio: bool
    tracks: list[dict[str, Any]]
    properties: list[dict[str, Any]]


def inspect(path: str | os.PathLike[str], sha256: str) -> Video:
    """A video by its packets and its first picture; `MediaError` if it is none, or it breaks off."""
    if streams_omnihuman.is_cut_short(path):
        raise MediaError(f"{path}: truncated: its index reaches beyond its end; copy or download it again")
    header = media_omnihuman.probe(path)
    pixels_per_s = header.height * header.width * header.fps
    return Video(
        sha256=sha256,
        height=header.height,
        width=header.width,
        source_fps=header.fps,
        duration_s=header.duration_s,
        bits_per_pixel=header.bit_rate / pixels_per_s if pixels_per_s else 0.0,
        has_audio=header.has_audio,
        tracks=[dataclasses.asdict(track) for track in streams_omnihuman.choose(path).tracks],
        properties=[],
    )


def with_properties(path: str | os.PathLike[str], video: Video, looks: Iterable[Look]) -> Video:
    """The video with everything that was found in its pictures and sound, and what is done about it.

    `looks`: of its pictures, in order of appearance.
    """
    found = [*findings(looks), *media_omnihuman.clock_findings(path)]
    return dataclasses.replace(video, properties=[dataclasses.asdict(finding) for finding in found])


def refusal(video: Video) -> str:
    """Why `--strict` refuses a video: what would have to be undone; empty if nothing."""
    undone = [f"{p['name']} ({p['found']})" for p in video.properties if p["undone"]]
    return f"refused by --strict: {', '.join(undone)}; convert it, or leave --strict out" if undone else ""


def scored_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) that pictures of this size are scored in: their own, or the shorter side brought to
    `MAX_LINES`.
    """
    lines = min(height, width)
    if lines <= MAX_LINES:
        return height, width
    return 2 * round(height * MAX_LINES / lines / 2), 2 * round(width * MAX_LINES / lines / 2)


def scored_frames(
    path: str | os.PathLike[str], start_frame: int, end_frame: int, height: int, width: int
) -> Iterator[np.ndarray]:
    """RGB uint8 [H, W, 3], one a frame of the 25 fps grid, of pictures of `height` and `width`: as they are, or brought
    down to `MAX_LINES`.
    """
    size = scored_size(height, width)
    return media_omnihuman.iter_video(
        path,
        fps=FPS,
        size=size,
        start_s=start_frame / FPS,
        duration_s=(end_frame - start_frame) / FPS,
        scaling=frames_omnihuman.SCALING if size == (height, width) else frames_omnihuman.AVERAGING,
    )


def clip_frames(path: str | os.PathLike[str], start_frame: int, end_frame: int) -> Iterator[np.ndarray]:
    """RGB uint8 [H, W, 3], one a frame of the 25 fps grid, as large as it is displayed."""
    return media_omnihuman.iter_video(
        path, fps=FPS, start_s=start_frame / FPS, duration_s=(end_frame - start_frame) / FPS
    )


def clip_audio(path: str | os.PathLike[str], start_frame: int, end_frame: int) -> np.ndarray | None:
    """Mono float32 at 16 kHz, as long as the clip; None without a track."""
    return media_omnihuman.read_audio(path, SAMPLE_RATE_HZ, start_frame / FPS, (end_frame - start_frame) / FPS)
