"""Videos, images and sound in and out of files (PyAV, which bundles FFmpeg; Pillow for pictures). No JAX.

Everything inside the package is RGB uint8 at `FPS` and mono float32 at `SAMPLE_RATE_HZ`, on one clock: time 0 is the
first picture of the file, frame i is what is shown nearest to i / FPS, audio sample n belongs to n / SAMPLE_RATE_HZ.
Whatever a file does is undone or refused below this module: which tracks are read and how long they are in
`streams_omnihuman.py`, what becomes of a picture in `frames_omnihuman.py` and `images_omnihuman.py`, the clock of
pictures and sound in `footage_omnihuman.py` and `sound_omnihuman.py`.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation

if TYPE_CHECKING or __package__:
    from . import footage_omnihuman as footage
    from . import frames_omnihuman as gate
    from . import images_omnihuman as images
    from . import sound_omnihuman as sounds
    from . import streams_omnihuman as streams
    from .streams_omnihuman import MediaError
else:  # in an exported folder the files lie beside each other
    import footage_omnihuman as footage
    import frames_omnihuman as gate
    import images_omnihuman as images
    import sound_omnihuman as sounds
    import streams_omnihuman as streams
    from streams_omnihuman import MediaError

# As in typing.py, which is not imported here: exports carry this file as `media_omnihuman.py`.
FPS, SAMPLE_RATE_HZ = 25, 16_000
READER_VERSION = 3
"""Goes into the keys of whatever was made from what the reader gives. Raise it with any change of a pixel or a sample
that a file gives, of which files are refused, or of what the scan of a file says."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A video, as its first picture and its packets say it is. Sizes are displayed ones: orientation and non-square
    pixels already applied.

    `fps` is the mean, `duration_s` that of the pictures; `bit_rate` theirs, in bits a second; `audio_rate` 0 for none.
    """

    height: int
    width: int
    fps: float
    duration_s: float
    frames: int
    codec: str
    bit_rate: int
    audio_rate: int
    audio_channels: int

    @property
    def has_audio(self) -> bool:
        return self.audio_rate > 0


def probe(path: str | os.PathLike[str]) -> Probe:
    """What a video is: its first picture decoded, its packets counted and measured (read once, not decoded).

    Raises:
        MediaError: no video track, or not one picture can be decoded.
    """
    first = footage.opening(path)
    measured = streams.measure(path)[footage.film_index(path)]
    heard = sounds.beginning(path)
    height, width = first.look.size
    seconds = round(measured.seconds, 6)
    return Probe(
        height=height,
        width=width,
        fps=round(measured.packets / seconds, 6) if seconds else 0.0,
        duration_s=seconds,
        frames=measured.packets,
        codec=first.codec,
        bit_rate=round(8 * measured.size / seconds) if seconds else 0,
        audio_rate=heard.rate if heard else 0,
        audio_channels=heard.channels if heard else 0,
    )


def clock_findings(path: str | os.PathLike[str]) -> list[gate.Finding]:
    """What is odd about the time of a video's pictures and sound, and what was done."""
    first, heard = footage.opening(path), sounds.beginning(path)
    found = []
    if first.clock is not None:
        several = f"{len(first.clock.shifts_s)} recordings behind each other, each with its own clock"
        found.append(gate.Finding(name="clock", found=several, done="put on one clock", undone=True))
    if heard is not None:
        measured = streams.measure(path)
        late_s = heard.begin_s - first.origin_s
        sound_s, film_s = measured[heard.index].seconds, measured[footage.film_index(path)].seconds
        if abs(late_s) > sounds.GAP_S:
            begins = f"{abs(late_s):.3f} s {'after' if late_s > 0 else 'before'} the first picture"
            found.append(gate.Finding(name="sound begins", found=begins, done="kept in its place", undone=False))
        if abs(sound_s + late_s - film_s) > 1.0 / FPS:
            lasts = f"{sound_s:.2f} s, the pictures {film_s:.2f} s"
            done = "cut or filled with silence to the pictures"
            found.append(gate.Finding(name="sound lasts", found=lasts, done=done, undone=False))
    return found


def iter_video(
    path: str | os.PathLike[str],
    fps: float = FPS,
    size: tuple[int, int] | None = None,
    start_s: float = 0.0,
    duration_s: float | None = None,
    watch: Callable[[footage.Shown], None] = lambda shown: None,
    scaling: int = gate.SCALING,
) -> Iterator[np.ndarray]:
    """Yields the frames of a video resampled to `fps`, RGB uint8 [H, W, 3], without holding more than two.

    Frame i is the source picture nearest in time to start_s + i / fps, counted from the file's first picture: no drift
    and no bias against the sound whatever the source's frame rate. A video of duration d gives floor(d * fps) frames,
    one at least. `size` is (height, width). A picture that is given several times is one array, not to be written to.
    `watch` hears of each source picture that is given, before it is. `scaling` is one of `frames_omnihuman`'s.

    Raises:
        MediaError: not readable, damaged within the asked range, start_s lies past the end, or its pictures cannot be
            shown as a player shows them.
    """
    return footage.iter_video(path, fps, size, start_s, duration_s, watch, scaling)


def read_video(
    path: str | os.PathLike[str],
    fps: float = FPS,
    size: tuple[int, int] | None = None,
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> np.ndarray:
    """The frames of `iter_video` in one array, RGB uint8 [T, H, W, 3]."""
    return np.stack(list(iter_video(path, fps, size, start_s, duration_s)))


def read_image(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> np.ndarray:
    """A picture file (or a video's first picture) as RGB uint8 [H, W, 3]; `size` is (height, width).

    Raises:
        MediaError: not readable, broken off, or its colours are not stated.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such image file; check the path")
    picture = images.read(path)
    if picture is not None:
        if size is None or picture.shape[:2] == size:
            return picture
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        return frame.reformat(width=size[1], height=size[0], interpolation=gate.SCALING).to_ndarray()
    if streams.choose(path).video is None:
        raise MediaError(f"{path}: not an image; give a PNG or JPEG file")
    return next(footage.iter_video(path, FPS, size))


def read_audio(
    path: str | os.PathLike[str],
    sample_rate: int = SAMPLE_RATE_HZ,
    start_s: float = 0.0,
    duration_s: float | None = None,
    required: bool = False,
) -> np.ndarray | None:
    """The sound of an audio or video file as mono float32 [N] in [-1, 1], on the clock of its pictures.

    With a video track of several pictures, sample 0 is at `start_s` after the first picture and the result is as long
    as the pictures are (cut or padded with silence); a file of sound, or of sound and a cover, begins with its first
    sample. `duration_s` fixes the length; then no more than that part is decoded, or held. Holes in the track are
    silence, channels are averaged. None where the file has no audio track, or MediaError if it is `required`.

    Raises:
        MediaError: not readable, or a sample that is not finite or far beyond full scale.
    """
    return sounds.read_audio(path, sample_rate, start_s, duration_s, required)


def _fit(wave: np.ndarray, samples: int) -> np.ndarray:
    return np.pad(wave[:samples], (0, max(0, samples - wave.size)))


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray],
    fps: float = FPS,
    audio: np.ndarray | None = None,
    sample_rate: int = SAMPLE_RATE_HZ,
    crf: int = 18,
    codec: str = "libx264",
) -> None:
    """Writes an mp4 that any browser plays: H.264 yuv420p, AAC sound, index in front; atomic. `codec` libx265: H.265.

    `frames`: RGB uint8 [H, W, 3] each (an array [T, H, W, 3] or any iterable), odd sides padded by one repeated row or
    column. `audio`: mono float32 [N], cut or padded with silence to the length of the pictures.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise ValueError(f"{path}: no frames to write")
    try:
        with av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            video = _video_encoder(container, first, fps, crf, codec)
            sound = container.add_stream("aac", rate=sample_rate, layout="mono") if audio is not None else None
            count = 0
            for picture in itertools.chain((first,), iterator):
                container.mux(video.encode(_to_frame(picture, video, path)))
                count += 1
            container.mux(video.encode(None))
            if sound is not None and audio is not None:
                _encode_audio(
                    container, sound, _fit(np.asarray(audio, np.float32), round(count / fps * sample_rate)), sample_rate
                )
        os.replace(partial, path)
    except av.error.FFmpegError as error:
        raise MediaError(f"{path}: could not be encoded ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)


def _video_encoder(
    container: av.container.OutputContainer, first: np.ndarray, fps: float, crf: int, codec: str
) -> av.VideoStream:
    height, width = first.shape[:2]
    # x264's assembly for macroblock trees gives other bits for the same pictures once an AAC encoder has run in the
    # process, in a few calls of a hundred: without it the same pictures are the same file.
    own = {"libx264": {"x264-params": "mbtree=0"}, "libx265": {"x265-params": "log-level=error"}}
    options = {"crf": str(crf)} | own.get(codec, {})
    stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
    stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
    # Say which matrix the picture was converted with; players guess by size otherwise and shift the colours.
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = 6  # SMPTE 170M, i.e. BT.601
    context.color_range = 1  # limited ("MPEG") range
    return stream


def _to_frame(picture: np.ndarray, stream: av.VideoStream, path: Path) -> av.VideoFrame:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"{path}: frames must be uint8 [H, W, 3], not {picture.dtype} {list(picture.shape)}")
    pad = (stream.height - picture.shape[0], stream.width - picture.shape[1])
    if pad != (0, 0):
        if not all(0 <= p <= 1 for p in pad):
            raise ValueError(f"{path}: a frame of {picture.shape[:2]} in a video of {(stream.height, stream.width)}")
        picture = np.pad(picture, ((0, pad[0]), (0, pad[1]), (0, 0)), mode="edge")
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU601, interpolation=Interpolation.BICUBIC)


def _encode_audio(
    container: av.container.OutputContainer, stream: av.AudioStream, wave: np.ndarray, sample_rate: int
) -> None:
    frame = av.AudioFrame.from_ndarray(np.clip(wave, -1.0, 1.0)[None], format="flt", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = sample_rate, 0, Fraction(1, sample_rate)
    resampler = av.AudioResampler(
        format="fltp", layout="mono", rate=sample_rate, frame_size=stream.codec_context.frame_size or 1024
    )
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(stream.encode(piece))
    container.mux(stream.encode(None))
