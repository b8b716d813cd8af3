"""Picture files as cameras, phones and editors write them, each checked by what is seen."""

import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.serving.streams_omnihuman import MediaError
from tests.serving import footage_maker as maker

CARD = maker.card(96, 160)


def saved(path: Path, picture: np.ndarray, **options: object) -> Path:
    image = Image.fromarray(picture)
    if path.suffix == ".heic":
        import pillow_heif

        pillow_heif.register_heif_opener()
    image.save(path, **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "avif"])
def test_orientation_tags(tmp_path: Path, suffix: str, orientation: int) -> None:
    """What is displayed is the card, whichever way the camera held it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    turned = Image.fromarray(CARD)
    turned.getexif()[0x0112] = inverse
    stored = ImageOps.exif_transpose(turned)
    path = saved(
        tmp_path / f"p.{suffix}", np.asarray(stored), exif=exif, **({"quality": 95} if suffix != "tiff" else {})
    )
    got = media_omnihuman.read_image(path)
    assert got.shape == CARD.shape and np.abs(got.astype(int) - CARD).mean() <= 4
    assert media_omnihuman.read_image(path, size=(48, 80)).shape == (48, 80, 3)


def test_transparent_pictures(tmp_path: Path) -> None:
    """White where nothing is, whatever colour lies hidden there."""
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[...] = (0, 255, 0, 0)
    rgba[16:48, 16:48] = (200, 60, 60, 255)
    image = Image.fromarray(rgba)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.webp", lossless=True, exact=True)
    image.save(tmp_path / "c.tiff")
    image.save(tmp_path / "d.avif", quality=95)
    image.convert("P").save(tmp_path / "e.gif", transparency=image.convert("P").getpixel((0, 0)))
    image.convert("P").save(tmp_path / "f.png", transparency=image.convert("P").getpixel((0, 0)))
    grey = Image.fromarray(np.dstack([rgba[..., 0], rgba[..., 3]]), "LA")
    grey.save(tmp_path / "g.png")
    for path in sorted(tmp_path.iterdir()):
        got = media_omnihuman.read_image(path)
        assert np.abs(got[4, 4].astype(int) - 255).max() <= 2, path.name
        assert np.abs(got[32, 32].astype(int) - ((200, 60, 60) if path.name != "g.png" else 200)).max() <= 8, path.name


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif", "heic", "gif", "tiff"])
def test_downloads_that_broke_off(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    whole = saved(tmp_path / f"whole.{suffix}", noise).read_bytes()
    path = tmp_path / f"half.{suffix}"
    for share in (0.3, 0.5, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(MediaError, match=r"half\.\w+: "):
            media_omnihuman.read_image(path)
    if suffix == "jpg":  # filled up with zeros, as some tools do
        path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) // 2))
        with pytest.raises(MediaError, match=r"half\.jpg: "):
            media_omnihuman.read_image(path)


@pytest.mark.parametrize("progressive", [False, True])
def test_the_end_of_a_thumbnail_is_not_the_end_of_the_picture(tmp_path: Path, progressive: bool) -> None:
    """A camera's JPEG has a whole one in its head; the rest of a broken download may be zeros."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8))
    thumbnail = io.BytesIO()
    noise.resize((40, 40)).save(thumbnail, "jpeg")
    path = tmp_path / "half.jpg"
    noise.save(path, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail.getvalue(), progressive=progressive)
    whole = path.read_bytes()
    media_omnihuman.read_image(path)
    for share in (0.5, 0.9):
        at = int(share * len(whole))
        path.write_bytes(whole[:at] + bytes(len(whole) - at))
        with pytest.raises(MediaError, match=r"half\.jpg: "):
            media_omnihuman.read_image(path)


def test_a_deep_grey_that_is_transparent(tmp_path: Path) -> None:
    """A 16-bit PNG that names one grey (chunk tRNS): white there, and the other greys are kept."""
    deep = np.full((32, 32), 120 * 257, np.uint16)
    deep[8:] = 7
    Image.fromarray(deep).save(tmp_path / "p.png")
    raw = (tmp_path / "p.png").read_bytes()
    chunk, at = b"tRNS" + struct.pack(">H", 7), raw.index(b"IDAT") - 4
    framed = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "p.png").write_bytes(raw[:at] + framed + raw[at:])
    got = media_omnihuman.read_image(tmp_path / "p.png")
    assert np.abs(got[:8].astype(int) - 120).max() <= 1 and got[8:].min() == 255


def test_a_page_of_a_web_server_under_a_pictures_name(tmp_path: Path) -> None:
    for suffix in ("jpg", "png", "webp"):
        (tmp_path / f"p.{suffix}").write_text("<!doctype html><title>403 Forbidden</title>")
        with pytest.raises(MediaError, match=r"p\.\w+: not a readable"):
            media_omnihuman.read_image(tmp_path / f"p.{suffix}")


def test_colour_profiles_and_depths(tmp_path: Path) -> None:
    """Deep greys are scaled, not clipped; a picture in another colour space is brought to sRGB."""
    deep = np.full((32, 32), 120 * 257, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.abs(media_omnihuman.read_image(tmp_path / "deep.png").astype(int) - 120).max() <= 1
    lab = ImageCms.createProfile("LAB")
    srgb = ImageCms.createProfile("sRGB")
    grey = Image.fromarray(CARD)
    ImageCms.profileToProfile(grey, srgb, lab, outputMode="LAB").save(tmp_path / "lab.tiff")
    assert np.abs(media_omnihuman.read_image(tmp_path / "lab.tiff").astype(int) - CARD).max() <= 6
    grey.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(media_omnihuman.read_image(tmp_path / "cmyk.jpg").astype(int) - CARD).mean() <= 6
    # A profile whose red, green and blue are those of sRGB in another order: the picture shows it was applied.
    profile = ImageCms.ImageCmsProfile(srgb).tobytes()
    swapped = bytearray(profile)
    tags = {profile[at : at + 4]: at for at in range(132, 132 + 12 * struct.unpack(">I", profile[128:132])[0], 12)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    swapped[red + 4 : red + 12], swapped[green + 4 : green + 12] = (
        profile[green + 4 : green + 12],
        profile[red + 4 : red + 12],
    )
    grey.save(tmp_path / "icc.png", icc_profile=bytes(swapped))
    assert np.abs(media_omnihuman.read_image(tmp_path / "icc.png")[8, 8].astype(int) - (40, 200, 40)).max() <= 4
    grey.save(tmp_path / "broken.png", icc_profile=b"no profile at all")
    np.testing.assert_array_equal(media_omnihuman.read_image(tmp_path / "broken.png"), CARD)


def test_pictures_without_a_stated_white_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(np.full((8, 8), 70_000, np.int32)).save(tmp_path / "wide.tiff")
    Image.fromarray(CARD).save(tmp_path / "raw.tiff", tiffinfo={50706: b"\1\4\0\0"})
    for name, says in (("float", "no fixed white"), ("wide", "no fixed white"), ("raw", "raw file")):
        with pytest.raises(MediaError, match=rf"{name}\.tiff: .*{says}"):
            media_omnihuman.read_image(tmp_path / f"{name}.tiff")


def test_a_screenshot_in_high_dynamic_range(tmp_path: Path) -> None:
    """A PNG that says PQ (chunk cICP): the grey card keeps its grey."""
    from tests.serving.test_footage import pq

    Image.fromarray(np.full((16, 16, 3), round(255 * pq(0.18 * 203)), np.uint8)).save(tmp_path / "p.png")
    raw = (tmp_path / "p.png").read_bytes()
    chunk = b"cICP" + bytes((9, 16, 0, 1))
    at = raw.index(b"IDAT") - 4
    (tmp_path / "p.png").write_bytes(
        raw[:at] + struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + raw[at:]
    )
    assert abs(float(media_omnihuman.read_image(tmp_path / "p.png").mean()) - 118) <= 4


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def full_box(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def coded_tile(path: Path, codec: str, picture: np.ndarray) -> tuple[bytes, bytes]:
    """(decoder configuration, one coded picture) of HEVC or AV1, as they stand in an mp4."""
    options = {"libx265": {"x265-params": "log-level=none:crf=4"}, "libsvtav1": {"crf": "4"}}[codec]
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=25, options=options)
        video.height, video.width, video.pix_fmt = *picture.shape[:2], "yuv420p"
        frame = maker.converted(picture, "yuv420p")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        for packet in (*video.encode(frame), *video.encode(None)):
            packet.dts = packet.pts  # libx265 leaves that of a single picture unset
            out.mux(packet)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return bytes(stream.codec_context.extradata), bytes(next(p for p in container.demux(stream) if p.size))


def tiled(path: Path, picture: np.ndarray, brand: bytes, tile: int = 64, quarters: int = 0) -> Path:
    """A picture as phones write it: tiles of one size, and an item that says how they lie (ISO/IEC 23008-12), to be
    shown turned counter-clockwise by some quarters.
    """
    codec, item, config_box = {
        b"heic": ("libx265", b"hvc1", b"hvcC"),
        b"avif": ("libsvtav1", b"av01", b"av1C"),
    }[brand]
    rows, columns = picture.shape[0] // tile, picture.shape[1] // tile
    parts = [
        coded_tile(path.with_suffix(".mp4"), codec, picture[y * tile : (y + 1) * tile, x * tile : (x + 1) * tile])
        for y in range(rows)
        for x in range(columns)
    ]
    payloads = [struct.pack(">4B2H", 0, 0, rows - 1, columns - 1, picture.shape[1], picture.shape[0])]
    payloads += [data for _, data in parts]
    ids = range(1, len(payloads) + 1)
    kinds = [b"grid", *[item] * len(parts)]
    entries = [
        full_box(b"infe", 2, int(i > 1), struct.pack(">HH", i, 0), kind, b"\0")
        for i, kind in zip(ids, kinds, strict=True)
    ]
    sizes = [full_box(b"ispe", 0, 0, struct.pack(">II", w, h)) for w, h in ((tile, tile), picture.shape[1::-1])]
    pixels = full_box(b"pixi", 0, 0, bytes((3, 8, 8, 8)))
    colours = box(b"colr", b"nclx", struct.pack(">HHHB", 1, 13, 6, 0))
    properties = box(b"ipco", box(config_box, parts[0][0]), *sizes, pixels, colours, box(b"irot", bytes((quarters,))))
    links = b"".join(
        struct.pack(">HB", i, len(which)) + bytes(which)
        for i, which in zip(ids, [(3, 4, 5, 0x86), *[(0x81, 2, 4, 5)] * len(parts)], strict=True)
    )
    references = box(b"dimg", struct.pack(">HH", 1, len(parts)), b"".join(struct.pack(">H", i) for i in ids[1:]))

    def meta(first: int) -> bytes:
        at, places = first, []
        for i, payload in zip(ids, payloads, strict=True):
            places.append(struct.pack(">HHHII", i, 0, 1, at, len(payload)))
            at += len(payload)
        return full_box(
            b"meta", 0, 0,
            full_box(b"hdlr", 0, 0, bytes(4), b"pict", bytes(13)),
            full_box(b"pitm", 0, 0, struct.pack(">H", 1)),
            full_box(b"iloc", 0, 0, b"\x44\0", struct.pack(">H", len(places)), *places),
            full_box(b"iinf", 0, 0, struct.pack(">H", len(entries)), *entries),
            full_box(b"iref", 0, 0, references),
            box(b"iprp", properties, full_box(b"ipma", 0, 0, struct.pack(">I", len(ids)), links)),
        )  # fmt: skip

    head = box(b"ftyp", brand, bytes(4), brand, b"mif1", b"miaf")
    path.write_bytes(head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", *payloads))
    return path


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("brand", [b"heic", b"avif"])
def test_a_tiled_picture_comes_whole(tmp_path: Path, brand: bytes, quarters: int) -> None:
    picture = maker.card(128, 192)
    picture[100:120, 150:180] = (30, 160, 60)
    path = tiled(tmp_path / f"p.{brand.decode()}", picture, brand, quarters=quarters)
    got = media_omnihuman.read_image(path)
    wanted = np.rot90(picture, quarters)
    assert got.shape == wanted.shape and np.abs(got.astype(int) - wanted).mean() <= 4


def test_a_videos_first_picture(tmp_path: Path) -> None:
    path = maker.write(tmp_path / "v.mp4", maker.FORMATS["mp4 h264 aac"], maker.scene())
    assert np.abs(media_omnihuman.read_image(path).astype(int) - maker.card()).mean() <= 4
