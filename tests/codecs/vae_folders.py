"""Tiny autoencoders in diffusers' layout, with weights that a seed determines, without diffusers. Used by several
tests.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from omnihuman_jax.codecs import hunyuan_vae, vae_codec, wan_vae

CONFIGS = {
    "AutoencoderKLHunyuanVideo": hunyuan_vae.HunyuanVaeConfig(
        block_out_channels=(2, 2, 2, 2),
        norm_num_groups=1,
        layers_per_block=1,
        latent_channels=2,
        mid_block_add_attention=False,
    ),
    "AutoencoderKLWan": wan_vae.WanVaeConfig(
        base_dim=2,
        z_dim=4,
        num_res_blocks=1,
        dim_mult=(1, 1, 2, 2),
        latents_mean=(0.1, 0.0, -0.2, 0.3),
        latents_std=(1.0, 2.0, 0.5, 1.5),
    ),
}


def tensors(kind: str, **sizes) -> dict[str, np.ndarray]:
    _, shapes = vae_codec.describe(kind, dataclasses.replace(CONFIGS[kind], **sizes), np.float32)
    rng = np.random.default_rng(3)
    made = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32)
        is_scale = "norm" in name and not name.endswith("bias")
        made[name] = 1 + 0.1 * values if is_scale else values / np.sqrt(max(1, np.prod(shape[1:])))
    return made


def config_json(kind: str, **sizes) -> dict:
    config = dataclasses.replace(CONFIGS[kind], **sizes)
    return {"_class_name": kind, "_diffusers_version": "0.42.1"} | {
        name: getattr(config, name) for name in config.__slots__
    }


def write_vae(
    folder: Path,
    kind: str = "AutoencoderKLWan",
    changed: dict[str, np.ndarray | None] | None = None,
    sizes: dict | None = None,
    **config,
) -> Path:
    """The folder. `sizes` of the network; `changed`: tensors instead of those of their name (None: left out); `config`:
    entries of config.json that need not fit them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(kind, **(sizes or {})) | config))
    kept = {
        name: tensor
        for name, tensor in (tensors(kind, **(sizes or {})) | (changed or {})).items()
        if tensor is not None
    }
    save_file(kept, folder / "diffusion_pytorch_model.safetensors")
    return folder
