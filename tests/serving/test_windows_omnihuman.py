"""The clock: what a latent sees, margins, segments, seconds, and what drives one segment."""

import itertools
import math

import numpy as np
import pytest

from omnihuman_jax.serving.windows_omnihuman import (
    NO_FRAME,
    Signals,
    frame_index,
    frames_of_seconds,
    frames_to_make,
    neighbours_of,
    row_index,
    segment_schedule,
    with_margins,
)


def test_frames_that_a_latent_sees():
    none = NO_FRAME
    np.testing.assert_array_equal(
        frame_index(9, 8),
        [[-2, -1, none, none, none, 0, 1, 2], [-1, 0, 1, 2, 3, 4, 5, 6], [3, 4, 5, 6, 7, 8, 9, 10]],
    )
    np.testing.assert_array_equal(frame_index(5, 4), [[none, none, none, 0], [1, 2, 3, 4]])
    assert frame_index(5, 0).shape == (2, 0)
    assert [neighbours_of(n) for n in (0, 4, 6, 14)] == [0, 0, 1, 5]
    for slots in (3, 5):
        with pytest.raises(ValueError, match=f"not {slots}"):
            neighbours_of(slots)


def test_rows_end_at_the_margin_and_at_the_borders_of_the_clip():
    valid = np.ones(9 + 2 * 2, bool)
    valid[:2] = False  # the window opens its clip: no frames before
    index = row_index(9, 8, 2, valid)
    np.testing.assert_array_equal(index[0], [-1, -1, -1, -1, -1, 2, 3, 4])
    np.testing.assert_array_equal(index[1], [-1, 2, 3, 4, 5, 6, 7, 8])
    np.testing.assert_array_equal(index[2], [5, 6, 7, 8, 9, 10, 11, 12])
    # With less margin than neighbours, what lies beyond is missing, not wrapped.
    np.testing.assert_array_equal(
        row_index(9, 8, 1, np.ones(11, bool))[[0, 2]], [[-1, 0, -1, -1, -1, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10, -1]]
    )
    assert (row_index(9, 8, 2, np.zeros(13, bool)) == -1).all()
    with pytest.raises(ValueError, match="12 rows"):
        row_index(9, 8, 2, valid[:12])


def test_margins_are_real_where_there_are_frames():
    rows = np.arange(10, 31)[:, None].astype(np.float32)  # row r belongs to frame r - 2 of the clip and holds r + 10
    sliced, valid = with_margins(rows, 0, 5, margin=4, first=-2)
    assert valid.tolist() == [False, False] + [True] * 11
    assert sliced[:, 0].tolist() == [0, 0, *range(10, 21)]
    sliced, valid = with_margins(rows, 12, 5, margin=4, first=-2)
    assert sliced[:, 0].tolist() == [*range(20, 31), 0, 0] and valid.sum() == 11


@pytest.mark.parametrize("segment_frames", [9, 17, 25, 129])
@pytest.mark.parametrize("total", [1, 2, 5, 9, 10, 25, 26, 45, 46, 129, 130, 750, 751])
def test_segments_cover_every_frame_with_overlaps_of_five(total, segment_frames):
    segments = segment_schedule(total, segment_frames)
    assert segments[0].start == 0 and segments[0].overlap == 0
    assert all(segment.frames % 4 == 1 for segment in segments)
    assert len({segment.frames for segment in segments}) == 1, "one length, one compile"
    for before, after in itertools.pairwise(segments):
        assert before.stop - after.start == after.overlap == 5
    assert segments[-1].stop >= total
    assert len(segments) == 1 or segments[-2].stop < total, "no segment too many"


def test_one_segment_is_no_longer_than_needed():
    assert [segment_schedule(n, 25)[0].frames for n in (1, 2, 5, 6, 24, 25)] == [1, 5, 5, 9, 25, 25]


@pytest.mark.parametrize(
    ("seconds", "frames"), [(0.01, 1), (1.0, 25), (1.2, 30), (0.04 * 7, 7), (10.001, 251), (1 / 3, 9)]
)
def test_seconds_become_enough_frames(seconds, frames):
    assert frames_of_seconds(seconds) == frames


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf])
def test_impossible_seconds_are_refused(seconds):
    with pytest.raises(ValueError, match="seconds"):
        frames_of_seconds(seconds)


@pytest.mark.parametrize(("total", "segment"), [(0, 25), (100, 24), (100, 5), (100, 1)])
def test_impossible_schedules_are_refused(total, segment):
    with pytest.raises(ValueError):
        segment_schedule(total, segment)


def test_the_shortest_driving_file_says_how_long_the_video_becomes():
    assert frames_to_make(None, {}, 17) == 17
    assert frames_to_make(None, {"a.wav": 30, "b.npz": 26}, 17) == 26
    assert frames_to_make(1.04, {"a.wav": 25}, 17) == 26, "half a frame short is a rounding"
    with pytest.raises(ValueError, match=r"^a\.wav is shorter than one frame \(0\.04 s\): give a longer file$"):
        frames_to_make(None, {"a.wav": 0}, 17)
    with pytest.raises(ValueError, match=r"a\.wav lasts 1\.00 s, shorter than --seconds 1\.1: .* or --seconds 1\.00"):
        frames_to_make(1.1, {"a.wav": 25}, 17)
    with pytest.raises(ValueError, match="seconds must be > 0, not -1"):
        frames_to_make(-1, {}, 17)


def test_a_segment_has_its_own_rows_and_its_motion_latents():
    signals = Signals(
        frames=13, latent_shape=(2, 4, 3), reference_HWC=np.ones((2, 4, 3), np.float32), text_SE=np.ones((2, 5)),
        pooled_E=np.ones(5), has_text=True, audio_TE=np.arange(13.0)[:, None], keypoints_TJ3=None, wave=None,
    )  # fmt: skip
    first, second = segment_schedule(13, 9)
    motion = np.full((2, 2, 4, 3), 7.0, np.float32)
    window = signals.window(second, motion, margin=2)
    np.testing.assert_array_equal(window.audio_TE[:, 0], [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0])
    assert window.audio_valid_T.tolist() == [True] * 11 + [False] * 2
    assert (window.frames, window.motion, window.slot, window.keypoints_TJ3) == (9, True, 1, None)
    np.testing.assert_array_equal(window.latents_FHWC, np.concatenate([motion, np.zeros((1, 2, 4, 3))]))
    assert not signals.window(first, None, margin=2).motion
