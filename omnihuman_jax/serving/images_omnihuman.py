"""Picture files: the whole primary picture, upright, in sRGB, over the background where it is transparent.

Pillow reads them, for it knows orientation tags, colour profiles, and what a broken download is; `pillow-heif` reads
what phones write. A file that Pillow does not know may still be a video, whose first picture is wanted.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

if TYPE_CHECKING or __package__:
    from . import colours_omnihuman as colours
    from .frames_omnihuman import over_background
    from .streams_omnihuman import MediaError
else:  # in an exported folder the files lie beside each other
    import colours_omnihuman as colours
    from frames_omnihuman import over_background
    from streams_omnihuman import MediaError

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"mif2")
_THUMBNAIL_TAG, _DNG_VERSION_TAG = 254, 50706


def read(path: str | os.PathLike[str]) -> np.ndarray | None:
    """A picture file as RGB uint8 [H, W, 3] at its displayed size; None if it is none that Pillow knows.

    Raises:
        MediaError: broken off, too large, or of a kind whose colours are not stated.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except PermissionError as error:
        raise MediaError(f"{path}: not a readable image ({error.strerror}); give it read permission") from error
    _register_heif(head, path)
    with _named(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large pictures, and of odd tags
        try:
            Image.init()
            picture = Image.open(os.fsencode(path), formats=[name for name in FORMATS if name in Image.OPEN])
        except UnidentifiedImageError:
            return None
        with picture:
            _check(picture, path)
            _load_whole(picture, path)
            return _displayed(picture, path)


def _register_heif(head: bytes, path: str | os.PathLike[str]) -> None:
    if head[4:8] != b"ftyp" or not any(brand in head for brand in _HEIF_BRANDS):
        return
    try:
        import pillow_heif
    except ImportError as error:
        raise MediaError(
            f"{path}: a HEIC picture, which needs pillow-heif ({error}); pip install pillow-heif, or save it as JPEG"
        ) from error
    pillow_heif.register_heif_opener()


@contextlib.contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """What goes wrong in Pillow, which has many words for a broken file, comes out as `MediaError`."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise MediaError(f"{path}: the picture is too large ({error}); scale it down") from error
    except MediaError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MediaError(f"{path}: not a readable image ({reason}); save it again, or take another") from error


def _check(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """MediaError for what opens but is not the picture, or does not say what its values mean."""
    if picture.format == "TIFF":
        tags = getattr(picture, "tag_v2", {})
        if _DNG_VERSION_TAG in tags or tags.get(_THUMBNAIL_TAG, 0) == 1:
            raise MediaError(f"{path}: a camera's raw file, whose first picture is a preview; export it as JPEG or PNG")
    if picture.mode in ("F", "I"):
        raise MediaError(f"{path}: its values ({picture.mode}, 32 bits) have no fixed white; save it with 8 or 16 bits")


def _load_whole(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Decodes the picture; a JPEG whose end is missing is one that broke off, however much of it was filled up."""
    picture.load()
    if picture.format in ("JPEG", "MPO") and not _has_end(Path(path).read_bytes()):
        raise MediaError(f"{path}: the JPEG breaks off (it has no end marker); download it again")


def _has_end(jpeg: bytes) -> bool:
    """Whether an end marker follows the picture's own data; thumbnails in the segments before it have their own."""
    at = 2
    while jpeg[at : at + 1] == b"\xff" and jpeg[at + 1 : at + 2] != b"\xda":
        fill = jpeg[at + 1 : at + 2] == b"\xff"
        at += 1 if fill else 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return b"\xff\xd9" in jpeg[at:]


def _displayed(picture: Image.Image, path: str | os.PathLike[str]) -> np.ndarray:
    transfer, primaries = _stated_colours(picture, path)
    profile = picture.info.get("icc_profile")
    transparent = picture.has_transparency_data
    picture = ImageOps.exif_transpose(picture)
    alpha = None
    if transparent and picture.mode.startswith("I;16"):  # one of its greys; Pillow would clip the others
        alpha = np.where(np.asarray(picture) == picture.info["transparency"], 0, 255).astype(np.uint8)[..., None]
    elif transparent:
        picture = picture.convert("RGBA")
        alpha = np.asarray(picture.getchannel("A"))[..., None]
        picture = picture.convert("RGB")
    if colours.needs_conversion(transfer, primaries) and (transfer in (colours.PQ, colours.HLG) or not profile):
        rgb = colours.to_srgb(np.asarray(picture.convert("RGB"), np.float32) / 255.0, transfer, primaries)
    else:
        rgb = np.asarray(_in_srgb(_in_8_bits(picture), profile))
    return rgb.copy() if alpha is None else over_background(rgb, alpha)


def _in_8_bits(picture: Image.Image) -> Image.Image:
    """16-bit greys to 8 bits; Pillow would clip them."""
    if not picture.mode.startswith("I;16"):
        return picture if picture.mode in ("L", "RGB", "CMYK", "LAB") else picture.convert("RGB")
    return Image.fromarray(np.rint(np.asarray(picture).astype(np.float32) / 257.0).astype(np.uint8))


def _in_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """The picture in sRGB, by its embedded profile; one that cannot be read, or is of other colours, counts as none."""
    if profile:
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            assert converted is not None  # not in place
            return converted
    if picture.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.applyTransform(picture, ImageCms.buildTransform(lab, srgb, "LAB", "RGB")) or picture
    return picture.convert("RGB")


def _stated_colours(picture: Image.Image, path: str | os.PathLike[str]) -> tuple[int, int]:
    """(transfer, primaries) by H.273 code points; (2, 2) where the file does not state them."""
    if picture.format == "HEIF":
        nclx: dict[str, Any] = picture.info.get("nclx_profile") or {}
        return int(nclx.get("transfer_characteristics", 2)), int(nclx.get("color_primaries", 2))
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    if picture.format == "PNG" and 0 < (at := head.find(b"cICP")) < head.find(b"IDAT"):
        return head[at + 5], head[at + 4]
    if picture.format == "AVIF" and (at := head.find(b"colrnclx")) > 0:
        return int.from_bytes(head[at + 10 : at + 12], "big"), int.from_bytes(head[at + 8 : at + 10], "big")
    return 2, 2
