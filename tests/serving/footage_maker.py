"""Small files as people have them, made by PyAV and Pillow: a scene whose content can be checked after reading.

The scene is a grey card with a red field in the upper left and a white flash while the sound clicks.
"""

import dataclasses
import struct
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

HEIGHT, WIDTH = 48, 64
GREY, RED = 120, (200, 40, 40)
FLASHES_S = (0.4, 0.88)
_TICKS = 90_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """A container with its codecs. frame_rate_only: times are counted in pictures, so none can be late or variable."""

    suffix: str
    video: str = "libx264"
    audio: str = "aac"
    pixels: str = "yuv420p"
    rate: int = 48_000
    muxer: str | None = None
    frame_rate_only: bool = False
    options: tuple[tuple[str, str], ...] = ()


FORMATS = {
    "mp4 h264 aac": Format(suffix="mp4"),
    "mp4 hevc aac": Format(suffix="mp4", video="libx265", options=(("x265-params", "log-level=none"),)),
    "mp4 fragmented": Format(suffix="mp4", options=(("movflags", "frag_keyframe+delay_moov"),)),
    "mov prores pcm": Format(suffix="mov", video="prores_ks", audio="pcm_s16le", pixels="yuv422p10le"),
    "3gp h264 aac": Format(suffix="3gp", rate=16_000),
    "mkv h264 opus": Format(suffix="mkv", audio="libopus"),
    "mkv ffv1 flac": Format(suffix="mkv", video="ffv1", audio="flac"),
    "mkv live": Format(suffix="mkv", audio="libopus", options=(("live", "1"),)),
    "webm vp8 opus": Format(suffix="webm", video="libvpx", audio="libopus", options=(("live", "1"),)),
    "webm vp9 opus": Format(suffix="webm", video="libvpx-vp9", audio="libopus"),
    "ts h264 aac": Format(suffix="ts"),
    "mts h264 ac3": Format(suffix="MTS", audio="ac3", muxer="mpegts"),
    "m2ts mpeg2 mp2": Format(suffix="m2ts", video="mpeg2video", audio="mp2", muxer="mpegts"),
    "mpg mpeg2 mp2": Format(suffix="mpg", video="mpeg2video", audio="mp2", muxer="vob"),
    "avi mpeg4 mp3": Format(suffix="avi", video="mpeg4", audio="libmp3lame", frame_rate_only=True),
    "flv h264 aac": Format(suffix="flv", rate=44_100),
}


def card(height: int = HEIGHT, width: int = WIDTH, flash: bool = False) -> np.ndarray:
    picture = np.full((height, width, 3), 250 if flash else GREY, np.uint8)
    picture[: height // 3, : width // 3] = RED
    return picture


def scene(
    seconds: float = 1.2, fps: float = 25.0, size: tuple[int, int] = (HEIGHT, WIDTH)
) -> list[tuple[float, np.ndarray]]:
    """(seconds, picture) of each frame: a flash of 0.08 s at each of `FLASHES_S`."""
    times = np.arange(round(seconds * fps)) / fps
    return [(t, card(*size, any(f - 1e-6 <= t < f + 0.079 for f in FLASHES_S))) for t in times]


def clicks(seconds: float, rate: int) -> np.ndarray:
    """A 20 ms tone at each of `FLASHES_S`."""
    wave = np.zeros(round(seconds * rate), np.float32)
    tone = 0.8 * np.sin(2 * np.pi * 1000 * np.arange(rate // 50) / rate)
    for at_s in FLASHES_S:
        begin = round(at_s * rate)
        wave[begin : begin + tone.size] = tone[: max(0, wave.size - begin)]
    return wave


def write(
    path: Path,
    kind: Format,
    pictures: Sequence[tuple[float, np.ndarray]],
    sound: np.ndarray | None = None,
    *,
    delay_s: float = 0.0,
    sound_at_s: float = 0.0,
    prepare: Callable[[av.VideoStream], None] = lambda stream: None,
    encoder: dict[str, str] | None = None,
    draw: Callable[[np.ndarray], av.VideoFrame] | None = None,
) -> Path:
    """Writes the pictures at their times and the sound from `sound_at_s` on, both `delay_s` later.

    `draw` makes the encoder's frame of a picture where the usual conversion to `kind.pixels` will not do.
    """
    options = dict(kind.options)
    muxing = {name: options.pop(name) for name in ("movflags", "live") if name in options}
    with av.open(str(path), "w", format=kind.muxer, container_options=muxing) as out:
        video = out.add_stream(kind.video, rate=25, options={**options, **(encoder or {})})
        video.height, video.width = pictures[0][1].shape[:2]
        video.pix_fmt = kind.pixels
        base = Fraction(1, 25 if kind.frame_rate_only or kind.video == "mpeg2video" else _TICKS)
        video.time_base = video.codec_context.time_base = base
        prepare(video)
        packets: list[av.Packet] = []
        for time_s, picture in pictures:
            frame = (draw or (lambda p: converted(p, kind.pixels)))(picture)
            frame.pts, frame.time_base = round((time_s + delay_s) / base), base
            packets += video.encode(frame)
        packets += video.encode(None)
        if sound is not None:
            stream = out.add_stream(kind.audio, rate=kind.rate, layout="mono")
            packets += encoded_sound(stream, sound, kind.rate, delay_s + sound_at_s)
        for packet in sorted((p for p in packets if p.dts is not None), key=lambda p: float(p.dts * p.time_base)):
            out.mux(packet)
    return path


def converted(picture: np.ndarray, pixels: str) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    return frame.reformat(format=pixels, dst_colorspace="ITU601", interpolation="BICUBIC")


def encoded_sound(stream: av.AudioStream, sound: np.ndarray, rate: int, at_s: float) -> Iterator[av.Packet]:
    frame = av.AudioFrame.from_ndarray(sound[None], format="flt", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    resampler = av.AudioResampler(
        format=stream.codec_context.format.name,
        layout="mono",
        rate=rate,
        frame_size=stream.codec_context.frame_size or 1024,
    )
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        piece.pts += round(at_s * rate)
        yield from stream.encode(piece)
    yield from stream.encode(None)


def with_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """The mp4 with another track matrix of its (first) video track."""
    raw = path.read_bytes()
    at = raw.index(b"tkhd") + 4
    at += 4 + (32 if raw[at] else 20) + 16
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(raw[:at] + matrix + raw[at + 36 :])
    return path


def flash_times(frames: np.ndarray) -> np.ndarray:
    """When the lower right, which is grey else, begins to be white."""
    height, width = frames.shape[1:3]
    bright = frames[:, height // 2 :, width // 2 :].mean((1, 2, 3)) > 190
    return np.flatnonzero(np.diff(bright.astype(int), prepend=0) == 1) / 25


def click_times(sound: np.ndarray, rate: int = 16_000) -> np.ndarray:
    loud = np.flatnonzero(np.abs(sound) > 0.25) / rate
    return loud[np.diff(loud, prepend=-1.0) > 0.1]
