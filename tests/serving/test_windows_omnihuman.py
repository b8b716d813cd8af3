"""What the shipped pipeline computes for itself, because it may not import the trainer, is what the trainer
computes.
"""

import dataclasses
import math
import random

import pytest

from data_pipelines.encode import windows as encode_windows
from omnihuman_jax.sampling import driving
from omnihuman_jax.serving import windows_omnihuman as serving

SIZES = [(16, 16), (17, 4000), (4000, 17), (96, 80), (720, 1280), (1080, 1920), (1920, 1080), (2160, 3840)]


def _pictures() -> list[tuple[int, int]]:
    draw = random.Random(5)
    side = lambda: round(math.exp(draw.uniform(math.log(16), math.log(4500))))  # noqa: E731
    return SIZES + [(side(), side()) for _ in range(3000)]


def test_a_picture_gets_the_size_that_encode_gives_it():
    draw = random.Random(6)
    different = set()
    for height, width in _pictures():
        area = round(math.exp(draw.uniform(math.log(256), math.log(1280 * 720 * 2))))
        found = serving.fit_size(height, width, area)
        assert found == encode_windows.fit_size(height, width, area), (height, width, area)
        different.add(found)
    assert len(different) > 500
    for function in (serving.fit_size, encode_windows.fit_size):
        with pytest.raises(ValueError, match="needs 16 pixels"):
            function(15, 400, 10_000)


def test_a_picture_is_laid_over_the_video_as_generate_does_it():
    draw = random.Random(7)
    stretched = 0
    for height, width in _pictures():
        fitted = serving.fit_size(height, width, draw.randrange(256, 1_000_000))
        other = (16 * draw.randrange(1, 90), 16 * draw.randrange(1, 90))
        for size in (fitted, other):
            ours, theirs = driving.place(height, width, size), serving.place(height, width, size)
            assert dataclasses.astuple(ours) == dataclasses.astuple(theirs), (height, width, size)
            stretched += ours.top == ours.left == 0.0
    assert 500 < stretched < 5500  # both branches
