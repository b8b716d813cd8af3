"""The chain through motion frames and its seams."""

import math

import numpy as np
import pytest

from omnihuman_jax.diffusion import long_video
from omnihuman_jax.diffusion.long_video import chain
from omnihuman_jax.serving.windows_omnihuman import segment_schedule


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
