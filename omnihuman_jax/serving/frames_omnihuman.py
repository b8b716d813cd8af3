"""The one gate that every decoded picture passes: upright, square-pixel, opaque sRGB, uint8, or a refusal by name.

Whatever a picture needs is undone here, or the file is refused; nothing is passed on. `Look` holds what a picture says
of itself, `to_rgb` undoes it, `findings` says in words what was there and what was done.
"""

import dataclasses
import os
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideDataContainer
from av.video.reformatter import ColorRange, Colorspace, Interpolation

if TYPE_CHECKING or __package__:
    from . import colours_omnihuman as colours
    from .streams_omnihuman import MediaError
else:  # in an exported folder the files lie beside each other
    import colours_omnihuman as colours
    from streams_omnihuman import MediaError

BACKGROUND_RGB = (255, 255, 255)
"""What lies behind transparent pixels: white, as on most pages that show such pictures."""
BARS_RGB = (0, 0, 0)
"""What fills a picture up whose shape is not the first one's, as in any player."""
MAX_PIXELS = 8192 * 8192
"""Of a picture with square pixels; larger ones are refused, so that a damaged header asks for no gigabytes."""

# Code points of ITU-T H.273.
_MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
}
_UNTAGGED, _RGB = 2, 0
_TRANSFERS = {8: "linear light", 16: "PQ", 18: "HLG"}
_PRIMARIES = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
_REFUSED_TRANSFERS = {9: "logarithmic", 10: "logarithmic", 17: "SMPTE 428 (cinema)"}
# FFmpeg scales its 16-bit RGB such that white is 255 * 256.
_WHITE_16 = 255 * 256
SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# Means of the pixels that one stands for: for pictures that are only brought down, at two thirds of the cost.
AVERAGING = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# More of them are started anew for each picture, and cost twice what they save.
_THREADS = 1
# Of a track matrix: off-diagonal over diagonal, beyond which the picture is turned by no quarter.
_SKEW = 0.02
_GRAPH_BASE = Fraction(1, 1000)
_SIDES: Any = SideDataContainer  # PyAV types it as a mapping without a constructor


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What a decoded picture says of itself. Colours are code points of H.273; sizes are of what is stored.

    transposed, flip_x, flip_y: what brings it upright: first rows and columns exchanged, then mirrored. upright: False
    where no such step does.
    """

    height: int
    width: int
    pixel_aspect: Fraction
    transposed: bool
    flip_x: bool
    flip_y: bool
    upright: bool
    pixel_format: str
    bits: int
    alpha: bool
    interlaced: bool
    matrix: int
    full_range: bool
    transfer: int
    primaries: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as displayed: upright, with square pixels; a width that changes becomes even."""
        width = self.width
        if self.pixel_aspect != 1:
            width = max(2, 2 * round(width * float(self.pixel_aspect) / 2))
        return (width, self.height) if self.transposed else (self.height, width)

    @property
    def shape(self) -> tuple[tuple[int, int], bool, bool, bool]:
        """What makes two pictures of one clip alike."""
        return self.size, self.transposed, self.flip_x, self.flip_y

    def refusal(self) -> str:
        """Why such a picture cannot be shown as a player shows it; empty where it can."""
        height, width = self.size
        if not self.upright:
            return "turned by an angle that is no quarter turn; turn it in an editor"
        if height * width > MAX_PIXELS or not 1 / 16 <= self.pixel_aspect <= 16:
            return f"pictures of {height} x {width} are too large ({MAX_PIXELS} pixels at most); scale it down"
        if self.transfer in _REFUSED_TRANSFERS:
            return f"its transfer is {_REFUSED_TRANSFERS[self.transfer]}, which needs grading; export it as BT.709"
        if self.matrix not in (*_MATRICES, _UNTAGGED, _RGB, 3):
            return f"its colour matrix (H.273 code {self.matrix}) is not supported; re-encode it as BT.709"
        if self.pixel_format.startswith(("xyz", "bayer")) or "f32" in self.pixel_format or "f16" in self.pixel_format:
            return f"its pixels ({self.pixel_format}) have no fixed white; export it with 8, 10 or 16 bits"
        return ""


def look_at(frame: av.VideoFrame, pixel_aspect: Fraction | None) -> Look:
    """The properties of a decoded picture; `pixel_aspect`, which PyAV does not tell of a frame, is its track's."""
    form = frame.format
    transposed, flip_x, flip_y, upright = _orientation(frame)
    return Look(
        height=frame.height,
        width=frame.width,
        pixel_aspect=pixel_aspect if pixel_aspect and pixel_aspect > 0 else Fraction(1),
        transposed=transposed,
        flip_x=flip_x,
        flip_y=flip_y,
        upright=upright,
        pixel_format=form.name,
        bits=max(c.bits for c in form.components) if form.components else 8,
        alpha=form.has_palette or any(c.is_alpha for c in form.components),
        interlaced=frame.interlaced_frame,
        matrix=int(frame.colorspace),
        full_range=int(frame.color_range) == ColorRange.JPEG or form.name.startswith("yuvj") or form.is_rgb,
        transfer=int(frame.color_trc),
        primaries=int(frame.color_primaries),
    )


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool, bool]:
    """(transposed, flip_x, flip_y, upright) of a picture's display matrix, if it has one."""
    # Not `frame.side_data`: what that gives is kept in the frame and keeps the frame, so that pictures would stay in
    # memory until the garbage collector comes by.
    sides: Any = _SIDES(frame)
    matrix = next((bytes(side) for side in sides if side.type.name == "DISPLAYMATRIX"), b"")
    if len(matrix) < 36:
        return False, False, False, True
    # x' = a x + c y, y' = b x + d y
    a, b, _, c, d = (float(v) for v in np.frombuffer(matrix, "<i4")[:5])
    straight, crossed = min(abs(a), abs(d)), min(abs(b), abs(c))
    if straight and max(abs(b), abs(c)) <= _SKEW * straight:
        return False, a < 0, d < 0, True
    if crossed and max(abs(a), abs(d)) <= _SKEW * crossed:
        return True, c < 0, b < 0, True
    return False, False, False, False


def to_rgb(
    frame: av.VideoFrame,
    look: Look,
    path: str | os.PathLike[str],
    size: tuple[int, int],
    canvas: tuple[int, int],
    scaling: int = SCALING,
) -> np.ndarray:
    """A decoded picture as it is displayed, RGB uint8 [H, W, 3] of `size`; `scaling` is `SCALING` or `AVERAGING`.

    `canvas` is the displayed size of the file's first picture. One of another size is laid into it as a player does,
    whole and in the middle of black bars, and then brought to `size` with it.

    Raises:
        MediaError: it cannot be shown as a player shows it.
    """
    if problem := look.refusal():
        raise MediaError(f"{path}: {problem}")
    inner = _within(look.size, size, canvas)
    stored = (inner[1], inner[0]) if look.transposed else inner
    try:
        picture = _upright(_converted(frame, look, stored, scaling), look)
    except (av.error.FFmpegError, MemoryError) as error:  # of sizes or a pixel aspect that no camera writes
        raise MediaError(
            f"{path}: a picture of {look.size[1]}x{look.size[0]} cannot be brought to {size[1]}x{size[0]}"
            f" ({type(error).__name__}); re-encode it, or take it out"
        ) from error
    if inner == size:
        return np.ascontiguousarray(picture)
    laid = np.empty((*size, 3), np.uint8)
    laid[...] = BARS_RGB
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    laid[top : top + inner[0], left : left + inner[1]] = picture
    return laid


def _within(shown: tuple[int, int], size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a picture of `shown` within `size`, into which the whole `canvas` is scaled."""
    if shown == canvas:
        return size
    scale = min(canvas[0] / shown[0], canvas[1] / shown[1])
    height, width = (shown[i] * scale * size[i] / canvas[i] for i in (0, 1))
    return min(size[0], max(1, round(height))), min(size[1], max(1, round(width)))


def _upright(picture: np.ndarray, look: Look) -> np.ndarray:
    if look.transposed:
        picture = picture.transpose(1, 0, 2)
    return picture[:: -1 if look.flip_y else 1, :: -1 if look.flip_x else 1]


def _converted(frame: av.VideoFrame, look: Look, size: tuple[int, int], scaling: int) -> np.ndarray:
    """The stored picture, scaled to `size`, as opaque sRGB uint8."""
    if look.alpha:
        frame = av.VideoFrame.from_ndarray(_opaque(frame, look), format="rgb24")
        return frame.reformat(width=size[1], height=size[0], interpolation=scaling).to_ndarray()
    if colours.needs_conversion(look.transfer, look.primaries):
        return _converted_colours(frame, look, size, scaling)
    return _reformatted(frame, look, size, "rgb24", scaling)


def _converted_colours(frame: av.VideoFrame, look: Look, size: tuple[int, int], scaling: int = SCALING) -> np.ndarray:
    deep = _reformatted(frame, look, size, "rgb48le", scaling).astype(np.float32) / np.float32(_WHITE_16)
    return colours.to_srgb(deep, look.transfer, look.primaries)


def _reformatted(
    frame: av.VideoFrame, look: Look, size: tuple[int, int], pixel_format: str, scaling: int = SCALING
) -> np.ndarray:
    return frame.reformat(
        width=size[1],
        height=size[0],
        format=pixel_format,
        src_colorspace=_matrix(look),
        src_color_range=ColorRange.JPEG if look.full_range else ColorRange.MPEG,
        interpolation=scaling,
    ).to_ndarray()


def _matrix(look: Look) -> int:
    """Untagged video is BT.601 below HD and BT.709 from there, as every player assumes, unless its colours are
    BT.2020's.
    """
    if look.matrix in _MATRICES:
        return int(_MATRICES[look.matrix])
    if look.transfer in (colours.PQ, colours.HLG) or look.primaries == colours.BT2020:
        return int(Colorspace.BT2020)
    return int(Colorspace.ITU709 if look.height >= 720 else Colorspace.ITU601)


def _opaque(frame: av.VideoFrame, look: Look) -> np.ndarray:
    """uint8 [H, W, 3] at the stored size: code values over the background, in proportion to alpha, as browsers do."""
    size = (look.height, look.width)
    if colours.needs_conversion(look.transfer, look.primaries):
        alpha = _reformatted(frame, look, size, "rgba")[..., 3:]
        return over_background(_converted_colours(frame, look, size), alpha)
    rgba = _reformatted(frame, look, size, "rgba")
    return over_background(rgba[..., :3], rgba[..., 3:])


def over_background(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] of a picture and its alpha [H, W, 1], both uint8, over `BACKGROUND_RGB`."""
    share = alpha.astype(np.float32) / 255.0
    mixed = rgb.astype(np.float32) * share + np.asarray(BACKGROUND_RGB, np.float32) * (1.0 - share)
    return np.rint(mixed).astype(np.uint8)


def progressive(pictures: Iterable[tuple[av.VideoFrame, Look]]) -> Iterator[tuple[av.VideoFrame, Look]]:
    """The pictures, those of them that are interlaced without their combs (FFmpeg's bwdif, one picture a frame)."""
    weaver: _Deinterlacer | None = None
    for frame, look in pictures:
        if weaver is not None and not weaver.takes(look):
            yield from weaver.flush()
            weaver = None
        if weaver is None and look.interlaced and not look.refusal() and min(look.height, look.width) >= 4:
            weaver = _Deinterlacer(frame, look)
        if weaver is None:
            yield frame, look
        else:
            yield from weaver.push(frame, look)
    if weaver is not None:
        yield from weaver.flush()


class _Deinterlacer:
    """A filter graph for pictures of one size and format; it gives each back when it has seen the next."""

    def __init__(self, frame: av.VideoFrame, look: Look) -> None:
        self._key = (look.height, look.width, look.pixel_format)
        self._waiting: deque[tuple[Look, int | None, int, Fraction | None]] = deque()
        self._count = 0
        self._graph = Graph()
        source = self._graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=_GRAPH_BASE
        )
        graph = self._graph
        # Only pictures that say that they are interlaced; then back to the format that the gate was told of.
        filters = [graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")]
        filters += [graph.add("format", look.pixel_format), graph.add("buffersink")]
        graph.link_nodes(source, *filters).configure()

    def takes(self, look: Look) -> bool:
        return (look.height, look.width, look.pixel_format) == self._key

    def push(self, frame: av.VideoFrame, look: Look) -> Iterator[tuple[av.VideoFrame, Look]]:
        self._waiting.append((look, frame.pts, frame.duration, frame.time_base))
        # The graph needs times that grow; the picture's own are put back afterwards.
        self._count += 1
        frame.pts, frame.time_base = self._count, _GRAPH_BASE
        self._graph.vpush(frame)
        yield from self._pull()

    def flush(self) -> Iterator[tuple[av.VideoFrame, Look]]:
        self._graph.vpush(None)
        yield from self._pull()

    def _pull(self) -> Iterator[tuple[av.VideoFrame, Look]]:
        while self._waiting:
            try:
                frame = self._graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            look, pts, duration, time_base = self._waiting.popleft()
            frame.pts, frame.duration = pts, duration
            if time_base is not None:
                frame.time_base = time_base
            yield frame, look


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A property of a file that changes what is seen or heard; `done` says what became of it.

    undone: the pictures or the sound are not passed on as they are stored (`omnihuman curate --strict` refuses them).
    """

    name: str
    found: str
    done: str
    undone: bool


def findings(looks: Iterable[Look]) -> list[Finding]:
    """What the pictures of a file are like, each property once; `looks` in order of appearance."""
    several = list(dict.fromkeys(looks))
    found = [finding for look in several for finding in _of_look(look)]
    shapes = list(dict.fromkeys(look.shape for look in several))
    if len(shapes) > 1:
        sizes = ", ".join(f"{size[1]} x {size[0]}" for size, *_ in shapes[:8])
        found.append(
            Finding(
                name="size changes",
                found=sizes,
                done=f"laid into {shapes[0][0][1]} x {shapes[0][0][0]} with black bars; a new shot each time",
                undone=True,
            )
        )
    return list(dict.fromkeys(found))


def _of_look(look: Look) -> Iterator[Finding]:
    if look.transposed or look.flip_x or look.flip_y:
        yield Finding(name="orientation", found=_turn(look), done="brought upright", undone=True)
    if look.pixel_aspect != 1:
        yield Finding(
            name="pixel aspect",
            found=f"{look.pixel_aspect}",
            done=f"scaled to square pixels: {look.size[1]} x {look.size[0]}",
            undone=True,
        )
    if look.alpha:
        yield Finding(
            name="alpha", found=look.pixel_format, done=f"laid over {BACKGROUND_RGB} of 255 (RGB)", undone=True
        )
    if look.interlaced:
        yield Finding(name="interlaced", found="fields", done="deinterlaced by bwdif", undone=True)
    if look.transfer in _TRANSFERS:
        done = "tone-mapped to sRGB" if look.transfer != colours.LINEAR else "encoded as sRGB"
        yield Finding(name="transfer", found=_TRANSFERS[look.transfer], done=done, undone=True)
    if look.primaries in _PRIMARIES:
        yield Finding(name="primaries", found=_PRIMARIES[look.primaries], done="converted to BT.709's", undone=True)
    yield Finding(name="bit depth", found=f"{look.bits} bits", done="8 bits are kept", undone=False)
    if not look.pixel_format.startswith(("rgb", "bgr", "gbr", "gray", "pal")):
        matrix = "untagged" if look.matrix not in _MATRICES else f"H.273 code {look.matrix}"
        done = f"converted to RGB by {Colorspace(_matrix(look)).name}"
        yield Finding(name="matrix", found=matrix, done=done, undone=False)
        values = "full" if look.full_range else "limited"
        yield Finding(name="range", found=values, done="converted to full range", undone=False)


def _turn(look: Look) -> str:
    names = {
        (False, True, True): "turned by 180 degrees",
        (False, True, False): "mirrored",
        (False, False, True): "upside down",
        (True, True, False): "turned clockwise",
        (True, False, True): "turned counter-clockwise",
        (True, False, False): "transposed",
        (True, True, True): "transposed along the other diagonal",
    }
    return "to be shown " + names[look.transposed, look.flip_x, look.flip_y]
