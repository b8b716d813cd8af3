"""The sound of a file on the clock of its pictures, piece by piece: memory follows what is asked, not the file."""

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import av
import numpy as np
import soundfile

if TYPE_CHECKING or __package__:
    from . import footage_omnihuman as footage
    from . import streams_omnihuman as streams
    from .streams_omnihuman import MediaError
else:  # in an exported folder the files lie beside each other
    import footage_omnihuman as footage
    import streams_omnihuman as streams
    from streams_omnihuman import MediaError

SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64", ".rf64")
"""Files of sound alone, which libsndfile reads; any other, and what it refuses, goes to FFmpeg."""
# Sound that begins this much later or earlier than where the sound before it ended is a hole or an overlap, not
# rounding.
GAP_S = 0.02
# Floats above 1 are the overshoot of a lossy codec and are clipped; this much is no sound at full scale 1.
MAX_AMPLITUDE = 16.0
# Silence as long as this is a broken clock; sound of more than this is asked for by mistake.
_MAX_HOLE_S, _MAX_S = 600.0, 24 * 3600.0
# Decoded before what is asked: codecs remember that much (Opus 80 ms, MP3 its bit reservoir), the resampler a little.
_LEAD_S, _FILTER_S = 0.6, 0.02
# Of the length that a wav states: how much may be missing, and from where on it is none.
_PADDING_BYTES, _LENGTH_UNKNOWN = 1024, 0x7FFF_0000
# Containers in which a jump by time lands where it says; in others the packets before it are read, not decoded.
_SEEKABLE = frozenset({"mov", "matroska", "mpegts", "avi", "asf", "flv"})


_Piece = tuple[int, np.ndarray]
"""(on the clock, at the track's own rate: the number of the first sample; mono float32 samples)"""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Beginning:
    """The first sound that can be decoded: its time on the file's own clock, and how the codec cuts it into frames."""

    index: int
    rate: int
    channels: int
    begin_s: float
    first_samples: int
    frame_samples: int
    clock: streams.Measured | None


def read_audio(
    path: str | os.PathLike[str], sample_rate: int, start_s: float, duration_s: float | None, required: bool
) -> np.ndarray | None:
    """`media_omnihuman.read_audio`."""
    if not start_s >= 0 or not (duration_s is None or duration_s >= 0):
        raise ValueError(f"start_s {start_s} and duration_s {duration_s} must not be negative")
    if duration_s is not None and duration_s > _MAX_S:
        raise ValueError(f"duration_s {duration_s} is more than a day of sound; read it in parts")
    if (file := _sound_file(path)) is not None:
        with file:
            return _cut(_file_pieces(file, path), file.samplerate, sample_rate, start_s, duration_s, path)
    heard = beginning(path)
    if heard is None:
        if required:
            raise MediaError(f"{path}: has no audio track; give a wav, mp3, flac or a video with sound")
        return None
    film = _film(path)
    if duration_s is None and film is not None:
        end_s = streams.measure(path)[film].end_s - _origin_s(path, film)
        duration_s = max(0.0, end_s - start_s)
        if duration_s > _MAX_S:
            raise MediaError(f"{path}: is {duration_s / 3600:.0f} hours long by its timestamps; re-encode it")
    origin_s = heard.begin_s if film is None else _origin_s(path, film)
    return _cut(_track_pieces(path, heard, origin_s), heard.rate, sample_rate, start_s, duration_s, path)


def _film(path: str | os.PathLike[str]) -> int | None:
    """The track whose pictures the sound goes with; None without."""
    choice = streams.choose(path)
    return None if choice.still else choice.video


def _origin_s(path: str | os.PathLike[str], film: int) -> float:
    """Time of the first picture on the file's clock. It is decoded: to measure is to read the whole file."""
    try:
        return footage.opening(path).origin_s
    except MediaError:  # pictures that nobody can see; the sound is good all the same
        return streams.measure(path)[film].start_s


def _cut(
    pieces: "_Source",
    rate: int,
    sample_rate: int,
    start_s: float,
    duration_s: float | None,
    path: str | os.PathLike[str],
) -> np.ndarray:
    """Mono float32 at `sample_rate` from `start_s` on, silence where there is none; to the last piece without a
    duration.

    The resampler begins at a sample that falls on one of the output's, wherever reading begins: a part is what it is in
    the whole.
    """
    if not 1000 <= rate <= 1_536_000:
        raise MediaError(f"{path}: {rate} samples a second are no sound; save it at 16000 or more")
    unit = rate // math.gcd(rate, sample_rate)
    out_first = round(start_s * sample_rate)
    margin = math.ceil(_FILTER_S * rate)
    first = (out_first * rate // sample_rate - margin) // unit * unit
    count = None if duration_s is None else round(duration_s * sample_rate)
    stop = None if count is None else -(-(out_first + count) * rate // sample_rate) + margin
    resampler = _Resampler(rate, sample_rate)
    at = first
    for piece_at, samples in pieces(first) if count != 0 else ():
        _check(samples, piece_at / rate, rate, path)
        if piece_at - at > _MAX_HOLE_S * rate and (stop is None or stop - at > _MAX_HOLE_S * rate):
            raise MediaError(
                f"{path}: a hole of {(piece_at - at) / rate:.0f} s in the sound; its timestamps are broken"
            )
        for block in _in_order(piece_at, samples, at, stop, rate):
            resampler.push(block)
            at += block.size
        if stop is not None and at >= stop:
            break
    wave = resampler.finished()
    wave = wave[out_first - first * sample_rate // rate :]
    count = max(0, round(at * sample_rate / rate) - out_first) if count is None else count
    wave = np.pad(wave[:count], (0, max(0, count - wave.size)))
    return np.clip(wave, -1.0, 1.0)


def _in_order(piece_at: int, samples: np.ndarray, at: int, stop: int | None, rate: int) -> Iterator[np.ndarray]:
    """What comes next at sample `at`: silence up to the piece in blocks of a second, then what of it is new."""
    while at < piece_at and (stop is None or at < stop):
        block = np.zeros(min(rate, piece_at - at), np.float32)
        yield block
        at += block.size
    new = samples[max(0, at - piece_at) :]
    if stop is not None:
        new = new[: max(0, stop - at)]
    if new.size:
        yield new


def _check(samples: np.ndarray, time_s: float, rate: int, path: str | os.PathLike[str]) -> None:
    wrong = ~(np.abs(samples) <= MAX_AMPLITUDE)  # true for not-a-number as well
    if wrong.any():
        first = int(wrong.argmax())
        raise MediaError(
            f"{path}: sample {samples[first]} at {time_s + first / rate:.4f} s; sound must be finite and about within "
            f"[-1, 1] ({MAX_AMPLITUDE:.0f} at most is clipped): save it again"
        )


class _Resampler:
    """Band-limited change of the sampling rate of what is pushed; the first sample stays at time 0."""

    def __init__(self, rate: int, sample_rate: int) -> None:
        self._rate = rate
        self._change = None
        if rate != sample_rate:
            self._change = av.AudioResampler(format="flt", layout="mono", rate=sample_rate)
        self._pieces: list[np.ndarray] = []

    def push(self, wave: np.ndarray) -> None:
        if self._change is None:
            self._pieces.append(wave)
            return
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[None], np.float32), format="flt", layout="mono")
        frame.sample_rate = self._rate
        self._pieces += [piece.to_ndarray()[0] for piece in self._change.resample(frame)]

    def finished(self) -> np.ndarray:
        if self._change is not None and self._pieces:
            self._pieces += [piece.to_ndarray()[0] for piece in self._change.resample(None)]
        return np.concatenate([*self._pieces, np.zeros(0, np.float32)]).astype(np.float32, copy=False)


_Source = Callable[[int], Iterator[_Piece]]
"""From a sample's number to the pieces that hold it and what follows, perhaps some before it."""


def _sound_file(path: str | os.PathLike[str]) -> soundfile.SoundFile | None:
    """A file of sound alone; None where libsndfile does not read it: a video in an .ogg, a damaged file.

    Raises:
        MediaError: a wav or aiff that is shorter than it says.
    """
    if Path(path).suffix.lower() not in SOUND_SUFFIXES or not Path(path).is_file():
        return None
    _check_whole(path)
    try:
        file = soundfile.SoundFile(os.fsencode(path))
    except (soundfile.SoundFileError, OSError):
        return None
    if file.frames > 0 and 0 < file.channels <= 64 and file.seekable():  # GSM 6.10 can only be read to the end
        return file
    file.close()
    return None


def _check_whole(path: str | os.PathLike[str]) -> None:
    """MediaError for a wav or aiff of which more is missing than padding: a download that broke off."""
    with open(path, "rb") as file:
        head = file.read(8)
    order: Literal["little", "big"] = "little" if head[:4] == b"RIFF" else "big"
    stated, size = 8 + int.from_bytes(head[4:], order), os.path.getsize(path)
    # A recording whose length was not known when its head was written states one near the largest there is.
    if head[:4] in (b"RIFF", b"FORM") and size + _PADDING_BYTES < stated < _LENGTH_UNKNOWN:
        raise MediaError(f"{path}: truncated: {size} of {stated} bytes are there; copy or download it again")


def _file_pieces(file: soundfile.SoundFile, path: str | os.PathLike[str]) -> _Source:
    def since(first: int) -> Iterator[_Piece]:
        at = min(max(0, first - round(_LEAD_S * file.samplerate)), file.frames)
        try:
            file.seek(at)
            while len(samples := file.read(file.samplerate, dtype="float32", always_2d=True)):
                yield at, samples.mean(axis=1, dtype=np.float32)
                at += len(samples)
        except soundfile.SoundFileError as error:
            raise MediaError(f"{path}: not readable as sound ({error}); save it again, or take it out") from error

    return since


@streams.cached
def beginning(path: str) -> Beginning | None:
    """The first sound of the track that is read; None without a track, or where nothing in it can be decoded."""
    index = streams.choose(path).audio
    if index is None:
        return None
    with streams.opened(path, "audio") as container:
        stream = container.streams[index]
        assert isinstance(stream, av.AudioStream)
        clock = streams.measure(path)[index] if streams.may_leap(container) else None
        frames = list(itertools.islice(container.decode(stream), 2))
        if not frames:
            return None
        return Beginning(
            index=index,
            rate=frames[0].sample_rate,
            channels=frames[0].layout.nb_channels,
            begin_s=_time_s(frames[0]) or 0.0,
            first_samples=frames[0].samples,
            frame_samples=frames[-1].samples,
            clock=clock if clock is not None and len(clock.shifts_s) > 1 else None,
        )


def _time_s(frame: av.AudioFrame) -> float | None:
    return None if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)


def _track_pieces(path: str | os.PathLike[str], heard: Beginning, origin_s: float) -> _Source:
    """The pieces of a track of a file that FFmpeg reads; sample 0 is at `origin_s` of the file's clock."""

    def since(first: int) -> Iterator[_Piece]:
        from_s = origin_s + first / heard.rate - _LEAD_S
        if from_s > heard.begin_s + _LEAD_S and heard.clock is None:
            # The first frame may be shortened (Opus), and its rounded time then hides where it lies.
            whole = itertools.islice(_frames_after_seek(path, heard, from_s), 1, None)
            pieces = _placed(whole, heard, origin_s)
            begin = next(pieces, None)
            # Without an index, or with a wrong one, a jump may land too late.
            if begin is not None and begin[0] <= first - 0.5 * _LEAD_S * heard.rate:
                yield begin
                yield from pieces
                return
        begun = int(from_s > heard.begin_s + _LEAD_S)
        frames = itertools.islice(_frames_from_start(path, heard, from_s), begun, None)
        yield from _placed(frames, heard, origin_s)

    return since


def _frames_after_seek(path: str | os.PathLike[str], heard: Beginning, from_s: float) -> Iterator[av.AudioFrame]:
    with streams.opened(path, "audio") as container:
        if not set(container.format.name.split(",")) & _SEEKABLE:
            return
        stream = container.streams[heard.index]
        assert isinstance(stream, av.AudioStream)
        try:
            container.seek(int(from_s / (stream.time_base or 1)), stream=stream, any_frame=False)
        except av.error.FFmpegError:
            return
        yield from container.decode(stream)


def _frames_from_start(path: str | os.PathLike[str], heard: Beginning, from_s: float) -> Iterator[av.AudioFrame]:
    """Reads, but does not decode, the packets that end before `from_s`."""
    with streams.opened(path, "audio") as container:
        stream = container.streams[heard.index]
        assert isinstance(stream, av.AudioStream)
        base = float(stream.time_base or 0)
        packets = container.demux(stream)
        if heard.clock is not None:
            packets = streams.on_one_clock(container, stream, heard.clock)
        for packet in packets:
            at = packet.pts if packet.pts is not None else packet.dts
            if at is None or not packet.size or at * base >= from_s:
                yield from stream.codec_context.decode(packet if packet.size else None)


def _placed(frames: Iterator[av.AudioFrame], heard: Beginning, origin_s: float) -> Iterator[_Piece]:
    """Numbers the samples: each frame follows the one before, unless its time says that there is a hole or an
    overlap.
    """
    to_mono = _ToMono(heard.rate)
    next_at: int | None = None
    for frame in frames:
        time_s = _time_s(frame)
        told = None if time_s is None else round((time_s - origin_s) * heard.rate)
        if next_at is None:
            next_at = _on_grid(told or 0, frame, heard, origin_s)
        elif told is not None and abs(told - next_at) > GAP_S * heard.rate:
            for samples in to_mono.rest():
                yield next_at, samples
            next_at = _on_grid(told, frame, heard, origin_s)
        for samples in to_mono.push(frame):
            yield next_at, samples
            next_at += samples.size
    for samples in to_mono.rest():
        yield next_at or 0, samples
        next_at = (next_at or 0) + samples.size


def _on_grid(told: int, frame: av.AudioFrame, heard: Beginning, origin_s: float) -> int:
    """`told` on the grid of the codec's frames since the track's beginning, if that is within the rounding of the
    timestamps (Matroska's are whole milliseconds); so a part lies where it lies in the whole.
    """
    if frame.samples != heard.frame_samples or frame.time_base is None:
        return told
    begin = round((heard.begin_s - origin_s) * heard.rate)
    second = begin + heard.first_samples
    nearest = second + round((told - second) / heard.frame_samples) * heard.frame_samples
    return nearest if abs(nearest - told) <= float(frame.time_base) * heard.rate + 1 else told


class _ToMono:
    """Decoded frames of any layout, format and rate to mono float32 at `rate`."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._kind: tuple[str, str, int] | None = None
        self._change: av.AudioResampler | None = None

    def push(self, frame: av.AudioFrame) -> Iterator[np.ndarray]:
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._kind:  # a broadcast may change from stereo to 5.1
            yield from self.rest()
            self._kind, self._change = kind, av.AudioResampler(format="fltp", rate=self._rate)
        assert self._change is not None
        frame.pts = None
        # Channels are averaged here: FFmpeg's own downmix of floats sums them at 0.7 each, and overdrives.
        for planes in self._change.resample(frame):
            yield planes.to_ndarray().mean(0, dtype=np.float32)

    def rest(self) -> Iterator[np.ndarray]:
        if self._change is not None:
            for planes in self._change.resample(None):
                yield planes.to_ndarray().mean(0, dtype=np.float32)
        self._kind = self._change = None
