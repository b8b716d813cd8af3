"""Autoencoders of diffusers with random weights, and what they make of a video, beside ours of the same folder.

The judge of both is the original in float64: where ours is further from it than the original's own float32, the error
is ours; where both are as far, it is what rounding does in a network with these weights.
"""

import copy
import dataclasses

import jax.numpy as jnp
import numpy as np
import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLWan

from omnihuman_jax.codecs.vae_codec import VaeCodec, describe, load_vae, parameter_count

CLASSES = {"hunyuan": AutoencoderKLHunyuanVideo, "wan": AutoencoderKLWan}
NAMES = {"AutoencoderKLHunyuanVideo": "HunyuanVideo VAE", "AutoencoderKLWan": "Wan 2.1 VAE"}
TOLERANCE = 1e-5


def oracle(name: str, sizes: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    model = CLASSES[name](**sizes)
    with torch.no_grad():
        for weight in model.parameters():  # biases and scales of norms too: at their start they hide mistakes
            weight.add_(0.1 * torch.randn_like(weight))
        if name == "wan":
            # Frames of a trained decoder lie within [-1, 1], at which they are clipped. These would reach 3 to 5:
            # errors of what is several times as large would be measured against 1. Scaled, a few values still meet the
            # clip.
            for weight in model.decoder.conv_out.parameters():
                weight.mul_(0.4)
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


@dataclasses.dataclass(frozen=True, slots=True)
class Outputs:
    """What the original computes from one input in float32 and in float64, and ours in float32."""

    ours: np.ndarray
    original: np.ndarray
    exact: np.ndarray

    def rms(self, seen: np.ndarray) -> float:
        """Distance from float64, root mean square over that of the values."""
        return float(np.linalg.norm(seen - self.exact) / np.linalg.norm(self.exact))


def outputs(model: torch.nn.Module, codec: VaeCodec, frames: int, height: int, width: int) -> dict[str, Outputs]:
    """Of encode and of decode, each from inputs of its own."""
    exact, pictures = copy.deepcopy(model).double(), video(frames, height, width)
    mode = encoded(model, pictures)
    latents = np.random.default_rng(1).standard_normal(mode.shape).astype(np.float32)
    return {
        "encode": Outputs(np.asarray(codec.encode(pictures)), mode, encoded(exact, pictures.astype(np.float64))),
        "decode": Outputs(
            np.asarray(codec.decode(latents)), decoded(model, latents), decoded(exact, latents.astype(np.float64))
        ),
    }


def check(measured, label: str, model: torch.nn.Module, codec: VaeCodec, *size: int) -> dict[str, Outputs]:
    """Ours within 1e-5 of the original for a video of `size` frames, height and width, and about as near to float64 as
    it is.
    """
    both = outputs(model, codec, *size)
    for method, seen in both.items():
        name = f"{NAMES[codec.kind]}, {method}"
        measured(f"{name}, {label}, against diffusers", error(seen.ours, seen.original), TOLERANCE)
        measured(f"{name}, in every case, against diffusers in float64", error(seen.ours, seen.exact), TOLERANCE)
        measured(
            f"{name}, in every case, diffusers itself against float64", error(seen.original, seen.exact), TOLERANCE
        )
        # Of a few values, and of a network of few operations, either may be the lucky one.
        assert seen.rms(seen.ours) <= max(2 * seen.rms(seen.original), 1e-6)
    return both


def check_names(measured, model: torch.nn.Module, config) -> None:
    """Every name and shape of the state dict of `model` (on the meta device), both ways, and the number of
    parameters.
    """
    kind = type(model).__name__
    params, shapes = describe(kind, config, jnp.bfloat16)
    unlike = shapes.items() ^ {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}.items()
    measured(
        f"{NAMES[kind]}, full size: names or shapes unlike those of diffusers' module on the meta device",
        len(unlike),
        0,
    )
    assert parameter_count(params) == sum(weight.numel() for weight in model.parameters())


def _mean(model: torch.nn.Module) -> torch.Tensor:
    mean = getattr(model.config, "latents_mean", [0.0])
    return torch.tensor(mean, dtype=model.dtype).view(1, -1, 1, 1, 1)


def _std(model: torch.nn.Module) -> torch.Tensor:
    scale = getattr(model.config, "latents_std", None) or [1 / model.config.scaling_factor]
    return torch.tensor(scale, dtype=model.dtype).view(1, -1, 1, 1, 1)


def _channels_last(x: torch.Tensor) -> np.ndarray:
    return x[0].permute(1, 2, 3, 0).contiguous().numpy()
