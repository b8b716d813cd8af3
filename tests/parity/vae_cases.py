"""Autoencoders of diffusers with random weights, and what they make of a video, beside ours of the same folder."""

import numpy as np
import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLWan

from omnihuman_jax.models.vae_codec import VaeCodec, load_vae

CLASSES = {"hunyuan": AutoencoderKLHunyuanVideo, "wan": AutoencoderKLWan}


def oracle(name: str, sizes: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    model = CLASSES[name](**sizes)
    with torch.no_grad():
        for weight in model.parameters():  # biases and scales of norms too: at their start they hide mistakes
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def ours(model: torch.nn.Module, folder, **options) -> VaeCodec:
    """The same weights through a folder as diffusers writes it."""
    model.save_pretrained(folder)
    return load_vae(str(folder), options)


def video(frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(frames * height + width).uniform(-1, 1, (frames, height, width, 3)).astype(np.float32)


def encoded(model: torch.nn.Module, video_THW3: np.ndarray) -> np.ndarray:
    """The posterior's mode, normalised as diffusers' pipelines do it: [1 + n, H / 8, W / 8, C]."""
    with torch.no_grad():
        mode = model.encode(torch.from_numpy(video_THW3).permute(3, 0, 1, 2)[None]).latent_dist.mode()
        return _channels_last((mode - _mean(model)) / _std(model))


def decoded(model: torch.nn.Module, latents_FHWC: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        latents = torch.from_numpy(latents_FHWC).permute(3, 0, 1, 2)[None] * _std(model) + _mean(model)
        return _channels_last(model.decode(latents).sample)


def error(seen: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest value."""
    seen = np.asarray(seen)
    assert seen.shape == expected.shape and seen.dtype == np.float32
    assert np.abs(expected).max() > 0.1
    return float(np.abs(seen - expected).max() / np.abs(expected).max())


def errors(model: torch.nn.Module, codec: VaeCodec, frames: int, height: int, width: int) -> tuple[float, float]:
    """Of encode and of decode, each from inputs of its own."""
    pictures = video(frames, height, width)
    expected = encoded(model, pictures)
    latents = np.random.default_rng(1).standard_normal(expected.shape).astype(np.float32)
    return error(codec.encode(pictures), expected), error(codec.decode(latents), decoded(model, latents))


def _mean(model: torch.nn.Module) -> torch.Tensor:
    return torch.tensor(getattr(model.config, "latents_mean", [0.0])).view(1, -1, 1, 1, 1)


def _std(model: torch.nn.Module) -> torch.Tensor:
    scale = getattr(model.config, "latents_std", None) or [1 / model.config.scaling_factor]
    return torch.tensor(scale).view(1, -1, 1, 1, 1)


def _channels_last(x: torch.Tensor) -> np.ndarray:
    return x[0].permute(1, 2, 3, 0).contiguous().numpy()
