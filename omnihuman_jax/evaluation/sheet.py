"""Contact sheets: rows of frames with their names, one picture; and videos that play side by side."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from omnihuman_jax.runtime import files

_INK, _PAPER, _GAP = (30, 30, 30), (250, 250, 250), 4


def to_uint8(pictures: np.ndarray) -> np.ndarray:
    """Pictures in [-1, 1] as uint8, rounded; what lies outside is clipped."""
    return np.rint((np.clip(np.asarray(pictures, np.float32), -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def to_float(pictures: np.ndarray) -> np.ndarray:
    """uint8 pictures as float32 in [-1, 1]."""
    return np.asarray(pictures, np.float32) / 127.5 - 1.0


def evenly(count: int, columns: int) -> np.ndarray:
    """At most `columns` different indices spread over 0 .. count - 1, the first and the last among them."""
    return np.unique(np.rint(np.linspace(0, count - 1, min(columns, count))).astype(int))


def draw_rows(rows: Mapping[str, np.ndarray], title: str = "", columns: int = 6, min_height: int = 96) -> np.ndarray:
    """One row a video, one column a moment: uint8 [H, W, 3].

    Args:
        rows: label -> frames uint8 [T, H, W, 3]; all of one size, and T.
        title: line above the rows.
        columns: frames shown of each.
        min_height: smaller frames are enlarged by a whole factor, without smoothing: a sheet must not flatter.
    """
    from PIL import Image, ImageDraw, ImageFont

    shapes = {frames.shape for frames in rows.values()}
    if len(shapes) != 1:
        raise ValueError(f"the rows of a sheet must have one shape, not {sorted(shapes)}")
    frames_total, height, width, _ = shapes.pop()
    zoom = max(1, -(-min_height // height))
    moments = evenly(frames_total, columns)
    font = ImageFont.load_default(13)
    margin = 8 + max(int(font.getlength(label)) for label in rows)
    top = 24 if title else _GAP
    sheet = Image.new(
        "RGB",
        (margin + len(moments) * (zoom * width + _GAP), top + len(rows) * (zoom * height + _GAP)),
        _PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 4), title, fill=_INK, font=font)
    for row, (label, frames) in enumerate(rows.items()):
        y = top + row * (zoom * height + _GAP)
        draw.text((_GAP, y + zoom * height // 2 - 8), label, fill=_INK, font=font)
        for column, moment in enumerate(moments):
            picture = Image.fromarray(frames[moment]).resize((zoom * width, zoom * height), Image.Resampling.NEAREST)
            sheet.paste(picture, (margin + column * (zoom * width + _GAP), y))
    return np.asarray(sheet)


def side_by_side(examples: Sequence[Mapping[str, np.ndarray]], min_height: int = 96) -> np.ndarray:
    """Videos that play at once, an example a row, its labels as columns: uint8 [T, H, W, 3].

    Args:
        examples: each label -> frames uint8 [T, h, w, 3]; the same labels in all, and one shape.
        min_height: as for `draw_rows`.
    """
    from PIL import Image, ImageDraw, ImageFont

    labels = list(examples[0])
    shapes = {frames.shape for rows in examples for frames in rows.values()}
    if len(shapes) != 1 or any(list(rows) != labels for rows in examples):
        raise ValueError(f"videos side by side must have one shape and the same labels, not {sorted(shapes)}")
    frames_total, height, width, _ = shapes.pop()
    zoom = max(1, -(-min_height // height))
    cell_y, cell_x, top = zoom * height + _GAP, zoom * width + _GAP, 24
    paper = Image.new("RGB", (len(labels) * cell_x + _GAP, top + len(examples) * cell_y), _PAPER)
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default(12)
    for column, label in enumerate(labels):
        draw.text((_GAP + column * cell_x, 5), label, fill=_INK, font=font)
    played = np.repeat(np.asarray(paper)[None], frames_total, axis=0)
    for row, rows in enumerate(examples):
        for column, label in enumerate(labels):
            y, x = top + row * cell_y, _GAP + column * cell_x
            enlarged = rows[label].repeat(zoom, axis=1).repeat(zoom, axis=2)
            played[:, y : y + zoom * height, x : x + zoom * width] = enlarged
    return played


def write_gif(path: str | os.PathLike[str], examples: Sequence[Mapping[str, np.ndarray]], fps: float) -> None:
    """`side_by_side` as an endless GIF, written whole or not at all, in 255 colours, the same in all frames."""
    from PIL import Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    played = side_by_side(examples)
    palette = Image.fromarray(played[:: max(1, len(played) // 4)].reshape(-1, *played.shape[2:])).quantize(255)
    pictures = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in played]
    with files.whole_file(path) as temporary:
        pictures[0].save(
            temporary, format="GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0
        )


def stack_sheets(sheets: Sequence[np.ndarray]) -> np.ndarray:
    """Sheets below one another, on paper as wide as the widest."""
    width = max(sheet.shape[1] for sheet in sheets)
    padded = [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=_PAPER[0]) for s in sheets]
    return np.concatenate(padded)


def write_png(path: str | os.PathLike[str], picture: np.ndarray) -> None:
    """Writes a uint8 [H, W, 3] picture, whole or not at all."""
    from PIL import Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole_file(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
