"""Dissolves on made scenes, where the truth is known to the frame."""

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.curate import dissolves, file_stages, shots
from data_pipelines.curate.dissolves import Dissolve, DissolveFinder
from data_pipelines.sample_media import SampleMedia
from omnihuman_jax.serving import media_omnihuman

MIN_CHANGE = shots.ShotConfig().min_change


def moving(seed: int, frames: int, step: int = 1) -> np.ndarray:
    """uint8 [T, 48, 64, 3]: coarse blocks of colours that pass by, `step` pixels a frame."""
    wide = np.random.default_rng(seed).integers(0, 256, (6, 64, 3)).astype(np.uint8).repeat(8, 0).repeat(16, 1)
    return np.stack([wide[:, step * t : step * t + 64] for t in range(frames)])


def mixed(first: np.ndarray, second: np.ndarray, at: int, width: int) -> np.ndarray:
    """The first film until frame `at`, over into the second in `width` frames."""
    share_T = np.clip((np.arange(len(first)) - at + 1) / (width + 1), 0, 1)[:, None, None, None]
    return np.round(first * (1 - share_T) + second * share_T).astype(np.uint8)


def found(film: np.ndarray) -> list[Dissolve]:
    finder = DissolveFinder(MIN_CHANGE)
    for thumbnail in film:
        finder.add(thumbnail)
    return finder.dissolves()


@pytest.mark.parametrize("width", [5, 12, 25, 45])
def test_a_dissolve_is_found_where_it_is(width: int) -> None:
    for seed in range(6):
        still = moving(seed, 1).repeat(140, 0)
        (one,) = found(mixed(still, moving(seed + 50, 140, step=0), 60, width))
        assert abs(one.start - 60) <= 1 and abs(one.end - 60 - width) <= 1, (seed, one)


def test_two_dissolves_and_a_fade_to_black_are_three() -> None:
    first, second, third, black = moving(1, 1), moving(2, 1), moving(3, 1), np.zeros((1, 48, 64, 3), np.uint8)
    film = mixed(mixed(first.repeat(260, 0), second.repeat(260, 0), 50, 12), third.repeat(260, 0), 110, 20)
    three = found(mixed(film, black.repeat(260, 0), 180, 15))
    assert np.allclose([(one.start, one.end) for one in three], [(50, 62), (110, 130), (180, 195)], atol=1)


@pytest.mark.parametrize("step", [0, 1, 4, 16])
def test_what_moves_is_none(step: int) -> None:
    assert not found(moving(4, 50, step=step))


def test_a_cut_and_a_flash_are_none() -> None:
    one, other = moving(5, 1).repeat(60, 0), moving(6, 1).repeat(60, 0)
    assert not found(np.concatenate([one, other]))
    lit = one.copy()
    lit[20:24] = 255
    assert not found(lit)


def test_the_same_scene_in_another_light_is_none() -> None:
    scene = (moving(7, 1).repeat(80, 0) * 0.5).astype(np.uint8)
    brighter = np.linspace(0, 1, 80)[:, None, None, None] * 90
    assert not found(np.round(scene + brighter).astype(np.uint8))


def test_late_in_a_long_film_and_without_holding_it() -> None:
    finder = DissolveFinder(MIN_CHANGE)
    for thumbnail in mixed(moving(8, 1).repeat(700, 0), moving(9, 1).repeat(700, 0), 610, 20):
        finder.add(thumbnail)
    (one,) = finder.dissolves()
    assert abs(one.start - 610) <= 1 and abs(one.end - 630) <= 1
    assert finder._held_TP.nbytes < 2 << 20


def test_no_frame_of_a_dissolve_is_in_a_clip() -> None:
    config = shots.ShotConfig(min_s=1.0, max_s=4.0, trim_frames=1)
    kept, short = shots.clip_ranges(200, [70, 150], config, [Dissolve(60, 90)])
    assert kept == [(0, 60), (90, 149), (151, 200)] and not short
    assert shots.clip_ranges(80, [], config, [Dissolve(10, 30)]) == ([(30, 80)], [(0, 10)])
    assert shots.clip_ranges(100, [], config, [Dissolve(0, 20), Dissolve(70, 100)]) == ([(20, 70)], [])


def test_a_dissolve_ends_with_the_film_at_the_latest() -> None:
    assert dissolves._of([dissolves._Ramp(50.0, 95.2, 38)], 83) == Dissolve(51, 83)


def test_a_video_with_a_dissolve_becomes_two_clips(tmp_path: Path, sample_media: SampleMedia) -> None:
    one = media_omnihuman.read_video(sample_media.videos / "jwpIntro.mp4", size=(96, 128), duration_s=4)
    other = media_omnihuman.read_video(sample_media.videos / "testMovie.mp4", size=(96, 128), duration_s=4)
    media_omnihuman.write_video(tmp_path / "v.mp4", mixed(one[:100], other[:100], 40, 14))
    first, second = file_stages.scan(str(tmp_path / "v.mp4"), file_stages.ScanOptions()).ranges
    assert first[0] == 0 and abs(first[1] - 40) <= 2
    assert abs(second[0] - 54) <= 2 and second[1] == 100
