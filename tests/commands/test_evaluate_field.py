"""`omnihuman evaluate --suite field`: on a folder of pairs of real videos, and on windows of a tiny run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.sample_media import fetch
from omnihuman_jax.commands import evaluate
from omnihuman_jax.sampling import codec_check, field_features
from omnihuman_jax.serving import media_omnihuman
from tests.sampling.tiny_run import TinyRun

FRAMES = 20


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Two real people; one video is made exactly, the other has its pictures in another order than its sound."""
    folder, media = tmp_path_factory.mktemp("pairs"), fetch()
    for name, start in (("jwpIntro", 1.0), ("testMovie", 2.0)):
        path = next(media.videos.glob(f"{name}*"))
        frames = media_omnihuman.read_video(path, start_s=start, duration_s=FRAMES / 25, size=(240, 320))
        wave = media_omnihuman.read_audio(path, start_s=start, duration_s=FRAMES / 25)
        made = frames if name == "jwpIntro" else np.concatenate([frames[10:], frames[:10]])
        media_omnihuman.write_video(folder / "true" / f"{name}.mp4", frames, audio=wave)
        media_omnihuman.write_video(folder / "made" / f"{name}.mp4", made, audio=wave)
    return folder


def suite(out: Path, *more: str) -> dict[str, dict]:
    assert evaluate.main(["--suite", "field", "--out", str(out), *more]) == 0
    result = json.loads((out / "field.json").read_text())
    return {row["name"]: row for row in result["rows"]} | {"all": result}


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*.npz"))}


@pytest.fixture(scope="module")
def measured(pairs, tmp_path_factory) -> tuple[Path, dict[str, dict]]:
    out = tmp_path_factory.mktemp("measured")
    adapter = out / "brightness.py"
    adapter.write_text("def score(frames):\n    return frames.mean()\n")
    return out, suite(out, "--pairs", str(pairs), "--scorer", f"brightness={adapter}")


def test_real_faces_are_measured(measured):
    _, rows = measured
    assert rows["all"]["pairs"] == rows["all"]["people"] == 2
    for name in ("AKD", "lip dynamics (THEval)", "eyebrow dynamics (THEval)", "head motion (ours)", "PSNR"):
        made = rows[name]["made"]
        assert made["windows"] == 2 and made["low"] <= made["value"] <= made["high"], name
    # Reordering frames keeps how far the lips move, and loses where the body is.
    assert rows["lip dynamics (THEval)"]["closeness"]["value"] > 0.8
    assert rows["AKD"]["made"]["low"] == 0 < 0.2 < rows["AKD"]["made"]["high"], "one of the two is made exactly"
    assert rows["brightness"]["closeness"]["value"] > 0.99
    assert rows["lip-loudness gap (ours)"]["made"]["windows"] > 0


def test_identity_is_dlibs_and_under_its_name(measured):
    row = measured[1]["identity distance (dlib)"]
    assert row["made"]["value"] < 0.3, "the same person"
    assert row["made"]["value"] == pytest.approx(row["true"]["value"], abs=0.1)


def test_without_weights_there_is_no_number_and_the_row_says_what_to_give(measured):
    rows = measured[1]
    for name, option in (("FID", "--inception"), ("FVD", "--i3d"), ("Sync-C", "--syncnet"), ("IQA", "--scorer")):
        assert option in rows[name]["missing"] and "docs/evaluation.md" in rows[name]["missing"]
        assert rows[name]["made"] is rows[name]["true"] is rows[name]["closeness"] is None
    page_of_docs = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text()
    for file in (field_features.INCEPTION_FILE, field_features.I3D_FILE, field_features.SYNCNET_FILE):
        assert any(file in row.get("missing", "") for row in rows.values()) and f"`{file}`" in page_of_docs


def test_the_page_shows_every_pair_that_is_there(measured):
    out, _ = measured
    page = (out / "field.html").read_text()
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(sources) == 4 and all((out / source).resolve().is_file() for source in sources)
    assert "jwpIntro" in page and "needs Inception-v3" in page and "<script" not in page


def test_a_second_run_measures_only_what_is_new(measured, pairs):
    out, rows = measured
    before = stamps(out / "field")
    adapter = out / "darkness.py"
    adapter.write_text("def score(frames):\n    return 255 - frames.mean()\n")
    again = suite(out, "--pairs", str(pairs), "--scorer", f"darkness={adapter}")
    after = stamps(out / "field")
    assert {path: after[path] for path in before} == before
    assert all("darkness" in path for path in after.keys() - before.keys()) and len(after) == len(before) + 4
    assert again["AKD"] == rows["AKD"] and again["darkness"]["made"]["value"] > 0


@pytest.mark.slow
def test_the_codec_check_tells_scores_that_the_encoding_moves(pairs, tmp_path):
    """The pictures' brightness does not care; a count of fine grain does, and the table says so."""
    grain = tmp_path / "grain.py"
    grain.write_text("def score(frames):\n    return abs(frames[:, :, 1:].astype(int) - frames[:, :, :-1]).mean()\n")
    level = tmp_path / "level.py"
    level.write_text("def score(frames):\n    return frames.mean()\n")
    flags = ["--pairs", str(pairs), "--scorer", f"grain={grain}", "--scorer", f"level={level}", "--codec-check"]
    rows = suite(tmp_path, *flags)
    found = rows["all"]["codec_check"]
    assert found["pairs"] == 2 and set(found["moved_by"]["level"]) == set(codec_check.ENCODINGS)
    assert max(found["moved_by"]["level"].values()) < 0.02 and "moves it" not in rows["level"]["note"]
    assert found["moved_by"]["grain"]["H.265, crf 32"] > 0.1 and "moves it by" in rows["grain"]["note"]
    header = media_omnihuman.probe(next((tmp_path / "field" / "codecs").glob("H.265*/jwpIntro/made.mp4")))
    assert header.codec == "hevc"


@pytest.mark.slow
def test_windows_of_a_run_are_sampled_once(tiny: TinyRun, tmp_path, capsys):
    flags = ["--run", str(tiny.run), "--split", "train", "--windows", "2", "--steps", "2"]
    rows = suite(tmp_path, *flags)
    assert rows["all"]["of"]["split"] == "train" and rows["all"]["people"] == 2
    assert rows["PSNR"]["made"]["windows"] == 2
    assert "no network" not in rows["lip dynamics (THEval)"]["missing"]  # no face in these blobs, or a guess at one
    videos = sorted((tmp_path / "field" / "pairs").rglob("*.mp4"))
    assert len(videos) == 4
    before = {path: path.stat().st_mtime_ns for path in videos}
    assert suite(tmp_path, *flags)["PSNR"] == rows["PSNR"]
    assert {path: path.stat().st_mtime_ns for path in videos} == before
    # One of them is gone: it alone is made again, the same.
    kept = media_omnihuman.read_video(videos[0])
    videos[0].unlink()
    suite(tmp_path, *flags)
    np.testing.assert_array_equal(media_omnihuman.read_video(videos[0]), kept)
    assert videos[1].stat().st_mtime_ns == before[videos[1]]
    # Killed between the two videos of another pair: it is not in the way of these.
    orphan = videos[0].parent.parent / "true" / "orphan.mp4"
    orphan.write_bytes(videos[0].read_bytes())
    assert suite(tmp_path, *flags)["PSNR"] == rows["PSNR"]
    # Other sound or pictures under the same name are made anew.
    (receipt,) = [path for path in orphan.parent.parent.glob("made/*.json") if path.stem == videos[0].stem]
    stored = json.loads(receipt.read_text())
    receipt.write_text(json.dumps(stored | {"input_sha256": "0" * 64}))
    suite(tmp_path, *flags)
    assert json.loads(receipt.read_text()) == stored


def test_a_scorer_that_cannot_be_imported_is_a_row_without_a_number(pairs, tmp_path):
    (tmp_path / "needs.py").write_text("def score(frames):\n    import no_such_package\n")
    rows = suite(tmp_path, "--pairs", str(pairs), "--scorer", f"IQA={tmp_path / 'needs.py'}")
    assert "no_such_package" in rows["IQA"]["missing"] and rows["IQA"]["made"] is None
    # A file of arrays that was cut short is taken again.
    kept = sorted(tmp_path.rglob("*.npz"))[0]
    kept.write_bytes(kept.read_bytes()[:200])
    assert suite(tmp_path, "--pairs", str(pairs))["PSNR"] == rows["PSNR"]


def test_what_cannot_be_measured_is_one_line(tiny: TinyRun, pairs, tmp_path):
    def refused(*flags: str) -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            evaluate.main(["--suite", "field", "--out", str(tmp_path), *flags])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "give --run, or pairs" in refused()
    assert "--windows is 0; it must be at least 1" in refused("--run", str(tiny.run), "--windows", "0")
    assert "--batch is 0" in refused("--run", str(tiny.run), "--batch", "0", "--split", "train")
    assert "splits are train (--split train" in refused("--run", str(tiny.run))
    assert "no pairs of made/NAME.mp4" in refused("--pairs", str(tmp_path))
    (tmp_path / "empty.py").write_text("x = 1\n")
    assert "no function score" in refused("--pairs", str(pairs), "--scorer", f"IQA={tmp_path / 'empty.py'}")
    assert "give NAME=FILE.py" in refused("--pairs", str(pairs), "--scorer", "IQA")
    frames = np.full((9, 64, 64, 3), 90, np.uint8)
    for side, length in (("made", 9), ("true", 8)):
        media_omnihuman.write_video(tmp_path / "odd" / side / "a.mp4", frames[:length])
    assert "9 frames of 64x64, its true video has 8" in refused("--pairs", str(tmp_path / "odd"))
    media_omnihuman.write_video(tmp_path / "odd" / "made" / "b.mp4", frames)
    assert "b has no partner" in refused("--pairs", str(tmp_path / "odd"))
    missing = str(tmp_path / "none.safetensors")
    assert "none.safetensors" in refused("--pairs", str(pairs), "--inception", missing)
