"""One clock for pictures and sound, whatever the file does; and clear errors for what is no media."""

import struct
import wave as wave_file
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from omnihuman_jax.serving import media_omnihuman, sound_omnihuman

RATE = 16_000


def flashes(count: int, fps: float, every_s: float, height: int = 48, width: int = 64) -> np.ndarray:
    """Grey frames with a white one at each multiple of `every_s`, as near as the frame rate allows."""
    frames = np.full((count, height, width, 3), 60, np.uint8)
    for k in range(round(count / fps / every_s)):
        frames[round(k * every_s * fps)] = 255
    return frames


def clicks(seconds: float, every_s: float, rate: int) -> np.ndarray:
    """Silence with a 5 ms burst that begins at each multiple of `every_s`."""
    sound = np.zeros(round(seconds * rate), np.float32)
    burst = 0.8 * np.sin(2 * np.pi * 1000 * np.arange(round(0.005 * rate)) / rate)
    for k in range(int(seconds / every_s)):
        at = round(k * every_s * rate)
        sound[at : at + burst.size] = burst[: sound.size - at]
    return sound


def flash_times(frames: np.ndarray, fps: float) -> np.ndarray:
    return np.flatnonzero(frames.mean((1, 2, 3)) > 150) / fps


def click_times(sound: np.ndarray, rate: int) -> np.ndarray:
    loud = np.flatnonzero(np.abs(sound) > 0.2) / rate
    return loud[np.diff(loud, prepend=-1.0) > 0.1]


def write(
    path: Path,
    frames: np.ndarray,
    rate: Fraction,
    sound: np.ndarray | None = None,
    sound_rate: int = 48_000,
    sound_at_s: float = 0.0,
    **stream: object,
) -> Path:
    """Writes with PyAV alone, so that what is read does not depend on `media.write_video`."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate, options={"crf": "12"})
        video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for name, value in stream.items():
            if name == "rotation":
                video.set_display_rotation(value)
            else:
                setattr(video.codec_context, name, value)
        audio = container.add_stream("aac", rate=sound_rate, layout="mono") if sound is not None else None
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode(None))
        if audio is not None and sound is not None:
            first = round(sound_at_s * sound_rate)
            for at in range(0, sound.size - 1023, 1024):
                chunk = av.AudioFrame.from_ndarray(sound[None, at : at + 1024], format="fltp", layout="mono")
                chunk.sample_rate, chunk.pts, chunk.time_base = sound_rate, first + at, Fraction(1, sound_rate)
                container.mux(audio.encode(chunk))
            container.mux(audio.encode(None))
    return path


@pytest.mark.parametrize("rate", [Fraction(30_000, 1001), Fraction(24_000, 1001), Fraction(50), Fraction(12)])
def test_other_frame_rates_keep_picture_and_sound_together(tmp_path: Path, rate: Fraction) -> None:
    seconds = 9.0
    path = write(
        tmp_path / "v.mp4", flashes(round(seconds * rate), float(rate), 1.0), rate, clicks(seconds, 1.0, 48_000)
    )
    frames, sound = media_omnihuman.read_video(path), media_omnihuman.read_audio(path)
    assert sound is not None
    assert abs(len(frames) - 25 * seconds) <= 1
    assert abs(sound.size - RATE * seconds) <= RATE / 25
    seen, heard = flash_times(frames, 25), click_times(sound, RATE)
    # A flash shorter than 1/25 s can fall between two output frames; none of the others may be off by a frame.
    nearest = np.abs(seen[:, None] - heard[None]).min(1)
    assert len(heard) == 9 and len(seen) >= (8 if rate <= 25 else 4)
    assert nearest.max() <= 0.5 / float(rate) + 0.5 / 25 + 0.002


def test_a_known_shift_of_the_sound_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", flashes(100, 25, 1.0), Fraction(25), clicks(3.0, 1.0, 48_000), sound_at_s=0.4)
    sound = media_omnihuman.read_audio(path)
    assert sound is not None and sound.size == 4 * RATE
    np.testing.assert_allclose(click_times(sound, RATE), [0.4, 1.4, 2.4], atol=0.003)


def test_a_hole_in_the_sound_is_silence(tmp_path: Path) -> None:
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        tone = (0.5 * 32767 * np.sin(np.arange(RATE) * 0.2)).astype(np.int16)
        for at_s in (0.0, 2.0):
            chunk = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
            chunk.sample_rate, chunk.pts, chunk.time_base = RATE, round(at_s * RATE), Fraction(1, RATE)
            container.mux(audio.encode(chunk))
        container.mux(audio.encode(None))
    sound = media_omnihuman.read_audio(path)
    assert sound is not None
    loud = [float(np.abs(sound[round(s * RATE) : round((s + 0.9) * RATE)]).max()) > 0.3 for s in (0.05, 1.05, 2.05)]
    assert loud == [True, False, True]


def test_written_video_reads_back_in_colour_and_in_sync(tmp_path: Path) -> None:
    colours = np.array([(200, 60, 30), (20, 180, 60), (40, 50, 210), (128, 128, 128)], np.uint8)
    frames = np.repeat(colours, 25, 0)[:, None, None] * np.ones((1, 48, 64, 1), np.uint8)
    sound = np.zeros(4 * RATE, np.float32)
    sound[RATE * 2] = 0.9
    media_omnihuman.write_video(tmp_path / "v.mp4", frames, audio=sound)
    back, heard = media_omnihuman.read_video(tmp_path / "v.mp4"), media_omnihuman.read_audio(tmp_path / "v.mp4")
    assert heard is not None and back.shape == frames.shape and heard.size == sound.size
    assert np.abs(back[10::25].astype(int) - frames[10::25]).max() <= 6
    assert abs(int(np.abs(heard).argmax()) - RATE * 2) <= 16
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]
    header = media_omnihuman.probe(tmp_path / "v.mp4")
    assert (header.codec, header.height, header.width, header.fps, header.has_audio) == ("h264", 48, 64, 25.0, True)


def test_the_same_pictures_and_sound_are_the_same_file(tmp_path: Path) -> None:
    """In one process, again and again: what an encoder leaves behind changes nothing of the next video."""
    rows, columns = np.mgrid[:64, :96]
    frames = [127.5 * (1 + np.sin((rows + 3 * shift) / 7) * np.cos((columns - 2 * shift) / 11)) for shift in range(30)]
    pictures = np.repeat(np.stack(frames)[..., None], 3, axis=3).astype(np.uint8)
    wave = (0.3 * np.sin(np.arange(30 * 640) / 9)).astype(np.float32)
    written = set()
    for _ in range(80):
        media_omnihuman.write_video(tmp_path / "a.mp4", pictures, 25, wave)
        written.add((tmp_path / "a.mp4").read_bytes())
    assert len(written) == 1


def test_sound_is_cut_or_padded_to_the_pictures(tmp_path: Path) -> None:
    for seconds in (1.0, 3.0):
        media_omnihuman.write_video(
            tmp_path / "v.mp4", flashes(50, 25, 1.0), audio=np.full(round(seconds * RATE), 0.1, np.float32)
        )
        sound = media_omnihuman.read_audio(tmp_path / "v.mp4")
        assert sound is not None and sound.size == 2 * RATE


def test_odd_sides_are_padded_and_frames_may_stream(tmp_path: Path) -> None:
    def stream() -> Iterable[np.ndarray]:
        for value in range(10):
            yield np.full((47, 63, 3), 20 * value, np.uint8)

    media_omnihuman.write_video(tmp_path / "v.mp4", stream())
    back = media_omnihuman.read_video(tmp_path / "v.mp4")
    assert back.shape == (10, 48, 64, 3)
    np.testing.assert_allclose(back.mean((1, 2, 3)), 20 * np.arange(10), atol=3)


def test_a_part_is_what_it_is_in_the_whole(tmp_path: Path) -> None:
    count = 200
    frames = (np.arange(count)[:, None, None, None] * np.ones((1, 48, 64, 3))).astype(np.uint8)
    path = write(tmp_path / "v.mp4", frames, Fraction(25), clicks(8.0, 1.0, 48_000), gop_size=25)
    whole, sound = media_omnihuman.read_video(path), media_omnihuman.read_audio(path)
    assert sound is not None
    # 5.2 s lies past the point from which reading begins with a seek.
    for start, end in ((0, 10), (30, 45), (130, 180), (195, 200)):
        part = media_omnihuman.read_video(path, start_s=start / 25, duration_s=(end - start) / 25)
        np.testing.assert_array_equal(part, whole[start:end])
        heard = media_omnihuman.read_audio(path, start_s=start / 25, duration_s=(end - start) / 25)
        np.testing.assert_array_equal(heard, sound[start * 640 : end * 640])
    with pytest.raises(media_omnihuman.MediaError, match=r"ends at 8\.000 s"):
        media_omnihuman.read_video(path, start_s=9.0)


def test_rotated_and_non_square_pixels_are_undone(tmp_path: Path) -> None:
    frames = np.full((10, 48, 64, 3), 40, np.uint8)
    frames[:, :24, :32] = (220, 30, 30)  # red in the upper left of what is stored
    path = write(
        tmp_path / "turned.mp4", frames, Fraction(25), rotation=-90
    )  # shown turned clockwise: red in the upper right
    shown = media_omnihuman.read_video(path)
    assert shown.shape[1:] == (64, 48, 3) and (
        media_omnihuman.probe(path).height,
        media_omnihuman.probe(path).width,
    ) == (64, 48)
    assert shown[5, 10, 40, 0] > 180 > 100 > shown[5, 10, 5, 0] and shown[5, 50, 40, 0] < 100
    wide = write(tmp_path / "wide.mp4", frames, Fraction(25), sample_aspect_ratio=Fraction(3, 2))
    assert media_omnihuman.read_video(wide).shape[1:] == (48, 96, 3)
    assert media_omnihuman.read_video(wide, size=(32, 32)).shape[1:] == (32, 32, 3)


def test_images(tmp_path: Path) -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:, 30:] = (10, 200, 90)
    av.VideoFrame.from_ndarray(picture).save(tmp_path / "p.png")
    np.testing.assert_array_equal(media_omnihuman.read_image(tmp_path / "p.png"), picture)
    assert media_omnihuman.read_image(tmp_path / "p.png", size=(20, 30)).shape == (20, 30, 3)
    with pytest.raises(media_omnihuman.MediaError, match=r"p\.png: has no audio track; give a wav"):
        media_omnihuman.read_audio(tmp_path / "p.png", required=True)


def test_sound_alone_is_read_whole(tmp_path: Path) -> None:
    with wave_file.open(str(tmp_path / "s.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(44_100)
        tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100)
        # Louder on one side than on the other: mono is their mean.
        file.writeframes((tone[:, None] * [1.2, 0.8] * 32767).astype("<i2").tobytes())
    sound = media_omnihuman.read_audio(tmp_path / "s.wav", required=True)
    assert sound is not None and sound.dtype == np.float32 and sound.size == RATE
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    assert np.abs(sound - expected)[200:-200].max() < 5e-3  # band-limited, and not shifted by a sample
    with pytest.raises(media_omnihuman.MediaError, match="no video track"):
        media_omnihuman.read_video(tmp_path / "s.wav")


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"),
    [
        (".wav", "PCM_16", 0.0), (".WAV", "PCM_24", 1e-6), (".wav", "FLOAT", 0.0), (".wav", "PCM_U8", 8e-3),
        (".flac", "PCM_16", 0.0), (".ogg", "VORBIS", 0.1), (".mp3", "MPEG_LAYER_III", 0.1),
    ],
)  # fmt: skip
def test_sound_files_are_read_by_libsndfile(tmp_path: Path, suffix: str, subtype: str, tolerance: float) -> None:
    """What was written comes back, at its own place in time: a shift by one sample of this tone would be 0.17."""
    path = tmp_path / f"s{suffix}"
    tone = np.round(0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE) * 2**15) / 2**15
    soundfile.write(path, tone.astype(np.float32), RATE, subtype=subtype)
    sound = media_omnihuman.read_audio(path, RATE, required=True)
    assert sound is not None and sound.dtype == np.float32 and abs(sound.size - RATE) <= 1152
    assert np.abs(sound[2000:14_000] - tone[2000:14_000].astype(np.float32)).max() <= tolerance
    part = media_omnihuman.read_audio(path, RATE, start_s=0.5, duration_s=0.75)
    assert part is not None and part.size == 12_000
    np.testing.assert_array_equal(part[:7000], sound[8000:15_000])
    assert not part[8200:].any()  # beyond the end of the file: silence


def test_libsndfile_and_ffmpeg_agree_on_where_an_mp3_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    click = np.zeros(RATE, np.float32)
    click[5000:5040] = 0.9
    soundfile.write(tmp_path / "c.mp3", click, RATE)
    begins = []
    for suffixes in (sound_omnihuman.SOUND_SUFFIXES, ()):
        monkeypatch.setattr(sound_omnihuman, "SOUND_SUFFIXES", suffixes)
        sound = media_omnihuman.read_audio(tmp_path / "c.mp3", RATE, required=True)
        assert sound is not None
        begins.append(int(np.argmax(np.abs(sound) > 0.3)))
    assert abs(begins[0] - begins[1]) <= 16 and abs(begins[0] - 5000) <= 16


def test_sound_files_that_libsndfile_refuses_are_ffmpegs(tmp_path: Path) -> None:
    (tmp_path / "noise.mp3").write_bytes(np.random.default_rng(0).bytes(20_000))
    (tmp_path / "empty.wav").write_bytes(b"")
    for name in ("noise.mp3", "empty.wav"):
        with pytest.raises(media_omnihuman.MediaError, match=rf"{name}: .*; "):
            media_omnihuman.read_audio(tmp_path / name, required=True)
    media_omnihuman.write_video(tmp_path / "v.mp4", flashes(25, 25, 1.0), audio=np.full(RATE, 0.25, np.float32))
    (tmp_path / "v.mp4").rename(tmp_path / "really_a_video.wav")
    sound = media_omnihuman.read_audio(tmp_path / "really_a_video.wav", RATE, required=True)
    assert sound is not None and abs(sound.size - RATE) <= 1 and abs(np.median(sound) - 0.25) < 0.02


def test_what_is_no_video_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    (tmp_path / "empty.mp4").write_bytes(b"")
    media_omnihuman.write_video(tmp_path / "whole.mp4", flashes(50, 25, 1.0))
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "headless.mp4").write_bytes(data[len(data) // 2 :])
    for name in ("noise.mp4", "empty.mp4", "headless.mp4"):
        for read in (
            media_omnihuman.read_video,
            media_omnihuman.read_audio,
            media_omnihuman.read_image,
            media_omnihuman.probe,
        ):
            with pytest.raises(media_omnihuman.MediaError, match=rf"{name}: .*; ") as raised:
                read(tmp_path / name)
            assert "\n" not in str(raised.value)
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4: no such video file"):
        media_omnihuman.read_video(tmp_path / "gone.mp4")


def test_failed_writes_leave_nothing(tmp_path: Path) -> None:
    def breaks() -> Iterable[np.ndarray]:
        yield np.zeros((32, 32, 3), np.uint8)
        raise KeyError("the frames' maker broke")

    with pytest.raises(KeyError):
        media_omnihuman.write_video(tmp_path / "v.mp4", breaks())
    with pytest.raises(ValueError, match="no frames"):
        media_omnihuman.write_video(tmp_path / "v.mp4", [])
    with pytest.raises(ValueError, match="uint8"):
        media_omnihuman.write_video(tmp_path / "v.mp4", np.zeros((3, 32, 32, 3), np.float32))
    with pytest.raises(ValueError, match="in a video of"):
        media_omnihuman.write_video(
            tmp_path / "v.mp4", [np.zeros((32, 32, 3), np.uint8), np.zeros((64, 32, 3), np.uint8)]
        )
    assert list(tmp_path.iterdir()) == []


def test_the_index_lies_in_front_so_that_browsers_can_stream(tmp_path: Path) -> None:
    media_omnihuman.write_video(tmp_path / "v.mp4", flashes(10, 25, 1.0))
    data = (tmp_path / "v.mp4").read_bytes()
    boxes, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        boxes.append(data[at + 4 : at + 8])
        at += size
    assert boxes.index(b"moov") < boxes.index(b"mdat")
