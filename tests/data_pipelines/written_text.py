"""Texts that broadcasters put into pictures, written into frames."""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

KINDS = ("subtitle", "two lines", "watermark", "banner")
TEXTS = {
    "subtitle": ("I never said that to him",),
    "two lines": ("and when we came home", "nobody was there, of course"),
    "watermark": ("STUDIO 7",),
    "banner": ("LIVE  Markets fall for a third day",),
}


def written(frame: np.ndarray, kind: str) -> np.ndarray:
    """The frame with a text of this kind, in a size that broadcasters use."""
    layer = layer_of(kind, *frame.shape[:2])
    whole = Image.alpha_composite(Image.fromarray(frame).convert("RGBA"), layer)
    return np.asarray(whole.convert("RGB"))


def layer_of(kind: str, height: int, width: int, texts: tuple[str, ...] = ()) -> Image.Image:
    """What is laid over a picture of that size; texts: other words than those of `TEXTS`."""
    layer = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(layer)
    texts = texts or TEXTS[kind]

    def write(x: float, y: float, text: str, lines: int, font: str = "DejaVuSans-Bold", **how: object) -> None:
        path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
        fitted = ImageFont.truetype(path, max(9, height // lines))
        draw.text((width * x, height * y), text, font=fitted, **how)  # type: ignore[arg-type]

    if kind == "subtitle":
        white_on_black = {"fill": (255, 255, 255, 255), "stroke_width": 1, "stroke_fill": (0, 0, 0, 255)}
        write(0.5, 0.9, texts[0], 18, anchor="mm", **white_on_black)
    elif kind == "two lines":
        for y, text in zip((0.82, 0.92), texts, strict=True):
            write(0.5, y, text, 20, "DejaVuSerif", fill=(255, 255, 0, 255), anchor="mm")
    elif kind == "watermark":
        write(0.8, 0.1, texts[0], 22, "DejaVuSans", fill=(255, 255, 255, 110), anchor="mm")
    else:
        draw.rectangle((0, height * 0.8, width, height * 0.95), fill=(200, 0, 0, 255))
        write(0.03, 0.875, texts[0], 16, fill=(255, 255, 255, 255), anchor="lm")
    return layer
