"""Segment schedule, the chain through motion frames and its seams."""

import itertools
import math

import numpy as np
import pytest

from omnihuman_jax.diffusion import long_video
from omnihuman_jax.diffusion.long_video import chain, frames_of_seconds, segment_schedule


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


def clip(total: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.9, 0.9, (total, 4, 6, 3)).astype(np.float32)


@pytest.mark.parametrize("total", [7, 25, 26, 61])
def test_the_chain_hands_over_the_last_five_frames_and_joins_without_a_gap(total):
    truth, segments = clip(200), segment_schedule(total, 25)
    handed = []

    def generate(segment, motion):
        handed.append(motion)
        return truth[segment.start : segment.stop]

    pieces = list(chain(segments, generate))
    np.testing.assert_array_equal(np.concatenate([frames for frames, _ in pieces])[:total], truth[:total])
    assert handed[0] is None and pieces[0][1] is None
    for segment, motion, (_, seam) in list(zip(segments, handed, pieces, strict=True))[1:]:
        np.testing.assert_array_equal(motion, truth[segment.start : segment.start + 5])
        assert seam.frame == segment.start + 5 and seam.overlap_psnr_db == math.inf
        assert seam.jump == pytest.approx(seam.typical_jump, rel=0.2), "a cut like any other frame change"


def test_motion_frames_and_output_stay_in_range():
    pieces = list(chain(segment_schedule(30, 25), lambda segment, motion: np.full((segment.frames, 2, 2, 3), 3.0)))
    assert all(frames.max() == 1.0 for frames, _ in pieces)


def test_a_jump_at_the_seam_is_reported():
    still = np.zeros((25, 4, 6, 3), np.float32)
    still += 0.01 * np.arange(25, dtype=np.float32)[:, None, None, None]
    after = still + 0.5
    seam = long_video.measure_seam(still, after, segment_schedule(30, 25)[1])
    assert seam.jump > 10 * seam.typical_jump
    error = np.mean((still[-5:] - after[:5]) ** 2)
    assert seam.overlap_psnr_db == pytest.approx(10 * math.log10(4 / error), abs=1e-4)


def test_a_segment_of_the_wrong_length_is_an_error():
    with pytest.raises(ValueError, match="24 frames, not 25"):
        list(chain(segment_schedule(25, 25), lambda segment, motion: clip(24)))
