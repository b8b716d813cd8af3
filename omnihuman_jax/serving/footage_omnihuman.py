"""The pictures of a file on its clock: time 0 is the first picture that can be decoded."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np

if TYPE_CHECKING or __package__:
    from . import frames_omnihuman as gate
    from . import streams_omnihuman as streams
    from .streams_omnihuman import MediaError
else:  # in an exported folder the files lie beside each other
    import frames_omnihuman as gate
    import streams_omnihuman as streams
    from streams_omnihuman import MediaError

# A keyframe seek only pays, and is only safe (sparse or lying indices), well into a file.
_SEEK_FROM_S = 2.0
# A picture that stands longer is a broken clock, not a pause.
MAX_HOLD_S = 600.0
# Decoded before what is asked, so that pictures that need others before them have them.
_LEAD_S = 1.0
# Decoders that read the alpha of WebM, which lies beside the picture; FFmpeg's own pass it over.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """The first picture of a file, which says what time 0 is and how large a picture is shown.

    origin_s: its time on the file's own clock. clock: of a file of several recordings, else None.
    """

    look: gate.Look
    origin_s: float
    codec: str
    clock: streams.Measured | None


@dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """A decoded picture, seconds since the file's first one, and how long it is shown."""

    frame: av.VideoFrame
    look: gate.Look
    time_s: float
    length_s: float


def film_index(path: str | os.PathLike[str]) -> int:
    """Of the video track that is read; MediaError where there is none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such video file; check the path")
    choice = streams.choose(path)
    if choice.video is None:
        tracks = "; ".join(f"track {t.index}: {t.passed_over}" for t in choice.tracks if t.kind == "video")
        raise MediaError(f"{path}: no video track{f' ({tracks})' if tracks else ''}; give a video file")
    return choice.video


@streams.cached
def opening(path: str) -> Opening:
    """Decodes the first picture of a video.

    Raises:
        MediaError: no video track, or not one picture can be decoded.
    """
    index = film_index(path)
    with streams.opened(path, "video") as container:
        stream = _film(container, index)
        clock = streams.measure(path)[index] if streams.may_leap(container) else None
        if clock is not None and len(clock.shifts_s) == 1:
            clock = None
        for frame, look in _decoded(container.demux(stream), stream):
            if not frame.is_corrupt:
                return Opening(
                    look=look,
                    origin_s=_time_s(frame, stream) or 0.0,
                    codec=stream.codec_context.name,
                    clock=clock,
                )
    raise MediaError(f"{path}: not one picture could be decoded; re-encode it, or take it out")


def _film(container: av.container.InputContainer, index: int) -> av.VideoStream:
    stream = container.streams[index]
    assert isinstance(stream, av.VideoStream)
    stream.thread_type = "AUTO"
    return stream


def _time_s(frame: av.VideoFrame, stream: av.VideoStream) -> float | None:
    return None if frame.pts is None else float(frame.pts * (stream.time_base or Fraction(1, 90_000)))


def _decoded(packets: Iterator[av.Packet], stream: av.VideoStream) -> Iterator[tuple[av.VideoFrame, gate.Look]]:
    """Yields the pictures of a track's packets, each with what it says of itself."""
    decoder: Any = stream.codec_context
    if stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) == "1" and decoder.name in _ALPHA_DECODERS:
        decoder = av.CodecContext.create(_ALPHA_DECODERS[decoder.name], "r")
    aspect = _PixelAspect(stream)
    for packet in packets:
        for frame in decoder.decode(packet if packet.size else None):
            yield frame, gate.look_at(frame, aspect.of(frame))
            del frame


class _PixelAspect:
    """The pixel aspect of each picture. The container's counts, until the codec's own changes, which it tells of the
    packet that it read last: that is the picture of the next keyframe.
    """

    def __init__(self, stream: av.VideoStream) -> None:
        self._context = stream.codec_context
        self._now = stream.sample_aspect_ratio
        self._codecs = self._context.sample_aspect_ratio

    def of(self, frame: av.VideoFrame) -> Fraction | None:
        told = self._context.sample_aspect_ratio
        if frame.key_frame and told and told != self._codecs:
            if self._codecs or not self._now:
                self._now = told
            self._codecs = told
        return self._now


def timed_pictures(path: str | os.PathLike[str], start_s: float = 0.0) -> Iterator[Shown]:
    """Yields the pictures from `start_s` on, and some before it, in display order.

    Raises:
        MediaError: not readable, or damaged at or behind `start_s`.
    """
    first = opening(path)
    if start_s > _SEEK_FROM_S and first.clock is None:
        pictures = _after_seek(path, first, start_s)
        begin = next(pictures, None)
        # A file without an index, or with a wrong one, may begin too late: then from the file's first picture.
        if begin is not None and begin.time_s <= start_s:
            yield begin
            yield from pictures
            return
    with streams.opened(path, "video") as container:
        stream = _film(container, film_index(path))
        packets = (
            container.demux(stream) if first.clock is None else (streams.on_one_clock(container, stream, first.clock))
        )
        near = _from_keyframe(packets, stream, first.origin_s + start_s - _LEAD_S)
        yield from _on_clock(near, stream, first, path, start_s)


def _after_seek(path: str | os.PathLike[str], first: Opening, start_s: float) -> Iterator[Shown]:
    with streams.opened(path, "video") as container:
        stream = _film(container, film_index(path))
        base = stream.time_base or Fraction(1, 90_000)
        try:
            container.seek(int((first.origin_s + start_s - _LEAD_S) / base), stream=stream, any_frame=False)
        except av.error.FFmpegError:  # cannot be sought in
            return
        yield from _on_clock(container.demux(stream), stream, first, path, start_s)


def _from_keyframe(packets: Iterator[av.Packet], stream: av.VideoStream, time_s: float) -> Iterator[av.Packet]:
    """Leaves out the packets before the last keyframe that is not later than `time_s`; holds what lies between."""
    base = float(stream.time_base or Fraction(1, 90_000))
    held: list[av.Packet] = []
    for packet in packets:
        at = packet.pts if packet.pts is not None else packet.dts
        late = at is None or at * base > time_s
        if packet.is_keyframe and not late:
            held.clear()
        held.append(packet)
        if late:
            break
    yield from held
    yield from packets


def _on_clock(
    packets: Iterator[av.Packet], stream: av.VideoStream, first: Opening, path: str | os.PathLike[str], start_s: float
) -> Iterator[Shown]:
    """The pictures of the packets on the file's clock, deinterlaced; damaged ones before the first whole one, or before
    `start_s`, are passed over.
    """
    step_s = float(1 / (stream.average_rate or stream.guessed_rate or 25))
    last_s = -step_s
    begun = False

    def whole() -> Iterator[tuple[av.VideoFrame, gate.Look]]:
        nonlocal begun
        for frame, look in _decoded(packets, stream):
            if frame.is_corrupt:
                time_s = (_time_s(frame, stream) or 0.0) - first.origin_s
                if begun and time_s >= start_s:
                    raise MediaError(f"{path}: damaged at {time_s:.2f} s; re-encode it, or take it out")
                continue
            begun = True
            yield frame, look

    for frame, look in gate.progressive(whole()):
        at_s = _time_s(frame, stream)
        time_s = last_s + step_s if at_s is None else at_s - first.origin_s
        if time_s <= last_s:  # a repeated or reordered timestamp: no time passes on that picture
            continue
        if last_s >= 0.0:
            step_s = time_s - last_s
        if step_s > MAX_HOLD_S:
            raise MediaError(
                f"{path}: one picture stands for {step_s:.0f} s at {last_s:.0f} s ({MAX_HOLD_S:.0f} at most); its "
                "timestamps are broken: re-encode it"
            )
        length_s = float(frame.duration * (stream.time_base or 0)) if frame.duration else step_s
        yield Shown(frame, look, time_s, min(length_s, MAX_HOLD_S))
        last_s = time_s


def iter_video(
    path: str | os.PathLike[str],
    fps: float,
    size: tuple[int, int] | None = None,
    start_s: float = 0.0,
    duration_s: float | None = None,
    watch: Callable[[Shown], None] = lambda shown: None,
    scaling: int = gate.SCALING,
) -> Iterator[np.ndarray]:
    """`media_omnihuman.iter_video`."""
    if not 0 < fps < float("inf") or not start_s >= 0 or not (duration_s is None or duration_s > 0):
        raise ValueError(f"fps {fps} and duration_s {duration_s} must be positive and start_s {start_s} not negative")
    wanted = float("inf") if duration_s is None else max(1, int(duration_s * fps + 1e-3))
    canvas = opening(path).look.size
    emitted = 0
    end_s = 0.0
    previous: Shown | None = None

    def shown_until(time_s: float, at_most: float) -> Iterator[np.ndarray]:
        """`previous`, as often as it is the nearest picture up to `time_s`."""
        nonlocal emitted
        assert previous is not None
        picture = None
        while emitted < at_most and start_s + emitted / fps <= time_s:
            if picture is None:
                watch(previous)
                picture = gate.to_rgb(previous.frame, previous.look, path, size or canvas, canvas, scaling)
            yield picture
            emitted += 1

    for shown in timed_pictures(path, start_s):
        if previous is not None:
            # `previous` is the nearest picture up to half way to the next one.
            yield from shown_until((previous.time_s + shown.time_s) / 2, wanted)
        previous, end_s = shown, shown.time_s + shown.length_s
        if emitted >= wanted:
            return
    if previous is None:
        raise MediaError(f"{path}: not one picture could be decoded; re-encode it, or take it out")
    if start_s >= end_s and start_s > 0:
        raise MediaError(
            f"{path}: starts being read at {start_s:.3f} s but ends at {end_s:.3f} s; choose an earlier start"
        )
    total = max(1, int((end_s - start_s) * fps + 1e-3))
    yield from shown_until(float("inf"), min(wanted, total))
