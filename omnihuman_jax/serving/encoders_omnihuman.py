"""What stands around `OmniHumanForVideo` in a pipeline: video codec, speech encoder, text encoder, in PyTorch.

The networks are diffusers' and transformers' own classes, read from the folders that the training data were encoded
with; what is done around them (which layers, frame rate, chunks, scaling) is the trainer's.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from folders_omnihuman import local_folder, read_config, weight_files
from pictures_omnihuman import SPATIAL_STRIDE
from safetensors.torch import load_file
from torch import Tensor, nn
from windows_omnihuman import SAMPLE_RATE_HZ, at_frame_rate, whole_frames

STATE_SAMPLES = 320  # 50 hidden states a second, of either speech encoder
MAX_TEXT_TOKENS = 128
DCT_FILE = "codec.safetensors"


class Codec(Protocol):
    """Frames [1 + 4n, H, W, 3] in [-1, 1] to normalised latents [1 + n, H / 8, W / 8, C] and back; float32."""

    def encode(self, video_THW3: Tensor) -> Tensor: ...

    def decode(self, latents_FHWC: Tensor) -> Tensor: ...


class SpeechEncoder(Protocol):
    """Mono sound at 16 kHz to features [num_frames, E] at 25 fps; float32."""

    def features(self, wave_16k: np.ndarray, num_frames: int) -> np.ndarray: ...


class TextEncoder(Protocol):
    """A prompt to (embeddings [S, E] of its tokens, pooled embedding [E]); float32."""

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]: ...


def load_codec(name: str, exported: Path, device: torch.device, options: Mapping[str, Any]) -> Codec:
    """The codec called `name` in config.json: `dct`, whose tensors are in the exported folder, or a folder of
    diffusers.
    """
    if name == "dct":
        return DctCodec(exported / DCT_FILE, device)
    return VaeCodec(network_folder("codec", name), device, options)


def network_folder(role: str, name: str) -> Path:
    """The folder or hub id `name` of a network that the model was trained with."""
    cure = f"give its folder with --{role.replace(' ', '-')}"
    return local_folder(name, f"the {role} that the model was trained with was there: {cure}")


class DctCodec:
    """The demo's fixed block transform: two matrices in, two out, for the first frame and for each later group of
    four.
    """

    def __init__(self, file: Path, device: torch.device) -> None:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: missing; export the model again")
        self.tensors = load_file(str(file), device=str(device))

    def encode(self, video_THW3: Tensor) -> Tensor:
        parts = [self._analyse(video_THW3[:1], self.tensors["first_in"])]
        if len(video_THW3) > 1:
            parts.append(self._analyse(video_THW3[1:], self.tensors["group_in"]))
        return torch.cat(parts)

    def decode(self, latents_FHWC: Tensor) -> Tensor:
        parts = [self._synthesise(latents_FHWC[:1], self.tensors["first_out"])]
        if len(latents_FHWC) > 1:
            parts.append(self._synthesise(latents_FHWC[1:], self.tensors["group_out"]))
        return torch.cat(parts)

    @staticmethod
    def _analyse(frames: Tensor, tensor: Tensor) -> Tensor:
        count, height, width, colours = frames.shape
        t, s = tensor.shape[1], SPATIAL_STRIDE
        blocks = frames.reshape(count // t, t, height // s, s, width // s, s, colours)
        return torch.einsum("ntaibjc,ktijc->nabk", blocks, tensor)

    @staticmethod
    def _synthesise(latents: Tensor, tensor: Tensor) -> Tensor:
        count, height, width, _ = latents.shape
        t, s = tensor.shape[1], SPATIAL_STRIDE
        blocks = torch.einsum("nabk,ktijc->ntaibjc", latents, tensor)
        return blocks.reshape(count * t, height * s, width * s, 3)


class VaeCodec:
    """`AutoencoderKLHunyuanVideo` or `AutoencoderKLWan` of diffusers. Latents are the posterior's mean, normalised."""

    def __init__(self, folder: Path, device: torch.device, options: Mapping[str, Any]) -> None:
        import diffusers

        kind = read_config(folder).get("_class_name")
        if kind not in ("AutoencoderKLHunyuanVideo", "AutoencoderKLWan"):
            raise ValueError(
                f"{folder}: a video codec of class {kind!r}; supported: AutoencoderKLHunyuanVideo, AutoencoderKLWan"
            )
        weight_files(folder)
        auto = "float32" if device.type == "cpu" else "bfloat16"
        name = options.get("dtype", "auto")
        dtype = getattr(torch, auto if name == "auto" else name)
        vae, loaded = getattr(diffusers, kind).from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, output_loading_info=True
        )
        check_loaded(folder, loaded["missing_keys"], loaded["unexpected_keys"])
        self.vae = vae.to(device).eval()
        config, shape = self.vae.config, (1, -1, 1, 1, 1)
        if kind == "AutoencoderKLWan":
            self.mean = torch.tensor(config.latents_mean, device=device).reshape(shape)
            self.std = torch.tensor(config.latents_std, device=device).reshape(shape)
        else:
            self.mean = torch.zeros(shape[:1] + (1,) * 4, device=device)
            self.std = torch.full_like(self.mean, 1 / config.scaling_factor)
        self._tile(kind, options)

    def _tile(self, kind: str, options: Mapping[str, Any]) -> None:
        """The trainer's tiles. Without options: HunyuanVideo's are diffusers' own, Wan has none."""
        is_hunyuan = kind == "AutoencoderKLHunyuanVideo"
        height, width, frames = (options.get(f"tile_{dim}", int(is_hunyuan)) for dim in ("height", "width", "frames"))
        if bool(height) != bool(width):
            raise ValueError(f"codec options {dict(options)}: diffusers tiles height and width both, or neither")
        names = {"height": "height", "width": "width"} | ({"frames": "num_frames"} if is_hunyuan else {})
        asked = {
            f"tile_sample_{bound}_{theirs}": options[f"{ours}_{dim}"]
            for dim, theirs in names.items()
            for ours, bound in (("tile", "min"), ("stride", "stride"))
            if options.get(f"tile_{dim}") and f"{ours}_{dim}" in options
        }
        self.vae.enable_tiling(**asked)
        self.vae.use_tiling = bool(height)
        if is_hunyuan:
            self.vae.use_framewise_encoding = self.vae.use_framewise_decoding = bool(frames)

    def encode(self, video_THW3: Tensor) -> Tensor:
        video = video_THW3.permute(3, 0, 1, 2)[None].to(self.vae.dtype)
        latents = self.vae.encode(video).latent_dist.mode().float()
        return ((latents - self.mean) / self.std)[0].permute(1, 2, 3, 0)

    def decode(self, latents_FHWC: Tensor) -> Tensor:
        latents = latents_FHWC.permute(3, 0, 1, 2)[None] * self.std + self.mean
        return self.vae.decode(latents.to(self.vae.dtype)).sample.float()[0].permute(1, 2, 3, 0)


def load_speech_encoder(folder: Path, layers: tuple[int, ...], device: torch.device) -> SpeechEncoder:
    """Whisper's encoder or wav2vec 2.0, by `model_type` of config.json; its hidden states `layers`."""
    kind = read_config(folder).get("model_type")
    if kind == "whisper":
        return WhisperSpeechEncoder(folder, layers, device)
    if kind == "wav2vec2":
        return Wav2Vec2SpeechEncoder(folder, layers, device)
    raise ValueError(f"{folder}: a speech encoder of model_type {kind!r}; supported: 'whisper', 'wav2vec2'")


def check_loaded(folder: Path, missing: Iterable[str], unknown: Iterable[str], unused: tuple[str, ...] = ()) -> None:
    """ValueError with the tensors that the network lacks, and those that it does not know and that begin with none of
    `unused`.
    """
    wrong = [f"{name} is missing" for name in sorted(missing) if not name.startswith(unused)]
    wrong += [f"{name} is unknown" for name in sorted(unknown) if not name.startswith(unused)]
    if wrong:
        listed = "; ".join(wrong[:20]) + ("; ..." if len(wrong) > 20 else "")
        raise ValueError(
            f"{folder}: weights do not fit config.json: {listed} ({len(wrong)} in all); fetch the folder again"
        )


def load_network(
    model: nn.Module, folder: Path, prefixes: tuple[str, ...], device: torch.device, unused: tuple[str, ...]
) -> nn.Module:
    """`model` with the folder's tensors, of which it needs every one; the first of `prefixes` that any name has is cut
    off.

    unused: beginnings of names that the whole model has and this part of it does not.
    """
    tensors = {name: tensor for file in weight_files(folder) for name, tensor in load_file(str(file)).items()}
    prefix = next(prefix for prefix in (*prefixes, "") if any(name.startswith(prefix) for name in tensors))
    known = model.state_dict()
    own = {name.removeprefix(prefix): tensor.float() for name, tensor in tensors.items() if name.startswith(prefix)}
    # A prefix says whose the rest is; without one it has to be known.
    check_loaded(folder, known.keys() - own.keys(), own.keys() - known.keys(), unused)
    if wrong := [f"{name} {list(own[name].shape)}" for name in known if own[name].shape != known[name].shape]:
        raise ValueError(
            f"{folder}: of another shape than config.json says: {'; '.join(wrong[:20])} ({len(wrong)} in all)"
        )
    model.load_state_dict({name: own[name] for name in known})
    return model.to(device).eval()


class WhisperSpeechEncoder:
    """Whisper's encoder: windows of 30 s, of longer sound overlapping ones of which what has 5 s on both sides is kept.

    Layer 0 is what enters the first layer, without the position embedding.
    """

    CHUNK, CONTEXT = 1500, 250  # hidden states

    def __init__(self, folder: Path, layers: tuple[int, ...], device: torch.device) -> None:
        from transformers import WhisperConfig, WhisperFeatureExtractor
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        config = WhisperConfig(**read_config(folder))
        self.layers, self.device = layers, device
        self.mel = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
        self.network = load_network(
            WhisperEncoder(config), folder, ("model.encoder.", "encoder."), device, ("decoder.", "proj_out.")
        )

    @torch.no_grad()
    def features(self, wave_16k: np.ndarray, num_frames: int) -> np.ndarray:
        wave = whole_frames(wave_16k, num_frames)
        steps, start, kept = -(-len(wave) // STATE_SAMPLES), 0, []
        while True:
            last = start + self.CHUNK >= steps
            states = self._chunk(wave[start * STATE_SAMPLES : (start + self.CHUNK) * STATE_SAMPLES])
            first, end = (self.CONTEXT if start else 0), (steps - start if last else self.CHUNK - self.CONTEXT)
            kept.append(states[:, first:end])
            if last:
                return at_frame_rate(torch.cat(kept, 1).cpu().numpy(), num_frames)
            start += self.CHUNK - 2 * self.CONTEXT

    def _chunk(self, wave: np.ndarray) -> Tensor:
        mel = self.mel(wave, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features.to(self.device)
        out = self.network(mel, output_hidden_states=True)
        states = [*out.hidden_states[:-1], out.last_hidden_state]
        states[0] = states[0] - self.network.embed_positions.weight
        return torch.cat([states[layer] for layer in self.layers])


class Wav2Vec2SpeechEncoder:
    """wav2vec 2.0: 40 zeros on both sides give two states a frame; above 20 s, overlapping chunks with 5 s on both
    sides.

    The norm over time in the first convolution of the base form is the whole sound's, however it is cut.
    """

    CHUNK, CONTEXT, FIELD = 1000, 250, 400  # hidden states, hidden states, samples

    def __init__(self, folder: Path, layers: tuple[int, ...], device: torch.device) -> None:
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        config = Wav2Vec2Config(**read_config(folder))
        if math.prod(config.conv_stride) != STATE_SAMPLES:
            raise ValueError(
                f"{folder / 'config.json'}: conv_stride {config.conv_stride}: not a state every {STATE_SAMPLES} samples"
            )
        weight_files(folder)
        self.layers, self.device = layers, device
        file = folder / "preprocessor_config.json"
        self.normalise = json.loads(file.read_text()).get("do_normalize", True) if file.is_file() else True
        network, loaded = Wav2Vec2Model.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
        heads = ("masked_spec_embed", "lm_head.", "quantizer.", "project_q.", "project_hid.")
        check_loaded(folder, loaded["missing_keys"], loaded["unexpected_keys"], heads)
        self.network = network.float().to(device).eval()

    @torch.no_grad()
    def features(self, wave_16k: np.ndarray, num_frames: int) -> np.ndarray:
        wave = whole_frames(wave_16k, num_frames)
        if self.normalise:
            wide = wave.astype(np.float64)
            wave = ((wide - wide.mean()) / np.sqrt(wide.var() + 1e-7)).astype(np.float32)
        missing = self.FIELD - STATE_SAMPLES
        sound = F.pad(torch.from_numpy(wave).to(self.device), (missing // 2, missing - missing // 2))
        with _WholeNorm(self.network, sound):
            states = torch.cat([self._chunk(sound, *span) for span in self._spans(2 * num_frames)], 1)
        return at_frame_rate(states.cpu().numpy(), num_frames)

    def _spans(self, steps: int) -> list[tuple[int, int, int, int]]:
        """(start, end) of each chunk and (first, until) of what is kept of it."""
        if steps <= self.CHUNK:
            return [(0, steps, 0, steps)]
        spans, kept = [], 0
        while kept < steps:
            start = min(max(0, kept - self.CONTEXT), steps - self.CHUNK)
            end = start + self.CHUNK
            until = steps if end == steps else end - self.CONTEXT
            spans.append((start, end, kept, until))
            kept = until
        return spans

    def _chunk(self, sound: Tensor, start: int, end: int, first: int, until: int) -> Tensor:
        samples = sound[start * STATE_SAMPLES : (end - 1) * STATE_SAMPLES + self.FIELD]
        out = self.network(samples[None], output_hidden_states=True)
        states = [*out.hidden_states[:-1], out.last_hidden_state]
        return torch.cat([states[layer] for layer in self.layers])[:, first - start : until - start]


class _WholeNorm:
    """Within it, the norm over time of the feature extractor's first layer (if it has one) uses the whole sound's
    moments.
    """

    PIECE = 1 << 20  # samples

    def __init__(self, network: nn.Module, sound: Tensor) -> None:
        self.layer, self.sound = network.feature_extractor.conv_layers[0], sound
        self.norm = getattr(self.layer, "layer_norm", None)

    def __enter__(self) -> None:
        if not isinstance(self.norm, nn.GroupNorm):
            return
        conv, sound = self.layer.conv, self.sound
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        count = (len(sound) - kernel) // stride + 1
        total = total_square = torch.zeros(conv.out_channels, dtype=torch.float64, device=sound.device)
        for start in range(0, count, self.PIECE // stride):
            stop = min(count, start + self.PIECE // stride)
            out = conv(sound[None, None, start * stride : (stop - 1) * stride + kernel])[0].double()
            total, total_square = total + out.sum(1), total_square + out.square().sum(1)
        mean = total / count
        self.layer.layer_norm = _GivenNorm(self.norm, mean, (total_square / count - mean**2).clamp(min=0))

    def __exit__(self, *_: object) -> None:
        if self.norm is not None:
            self.layer.layer_norm = self.norm


class _GivenNorm(nn.Module):
    """A group norm of one channel a group whose mean and variance are known."""

    def __init__(self, norm: nn.GroupNorm, mean: Tensor, variance: Tensor) -> None:
        super().__init__()
        self.scale = (norm.weight / (variance + norm.eps).sqrt())[:, None].float()
        self.shift = (norm.bias - mean * self.scale[:, 0])[:, None].float()

    def forward(self, x_BCT: Tensor) -> Tensor:
        return x_BCT * self.scale + self.shift


def load_text_encoder(folder: Path, device: torch.device) -> TextEncoder:
    """The text encoder in a folder: BERT (MiniLM, BGE, ...), or what `text_encoders_omnihuman.py` reads."""
    if (folder / "config.json").is_file() and read_config(folder).get("model_type") == "bert":
        return BertTextEncoder(folder, device)
    from text_encoders_omnihuman import load_transformers_text_encoder, parts_of

    for network in parts_of(folder).networks:
        weight_files(network)
    return OneText(load_transformers_text_encoder(folder, device=str(device)))


class OneText:
    """An encoder of many texts, for one."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder

    def encode(self, text: str, max_tokens: int = MAX_TEXT_TOKENS) -> tuple[np.ndarray, np.ndarray]:
        tokens, pooled = self.encoder.encode([text], max_tokens)
        return tokens[0], pooled[0]


class BertTextEncoder:
    """BERT. Pooled: the mean over tokens, of unit variance where the folder's sentence embedding is normalised."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel

        self.device = device
        config = BertConfig(**read_config(folder))
        heads = ("pooler.", "cls.", "embeddings.position_ids")
        self.network = load_network(BertModel(config, add_pooling_layer=False), folder, ("bert.",), device, heads)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        modules = folder / "modules.json"
        parts = json.loads(modules.read_text()) if modules.is_file() else []
        self.normalise = any(str(part.get("type", "")).endswith("Normalize") for part in parts)

    @torch.no_grad()
    def encode(self, text: str, max_tokens: int = MAX_TEXT_TOKENS) -> tuple[np.ndarray, np.ndarray]:
        self.tokenizer.enable_truncation(max_tokens)
        ids = torch.tensor([self.tokenizer.encode(text).ids], device=self.device)
        tokens = self.network(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0].float()
        pooled = tokens.mean(0)
        if self.normalise:
            pooled = pooled * (math.sqrt(len(pooled)) / pooled.norm().clamp(min=1e-12))
        return tokens.cpu().numpy(), pooled.cpu().numpy()
