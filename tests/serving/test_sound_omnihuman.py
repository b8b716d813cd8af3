"""Sound as recorders, phones and telephones write it: what is heard, or a refusal by name."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.serving.streams_omnihuman import MediaError

RATE = 16_000


def tone(rate: int, channels: int = 1, seconds: float = 2.0) -> np.ndarray:
    """[N, channels] float32: 440 Hz at half of full scale."""
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)
    return np.repeat(wave.astype(np.float32)[:, None], channels, 1)


def is_the_tone(path: Path, within: float = 0.05) -> None:
    heard = media_omnihuman.read_audio(path)
    assert heard is not None and abs(heard.size - 2 * RATE) <= 0.1 * RATE
    middle = heard[4000:20_000]
    assert np.abs(middle).max() == pytest.approx(0.5, abs=within)
    assert np.abs(np.fft.rfft(middle)).argmax() == 440


@pytest.mark.parametrize("rate", [8000, 22_050, 48_000, 192_000])
@pytest.mark.parametrize("kind", ["PCM_U8", "PCM_24", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM", "MS_ADPCM", "GSM610"])
def test_kinds_of_wav(kind: str, rate: int, tmp_path: Path) -> None:
    for channels in (1, 2, 6):
        if channels <= {"GSM610": 1, "IMA_ADPCM": 2, "MS_ADPCM": 2}.get(kind, 6):
            soundfile.write(tmp_path / "a.wav", tone(rate, channels), rate, subtype=kind)
            is_the_tone(tmp_path / "a.wav")


@pytest.mark.parametrize(("suffix", "kind"), [
    ("w64", "W64"), ("rf64", "RF64"), ("au", "AU"), ("caf", "CAF"), ("aif", "AIFF"), ("voc", "VOC"), ("wav", "FLAC"),
    ("mp3", "WAV"), ("m4a", "MP3"), ("ogg", "FLAC"),
])  # fmt: skip
def test_other_files_and_names_that_say_something_else(suffix: str, kind: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / f"a.{suffix}", tone(48_000), 48_000, format=kind)
    is_the_tone(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize(("suffix", "codec", "layout", "rate"), [
    ("mp4", "aac", "5.1", 48_000), ("ts", "ac3", "5.1", 48_000), ("mov", "pcm_mulaw", "mono", 8000),
    ("mkv", "libopus", "mono", 8000), ("mov", "pcm_s24le", "stereo", 96_000), ("mkv", "pcm_f32le", "stereo", 48_000),
    ("avi", "adpcm_ima_wav", "mono", 8000), ("mov", "alac", "stereo", 48_000),
    ("3gp", "libopencore_amrnb", "mono", 8000),
])  # fmt: skip
def test_codecs_and_layouts_of_tracks(suffix: str, codec: str, layout: str, rate: int, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        channels = stream.codec_context.layout.nb_channels
        frame = av.AudioFrame.from_ndarray(tone(rate, channels).T.copy(), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(
            format=stream.codec_context.format.name, layout=layout, rate=rate,
            frame_size=stream.codec_context.frame_size or 1024,
        )  # fmt: skip
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    # The sixth channel of 5.1 is for the lowest tones alone, and a telephone's codec is no hi-fi.
    is_the_tone(path, within={"libopencore_amrnb": 0.3, "aac": 0.1, "ac3": 0.1}.get(codec, 0.05))


@pytest.mark.parametrize("suffix", ["wav", "aiff", "flac"])
def test_downloads_that_broke_off(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"half.{suffix}"
    soundfile.write(path, tone(48_000), 48_000)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match=rf"half\.{suffix}: "):
        media_omnihuman.read_audio(path)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF, 0], ids=hex)
def test_a_recording_whose_length_was_not_known(length: int, tmp_path: Path) -> None:
    """What a recorder writes that cannot go back to the head, as at the end of a pipe."""
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(RATE), RATE)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"data")
    raw[4:8] = raw[at + 4 : at + 8] = length.to_bytes(4, "little")
    path.write_bytes(raw)
    is_the_tone(path)
