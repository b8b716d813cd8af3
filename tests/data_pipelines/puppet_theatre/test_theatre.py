"""The command: whole clips in any number of processes, kept and continued; and curate and encode on what it leaves."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.curate.clip_sets import load_landmarks, read_clips
from data_pipelines.curate.held_out import SPLITS_FILE, read_splits
from data_pipelines.encode.encode import EncodeConfig, encode
from data_pipelines.puppet_theatre.piper_process import with_durations
from data_pipelines.puppet_theatre.theatre import TheatreConfig, theatre
from data_pipelines.puppet_theatre.truth import Truth
from data_pipelines.sample_media import SampleMedia
from omnihuman_jax import cli
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.serving import media_omnihuman


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_any_number_of_processes_draws_the_same_bits(
    tiny_config: TheatreConfig, tiny_theatre: Path, tmp_path: Path
) -> None:
    theatre(tmp_path, dataclasses.replace(tiny_config, workers=2))
    assert contents(tmp_path) == contents(tiny_theatre)


def test_a_longer_theatre_keeps_the_clips_of_a_shorter_one(
    tiny_config: TheatreConfig, tiny_theatre: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_theatre, tmp_path, dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "videos").glob("*.mp4"))}
    (tmp_path / "truth" / "theatre-000000.npz").unlink()  # as if it had been stopped within the first clip
    summary = theatre(tmp_path, dataclasses.replace(tiny_config, hours=4 * 1.6 / 3600))
    assert summary["drawn"] == 2 and summary["clips"] == 4 and len(read_clips(tmp_path / "clips")) >= 4
    assert [path.stat().st_mtime_ns == before[path] for path in before] == [False, True, True]
    assert (tmp_path / "videos" / "theatre-000000.mp4").read_bytes() == (
        tiny_theatre / "videos" / "theatre-000000.mp4"
    ).read_bytes()
    with pytest.raises(ValueError, match=r"another seed \(2, not 3\); choose another --out"):
        theatre(tmp_path, dataclasses.replace(tiny_config, seed=3))


def test_encode_reads_the_clips_of_the_truth(tiny_theatre: Path, sample_media: SampleMedia, tmp_path: Path) -> None:
    clips = read_clips(tiny_theatre / "clips")
    truths = {path.stem: Truth.load(path) for path in (tiny_theatre / "truth").glob("*.npz")}
    for clip in clips:
        truth, landmarks = truths[clip.clip_id[:-4]], load_landmarks(tiny_theatre / "clips", clip)
        assert clip.eligible == tuple(truth.facts["eligible"]) and clip.split == truth.facts["plan"]["split"]
        part = slice(clip.start_frame, clip.end_frame)
        assert np.array_equal(landmarks.keypoints_TJ3, truth.keypoints_TJ3[part])
        height_T = truth.face_box_T4[part, 3] - truth.face_box_T4[part, 1]
        assert np.allclose(landmarks.aperture_T * height_T, truth.gap_T[part], atol=1e-3)
        video = media_omnihuman.probe(clip.video_path(tiny_theatre / "clips"))
        assert (video.height, video.width, video.frames) == (clip.height, clip.width, truth.frames)
    encode_config = EncodeConfig(text_encoder=str(sample_media.text_encoder))
    encode_config.windows.area, encode_config.windows.frames = 48 * 48, (17,)
    summary = encode(tiny_theatre / "clips", tmp_path / "dataset", encode_config)
    catalog = Catalog.load(tmp_path / "dataset")
    by_clip = {clip.clip_id: clip.split for clip in clips}
    assert [by_clip[c] for c in catalog.clip_id] == catalog.split.tolist() and sum(summary["by_split"].values()) > 0
    record = open_records(tmp_path / "dataset")[0]
    assert record is not None and record.text == {clip.clip_id: clip.caption for clip in clips}[record.clip_id]


def test_a_folder_of_videos_says_what_is_held_out(tiny_theatre: Path, tmp_path: Path) -> None:
    splits = read_splits(tiny_theatre / "videos")
    assert all(clip.split == splits[clip.video] for clip in read_clips(tiny_theatre / "clips"))
    assert read_splits(tmp_path / "clips") == {}  # a folder without the file
    (tmp_path / SPLITS_FILE).write_text('["theatre"]')
    with pytest.raises(ValueError, match="must be one table"):
        read_splits(tmp_path)


def test_truth_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="omnihuman theatre"):
        Truth.load(tmp_path / "gone.npz")
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="not a truth file"):
        Truth.load(tmp_path / "bad.npz")


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["theatre", "--out", str(tmp_path / "out"), "--recordings", str(tmp_path), "--voices", "recorded"]
    assert cli.main([*arguments, "--hours", "1"]) == 2
    assert "theatre-speech" in capsys.readouterr().err
    assert cli.main([*arguments, "--hours", "0"]) == 2
    assert "--hours 0.0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_graph_gets_one_output_more() -> None:
    """Read back by protobuf's own rules: the pieces of field 7 of a ModelProto, the outputs (12) in them."""
    graph = b"\x3a\x08" + b"\x12\x06before"  # ModelProto.graph { name: "before" }
    model = with_durations(graph)
    assert model.startswith(graph)
    extra = model[len(graph) :]
    assert extra[0] == 7 << 3 | 2 and extra[1] == len(extra) - 2
    assert extra[2] == 12 << 3 | 2 and extra[3] == len(extra) - 4
    assert extra[4:6] == bytes([1 << 3 | 2, 14]) and extra[6:20] == b"/Ceil_output_0"
    assert extra[20:] == bytes([2 << 3 | 2, 4, 1 << 3 | 2, 2, 1 << 3, 1])  # type { tensor_type { elem_type: FLOAT } }
