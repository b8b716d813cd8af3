"""Contact sheets: right frames at the right places."""

import numpy as np
import pytest
from PIL import Image

from omnihuman_jax.evaluation import sheet


def test_pictures_survive_the_way_to_uint8_and_back():
    grey = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(sheet.to_uint8(sheet.to_float(grey)), grey)
    np.testing.assert_array_equal(sheet.to_uint8(np.array([-3.0, 3.0])), [0, 255])


def test_moments_are_spread_from_the_first_to_the_last():
    np.testing.assert_array_equal(sheet.evenly(25, 5), [0, 6, 12, 18, 24])
    np.testing.assert_array_equal(sheet.evenly(2, 6), [0, 1])
    np.testing.assert_array_equal(sheet.evenly(1, 6), [0])


def test_every_row_shows_its_own_frames_enlarged_without_smoothing():
    frames = {name: np.zeros((9, 10, 20, 3), np.uint8) for name in ("truth", "sample")}
    for row, video in enumerate(frames.values()):
        video[..., 0] = 20 * np.arange(9)[:, None, None]
        video[..., 1] = 100 * row
    picture = sheet.draw_rows(frames, title="clip", columns=3, min_height=40)
    for row in range(2):
        for moment in (0, 4, 8):
            assert ((picture == [20 * moment, 100 * row, 0]).all(axis=-1)).sum() == 16 * 10 * 20


def test_rows_of_unlike_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        sheet.draw_rows({"a": np.zeros((1, 8, 8, 3), np.uint8), "b": np.zeros((2, 8, 8, 3), np.uint8)})


def test_sheets_are_stacked_and_written(tmp_path):
    tall = sheet.stack_sheets([np.zeros((3, 5, 3), np.uint8), np.zeros((2, 9, 3), np.uint8)])
    assert tall.shape == (5, 9, 3)
    sheet.write_png(tmp_path / "new" / "sheet.png", tall)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "sheet.png")), tall)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["sheet.png"]


def test_videos_play_side_by_side(tmp_path):
    rng = np.random.default_rng(0)
    examples = [
        {
            label: rng.integers(0, 2, (5, 1, 1, 3), np.uint8).repeat(16, 1).repeat(16, 2) * 255
            for label in ("one", "two")
        }
        for _ in range(2)
    ]
    sheet.write_gif(tmp_path / "played.gif", examples, fps=25)
    with Image.open(tmp_path / "played.gif") as gif:
        assert gif.info["loop"] == 0
        shown = {}
        at = 0
        for number in range(gif.n_frames):  # equal pictures in a row are one, shown longer
            gif.seek(number)
            shown[at] = np.asarray(gif.convert("RGB"))
            at += gif.info["duration"]
    assert at == 5 * 40
    for begin, picture in shown.items():
        for row, rows in enumerate(examples):
            for column, label in enumerate(rows):
                y, x = 24 + row * 100 + 48, 4 + column * 100 + 48
                # A palette of 255: near colours are one.
                np.testing.assert_allclose(picture[y, x], rows[label][begin // 40, 0, 0].astype(float), atol=6)
    with pytest.raises(ValueError, match="same labels"):
        sheet.write_gif(tmp_path / "no.gif", [examples[0], {"one": examples[1]["one"]}], fps=25)
