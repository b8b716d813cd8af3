"""Speech encoders: sound to features at the frame rate of the video, hidden states of several layers side by side [S2].

The features are computed once, offline, and at inference from the driving sound. `config.json` says which network it
is.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from omnihuman_jax.encoders import wav2vec2, whisper
from omnihuman_jax.encoders.pretrained import open_pretrained
from omnihuman_jax.serving.windows_omnihuman import at_frame_rate, whole_frames

_STEP = whisper.STEP  # samples a hidden state, of either network: 50 Hz


class SpeechEncoder(Protocol):
    """What `load_speech_encoder` returns."""

    @property
    def ref(self) -> str:
        """What loads it again: the absolute path of its folder, or its hub id."""

    @property
    def sha256(self) -> Mapping[str, str]:
        """File name -> sha256 of each file that it is made of."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Hidden layers that the features are made of, in their order."""

    @property
    def width(self) -> int:
        """E of one layer."""

    def features(self, wave_16k: np.ndarray, num_frames: int) -> np.ndarray:
        """float32 [num_frames, len(layers) * width] at 25 fps, frame i about the sound from i / 25 s on."""


def load_speech_encoder(dir_or_hub_id: str | os.PathLike[str], layers: Sequence[int] | None = None) -> SpeechEncoder:
    """The speech encoder in a folder or on the hub.

    Args:
        dir_or_hub_id: a folder in Hugging Face layout, or the id of one on the hub.
        layers: hidden layers, 0 (before the first layer) .. the number of layers; default: first, middle and last.

    Raises:
        ValueError: a kind of network that is not supported, a layer that it does not have, weights that do not fit.
    """
    folder = open_pretrained(dir_or_hub_id)
    kind = folder.config.get("model_type")
    config: whisper.WhisperConfig | wav2vec2.Wav2Vec2Config
    if kind == "whisper":
        config = whisper.WhisperConfig.from_folder(folder)
    elif kind == "wav2vec2":
        config = wav2vec2.Wav2Vec2Config.from_folder(folder)
        if config.stride != _STEP:
            raise ValueError(
                f"{folder.path / 'config.json'}: conv_stride {config.conv_strides} gives one state every "
                f"{config.stride} samples; it must be every {_STEP}"
            )
    else:
        raise ValueError(f"{folder.path}: a speech encoder of model_type {kind!r}; supported: 'whisper', 'wav2vec2'")
    chosen = tuple(dict.fromkeys((0, config.num_layers // 2, config.num_layers)) if layers is None else layers)
    if not chosen or len(set(chosen)) != len(chosen) or not all(0 <= layer <= config.num_layers for layer in chosen):
        raise ValueError(
            f"speech layers {chosen}: must be different layers of 0 .. {config.num_layers} of {folder.ref}"
        )
    if isinstance(config, wav2vec2.Wav2Vec2Config):
        params = wav2vec2.wav2vec2_params(config, folder)
        return Wav2Vec2SpeechEncoder(
            ref=folder.ref, sha256=folder.sha256(), layers=chosen, config=config, params=params
        )
    return WhisperSpeechEncoder(
        ref=folder.ref,
        sha256=folder.sha256(),
        layers=chosen,
        config=config,
        params=whisper.whisper_params(config, folder),
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class WhisperSpeechEncoder:
    """Whisper's encoder at 25 fps. State j is centred on sample 320 j, so frame i's two on its first half."""

    ref: str
    sha256: Mapping[str, str]
    layers: tuple[int, ...]
    config: whisper.WhisperConfig
    params: Mapping[str, Any]

    @property
    def width(self) -> int:
        return self.config.width

    def features(self, wave_16k: np.ndarray, num_frames: int) -> np.ndarray:
        """Features of `num_frames` frames at 25 fps.

        Args:
            wave_16k: float32 [N] in [-1, 1], mono, 16 kHz, sample 0 at the first frame; cut or padded with silence.
            num_frames: number of frames, one at least.

        Returns:
            float32 [num_frames, len(layers) * width], layer after layer.

        Raises:
            ValueError: not one dim, not finite, or num_frames below 1.
        """
        wave = whole_frames(wave_16k, num_frames)
        return at_frame_rate(whisper.hidden_states(self.config, self.params, wave, self.layers), num_frames)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Wav2Vec2SpeechEncoder:
    """wav2vec 2.0 at 25 fps: the same interface as Whisper's, hidden state 0 being what enters the first layer.

    A state is made of 400 samples and comes every 320; 40 zeros on both sides make exactly two states a frame, whose
    centres lie a quarter and three quarters into its 640 samples: their mean is centred on the frame. The sound is
    normalised over what it is given whole (cut or padded to the frames asked for), where the network's folder says so.
    """

    ref: str
    sha256: Mapping[str, str]
    layers: tuple[int, ...]
    config: wav2vec2.Wav2Vec2Config
    params: Mapping[str, Any]

    @property
    def width(self) -> int:
        return self.config.width

    def features(self, wave_16k: np.ndarray, num_frames: int) -> np.ndarray:
        """As `WhisperSpeechEncoder.features`."""
        wave = wav2vec2.normalised(self.config, whole_frames(wave_16k, num_frames))
        missing = self.config.receptive_field - self.config.stride
        padded = np.pad(wave, (missing // 2, missing - missing // 2))
        return at_frame_rate(wav2vec2.hidden_states(self.config, self.params, padded, self.layers), num_frames)
