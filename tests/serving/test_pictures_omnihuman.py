"""Patches, the size of a video, and pictures and poses laid over it."""

import math
import random

import numpy as np
import pytest

from omnihuman_jax.serving.pictures_omnihuman import (
    check_size,
    fit_size,
    lay_keypoints,
    lay_picture,
    patchify,
    place,
    token_positions,
    unpatchify,
)

SIZES = [(16, 16), (17, 4000), (4000, 17), (96, 80), (720, 1280), (1080, 1920), (1920, 1080), (2160, 3840)]


def test_unpatchify_is_the_inverse_of_patchify():
    latents = np.random.default_rng(0).normal(size=(5, 6, 10, 3))
    tokens = patchify(latents)
    assert tokens.shape == (5 * 3 * 5, 12)
    np.testing.assert_array_equal(unpatchify(tokens, 6, 10), latents)


def test_a_patch_is_row_column_channel_and_tokens_run_frame_row_column():
    frame, row, column, channel = np.meshgrid(*map(np.arange, (2, 4, 6, 3)), indexing="ij")
    tokens = patchify((((frame * 10 + row) * 10 + column) * 10 + channel).astype(float))
    positions = token_positions(2, 4, 6)
    for token, (t, h, w) in zip(tokens, positions):
        expected = [
            ((t * 10 + 2 * h + i) * 10 + 2 * w + j) * 10 + c for i in range(2) for j in range(2) for c in range(3)
        ]
        np.testing.assert_array_equal(token, expected)


def test_odd_sizes_and_partial_frames_are_refused():
    with pytest.raises(ValueError, match="4 x 5"):
        patchify(np.zeros((1, 4, 5, 3)))
    with pytest.raises(ValueError, match="7 tokens"):
        unpatchify(np.zeros((7, 12)), 4, 6)


@pytest.mark.parametrize(
    ("source", "area", "size"),
    [
        ((480, 640), 7680, (80, 96)),
        ((144, 176), 7680, (80, 96)),
        ((360, 640), 7680, (64, 112)),
        ((1080, 1920), 832 * 480, (480, 832)),
        ((1920, 1080), 832 * 480, (832, 480)),
        ((144, 176), 832 * 480, (144, 176)),  # never enlarged
        ((16, 16), 7680, (16, 16)),
    ],
)
def test_size_is_a_multiple_of_16_near_the_area_and_the_aspect(source, area, size):
    assert fit_size(*source, area) == size


@pytest.mark.parametrize("height", [240, 479, 720, 1081])
@pytest.mark.parametrize("width", [320, 641, 1280, 1919])
def test_aspect_is_kept_at_real_sizes(height, width):
    h, w = fit_size(height, width, 832 * 480)
    assert h % 16 == w % 16 == 0
    assert abs(np.log(h / w * width / height)) < 0.05
    assert abs(np.log(h * w / min(832 * 480, height * width))) < 0.08


def test_pictures_smaller_than_a_token_are_refused():
    with pytest.raises(ValueError, match="10 x 100"):
        fit_size(10, 100, 7680)


def _pictures() -> list[tuple[int, int]]:
    draw = random.Random(5)
    side = lambda: round(math.exp(draw.uniform(math.log(16), math.log(4500))))  # noqa: E731
    return SIZES + [(side(), side()) for _ in range(3000)]


def test_a_picture_fills_the_video_and_is_stretched_into_its_own_size_alone():
    draw = random.Random(7)
    stretched = 0
    for height, width in _pictures():
        fitted = fit_size(height, width, draw.randrange(256, 1_000_000))
        other = (16 * draw.randrange(1, 90), 16 * draw.randrange(1, 90))
        for size in (fitted, other):
            at = place(height, width, size)
            if fit_size(height, width, size[0] * size[1]) == size:
                stretched += 1
                assert (at.top, at.left, at.scale_y, at.scale_x) == (0, 0, size[0] / height, size[1] / width)
                continue
            assert at.scale_y == at.scale_x and min(at.top, at.left) == pytest.approx(0, abs=1e-6)
            # What hangs over hangs over evenly, and nothing is missing.
            assert height * at.scale_y - 2 * at.top == pytest.approx(size[0])
            assert width * at.scale_x - 2 * at.left == pytest.approx(size[1])
    assert 500 < stretched < 5500  # both branches


@pytest.mark.parametrize("size", [(32, 48), (48, 32), (64, 16)])
def test_a_keypoint_lands_where_the_picture_under_it_lands(size):
    """The pixel of a grid that is brightest, before and after, by nearest-neighbour scaling."""
    picture = np.zeros((90, 160, 3), np.uint8)
    picture[40:50, 76:86] = 255
    dot = np.array([[[81.0, 45.0, 1.0], [0.0, 0.0, 0.0]]], np.float32)

    def read(at):
        if at is None:
            return picture
        rows, columns = (np.arange(new) * old // new for new, old in zip(at, picture.shape[:2], strict=True))
        return picture[rows][:, columns]

    laid = lay_picture(read, size)
    assert laid.shape == (1, *size, 3) and laid.dtype == np.float32 and (laid.min(), laid.max()) == (-1, 1)
    seen = np.argwhere(laid[0].mean(-1) > 0).mean(0) + 0.5
    moved = lay_keypoints(dot, 90, 160, size)
    np.testing.assert_allclose(moved[0, 0, 1::-1] * 16, seen, atol=1.0)
    np.testing.assert_array_equal(moved[0, 1], 0)


def test_a_size_that_no_video_has():
    assert check_size((32, 48)) == (32, 48)
    for size in ((33, 48), (0, 16)):
        with pytest.raises(ValueError, match=rf"{size[0]}x{size[1]}: height and width must be multiples of 16"):
            check_size(size)
