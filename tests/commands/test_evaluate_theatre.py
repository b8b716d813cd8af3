"""`omnihuman evaluate --suite theatre` on a tiny run, with a truth of its clips."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.puppet_theatre.truth import Truth
from omnihuman_jax.commands import evaluate
from omnihuman_jax.conditions import Condition
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.keypoints import NUM_KEYPOINTS
from omnihuman_jax.evaluation import mouth
from omnihuman_jax.sampling import drift, lip_sync, trained_run, wrists
from tests.sampling.tiny_run import TinyRun

SHOT, FRAMES = 5, 45  # the clip begins at this frame of its video


def write_truth(folder: Path, name: str, height: int, width: int) -> Truth:
    """The truth of a video twice as large as its windows, with a mouth in the lower half."""
    random = np.random.default_rng(len(name) + height)
    box = np.tile(np.array([0.5 * width, height, 1.5 * width, 1.5 * height], np.float32), (FRAMES, 1))
    row = np.zeros(FRAMES, np.float32)
    truth = Truth(
        opening_T=random.uniform(size=FRAMES).astype(np.float32),
        spread_T=row,
        heard_T=row,
        gap_T=row,
        width_T=row,
        mouth_seen_T=row == 0,
        keypoints_TJ3=np.zeros((FRAMES, NUM_KEYPOINTS, 3), np.float32),
        mouth_box_T4=box,
        face_box_T4=box,
        faces_T=np.ones(FRAMES, np.int32),
        gestures_TG=np.zeros((FRAMES, 5), np.float32),
        facts={"shots": [[0, SHOT], [SHOT, FRAMES]], "size_px": [2 * height, 2 * width], "plan": {"person": name}},
    )
    folder.mkdir(exist_ok=True)
    truth.save(folder / f"{name}.npz")
    return truth


@pytest.fixture(scope="module")
def held_out(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(dataset, truth): the windows of the tiny run, as the second shots of two drawn videos, held out."""
    root = tmp_path_factory.mktemp("held_out")
    shutil.copytree(tiny.dataset, root / "dataset")
    catalog = Catalog.load(root / "dataset")
    names = np.array([f"{clip}-001" for clip in catalog.clip_id], object)
    splits = np.array(["unseen_face"] * len(catalog), object)
    dataclasses.replace(catalog, clip_id=names, split=splits).save(root / "dataset")
    for clip in sorted(set(catalog.clip_id.tolist())):
        row = int(np.flatnonzero(catalog.clip_id == clip)[0])
        write_truth(root / "truth", clip, int(catalog.height[row]), int(catalog.width[row]))
    return root / "dataset", root / "truth"


def test_windows_get_the_truth_of_their_own_frames(held_out: tuple[Path, Path]) -> None:
    clips = lip_sync.load_windows(*held_out, "unseen_face")
    assert list(clips) == ["clip0-001", "clip1-001"]
    for name, windows in clips.items():
        truth = Truth.load(held_out[1] / f"{name[:-4]}.npz")
        for window in windows:
            assert np.allclose(window.opening_T, truth.opening_T[SHOT + window.start :][:9])
            height, width = (8 * side for side in window.record.latents_FHWC.shape[1:3])
            assert np.allclose(window.box_4, [width / 4, height / 2, 3 * width / 4, 3 * height / 4])
    for window, other in lip_sync.choose(clips, 4):
        assert window.clip != other.clip
    with pytest.raises(ValueError, match="no window of split train has sound and a reference; its splits are unseen"):
        lip_sync.load_windows(*held_out, "train")


def test_only_the_sound_differs(held_out: tuple[Path, Path], run: trained_run.TrainedRun) -> None:
    (window, other), *_ = lip_sync.choose(lip_sync.load_windows(*held_out, "unseen_face"), 2)
    own, theirs, none = (lip_sync.driven(window, other, kind, 7, run) for kind in lip_sync.DRIVINGS)
    assert np.array_equal(own.audio_TE, window.record.audio_TE) and np.array_equal(
        theirs.audio_TE, other.record.audio_TE
    )
    assert Condition.AUDIO not in none.active and own.active == theirs.active
    for inputs in (own, theirs, none):
        assert not inputs.latents_FHWC.any() and inputs.slot == 7
        assert np.array_equal(inputs.reference_HWC, window.record.references_RHWC[0])


def test_the_suite_writes_a_table_and_a_sheet(
    tiny: TinyRun, held_out: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, truth = held_out
    argv = ["--run", str(tiny.run), "--dataset", str(dataset), "--out", str(tmp_path), "--suite", "theatre"]
    argv += ["--windows", "4", "--batch", "4", "--steps", "1", "--split", "unseen_face"]
    argv += ["--chains", "2", "--chain-seconds", "6"]
    with pytest.raises(ValueError, match="needs --truth"):
        evaluate.main(argv)
    assert evaluate.main([*argv, "--truth", str(truth)]) == 0
    result = json.loads((tmp_path / "lip_sync.json").read_text())
    assert result["split"] == "unseen_face" and len(result["lag_curve"]) == 13
    for found in result["correlation"].values():
        assert found["windows"] == 4 and found["people"] == 2 and -1 <= found["value"] <= 1
    *windows, one, other = result["windows"]
    assert len(windows) == 4 and {row["gestures"] for row in windows} == {None}  # no wrist is to be seen
    own = mouth.correlation_of(np.sum([row["mouth"] for row in windows], axis=0))
    assert own == pytest.approx(result["correlation"]["own sound"]["value"])
    assert one["person"] != other["person"] and all(value > 0 for value in (*one["drift"], *other["drift"]))
    assert (tmp_path / "lip_sync.png").stat().st_size > 1000
    with Image.open(tmp_path / "lip_sync.gif") as played:
        assert played.n_frames > 1
    assert "own sound" in capsys.readouterr().out


def test_how_far_wrists_move_is_read_from_the_pictures() -> None:
    """A bright hand over a dark ground: half of the way gives half of the range."""

    def video(heights: np.ndarray) -> np.ndarray:
        rows = np.arange(16)[None, :, None, None]
        return np.tile(np.exp(-((rows - heights[:, None, None, None]) ** 2) / 8), (1, 1, 8, 3)).astype(np.float32)

    def truth(heights: np.ndarray) -> np.ndarray:
        place = heights / 16
        return np.stack([np.full_like(place, 0.5), place, place * np.nan, place * np.nan], axis=1)

    random = np.random.default_rng(0)
    others = [(video(heights), truth(heights)) for heights in 8 + 4 * np.sin(random.uniform(0, 6, (6, 25)))]
    moving = 8 + 3 * np.sin(np.linspace(0, 9, 25))
    whole = wrists.moments_of(others, video(moving), truth(moving))
    half = wrists.moments_of(others, video(8 + (moving - 8) / 2), truth(moving))
    assert whole is not None and half is not None
    assert mouth.range_of(whole) == pytest.approx(1, abs=0.1) and mouth.correlation_of(whole) > 0.95
    assert mouth.range_of(half) == pytest.approx(0.5, abs=0.1)
    hidden = truth(moving)
    hidden[3, :] = np.nan
    assert wrists.moments_of(others, video(moving), hidden) is None
    assert wrists.moments_of([], video(moving), truth(moving)) is None


def test_colours_are_of_the_face_alone() -> None:
    pictures = np.zeros((2, 12, 16, 3), np.float32)
    pictures[1, :, 8:] = 1
    box = np.array([8.0, 2.0, 16.0, 10.0])
    found = drift.colours(pictures, box)
    assert found.shape == (2, 48) and not found[0].any() and (found[1] == 1).all()
    assert drift.colours(pictures, np.array([-4.0, 2.0, 8.0, 10.0]))[1].max() == 0


def test_a_chain_that_is_too_short_is_refused(run: trained_run.TrainedRun) -> None:
    with pytest.raises(ValueError, match="a chain of 5 s is too short: 6 s or more"):
        drift.measure_drift(run, {}, count=1, seconds=5)
