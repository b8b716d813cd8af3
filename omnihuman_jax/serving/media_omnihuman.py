"""Videos, images and sound in and out of files (PyAV, which bundles FFmpeg). No JAX.

Everything inside the package is RGB uint8 at `FPS` and mono float32 at `SAMPLE_RATE_HZ`, on one clock: time 0 is the
first picture of the file, frame i is what is shown nearest to i / FPS, audio sample n belongs to n / SAMPLE_RATE_HZ.
Whatever a file does (29.97 or variable frame rate, sound that starts late, rotated phone footage, non-square pixels) is
undone here and nowhere else.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from av.stream import Disposition
from av.video.reformatter import Colorspace, Interpolation

# As in typing.py, which is not imported here: exports carry this file as `media_omnihuman.py`, and it must stand alone
# there.
FPS, SAMPLE_RATE_HZ = 25, 16_000
READER_VERSION = 2
"""Goes into the keys of whatever was made from what the reader gives. Raise it with any change of a pixel or a sample
that a file gives, of which files are refused, or of what the scan of a file says."""
# Sound that arrives later than this after where the sound before it ended is a hole in the track, not rounding.
GAP_S = 0.02
SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64", ".rf64")
"""Files of sound alone, which libsndfile reads; any other, and what it refuses, goes to FFmpeg."""


class MediaError(ValueError):
    """A file that cannot be read as what it is needed for: one line that names the file and the cure."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What a file's header says. Sizes are displayed ones: rotation and non-square pixels already applied.

    `fps` is the average, `duration_s` that of the pictures, 0 where the header does not say; `audio_rate` 0 for none.
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


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str], kind: str) -> Iterator[av.container.InputContainer]:
    """The file opened for reading; FFmpeg's many errors, in opening or decoding, come out as `MediaError`."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such {kind} file; check the path")
    try:
        # Some bytes of a damaged file still parse; metadata in another encoding must not stop a good one.
        with av.open(os.fspath(path), metadata_errors="ignore") as container:
            yield container
    except av.error.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise MediaError(f"{path}: not a readable {kind} ({reason}); re-encode it, or take it out") from error


def _seconds(ticks: int | None, base: Fraction | None) -> float | None:
    return None if ticks is None or base is None else float(ticks * base)


def _rotation(stream: av.VideoStream, frame: av.VideoFrame) -> int:
    """Quarter turns, counter-clockwise, that bring the stored picture upright."""
    return round(frame.rotation / 90) % 4


def _display_size(stream: av.VideoStream, frame: av.VideoFrame) -> tuple[int, int]:
    """(height, width) with square pixels, upright; the width changed by the pixel aspect is even."""
    height, width = frame.height, frame.width
    aspect = stream.sample_aspect_ratio
    if aspect and aspect != 1:
        width = max(2, 2 * round(width * float(aspect) / 2))
    return (width, height) if _rotation(stream, frame) % 2 else (height, width)


def _video_stream(container: av.container.InputContainer, path: str | os.PathLike[str]) -> av.VideoStream:
    if not container.streams.video:
        raise MediaError(f"{path}: no video track; give a video file")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return stream


def _first_frame(
    container: av.container.InputContainer, stream: av.VideoStream, path: str | os.PathLike[str]
) -> av.VideoFrame:
    frame = next(container.decode(stream), None)
    if frame is None:
        raise MediaError(f"{path}: not one picture could be decoded; re-encode it, or take it out")
    return frame


def probe(path: str | os.PathLike[str]) -> Probe:
    """The header of a video, and its first picture decoded.

    Raises:
        MediaError: no video track, or not one picture can be decoded.
    """
    with _opened(path, "video") as container:
        stream = _video_stream(container, path)
        frame = _first_frame(container, stream, path)
        height, width = _display_size(stream, frame)
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        duration = _seconds(stream.duration, stream.time_base) or 0.0
        if not duration and container.duration:
            duration = container.duration / av.time_base
        audio = container.streams.audio[0] if container.streams.audio else None
        return Probe(
            height=height,
            width=width,
            fps=fps,
            duration_s=duration,
            frames=stream.frames or round(duration * fps),
            codec=stream.codec_context.name,
            bit_rate=stream.bit_rate or container.bit_rate or 0,
            audio_rate=audio.rate if audio else 0,
            audio_channels=audio.channels if audio else 0,
        )


def _rgb(frame: av.VideoFrame, stream: av.VideoStream, size: tuple[int, int] | None) -> np.ndarray:
    """One decoded picture as upright RGB [H, W, 3] uint8 of `size` (default: its displayed size)."""
    turns = _rotation(stream, frame)
    height, width = size or _display_size(stream, frame)
    if turns % 2:
        height, width = width, height
    # Untagged video is BT.601 below HD and BT.709 from there, as every player assumes.
    untagged = Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601
    tagged = {1: Colorspace.ITU709, 5: Colorspace.ITU601, 6: Colorspace.ITU601, 9: Colorspace.BT2020}
    picture = frame.reformat(
        width=width,
        height=height,
        format="rgb24",
        src_colorspace=tagged.get(frame.colorspace, untagged),
        interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT,
    ).to_ndarray()
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


def iter_video(
    path: str | os.PathLike[str],
    fps: float = FPS,
    size: tuple[int, int] | None = None,
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> Iterator[np.ndarray]:
    """Yields the frames of a video resampled to `fps`, RGB uint8 [H, W, 3], without holding more than two.

    Frame i is the source picture nearest in time to start_s + i / fps, counted from the file's first picture: no drift
    and no bias against the sound whatever the source's frame rate. A video of duration d gives floor(d * fps) frames,
    one at least. `size` is (height, width).

    Raises:
        MediaError: not readable, damaged within the asked range, or start_s lies past the end.
    """
    if fps <= 0 or start_s < 0 or (duration_s is not None and duration_s <= 0):
        raise ValueError(f"fps {fps} and duration_s {duration_s} must be positive and start_s {start_s} not negative")
    wanted = None if duration_s is None else max(1, int(duration_s * fps + 1e-3))
    emitted = 0
    with _opened(path, "video") as container:
        stream = _video_stream(container, path)
        previous: av.VideoFrame | None = None
        previous_s = end_s = 0.0
        for frame, time_s, length_s in _timed_frames(container, stream, path, start_s):
            if previous is not None:
                # `previous` is the nearest picture up to half way to the next one.
                while (wanted is None or emitted < wanted) and start_s + emitted / fps <= (previous_s + time_s) / 2:
                    yield _rgb(previous, stream, size)
                    emitted += 1
            previous, previous_s, end_s = frame, time_s, time_s + length_s
            if wanted is not None and emitted >= wanted:
                return
        if previous is None:
            raise MediaError(f"{path}: not one picture could be decoded; re-encode it, or take it out")
        if start_s >= end_s and start_s > 0:
            raise MediaError(
                f"{path}: starts being read at {start_s:.3f} s but ends at {end_s:.3f} s; choose an earlier start"
            )
        total = max(1, int((end_s - start_s) * fps + 1e-3))
        while emitted < (total if wanted is None else min(wanted, total)):
            yield _rgb(previous, stream, size)
            emitted += 1


def _timed_frames(
    container: av.container.InputContainer, stream: av.VideoStream, path: str | os.PathLike[str], start_s: float
) -> Iterator[tuple[av.VideoFrame, float, float]]:
    """Yields (picture, seconds since the file's first picture, seconds that it is shown), in display order."""
    period = float(1 / (stream.average_rate or stream.guessed_rate or Fraction(FPS)))
    base = stream.time_base or Fraction(1, 90_000)
    origin: float | None = float(stream.start_time * base) if stream.start_time is not None else None
    # A keyframe seek only pays, and is only safe (sparse or lying indices), well into a file.
    if start_s > 2.0 and origin is not None:
        container.seek(int((origin + start_s - 1.0) / base), stream=stream, backward=True, any_frame=False)
    last_s = -period
    for frame in container.decode(stream):
        time_s = last_s + period if frame.pts is None else float(frame.pts * base)
        if origin is None:
            origin = time_s
        if frame.pts is not None:
            time_s -= origin
        if frame.is_corrupt:
            raise MediaError(f"{path}: damaged at {time_s:.2f} s; re-encode it, or take it out")
        if time_s <= last_s:  # a repeated or reordered timestamp: no time passes on that picture
            continue
        length_s = float(frame.duration * base) if frame.duration else period
        yield frame, time_s, length_s
        last_s = time_s


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
    """A picture file (or a video's first picture) as RGB uint8 [H, W, 3]; `size` is (height, width)."""
    with _opened(path, "image") as container:
        if not container.streams.video:
            raise MediaError(f"{path}: not an image; give a PNG or JPEG file")
        stream = container.streams.video[0]
        return _rgb(_first_frame(container, stream, path), stream, size)


def read_audio(
    path: str | os.PathLike[str],
    sample_rate: int = SAMPLE_RATE_HZ,
    start_s: float = 0.0,
    duration_s: float | None = None,
    required: bool = False,
) -> np.ndarray | None:
    """The sound of an audio or video file as mono float32 [N] in [-1, 1], on the clock of its pictures.

    With a video track, sample 0 is at `start_s` after the first picture and the result is as long as the header says
    the pictures are (cut or padded with silence); a file of sound alone begins with its first sample. `duration_s`
    fixes the length. Holes in the track are silence, channels are averaged. None where the file has no audio track, or
    MediaError if it is `required`.
    """
    if (whole := _read_sound_file(path)) is not None:
        wave = _resample(*whole, sample_rate)[round(start_s * sample_rate) :]
        wave = wave if duration_s is None else _fit(wave, round(duration_s * sample_rate))
        return np.clip(wave, -1.0, 1.0).astype(np.float32)
    with _opened(path, "audio" if required else "media") as container:
        if not container.streams.audio:
            if required:
                raise MediaError(f"{path}: has no audio track; give a wav, mp3, flac or a video with sound")
            return None
        origin_s = length_s = None
        if (
            container.streams.video and not container.streams.video[0].disposition & Disposition.attached_pic
        ):  # a cover has no clock
            video = container.streams.video[0]
            origin_s = _seconds(video.start_time, video.time_base) or 0.0
            length_s = _seconds(video.duration, video.time_base)
        native, rate, begin_s = _decode_audio(container)
    wave = _resample(native, rate, sample_rate)
    if origin_s is not None:
        wave = _shift(wave, round((begin_s - origin_s) * sample_rate))
    wave = wave[round(start_s * sample_rate) :]
    if duration_s is None and length_s is not None:
        duration_s = max(0.0, length_s - start_s)
    if duration_s is not None:
        wave = _fit(wave, round(duration_s * sample_rate))
    return np.clip(wave, -1.0, 1.0).astype(np.float32)


def _read_sound_file(path: str | os.PathLike[str]) -> tuple[np.ndarray, int] | None:
    """(mono float32 samples, their rate) of a file of sound alone; None where libsndfile does not read it."""
    if Path(path).suffix.lower() not in SOUND_SUFFIXES or not Path(path).is_file():
        return None
    try:
        samples, rate = soundfile.read(os.fspath(path), dtype="float32", always_2d=True)
    except soundfile.SoundFileError:
        return None  # a video in an .ogg, a damaged file: FFmpeg reads it, or says what is wrong
    return (samples.mean(axis=1, dtype=np.float32), rate) if len(samples) else None


def _decode_audio(container: av.container.InputContainer) -> tuple[np.ndarray, int, float]:
    """(mono samples at the native rate with holes filled, rate, time of the first sample in seconds)."""
    stream = container.streams.audio[0]
    rate = stream.rate
    # Channels are averaged here: FFmpeg's own downmix of floats sums them at 0.7 each, and overdrives.
    to_float = av.AudioResampler(format="fltp", rate=rate)
    chunks: list[np.ndarray] = []
    begin_s: float | None = None
    count = 0
    for frame in container.decode(stream):
        time_s = _seconds(frame.pts, frame.time_base)
        if begin_s is None:
            begin_s = time_s or 0.0
        elif time_s is not None and time_s - begin_s - count / rate > GAP_S:
            hole = round((time_s - begin_s) * rate) - count
            chunks.append(np.zeros(hole, np.float32))
            count += hole
        for planes in to_float.resample(frame):
            chunks.append(planes.to_ndarray().mean(0, dtype=np.float32))
            count += chunks[-1].size
    chunks += [planes.to_ndarray().mean(0, dtype=np.float32) for planes in to_float.resample(None)]
    return np.concatenate([*chunks, np.zeros(0, np.float32)]), rate, begin_s or 0.0


def _resample(wave: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """Band-limited change of the sampling rate; sample 0 stays at time 0."""
    if rate == sample_rate or not wave.size:
        return wave
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[None], np.float32), format="flt", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="flt", layout="mono", rate=sample_rate)
    pieces = [f.to_ndarray()[0] for f in [*resampler.resample(frame), *resampler.resample(None)]]
    return _fit(np.concatenate(pieces), round(wave.size * sample_rate / rate))


def _shift(wave: np.ndarray, samples: int) -> np.ndarray:
    return np.concatenate([np.zeros(samples, wave.dtype), wave]) if samples >= 0 else wave[-samples:]


def _fit(wave: np.ndarray, samples: int) -> np.ndarray:
    return np.pad(wave[:samples], (0, max(0, samples - wave.size)))


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray],
    fps: float = FPS,
    audio: np.ndarray | None = None,
    sample_rate: int = SAMPLE_RATE_HZ,
    crf: int = 18,
) -> None:
    """Writes an mp4 that any browser plays: H.264 yuv420p, AAC sound, index in front; atomic.

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
            video = _video_encoder(container, first, fps, crf)
            sound = container.add_stream("aac", rate=sample_rate, layout="mono") if audio is not None else None
            count = 0
            for picture in _chain(first, iterator):
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


def _chain(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest


def _video_encoder(container: av.container.OutputContainer, first: np.ndarray, fps: float, crf: int) -> av.VideoStream:
    height, width = first.shape[:2]
    stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": str(crf)})
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
