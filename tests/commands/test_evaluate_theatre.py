"""`omnihuman evaluate --suite theatre` on a tiny run, with a truth of its clips."""

import collections
import dataclasses
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data_pipelines.puppet_theatre.truth import Truth
from omnihuman_jax.commands import evaluate, evaluate_theatre
from omnihuman_jax.conditions import Condition
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.keypoints import INDEX, NUM_KEYPOINTS
from omnihuman_jax.evaluation import mouth
from omnihuman_jax.evaluation.joint_error import errors_of, mean_error
from omnihuman_jax.sampling import drift, gesture_spread, joints, lip_sync, trained_run, wrists
from omnihuman_jax.sampling.sampler import Sampler
from omnihuman_jax.serving import media_omnihuman
from tests.sampling.tiny_run import TinyRun

SHOT, FRAMES = 5, 45  # the clip begins at this frame of its video


def write_truth(folder: Path, name: str, height: int, width: int, seen: Sequence[str] = ("nose",)) -> Truth:
    """The truth of a video twice as large as its windows, with a mouth in the lower half, and points that wander."""
    random = np.random.default_rng(len(name) + height)
    box = np.tile(np.array([0.5 * width, height, 1.5 * width, 1.5 * height], np.float32), (FRAMES, 1))
    row = np.zeros(FRAMES, np.float32)
    points = np.zeros((FRAMES, NUM_KEYPOINTS, 3), np.float32)
    for point in seen:
        points[:, INDEX[point], :2] = np.cumsum(random.normal(size=(FRAMES, 2)), axis=0) + height
        points[:, INDEX[point], 2] = 1
    truth = Truth(
        opening_T=random.uniform(size=FRAMES).astype(np.float32),
        spread_T=row,
        heard_T=row,
        gap_T=row,
        width_T=row,
        mouth_seen_T=row == 0,
        keypoints_TJ3=points,
        mouth_box_T4=box,
        face_box_T4=box,
        faces_T=np.ones(FRAMES, np.int32),
        gestures_TG=random.normal(size=(FRAMES, 5)).astype(np.float32),
        facts={
            "shots": [[0, SHOT], [SHOT, FRAMES]],
            "size_px": [2 * height, 2 * width],
            "figure_px": 100.0,
            "plan": {"person": name},
        },
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
    with pytest.raises(ValueError, match=r"of split train is eligible for reference\+audio; its splits are unseen"):
        lip_sync.load_windows(*held_out, "train")


def test_few_windows_are_of_as_many_clips_as_can_be() -> None:
    names = [f"clip{number:02}" for number in range(21)]
    clips = {name: [SimpleNamespace(clip=name, start=start) for start in range(9)] for name in names}
    for count in (4, 10, 21, 48):
        chosen = lip_sync.choose(clips, count)  # type: ignore[arg-type]
        of_clip = collections.Counter(window.clip for window, _ in chosen)
        assert len(chosen) == count and len(of_clip) == min(count, 21)
        assert max(of_clip.values()) - min(of_clip.values()) <= 1 and {"clip00", "clip20"} <= of_clip.keys()
        assert all(window.clip != other.clip for window, other in chosen)


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


def test_the_suite_writes_a_table_and_a_sheet_and_goes_on(
    tiny: TinyRun,
    held_out: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset, truth = held_out
    argv = ["--run", str(tiny.run), "--dataset", str(dataset), "--out", str(tmp_path), "--suite", "theatre"]
    argv += ["--windows", "4", "--batch", "4", "--steps", "1", "--split", "unseen_face"]
    argv += ["--chains", "2", "--chain-seconds", "6", "--pose-windows", "4", "--gesture-seeds", "2"]
    with pytest.raises(ValueError, match="needs --truth"):
        evaluate.main(argv)
    assert evaluate.main([*argv, "--truth", str(truth)]) == 0
    result = json.loads((tmp_path / "lip_sync.json").read_text())
    assert result["split"] == "unseen_face" and len(result["lag_curve"]) == 13
    assert result["lags"].keys() == result["correlation"].keys()
    assert result["lags"]["own sound"] == result["peak_lag_frames"]
    chains = sorted((tmp_path / "theatre_chains").glob("*.mp4"))
    assert len(chains) == 2 and {media_omnihuman.probe(path).frames for path in chains} == {9 + 37 * 4}
    for found in result["correlation"].values():
        assert found["windows"] == 4 and found["people"] == 2 and -1 <= found["value"] <= 1
    *windows, one, other = result["windows"]
    assert len(windows) == 4 and {row["gestures"] for row in windows} == {None}  # no wrist is to be seen
    own = mouth.correlation_of(np.sum([row["mouth"] for row in windows], axis=0))
    assert own == pytest.approx(result["correlation"]["own sound"]["value"])
    assert one["person"] != other["person"] and all(value > 0 for value in (*one["drift"], *other["drift"]))
    assert result["chains"]["face, late over early"]["people"] == 2
    floor, *driven = result["joints"].values()  # this truth is of points that nobody drew
    assert len(driven) == 3 and floor["error"]["value"] > 0
    for driving in driven:
        assert driving["error"]["windows"] == 4 and driving["error"]["value"] > 0
        assert -1 <= driving["correlation"]["value"] <= 1
    assert result["gesture_spread"] is None and result["gesture_range"] == {"ceiling": None, "own sound": None}
    assert (tmp_path / "lip_sync.png").stat().st_size > 1000
    with Image.open(tmp_path / "lip_sync.gif") as played:
        assert played.n_frames > 1
    assert "own sound" in capsys.readouterr().out
    page = (tmp_path / "lip_sync.html").read_text()
    places = re.findall(r'src="([^"]+)"', page)
    assert len(places) == 4 and all(media_omnihuman.probe(tmp_path / place).frames == 9 for place in places)
    assert "joints by pose alone" in page and "chains of 6 s" in page

    assert (tmp_path / "pose_drive.png").stat().st_size > 1000

    # Pose alone, for clips without sound: the same samples, so the same numbers.
    alone = [*argv, "--truth", str(truth), "--windows", "0"]
    with pytest.raises(ValueError, match="--chains needs windows with sound"):
        evaluate.main(alone)
    assert evaluate.main([*alone, "--chains", "0", "--gesture-seeds", "0"]) == 0
    assert json.loads((tmp_path / "pose_drive.json").read_text())["joints"] == result["joints"]
    with pytest.raises(ValueError, match="--windows is 0; it must be at least 1"):
        evaluate.main([*alone, "--pose-windows", "0"])

    # Again: nothing is sampled, all is as it was. One sample was lost half written.
    kept = sorted((tmp_path / "theatre_samples").iterdir())
    lost, before = kept[0], kept[0].read_bytes()
    lost.write_bytes(before[:100])
    calls = []
    call = Sampler.__call__
    monkeypatch.setattr(
        Sampler, "__call__", lambda self, windows, *more: calls.append(len(windows)) or call(self, windows, *more)
    )
    assert evaluate.main([*argv, "--truth", str(truth)]) == 0
    assert calls == [1] and sorted((tmp_path / "theatre_samples").iterdir()) == kept
    assert json.loads((tmp_path / "lip_sync.json").read_text()) == result

    # Against itself: no difference, and none in any resample.
    found = evaluate_theatre.differences(result, evaluate_theatre.read_result(tmp_path / "lip_sync.json"))
    assert len(found) == 2 and all((e["value"], e["low"], e["high"]) == (0, 0, 0) for e in found.values())
    elsewhere = {"windows": [row | {"window": "another"} for row in result["windows"]]}
    with pytest.raises(ValueError, match="none of these windows"):
        evaluate_theatre.differences(result, elsewhere)
    (tmp_path / "field.json").write_text('{"rows": []}')
    with pytest.raises(ValueError, match=r"field.json: not a lip_sync.json"):
        evaluate.main([*argv, "--truth", str(truth), "--against", str(tmp_path / "field.json")])


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


def test_joints_are_read_from_the_pictures() -> None:
    """A bright point that stands three pixels aside is three pixels wrong, and still moves with the truth."""
    xs = np.arange(24)[None, None, :, None]

    def video(places: np.ndarray) -> np.ndarray:
        return np.tile(np.exp(-((xs - places[:, None, None, None]) ** 2) / 18), (1, 8, 1, 3)).astype(np.float32)

    def truth(places: np.ndarray) -> np.ndarray:
        return np.stack([places / 24, np.full_like(places, 0.5), places * np.nan, places * np.nan], axis=1)

    random = np.random.default_rng(0)
    others = [(video(places), truth(places)) for places in random.uniform(4, 20, (8, 25))]
    moving = 10 + 3 * np.sin(np.linspace(0, 9, 25))
    found = joints.fit_joints(others, truth(moving))
    assert found is not None and found.seen_K.tolist() == [True, True, False, False]
    for aside in (0, 3):
        read, true = found.read(video(moving + aside)), found.true(truth(moving))
        assert mean_error(errors_of(read, true)) == pytest.approx(aside / 24, abs=0.01)
        assert mouth.correlation_of(mouth.moments_of_all(read, true)) > 0.95
    hidden = truth(moving)
    hidden[3] = np.nan
    assert joints.fit_joints(others, hidden) is None and joints.fit_joints([], truth(moving)) is None


def test_how_much_seeds_differ_is_a_share_of_the_law(
    tiny: TinyRun, held_out: tuple[Path, Path], run: trained_run.TrainedRun, tmp_path: Path
) -> None:
    dataset, _ = held_out
    catalog = Catalog.load(dataset)
    for name, row in (("clip0", 0), ("clip1", 2)):
        write_truth(tmp_path, name, int(catalog.height[row]), int(catalog.width[row]), ("left_wrist",))
    subjects = lip_sync.subjects_of(run, dataset, tmp_path, "unseen_face", 2)
    config = dataclasses.replace(run.config.sampling, num_steps=1)
    found = gesture_spread.measure_spread(run, subjects, seeds=3, config=config)
    assert found is not None and found["seeds"] == 3 and found["spread"]["people"] == 2
    assert found["spread"]["value"] > 0 and found["readout"]["value"] > 0
    with pytest.raises(ValueError, match="--gesture-seeds 1: at least 2"):
        gesture_spread.measure_spread(run, subjects, seeds=1, config=config)


def test_what_is_beside_the_head(held_out: tuple[Path, Path]) -> None:
    window = next(iter(lip_sync.load_windows(*held_out, "unseen_face").values()))[0]
    narrow = dataclasses.replace(window, face_4=np.array([10.0, 4.0, 20.0, 18.0]))  # of 48 pixels
    assert np.allclose(drift.beside_head(narrow), [[0, 0, 7, 18], [23, 0, 48, 18]])
    assert drift.beside_head(dataclasses.replace(window, face_4=np.array([2.0, 0.0, 46.0, 30.0]))) == []


def test_what_chains_lose_is_summed_up() -> None:
    """A face that drifts by half, a mouth that follows at first and not at all in the end."""
    row = {
        "drift": [3.0, 2.0], "background": None, "mouth_early": [4.0, 4.0, 4.0], "mouth_late": [0.0, 4.0, 4.0],
        "mouth_ceiling": [2.0, 4.0, 4.0],
    }  # fmt: skip
    found = drift.summarise([{**row, "person": "a"}, {**row, "person": "b"}])
    values = {name: e and e["value"] for name, e in found.items()}
    assert values == {
        "face, late over early": 1.5, "beside the head, late over early": None,
        "mouth, first seconds": 1.0, "mouth, last seconds": 0.0, "mouth, lost": 1.0,
        "mouth, ceiling: the codec's round trip": 0.5,
    }  # fmt: skip


def test_the_suite_gain_needs_no_truth(tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--run", str(tiny.run), "--out", str(tmp_path), "--suite", "gain", "--windows", "4", "--batch", "4"]
    assert evaluate.main(argv) == 0
    result = json.loads((tmp_path / "gain.json").read_text())
    assert set(result["gain"]) == {"text", "audio", "pose"} and set(result["split"].values()) == {"train"}
    # Another clip's reference fits where that has the same size, which none here has.
    assert "eligible for reference and have one size" in result["not_measured"]["reference"]
    for gain in result["gain"].values():
        assert gain["own"]["windows"] == 4 and gain["own"]["value"] < 1
        assert gain["own"]["low"] <= gain["own"]["value"] <= gain["own"]["high"]
    assert "its own takes off" in capsys.readouterr().out
    with pytest.raises(ValueError, match="split none"):
        evaluate.main([*argv, "--split", "none"])


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
