"""Cutting: windows, references, token units."""

import numpy as np
import pytest

from data_pipelines.encode.windows import Window, cut_windows, reference_frames, to_token_units


def test_windows_start_every_stride_and_one_ends_with_the_clip():
    windows = cut_windows(50, (25, 1, 17), stride=8, image_stride=20)
    assert [w.start for w in windows if w.frames == 17] == [0, 8, 16, 24, 32, 33]
    assert [w.start for w in windows if w.frames == 25] == [0, 8, 16, 24, 25]
    assert [w.start for w in windows if w.frames == 1] == [10, 30, 49]
    assert max(w.end for w in windows) == 50


@pytest.mark.parametrize("num_frames", range(1, 60))
def test_windows_lie_in_the_clip_and_none_comes_twice(num_frames):
    windows = cut_windows(num_frames, (1, 5, 25), stride=8, image_stride=12)
    assert len(set(windows)) == len(windows)
    assert all(w.start >= 0 and w.end <= num_frames for w in windows)
    assert {w.frames for w in windows} == {n for n in (1, 5, 25) if n <= num_frames}


def test_an_image_is_one_window():
    assert cut_windows(1, (1, 17), stride=8, image_stride=12) == [Window(0, 1)]


def test_lengths_that_are_no_window():
    with pytest.raises(ValueError, match=r"1 \+ 4n frames, not 16"):
        cut_windows(50, (16,), stride=8, image_stride=8)


def test_window_ids_differ():
    windows = cut_windows(300, (1, 17, 25), stride=1, image_stride=1)
    assert len({w.window_id("clip") for w in windows}) == len(windows)


@pytest.mark.parametrize(
    "window", [Window(0, 25), Window(13, 17), Window(75, 25), Window(50, 1), Window(1, 97), Window(0, 97)]
)
def test_references_lie_outside_of_the_window(window):
    frames = reference_frames(100, window, count=4, spacing=6)
    assert len(set(frames)) == len(frames) and 1 <= len(frames) <= 4
    assert all(0 <= f < 100 and not window.start <= f < window.end for f in frames)


def test_references_are_spread():
    assert reference_frames(100, Window(40, 17), count=4, spacing=10) == (15, 35, 75, 95)


def test_no_reference_without_frames_outside():
    assert reference_frames(25, Window(0, 25), 4, 2) == ()
    assert reference_frames(26, Window(0, 25), 4, 9) == (25,)
    assert reference_frames(1, Window(0, 1), 4, 1) == ()


def test_token_units():
    points = np.array([[[320.0, 240.0, 0.5], [640.0, 480.0, 1.0]]])
    np.testing.assert_allclose(to_token_units(points, (480, 640), (80, 96)), [[[3, 2.5, 0.5], [6, 5, 1]]])
