"""Which tracks of a file are read, and what its packets (not its header) say: length, pictures a second, bit rate.

One chooser for every reader. What a header states is used nowhere: a length is the time from the first packet to the
end of the last, and a track is a film if it has more than one picture.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import av
from av.stream import Disposition

# A step back by more than this is another clock (joined recordings): smaller ones are rounding, and, of the times at
# which pictures are shown, which Matroska alone knows, their order.
_BACK_S, _BACK_SHOWN_S = 0.1, 1.0
# As in FFmpeg's own program: a leap forward by more than this, in all tracks at once, is another clock, not a pause.
_FORWARD_S = 10.0
# How far the leaps of two tracks at the same joint may differ: the tracks of a recording seldom end together.
_SAME_LEAP_S = 1.0
_TS_DISCONT = 0x0200  # AVFMT_TS_DISCONT
# Demuxers that open other files than the one they are given.
_PLAYLISTS = frozenset({"hls", "concat", "dash", "imf", "sdp", "rtsp", "webm_dash_manifest", "applehttp"})
# What FFmpeg takes a file for that is called like a picture and is none; it would read numbered files.
_BY_NAME_ALONE = "image2"
_SIDE_TRACKS = (
    Disposition.hearing_impaired
    | Disposition.visual_impaired
    | Disposition.comment
    | Disposition.karaoke
    | Disposition.lyrics
)
_Result = TypeVar("_Result")


class MediaError(ValueError):
    """A file that cannot be read as what it is needed for: one line that names the file and the cure."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """A video or audio track of a file; `passed_over` says why it is not read, empty for the one that is."""

    index: int
    kind: str
    codec: str
    passed_over: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The tracks that are read, by index; None where there is none.

    still: the video track is one picture beside sound, so that the sound alone says how long the file is.
    """

    video: int | None
    audio: int | None
    still: bool
    tracks: tuple[Track, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What the packets of a track say; seconds on the file's own clock, joined recordings moved into one.

    shifts_s: what is added to the timestamps of each of its recordings; (0.0,) where there is one.
    pauses: a leap forward does not begin another recording.
    """

    packets: int
    size: int
    start_s: float
    end_s: float
    shifts_s: tuple[float, ...] = (0.0,)
    pauses: bool = True

    @property
    def seconds(self) -> float:
        return max(0.0, self.end_s - self.start_s)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], kind: str) -> Iterator[av.container.InputContainer]:
    """The file opened for reading; FFmpeg's many errors, in opening or decoding, come out as `MediaError`."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such {kind} file; check the path")
    try:
        with contextlib.ExitStack() as stack:
            container = stack.enter_context(_open(path, stack))
            if container.format.name == _BY_NAME_ALONE:
                raise MediaError(f"{path}: not a readable {kind} (of no known kind); re-encode it, or take it out")
            if set(container.format.name.split(",")) & _PLAYLISTS:
                raise MediaError(f"{path}: a list of other files ({container.format.name}); give the {kind} itself")
            yield container
    except (av.error.FFmpegError, UnicodeError, OverflowError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        cure = "give it read permission" if isinstance(error, PermissionError) else "re-encode it"
        raise MediaError(f"{path}: not a readable {kind} ({reason}); {cure}, or take it out") from error


def _open(path: str | os.PathLike[str], stack: contextlib.ExitStack) -> av.container.InputContainer:
    name = os.fspath(path)
    # Metadata in another encoding must not stop a good file; and no file may make us open another one, or a network.
    options = {"protocol_whitelist": "file"}
    try:
        name.encode()
    except UnicodeEncodeError:  # FFmpeg wants UTF-8, file systems do not
        file = stack.enter_context(Path(path).open("rb"))  # noqa: SIM115
        return av.open(file, "r", metadata_errors="ignore", options=options)
    return av.open(f"file:{name}", metadata_errors="ignore", options=options)


def cached(function: Callable[[str], _Result]) -> Callable[[str | os.PathLike[str]], _Result]:
    """Remembers what `function` found out about the last files, until they change."""

    @functools.lru_cache(maxsize=64)
    def remembered(path: str, size: int, changed_ns: int) -> _Result:
        return function(path)

    def ask(path: str | os.PathLike[str]) -> _Result:
        try:
            stat = os.stat(path)
        except OSError:
            return function(os.fspath(path))  # says what is wrong
        return remembered(os.path.abspath(path), stat.st_size, stat.st_mtime_ns)

    return ask


@cached
def choose(path: str) -> Choice:
    """Of the video tracks that are films (several pictures, no cover) the one flagged as default, of several the
    longest; of the audio tracks the one flagged as default, then one for everybody before one for the blind, then the
    first.

    Raises:
        MediaError, FileNotFoundError: the file cannot be opened.
    """
    with opened(path, "media") as container:
        notes: dict[int, str] = {}
        films = _films(container, path, notes)
        sounds = [s for s in container.streams.audio if not _unusable(s, notes)]
        still = False
        if len(films) == 1 and sounds and not notes.get(films[0].index):
            still = not _has_two_packets(container, films[0])
        if len(films) > 1:
            films.sort(key=lambda s: (not _is_default(s), -measure(path)[s.index].seconds, s.index))
        if len(sounds) > 1:
            sounds.sort(key=lambda s: (not _is_default(s), bool(s.disposition & _SIDE_TRACKS), s.index))
        for rest in (films[1:], sounds[1:]):
            for stream in rest:
                notes[stream.index] = "another track is flagged as default, is longer, or comes first"
        tracks = [
            Track(index=s.index, kind=s.type, codec=_codec(s), passed_over=notes.get(s.index, ""))
            for s in (*container.streams.video, *container.streams.audio)
        ]
        return Choice(
            video=films[0].index if films else None,
            audio=sounds[0].index if sounds else None,
            still=still,
            tracks=tuple(tracks),
        )


def _films(container: av.container.InputContainer, path: str, notes: dict[int, str]) -> list[av.VideoStream]:
    """The video tracks that may be read; why the others may not goes into `notes`. A cover alone is a film of one
    picture where there is nothing else to look at, and not even sound.
    """
    usable = [s for s in container.streams.video if not _unusable(s, notes)]
    covers = [s for s in usable if s.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails)]
    films = [s for s in usable if s not in covers]
    if len(films) > 1:
        measured = measure(path)
        most = max(measured[s.index].packets for s in films)
        for stream in films:
            if measured[stream.index].packets <= 1 < most:
                notes[stream.index] = "one picture only: a cover"
        films = [s for s in films if s.index not in notes]
    for stream in covers:
        notes[stream.index] = "an attached picture: a cover"
    if not films and covers and not container.streams.audio:
        del notes[covers[0].index]
        return covers[:1]
    return films


def _unusable(stream: av.VideoStream | av.AudioStream, notes: dict[int, str]) -> bool:
    context = stream.codec_context
    if context is None or (isinstance(stream, av.AudioStream) and not stream.codec_context.sample_rate):
        notes[stream.index] = f"cannot be decoded ({_codec(stream)})"
    return stream.index in notes


def _codec(stream: av.stream.Stream) -> str:
    return stream.codec_context.name if stream.codec_context is not None else "unknown codec"


def _is_default(stream: av.VideoStream | av.AudioStream) -> bool:
    return bool(stream.disposition & Disposition.default)


def _has_two_packets(container: av.container.InputContainer, stream: av.VideoStream) -> bool:
    packets = (p for p in container.demux(stream) if p.size)
    return next(packets, None) is not None and next(packets, None) is not None


@cached
def measure(path: str) -> dict[int, Measured]:
    """Track index -> what its packets say; reads the file once from end to end, and decodes nothing.

    Raises:
        MediaError, FileNotFoundError: not readable, or two tracks disagree on how the clock leaps.
    """
    with opened(path, "media") as container:
        tallies = {s.index: _Tally(container, s) for s in (*container.streams.video, *container.streams.audio)}
        for packet in container.demux([container.streams[index] for index in tallies]) if tallies else ():
            if packet.size and not packet.is_discard:
                tallies[packet.stream_index].add(packet)
        has_pictures = [s.index for s in container.streams.video if tallies[s.index].packets > 1]
    with_clock = {index: tally for index, tally in tallies.items() if tally.packets > 1}
    pauses = len({len(tally.leaps) for tally in with_clock.values()}) > 1
    recordings = {index: tally.recordings(pauses) for index, tally in with_clock.items()}
    leader = recordings[has_pictures[0] if has_pictures else min(recordings)] if recordings else []
    for index, others in recordings.items():
        _check_clocks(leader, others, f"{path}: track {index}")
    shifts = [0.0] * max(1, len(leader))
    for k in range(1, len(leader)):
        shifts[k] = leader[k - 1].end_s + shifts[k - 1] - leader[k].start_s
    return {index: tally.measured(pauses, tuple(shifts)) for index, tally in tallies.items()}


@dataclasses.dataclass(kw_only=True, slots=True)
class _Recording:
    """The packets between two leaps of a track's clock; `leap_s` is the one at its beginning, `last_s` the time of the
    one that is shown last.
    """

    start_s: float
    last_s: float
    end_s: float
    leap_s: float


def _check_clocks(leader: list[_Recording], others: list[_Recording], name: str) -> None:
    same = len(leader) == len(others) and all(
        abs(a.leap_s - b.leap_s) <= _SAME_LEAP_S for a, b in zip(leader, others, strict=True)
    )
    if not same:
        leaps = [[round(r.leap_s, 2) for r in recordings[1:]] for recordings in (leader, others)]
        raise MediaError(
            f"{name}: its clock leaps by {leaps[1]} s, that of the first track by {leaps[0]} s, so that sound and "
            "pictures cannot be kept together; join the recordings anew, or give them one by one"
        )


class _Tally:
    """Sums up a track's packets and the recordings that its clock's leaps divide them into."""

    def __init__(self, container: av.container.InputContainer, stream: av.stream.Stream) -> None:
        self.packets = self.size = 0
        self.leaps: list[float] = []
        self._base = float(stream.time_base or 0)
        self._clock = Clock(container, stream, pauses=False)
        self._parts: list[_Recording] = []
        self._ends_open = False

    def add(self, packet: av.Packet) -> None:
        self.packets += 1
        self.size += packet.size
        at = packet.pts if packet.pts is not None else packet.dts
        if at is None:
            return
        leap = self._clock.leap(packet)
        time_s = at * self._base
        if leap or not self._parts:
            self._parts.append(_Recording(start_s=time_s, last_s=time_s, end_s=time_s, leap_s=leap))
            self.leaps += [leap] if leap else []
        part = self._parts[-1]
        part.start_s = min(part.start_s, time_s)
        # How long the others are does not count: an mp4 tells the time to the packet that is decoded next, and behind a
        # pause that is not the one shown next. A last one that does not say it is a mean step long.
        if time_s >= part.last_s:
            part.last_s, part.end_s = time_s, time_s + (packet.duration or 0) * self._base
            self._ends_open = not packet.duration

    def recordings(self, pauses: bool) -> list[_Recording]:
        """Those that leaps back divide; those that leaps forward divide as well unless they are `pauses`."""
        parts: list[_Recording] = []
        for part in self._parts:
            if parts and pauses and part.leap_s > 0:
                parts[-1].last_s, parts[-1].end_s = part.last_s, part.end_s
            else:
                parts.append(dataclasses.replace(part))
        if self._ends_open and self.packets > len(parts):
            step_s = sum(part.end_s - part.start_s for part in parts) / (self.packets - len(parts))
            for part in parts:
                part.end_s += step_s
        return parts

    def measured(self, pauses: bool, shifts: tuple[float, ...]) -> Measured:
        parts = self.recordings(pauses)
        shifted = list(zip(parts, shifts, strict=False))
        return Measured(
            packets=self.packets,
            size=self.size,
            start_s=min((part.start_s + shift for part, shift in shifted), default=0.0),
            end_s=max((part.end_s + shift for part, shift in shifted), default=0.0),
            shifts_s=shifts if len(parts) == len(shifts) else (0.0,),
            pauses=pauses,
        )


class Clock:
    """Follows the timestamps of one track's packets in the order of the file, and sees where they leap.

    pauses: a leap forward is none.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.stream.Stream, pauses: bool) -> None:
        self._base, self._pauses, self._leaps = float(stream.time_base or 0), pauses, may_leap(container)
        self._by_dts = bool(container.format.flags & _TS_DISCONT)
        self._expected: int | None = None
        self._latest = 0

    def leap(self, packet: av.Packet) -> float:
        """Seconds by which the clock leaps at this packet; 0 where it goes on."""
        at = packet.dts if self._by_dts else packet.pts
        if at is None or not self._leaps:
            return 0.0
        step_s = 0.0 if self._expected is None else (at - self._expected) * self._base
        back_s = (self._latest - at) * self._base if self._expected is not None else 0.0
        leaps = back_s > (_BACK_S if self._by_dts else _BACK_SHOWN_S) or (step_s > _FORWARD_S and not self._pauses)
        self._latest = at if leaps or self._expected is None else max(self._latest, at)
        self._expected = self._latest + (packet.duration or 0)
        return step_s if leaps else 0.0


def on_one_clock(
    container: av.container.InputContainer, stream: av.VideoStream | av.AudioStream, measured: Measured
) -> Iterator[av.Packet]:
    """Yields the packets of a track from where the file is, with the timestamps of joined recordings moved into one
    clock; that asks for a file that is read from its beginning.
    """
    base = stream.time_base or Fraction(1, 90_000)
    shifts = [round(shift / base) for shift in measured.shifts_s]
    clock, k = Clock(container, stream, measured.pauses), 0
    for packet in container.demux(stream):
        if packet.size and len(shifts) > 1:
            k = min(k + bool(clock.leap(packet)), len(shifts) - 1)
            packet.pts = None if packet.pts is None else packet.pts + shifts[k]
            packet.dts = None if packet.dts is None else packet.dts + shifts[k]
        yield packet


def may_leap(container: av.container.InputContainer) -> bool:
    """Whether this kind of file may be two recordings behind each other: broadcast streams, and Matroska that was
    written without knowing its end (browsers).
    """
    return bool(container.format.flags & _TS_DISCONT) or (
        "matroska" in container.format.name and not container.duration
    )


def is_cut_short(path: str | os.PathLike[str]) -> bool:
    """Whether the file's own index or outermost box reaches beyond its end: a download that broke off."""
    size = os.path.getsize(path)
    with opened(path, "media") as container:
        kinds = set(container.format.name.split(","))
        if "mov" in kinds:
            return any(entry.pos + entry.size > size for stream in container.streams for entry in stream.index_entries)
    with open(path, "rb") as file:
        head = file.read(4096)
    if "avi" in kinds and head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little") > size
    return "matroska" in kinds and _segment_end(head) > size


def _segment_end(head: bytes) -> int:
    """Where the one large element of a Matroska file ends; 0 where it does not say (live recordings)."""
    at = head.find(b"\x18\x53\x80\x67") + 4
    if at < 4 or at >= len(head) or not head[at]:
        return 0
    length = 9 - head[at].bit_length()
    value = int.from_bytes(head[at : at + length], "big") & ((1 << 7 * length) - 1)
    return 0 if value == (1 << 7 * length) - 1 else at + length + value
