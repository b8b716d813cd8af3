"""Formats x properties, each cell read back and checked by what is seen and heard: docs/footage.md is its table."""

import dataclasses
import gc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from omnihuman_jax.serving import footage_omnihuman, media_omnihuman, sound_omnihuman, streams_omnihuman
from omnihuman_jax.serving.streams_omnihuman import MediaError
from tests.serving import footage_maker as maker
from tests.serving.footage_maker import FORMATS, GREY, HEIGHT, RED, WIDTH, Format

RATE = 16_000
MP4 = FORMATS["mp4 h264 aac"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """When pictures and sound of a file are: seconds of their beginnings, of the sound's end, and what is left out."""

    pictures_at_s: float = 0.0
    sound_at_s: float = 0.0
    sound_s: float = 1.2
    delay_s: float = 0.0
    variable: bool = False


TIMINGS = {
    "plain": Timing(),
    "late sound": Timing(sound_at_s=0.3),
    "late pictures": Timing(pictures_at_s=0.28),
    "everything late": Timing(delay_s=1.48),
    "longer sound": Timing(sound_s=2.0),
    "variable frame rate": Timing(variable=True),
}
CELLS = [
    pytest.param(kind, timing, id=f"{name}, {what}")
    for name, kind in FORMATS.items()
    for what, timing in TIMINGS.items()
    if not kind.frame_rate_only or what in ("plain", "longer sound")
    # A program stream times the first picture of a packet only: it has no variable rate.
    if kind.muxer != "vob" or what != "variable frame rate"
]


@pytest.mark.parametrize(("kind", "timing"), CELLS)
def test_time(tmp_path: Path, kind: Format, timing: Timing) -> None:
    """Flash and click stay together, and the sound is as long as the pictures, whatever the container does."""
    pictures = [(t, p) for t, p in maker.scene() if t >= timing.pictures_at_s - 1e-6]
    if timing.variable:
        pictures = [pair for i, pair in enumerate(pictures) if i % 3 or i > 15 or i == 0]
    sound = maker.clicks(timing.sound_s, kind.rate)[round(timing.sound_at_s * kind.rate) :]
    path = maker.write(
        tmp_path / f"v.{kind.suffix}", kind, pictures, sound, delay_s=timing.delay_s, sound_at_s=timing.sound_at_s
    )
    frames, heard = media_omnihuman.read_video(path), media_omnihuman.read_audio(path)
    assert heard is not None
    seen_s, heard_s = maker.flash_times(frames), maker.click_times(heard)
    wanted_s = np.asarray(maker.FLASHES_S) - timing.pictures_at_s
    np.testing.assert_allclose(seen_s, wanted_s, atol=0.045)
    np.testing.assert_allclose(heard_s, wanted_s, atol=0.03)
    assert abs(len(frames) - round(25 * (1.2 - timing.pictures_at_s))) <= 1
    assert abs(heard.size - len(frames) * 640) <= 640
    is_the_card(frames[0])
    probe = media_omnihuman.probe(path)
    assert abs(probe.duration_s - len(frames) / 25) <= 0.041 and probe.bit_rate > 0
    assert timing.variable or probe.fps == pytest.approx(25, abs=1)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_pause_of_the_pictures(tmp_path: Path, suffix: str) -> None:
    """A screen recording holds a picture for 9 s: an mp4 says so of the packet that is decoded next, which is another
    one than is shown next.
    """
    kind = FORMATS["mp4 h264 aac" if suffix == "mp4" else "mkv h264 opus"]
    begin = maker.scene()
    sound = np.zeros(round(10.2 * kind.rate), np.float32)
    for at_s in (0, 9):
        sound[at_s * kind.rate :][: round(1.2 * kind.rate)] = maker.clicks(1.2, kind.rate)
    pictures = [*begin, *((9 + t, p) for t, p in begin)]
    path = maker.write(tmp_path / f"v.{suffix}", kind, pictures, sound, encoder={"bf": "3"})
    frames, heard = media_omnihuman.read_video(path), media_omnihuman.read_audio(path)
    assert heard is not None and abs(len(frames) - 255) <= 1 and abs(heard.size - 255 * 640) <= 640
    assert media_omnihuman.probe(path).duration_s == pytest.approx(10.2, abs=0.05)
    wanted = [*maker.FLASHES_S, *(9 + f for f in maker.FLASHES_S)]
    np.testing.assert_allclose(maker.flash_times(frames), wanted, atol=0.045)
    np.testing.assert_allclose(maker.click_times(heard), wanted, atol=0.04)


def is_the_card(frame: np.ndarray, size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
    """The grey card, with its red field in the upper left."""
    assert frame.shape == (*size, 3)
    height, width = size
    assert np.abs(frame[height // 2 :, width // 2 :].mean((0, 1)) - GREY).max() <= 4
    field = frame[2 : height // 3 - 4, 2 : width // 3 - 4].mean((0, 1))
    assert np.abs(field - RED).max() <= 24


def grey_of(path: Path) -> float:
    return float(media_omnihuman.read_video(path)[2, HEIGHT // 2 :, WIDTH // 2 :].mean())


TURNS = {
    "mirrored": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda p: p[::-1]),
    "half turn": ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
    "quarter turn clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, 1)),
    "quarter turn counter-clockwise": ((0, -1, 1, 0), lambda p: np.rot90(p, -1)),
    "transposed": ((0, 1, 1, 0), lambda p: p.transpose(1, 0, 2)),
    "other diagonal": ((0, -1, -1, 0), lambda p: p[::-1, ::-1].transpose(1, 0, 2)),
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("kind", [MP4, FORMATS["mov prores pcm"]], ids=["mp4", "mov"])
def test_track_matrices(tmp_path: Path, turn: str, kind: Format) -> None:
    """What is stored is the card before the turn, so that it is the card as displayed."""
    matrix, before = TURNS[turn]
    stored = [(t, np.ascontiguousarray(before(p))) for t, p in maker.scene()]
    path = maker.with_matrix(maker.write(tmp_path / f"v.{kind.suffix}", kind, stored), *matrix)
    is_the_card(media_omnihuman.read_video(path)[3])
    assert media_omnihuman.read_video(path, size=(24, 32)).shape[1:] == (24, 32, 3)
    probe = media_omnihuman.probe(path)
    assert (probe.height, probe.width) == (HEIGHT, WIDTH)


def test_a_matrix_of_no_quarter_turn_is_refused(tmp_path: Path) -> None:
    path = maker.write(tmp_path / "v.mp4", MP4, maker.scene())
    maker.with_matrix(path, 1, 1, -1, 1)
    with pytest.raises(MediaError, match=r"v\.mp4: turned by an angle"):
        media_omnihuman.read_video(path)


def tagged(matrix: int, transfer: int, primaries: int, full: bool = False) -> Callable[[av.VideoStream], None]:
    def prepare(stream: av.VideoStream) -> None:
        context = stream.codec_context
        context.colorspace, context.color_trc, context.color_primaries = matrix, transfer, primaries
        context.color_range = 2 if full else 1

    return prepare


WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}


def planes(picture: np.ndarray, matrix: int, full: bool, bits: int) -> av.VideoFrame:
    """The yuv444 frame of RGB code values (any float in [0, 1], or uint8) by the definition of the matrix."""
    rgb = picture / 255.0 if picture.dtype == np.uint8 else picture
    red, blue = WEIGHTS[matrix]
    luma = rgb @ np.asarray([red, 1 - red - blue, blue])
    chroma = ((rgb[..., 2] - luma) / (2 * (1 - blue)), (rgb[..., 0] - luma) / (2 * (1 - red)))
    unit = 2 ** (bits - 8)
    top = 2**bits - 1
    values = [luma * top if full else (16 + 219 * luma) * unit]
    values += [128 * unit + (c * top if full else 224 * unit * c) for c in chroma]
    frame = av.VideoFrame(picture.shape[1], picture.shape[0], "yuv444p" if bits == 8 else f"yuv444p{bits}le")
    for plane, value in zip(frame.planes, values, strict=True):
        padded = np.zeros(
            (plane.height, plane.line_size // (2 if bits > 8 else 1)), np.uint16 if bits > 8 else np.uint8
        )
        padded[:, : picture.shape[1]] = np.rint(value)
        plane.update(padded.tobytes())
    return frame


@pytest.mark.parametrize("matrix", WEIGHTS)
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("bits", [8, 10])
def test_matrix_range_and_depth(tmp_path: Path, matrix: int, full: bool, bits: int) -> None:
    kind = Format(suffix="mkv", video="ffv1", pixels="yuv444p" if bits == 8 else "yuv444p10le")
    path = maker.write(
        tmp_path / "v.mkv", kind, maker.scene(),
        prepare=tagged(matrix, 1, 1, full), draw=lambda p: planes(p, matrix, full, bits),
    )  # fmt: skip
    frame = media_omnihuman.read_video(path)[2]
    assert np.abs(frame.astype(int) - maker.card()).max() <= 3


def pq(nits: float) -> float:
    power = (nits / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(nits: float) -> float:
    scene = (nits / 1000) ** (1 / 1.2)
    return (3 * scene) ** 0.5 if scene <= 1 / 12 else 0.17883277 * np.log(12 * scene - 0.28466892) + 0.55991073


@pytest.mark.parametrize(("transfer", "code"), [(16, pq), (18, hlg)], ids=["PQ", "HLG"])
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
def test_high_dynamic_range(tmp_path: Path, transfer: int, code: Callable[[float], float], full: bool) -> None:
    """A grey card (18 % of the white of paper) keeps its grey, that white is nearly white, and colours keep their
    hue.
    """
    kind = Format(suffix="mkv", video="ffv1", pixels="yuv444p10le")
    for nits, low, high in ((0.18 * 203, 116, 120), (203, 230, 250), (1000, 253, 255), (2, 22, 28)):
        path = maker.write(
            tmp_path / "v.mkv", kind, [(i / 25, np.full((HEIGHT, WIDTH, 3), code(nits))) for i in range(6)],
            prepare=tagged(9, transfer, 9, full), draw=lambda p: planes(p, 9, full, 10),
        )  # fmt: skip
        assert low <= grey_of(path) <= high, nits
    # The red of BT.709 at a tenth of the white, in light of BT.2020.
    red = np.asarray((0.6274, 0.0691, 0.0164)) * 20.3
    scene_luma = 1.0 if transfer == 16 else (float(red @ (0.2627, 0.6780, 0.0593)) / 1000) ** (1 / 1.2 - 1)
    signal = [pq(v) if transfer == 16 else (3 * v / 1000 * scene_luma) ** 0.5 for v in red]
    pictures = [(i / 25, np.full((HEIGHT, WIDTH, 3), signal)) for i in range(6)]
    path = maker.write(
        tmp_path / "red.mkv", kind, pictures,
        prepare=tagged(9, transfer, 9, full), draw=lambda p: planes(p, 9, full, 10),
    )  # fmt: skip
    shown = media_omnihuman.read_video(path)[2].mean((0, 1))
    assert np.abs(shown - (89, 0, 0)).max() <= 9


def test_wide_primaries_of_usual_dynamic_range(tmp_path: Path) -> None:
    """Grey stays; BT.2020's mixture that is BT.709's red comes out as that red."""
    kind = Format(suffix="mkv", video="ffv1", pixels="yuv444p10le")
    light = np.asarray((0.6274, 0.0691, 0.0164))
    for code, wanted in ((np.full(3, 0.5), (128,) * 3), (light ** (1 / 2.4), (255, 0, 0))):
        path = maker.write(
            tmp_path / "v.mkv", kind, [(i / 25, np.full((HEIGHT, WIDTH, 3), code)) for i in range(4)],
            prepare=tagged(9, 14, 9), draw=lambda p: planes(p, 9, False, 10),
        )  # fmt: skip
        assert np.abs(media_omnihuman.read_video(path)[1].mean((0, 1)) - wanted).max() <= 8


ALPHA = {
    "webm vp9": Format(suffix="webm", video="libvpx-vp9", pixels="yuva420p"),
    "webm vp8": Format(suffix="webm", video="libvpx", pixels="yuva420p", options=(("auto-alt-ref", "0"),)),
    "mov prores 4444": Format(suffix="mov", video="prores_ks", pixels="yuva444p10le"),
    "mov animation": Format(suffix="mov", video="qtrle", pixels="argb"),
    "mov png": Format(suffix="mov", video="png", pixels="rgba"),
    "mkv ffv1": Format(suffix="mkv", video="ffv1", pixels="bgra"),
}


@pytest.mark.parametrize("kind", ALPHA.values(), ids=ALPHA)
def test_transparent_videos(tmp_path: Path, kind: Format) -> None:
    """White where nothing is, the card's grey where it is opaque, half way between where it is half so."""
    rgba = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    rgba[...] = (0, 255, 0, 0)  # what lies under it must not show
    rgba[:, 16:32] = (GREY, GREY, GREY, 255)
    rgba[:, 32:48] = (GREY, GREY, GREY, 128)

    def draw(picture: np.ndarray) -> av.VideoFrame:
        return av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format=kind.pixels)

    path = maker.write(tmp_path / f"v.{kind.suffix}", kind, [(i / 25, rgba) for i in range(5)], draw=draw)
    frame = media_omnihuman.read_video(path)[2].astype(int)
    for column, wanted in ((6, 255), (24, GREY), (40, (255 + GREY) // 2), (57, 255)):
        assert np.abs(frame[10:38, column] - wanted).max() <= 8, column


INTERLACED = {
    "mp4 h264": Format(suffix="mp4", options=(("flags", "+ildct+ilme"), ("x264-params", "tff=1"), ("crf", "8"))),
    "mts h264, lower field first": Format(
        suffix="MTS", muxer="mpegts", options=(("flags", "+ildct+ilme"), ("x264-params", "bff=1"), ("crf", "8"))
    ),
    "mpg mpeg2": Format(
        suffix="mpg", video="mpeg2video", muxer="vob",
        options=(("flags", "+ildct+ilme"), ("b", "8000000")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", INTERLACED.values(), ids=INTERLACED)
def test_interlaced_fields(tmp_path: Path, kind: Format) -> None:
    """A bar that moves from field to field has no comb left, and the still card is as sharp as before."""
    height, width = 96, 128
    pictures = []
    for i in range(14):
        picture = maker.card(height, width)
        for field in (0, 1):
            x = 50 + 3 * (2 * i + (field if "bff" not in str(kind.options) else 1 - field)) % 60
            picture[height // 2 + field :: 2, x : x + 8] = 240
        pictures.append((i / 25, picture))
    path = maker.write(tmp_path / f"v.{kind.suffix}", kind, pictures)
    frames = media_omnihuman.read_video(path)
    assert len(frames) >= 13 and footage_omnihuman.opening(path).look.interlaced
    rows = frames[4:10, height // 2 + 6 : -6, 40:, 1].astype(int)

    def comb(lines: np.ndarray) -> float:
        """How much a line differs from both its neighbours alike."""
        return float(np.abs(2 * lines[:, 1:-1] - lines[:, :-2] - lines[:, 2:]).mean())

    woven = np.stack([p for _, p in pictures])[4:10, height // 2 + 6 : -6, 40:, 1].astype(int)
    assert comb(rows) < 0.35 * comb(woven)
    assert np.abs(frames[5, 4:20, 4:30].mean((0, 1)) - RED).max() <= 24


@pytest.mark.parametrize("name", ["mp4 h264 aac", "mkv h264 opus", "mov prores pcm", "ts h264 aac"])
def test_pixel_aspect(tmp_path: Path, name: str) -> None:
    def prepare(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)

    kind = FORMATS[name]
    path = maker.write(tmp_path / f"v.{kind.suffix}", kind, maker.scene(), prepare=prepare)
    is_the_card(media_omnihuman.read_video(path)[2], (HEIGHT, WIDTH * 3 // 2))


def joined(path: Path, parts: list[Path]) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize("aspect", [False, True], ids=["size", "pixel aspect"])
def test_a_size_that_changes(tmp_path: Path, aspect: bool) -> None:
    """The second part is laid into the first one's size, whole, in its own shape, between black bars."""
    kind = FORMATS["ts h264 aac"]

    def prepare(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1) if aspect else Fraction(1)

    first = maker.write(tmp_path / "a.ts", kind, maker.scene(), maker.clicks(1.2, 48_000), delay_s=0.2)
    size = (HEIGHT, WIDTH) if aspect else (24, 64)
    second = maker.write(
        tmp_path / "b.ts", kind, maker.scene(size=size), maker.clicks(1.2, 48_000), delay_s=1.4, prepare=prepare
    )
    path = joined(tmp_path / "c.ts", [first, second])
    frames = media_omnihuman.read_video(path)
    assert abs(len(frames) - 60) <= 1 and frames.shape[1:] == (HEIGHT, WIDTH, 3)
    for frame in frames[:29]:
        assert np.abs(frame[-8:, -8:].astype(int) - frame[-16:-8, -8:]).max() <= 6  # no bars
    for frame in frames[32:]:
        assert frame[:10].max() <= 20 and frame[-10:].max() <= 20  # a shape of 8:3 in one of 4:3
    is_the_card(frames[33, 12:36], (24, 64))
    part = media_omnihuman.read_video(path, start_s=1.4, duration_s=0.4)
    np.testing.assert_array_equal(part, frames[35:45])


@pytest.mark.parametrize("gap_s", [0.0, 100.0, -0.5], ids=["begins again", "far ahead", "a little back"])
def test_joined_recordings_whose_clocks_disagree(tmp_path: Path, gap_s: float) -> None:
    kind = FORMATS["ts h264 aac"]
    parts = [
        maker.write(tmp_path / f"{i}.ts", kind, maker.scene(), maker.clicks(1.2, 48_000), delay_s=at)
        for i, at in enumerate((5.0, 5.0 if gap_s == 0 else 6.2 + gap_s))
    ]
    path = joined(tmp_path / "j.ts", parts)
    frames, sound = media_omnihuman.read_video(path), media_omnihuman.read_audio(path)
    assert sound is not None and abs(len(frames) - 60) <= 1 and abs(sound.size - 60 * 640) <= 640
    wanted = [*maker.FLASHES_S, *(1.2 + f for f in maker.FLASHES_S)]
    np.testing.assert_allclose(maker.flash_times(frames), wanted, atol=0.045)
    np.testing.assert_allclose(maker.click_times(sound), wanted, atol=0.04)
    late = media_omnihuman.read_audio(path, start_s=1.4, duration_s=0.4)
    assert late is not None and np.abs(late - sound[22_400:28_800]).max() <= 0.02


def test_a_sound_clock_of_its_own_is_refused(tmp_path: Path) -> None:
    """The pictures go on, the sound begins again: nobody can say where it belongs."""
    kind = FORMATS["ts h264 aac"]
    first = maker.write(tmp_path / "a.ts", kind, maker.scene(), maker.clicks(1.2, 48_000), delay_s=0.2)
    second = maker.write(
        tmp_path / "b.ts", kind, maker.scene(), maker.clicks(1.2, 48_000), delay_s=1.4, sound_at_s=-1.2
    )
    path = joined(tmp_path / "j.ts", [first, second])
    for read in (media_omnihuman.read_audio, media_omnihuman.read_video):
        with pytest.raises(MediaError, match=r"j\.ts: .*clock leaps"):
            read(path)


def film_with_cover(path: Path, cover_first: bool, attached: bool) -> Path:
    """A film of 1.2 s with sound, and a red cover as another video track."""
    with av.open(str(path), "w") as out:

        def add_cover() -> av.VideoStream:
            stream = out.add_stream("mjpeg", rate=25)
            stream.height, stream.width, stream.pix_fmt = 80, 80, "yuvj420p"
            stream.disposition = av.stream.Disposition.attached_pic if attached else av.stream.Disposition(0)
            return stream

        cover = add_cover() if cover_first else None
        film = out.add_stream("libx264", rate=25)
        film.height, film.width, film.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        film.disposition = av.stream.Disposition.default
        sound = out.add_stream("aac", rate=48_000, layout="mono")
        cover = cover or add_cover()
        packets = cover.encode(maker.converted(np.full((80, 80, 3), RED, np.uint8), "yuvj420p")) + cover.encode(None)
        for time_s, picture in maker.scene():
            frame = maker.converted(picture, "yuv420p")
            frame.pts, frame.time_base = round(time_s * 25), Fraction(1, 25)
            packets += film.encode(frame)
        packets += film.encode(None)
        packets += list(maker.encoded_sound(sound, maker.clicks(1.2, 48_000), 48_000, 0.0))
        for packet in packets:
            out.mux(packet)
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("cover_first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("attached", [True, False], ids=["attached", "a video track"])
def test_covers_are_passed_over(tmp_path: Path, suffix: str, cover_first: bool, attached: bool) -> None:
    path = film_with_cover(tmp_path / f"v.{suffix}", cover_first, attached)
    frames, sound = media_omnihuman.read_video(path), media_omnihuman.read_audio(path)
    assert sound is not None and abs(len(frames) - 30) <= 1 and abs(sound.size - 30 * 640) <= 640
    is_the_card(frames[2])
    np.testing.assert_allclose(maker.click_times(sound), maker.FLASHES_S, atol=0.03)
    (cover,) = [t for t in streams_omnihuman.choose(path).tracks if t.kind == "video" and t.passed_over]
    assert "cover" in cover.passed_over


def test_a_voice_with_a_cover_is_as_long_as_the_voice(tmp_path: Path) -> None:
    for number, suffix in enumerate(("mp4", "mkv")):
        path = maker.write(
            tmp_path / f"{number}.{suffix}", FORMATS["mp4 h264 aac"], maker.scene()[:1], maker.clicks(3.0, 48_000)
        )
        sound = media_omnihuman.read_audio(path)
        assert sound is not None and abs(sound.size - 3 * RATE) <= 1100
        np.testing.assert_allclose(maker.click_times(sound), maker.FLASHES_S, atol=0.03)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("default", [0, 1, None])
def test_several_tracks(tmp_path: Path, suffix: str, default: int | None) -> None:
    """The default ones; without (an mp4 always has one), the longest film, and the first sound for everybody."""
    default = 0 if default is None and suffix == "mp4" else default
    Disposition = av.stream.Disposition
    path = tmp_path / f"v.{suffix}"
    with av.open(str(path), "w") as out:
        packets = []
        for number, seconds in enumerate((0.6, 1.2)):
            film = out.add_stream("libx264", rate=25)
            film.height, film.width, film.pix_fmt = HEIGHT, WIDTH + 16 * number, "yuv420p"
            film.disposition = Disposition.default if default == number else Disposition(0)
            for i in range(round(25 * seconds)):
                frame = maker.converted(maker.card(HEIGHT, WIDTH + 16 * number), "yuv420p")
                frame.pts, frame.time_base = i, Fraction(1, 25)
                packets += film.encode(frame)
            packets += film.encode(None)
        for number, level in enumerate((0.2, 0.6)):
            sound = out.add_stream("aac", rate=48_000, layout="mono")
            flags = Disposition.default if default == number else Disposition(0)
            sound.disposition = flags | (Disposition.visual_impaired if number == 0 and suffix == "mkv" else flags)
            tone = (level * np.sin(np.arange(57_600) * 0.05)).astype(np.float32)
            packets += maker.encoded_sound(sound, tone, 48_000, 0.0)
        for packet in packets:
            out.mux(packet)
    film_number = 1 if default is None else default
    assert media_omnihuman.probe(path).width == WIDTH + 16 * film_number
    heard = media_omnihuman.read_audio(path)
    assert heard is not None
    sound_number = (1 if suffix == "mkv" else 0) if default is None else default
    assert np.abs(heard[3000:6000]).max() == pytest.approx((0.2, 0.6)[sound_number], abs=0.08)


SOUNDS = {
    "mp4 aac": MP4,
    "mkv opus": FORMATS["mkv h264 opus"],
    "mkv flac": FORMATS["mkv ffv1 flac"],
    "ts aac": FORMATS["ts h264 aac"],
    "mov pcm": FORMATS["mov prores pcm"],
    "avi mp3": FORMATS["avi mpeg4 mp3"],
}


def melody(seconds: float, rate: int) -> np.ndarray:
    """Tones that change 10 times a second, so that every place sounds like no other."""
    time_s = np.arange(round(seconds * rate)) / rate
    pitch = 200 + 37 * (np.floor(time_s * 10) % 23)
    return (0.4 * np.sin(2 * np.pi * np.cumsum(pitch) / rate)).astype(np.float32)


@pytest.mark.parametrize("late_s", [0.0, 0.7])
@pytest.mark.parametrize("kind", SOUNDS.values(), ids=SOUNDS)
def test_a_part_of_the_sound_is_what_it_is_in_the_whole(tmp_path: Path, kind: Format, late_s: float) -> None:
    if kind.frame_rate_only and late_s:
        late_s = 0.0
    path = maker.write(
        tmp_path / f"v.{kind.suffix}", kind, [(i / 5, maker.card()) for i in range(47)] if not kind.frame_rate_only
        else [(i / 25, maker.card()) for i in range(230)],
        melody(9.0 - late_s, kind.rate), sound_at_s=late_s,
    )  # fmt: skip
    whole = media_omnihuman.read_audio(path)
    assert whole is not None
    for start_s, seconds in ((0.0, 0.5), (0.5, 1.0), (3.3, 0.7), (7.9, 1.0)):
        part = media_omnihuman.read_audio(path, start_s=start_s, duration_s=seconds)
        assert part is not None
        first = round(start_s * RATE)
        assert np.abs(part - whole[first : first + part.size]).max() <= 0.01, start_s


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "m4a", "mka", "aac", "opus"])
@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_a_part_of_a_sound_file_is_what_it_is_in_the_whole(tmp_path: Path, suffix: str, rate: int) -> None:
    if suffix == "opus" and rate == 44_100:
        rate = 24_000
    codec = {
        "wav": "pcm_s16le",
        "flac": "flac",
        "ogg": "libopus",
        "mp3": "libmp3lame",
        "mka": "flac",
        "opus": "libopus",
    }
    path = tmp_path / f"s.{suffix}"
    if suffix == "ogg" and rate == 44_100:
        rate = 24_000
    with av.open(str(path), "w", format={"m4a": "mp4", "mka": "matroska"}.get(suffix)) as out:
        stream = out.add_stream(codec.get(suffix, "aac"), rate=rate, layout="mono")
        for packet in maker.encoded_sound(stream, melody(6.0, rate), rate, 0.0):
            out.mux(packet)
    whole = media_omnihuman.read_audio(path)
    assert whole is not None and abs(whole.size - 6 * RATE) <= 2500
    for start_s, seconds in ((0.0, 0.5), (1.7, 1.0), (4.4, 0.9)):
        part = media_omnihuman.read_audio(path, start_s=start_s, duration_s=seconds)
        assert part is not None
        first = round(start_s * RATE)
        assert np.abs(part - whole[first : first + part.size]).max() <= 0.01, start_s


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_a_part_behind_a_hole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"s.{suffix}"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libopus", rate=48_000, layout="mono")
        tone = melody(2.0, 48_000)
        for at_s in (0.0, 4.0):
            frame = av.AudioFrame.from_ndarray(tone[None], format="flt", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, round(at_s * 48_000), Fraction(1, 48_000)
            for begin in range(0, tone.size - 959, 960):
                piece = av.AudioFrame.from_ndarray(tone[None, begin : begin + 960], format="flt", layout="mono")
                piece.sample_rate, piece.time_base = 48_000, Fraction(1, 48_000)
                piece.pts = round(at_s * 48_000) + begin
                out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    whole = media_omnihuman.read_audio(path)
    assert whole is not None and abs(whole.size - 6 * RATE) <= 1000
    assert np.abs(whole[2 * RATE + 800 : 4 * RATE - 800]).max() < 0.02 < np.abs(whole[4 * RATE + 1600 : 5 * RATE]).max()
    for start_s in (1.5, 3.9, 5.1):
        part = media_omnihuman.read_audio(path, start_s=start_s, duration_s=0.5)
        assert part is not None
        first = round(start_s * RATE)
        apart = np.abs(part - whole[first : first + part.size])
        # Reading that begins in the hole leaves Opus without what it remembers: its first 30 ms behind it differ.
        apart[max(0, 4 * RATE - first) : max(0, round(4.05 * RATE) - first)] = 0.0
        assert apart.max() <= 0.02, start_s


def test_what_is_decoded_follows_what_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of a minute: no more than the lead and the tail beside it are decoded."""
    path = maker.write(tmp_path / "v.mp4", MP4, [(i, maker.card()) for i in range(60)], melody(60.0, 48_000))
    decoded = []
    placed = sound_omnihuman._placed
    monkeypatch.setattr(
        sound_omnihuman,
        "_placed",
        lambda frames, *rest: placed((decoded.append(f.samples) or f for f in frames), *rest),
    )
    media_omnihuman.read_audio(path, start_s=40.0, duration_s=1.0)
    assert 48_000 <= sum(decoded) <= 2.5 * 48_000


def test_no_more_than_two_pictures_are_held(tmp_path: Path) -> None:
    """Also where the garbage collector does not come by: a picture of a large video is many megabytes."""
    path = maker.write(tmp_path / "v.mp4", MP4, maker.scene(seconds=4.0))
    gc.collect()
    gc.disable()
    try:
        most = 0
        for number, _ in enumerate(media_omnihuman.iter_video(path)):
            if number % 25 == 24:
                most = max(most, sum(isinstance(one, av.VideoFrame) for one in gc.get_objects()))
    finally:
        gc.enable()
    assert 1 <= most <= 8


def test_two_seconds_of_sound_do_not_measure_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To measure is to read all its packets: 1.5 GB of a video of three hours."""
    path = maker.write(tmp_path / "v.mp4", MP4, maker.scene(), maker.clicks(1.2, 48_000))
    monkeypatch.setattr(streams_omnihuman, "measure", lambda path: pytest.fail("measured"))
    heard = media_omnihuman.read_audio(path, start_s=0.3, duration_s=0.5)
    assert heard is not None and heard.size == RATE // 2
    assert len(media_omnihuman.read_video(path, start_s=0.3, duration_s=0.5)) == 12


def test_sound_that_is_not_finite_or_far_too_loud_is_refused(tmp_path: Path) -> None:
    import soundfile

    for value, says in ((np.nan, "nan"), (np.inf, "inf"), (20_000.0, "20000")):
        wave = np.zeros(RATE, np.float32)
        wave[12_345] = value
        soundfile.write(tmp_path / "s.wav", wave, RATE, subtype="FLOAT")
        with pytest.raises(MediaError, match=rf"s\.wav: sample {says}.* at 0\.7716 s"):
            media_omnihuman.read_audio(tmp_path / "s.wav")
    soundfile.write(tmp_path / "s.wav", np.full(RATE, 1.4, np.float32), RATE, subtype="FLOAT")
    loud = media_omnihuman.read_audio(tmp_path / "s.wav")
    assert loud is not None and loud.max() == 1.0


def test_a_playlist_opens_nothing(tmp_path: Path) -> None:
    maker.write(tmp_path / "real.mp4", MP4, maker.scene())
    for name, text in (
        ("list.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nreal.mp4\n#EXT-X-ENDLIST\n"),
        ("list.mkv", "ffconcat version 1.0\nfile real.mp4\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(MediaError):
            media_omnihuman.read_video(tmp_path / name)


def test_names_are_data(tmp_path: Path) -> None:
    made = maker.write(tmp_path / "v.mp4", MP4, maker.scene(), maker.clicks(1.2, 48_000))
    for name in ("http:a.mp4", "%d%03d.mp4", "[b]x $(id);'.mp4", b"caf\xe9.mp4".decode("utf-8", "surrogateescape")):
        path = tmp_path / name
        made.rename(path)
        is_the_card(media_omnihuman.read_video(path)[2])
        assert media_omnihuman.read_audio(path) is not None
        made = path
