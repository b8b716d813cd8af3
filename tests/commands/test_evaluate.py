"""`omnihuman evaluate --suite psnr`: which windows, driven by what, compared with what."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from omnihuman_jax.commands import evaluate, evaluate_psnr
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.evaluation import psnr
from omnihuman_jax.sampling import sampler, trained_run
from omnihuman_jax.serving import media_omnihuman


@pytest.fixture(scope="module")
def result(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    argv = [
        "--run",
        str(tiny.run),
        "--clips",
        str(tiny.clips),
        "--out",
        str(out),
        "--windows",
        "3",
        "--batch",
        "4",
        "--steps",
        "2",
    ]
    assert evaluate.main(argv) == 0
    return out, json.loads((out / "evaluation.json").read_text())


def test_everything_that_the_json_names_is_there_and_shows_what_it_says(result):
    out, found = result
    assert [row["window_id"] for row in found["windows"]] == ["clip0/0", "clip1/0", "clip0/12"]
    assert [row["other_window_id"].split("/")[0] for row in found["windows"]] == ["clip1", "clip0", "clip1"]
    assert found["guidance"]["scale"] == 1.0 and found["step"] == 6 and found["weights"] == "ema"
    for row in found["windows"]:
        header = media_omnihuman.probe(out / row["video"])
        assert (header.frames, header.height, header.width) == (9, row["height"], 4 * row["width"])
        assert Image.open(out / row["sheet"]).format == "PNG"
    total = sum(Image.open(out / row["sheet"]).height for row in found["windows"])
    assert Image.open(out / found["contact_sheet"]).height == total
    assert not [path for path in out.rglob("*") if "part" in path.name]


def test_numbers_are_those_of_the_codecs_own_round_trip(result, run):
    _, found = result
    source, catalog = open_records(run.dataset), Catalog.load(run.dataset)
    for row in found["windows"]:
        record = source[int(np.flatnonzero(catalog.window_id == row["window_id"])[0])]
        truth = trained_run.decode_pictures(run, record.latents_FHWC)
        still = np.repeat(trained_run.decode_pictures(run, record.references_RHWC[:1]), record.frames, axis=0)
        assert row["psnr"]["still"] == pytest.approx(psnr.psnr(still, truth), abs=1e-4)
        mouth = np.zeros(truth.shape[:3], bool)
        height, width = truth.shape[1:3]
        mouth[:, height // 2 : 3 * height // 4, width // 4 : 3 * width // 4] = True
        assert row["psnr_mouth"]["still"] == pytest.approx(psnr.psnr(still, truth, mouth), abs=1e-4)
        assert len({round(value, 6) for value in row["psnr"].values()}) == 4, "each driving gives its own sample"
    mean = lambda key, kind: np.mean([row[key][kind] for row in found["windows"]])  # noqa: E731
    lost = mean("psnr_mouth", "sample") - mean("psnr_mouth", "other_audio")
    assert found["gain_over_still_db"] == pytest.approx(mean("psnr", "sample") - mean("psnr", "still"))
    assert found["worse_with_other_pose_db"] == pytest.approx(mean("psnr", "sample") - mean("psnr", "other_pose"))
    assert found["worse_with_other_audio_mouth_db"] == pytest.approx(lost)
    for name, interval in found["intervals"].items():
        assert interval["value"] == found[name] and interval["low"] <= found[name] <= interval["high"]
        assert (interval["windows"], interval["people"]) == (3, 2)
    for key in ("psnr", "psnr_mouth"):
        for kind, interval in found["mean_intervals"][key].items():
            assert interval["value"] == found[f"mean_{key}"][kind] == pytest.approx(mean(key, kind))
            assert interval["low"] <= interval["value"] <= interval["high"] and interval["windows"] == 3
    assert found["split"] == "train"


def test_without_clips_only_whole_frames_are_measured(tiny, run, tmp_path, capsys):
    result = evaluate_psnr.evaluate(
        run, tmp_path, config=dataclasses.replace(run.config.sampling, num_steps=1), windows=1, batch=3
    )
    assert result["worse_with_other_audio_mouth_db"] is None and result["windows"][0]["psnr_mouth"] is None
    assert set(result["mean_intervals"]["psnr_mouth"].values()) == {None}
    evaluate_psnr.print_table(result)
    assert "95 %" in capsys.readouterr().out


def test_broken_off_it_samples_what_is_missing_and_nothing_else(run, tmp_path, monkeypatch):
    config = dataclasses.replace(run.config.sampling, num_steps=1)
    result = evaluate_psnr.evaluate(run, tmp_path, config=config, windows=1, batch=3)
    kept = sorted((tmp_path / evaluate_psnr.KEPT).iterdir())
    assert len(kept) == 3
    kept[0].unlink()
    asked, call = [], sampler.Sampler.__call__

    def counted(self, windows, *rest):
        asked.append(len(windows))
        return call(self, windows, *rest)

    monkeypatch.setattr(sampler.Sampler, "__call__", counted)
    again = evaluate_psnr.evaluate(run, tmp_path, config=config, windows=1, batch=3)
    assert asked == [1] and again["mean_psnr"] == result["mean_psnr"]


def test_only_the_named_signal_comes_from_the_other_clip(run):
    source = open_records(run.dataset)
    subject = evaluate_psnr.Subject(record=source[0], other=source[2], mouth_THW=None)
    inputs = {kind: evaluate_psnr.driven_by(subject, kind, 5, run) for kind in evaluate_psnr.SAMPLED}
    own, pose, audio = (inputs[kind] for kind in ("sample", "other_pose", "other_audio"))
    assert own.active == ConditionSet.of(*Condition) and not own.latents_FHWC.any() and own.slot == 5
    np.testing.assert_array_equal(own.keypoints_TJ3, source[0].keypoints_TJ3)
    np.testing.assert_array_equal(own.audio_TE, audio.audio_TE * 0 + source[0].audio_TE)
    np.testing.assert_array_equal(audio.audio_TE, source[2].audio_TE)
    np.testing.assert_array_equal(audio.keypoints_TJ3, own.keypoints_TJ3)
    np.testing.assert_array_equal(pose.audio_TE, own.audio_TE)
    # The other clip is 48 x 32, this one 32 x 48: its pose is stretched over this one's grid.
    np.testing.assert_allclose(
        pose.keypoints_TJ3, source[2].keypoints_TJ3 * np.float32([48 / 32, 32 / 48, 1]), rtol=1e-6
    )
    text_off = dataclasses.replace(source[0], eligible=evaluate_psnr.NEEDED.bits)
    silent = evaluate_psnr.driven_by(dataclasses.replace(subject, record=text_off), "sample", 0, run)
    assert Condition.TEXT not in silent.active
    np.testing.assert_array_equal(silent.text_SE, run.spec.empty_text_SE)


def catalog_of(clips, frames, eligible, starts=None) -> Catalog:
    n = len(clips)
    column = lambda value: np.full(n, value)  # noqa: E731
    return Catalog(
        window_id=np.array([f"w{i}" for i in range(n)], object), clip_id=np.array(clips, object),
        split=column("train").astype(object), record=np.arange(n),
        start_frame=np.arange(n) if starts is None else np.array(starts),
        latent_frames=1 + (np.array(frames) - 1) // 4, latent_height=column(4), latent_width=column(4),
        height=column(32),
        width=column(32), text_tokens=column(2), num_references=column(1), duration_s=column(1.0),
        eligible=np.array(eligible),
    )  # fmt: skip


def test_windows_are_the_longest_spread_over_clips_and_time():
    everything, no_pose = 15, 7
    clips = ["a"] * 5 + ["b"] * 3 + ["c"] * 2
    frames = [25, 25, 25, 25, 25, 25, 25, 17, 25, 25]
    eligible = [everything] * 8 + [no_pose] * 2
    split, chosen, partners = evaluate_psnr.choose_windows(catalog_of(clips, frames, eligible), 4)
    assert split == "train"
    assert chosen == [0, 5, 4, 6]
    assert [clips[i] for i in partners] == ["b", "a", "b", "a"]
    assert evaluate_psnr.choose_windows(catalog_of(clips, frames, eligible), 50)[1] == [0, 5, 1, 6, 2, 3, 4]


def test_held_out_windows_come_first():
    """Where two clips of them are there; what was trained on is asked for by name."""
    catalog = catalog_of(["a", "b", "c", "d"], [25] * 4, [15] * 4)
    for splits, expected in (
        (["train", "train", "unseen_face", "unseen_speech"], ("held_out", {2, 3})),
        (["train", "train", "train", "unseen_face"], ("train", {0, 1, 2})),
    ):
        held = dataclasses.replace(catalog, split=np.array(splits, object))
        split, chosen, partners = evaluate_psnr.choose_windows(held, 4)
        assert (split, set(chosen)) == expected and set(partners) <= expected[1]
    assert evaluate_psnr.choose_windows(held, 4, "train")[0] == "train"
    with pytest.raises(
        ValueError, match=r"split unseen_face .* 1 such windows in 1 clips \(its splits: train, unseen_f"
    ):
        evaluate_psnr.choose_windows(held, 4, "unseen_face")


def test_too_little_data_is_an_error_with_the_numbers():
    for clips, frames in ((["a", "a"], [25, 25]), (["a", "b"], [25, 17]), (["a", "b"], [1, 1])):
        with pytest.raises(ValueError, match=r"windows of 2 clips.*2 such windows in [12] clips"):
            evaluate_psnr.choose_windows(catalog_of(clips, frames, [15, 15]), 4)
    with pytest.raises(ValueError, match="0 such windows in 0 clips"):
        evaluate_psnr.choose_windows(catalog_of(["a", "b"], [25, 25], [7, 7]), 4)


def test_wrong_input_is_one_line(tiny, run, tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        evaluate_psnr.evaluate(run, tmp_path, windows=0)
    with pytest.raises(FileNotFoundError, match="curate"):
        evaluate_psnr.evaluate(run, tmp_path, clips=tmp_path)
    with pytest.raises(FileNotFoundError, match="no dataset here"):
        evaluate.main(["--run", str(tiny.run), "--dataset", str(tmp_path), "--out", str(tmp_path)])
    model = dataclasses.replace(run.config.model, pose=None)
    with pytest.raises(ValueError, match="no pose input"):
        evaluate_psnr.evaluate(dataclasses.replace(run, config=dataclasses.replace(run.config, model=model)), tmp_path)
