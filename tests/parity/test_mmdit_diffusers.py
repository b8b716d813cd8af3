"""The MMDiT computes what `diffusers`' HunyuanVideoTransformer3DModel computes, with the same random weights (fp32)."""

import jax
import numpy as np
import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel

from omnihuman_jax import config as experiment
from omnihuman_jax.interop import key_table as kt
from omnihuman_jax.models import mmdit
from omnihuman_jax.typing import ArraySpec, PackedBatch, PackedShape

TOLERANCE = 1e-5
CHANNELS, TEXT_WIDTH, POOLED_WIDTH = 3, 17, 9
FRAMES, HEIGHT, WIDTH, TEXT = 3, 5, 3, 7  # tokens; all odd
TEXT_LENGTHS = (4, 7)
T = (0.3125, 0.75)


def config_of(**sizes) -> mmdit.MMDiTConfig:
    return mmdit.MMDiTConfig(
        width=44,
        num_heads=2,
        num_dual_layers=2,
        num_single_layers=3,
        latent_channels=CHANNELS,
        text_width=TEXT_WIDTH,
        pooled_width=POOLED_WIDTH,
        num_refiner_layers=2,
        rope_axes=(4, 8, 10),
        **sizes,
    )


def oracle(config: mmdit.MMDiTConfig, image_condition_type: str | None = None) -> HunyuanVideoTransformer3DModel:
    torch.manual_seed(0)
    model = HunyuanVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        num_layers=config.num_dual_layers,
        num_single_layers=config.num_single_layers,
        num_refiner_layers=config.num_refiner_layers,
        mlp_ratio=config.mlp_ratio,
        guidance_embeds=config.guidance_embed,
        text_embed_dim=TEXT_WIDTH,
        pooled_projection_dim=POOLED_WIDTH,
        rope_theta=config.rope_theta,
        rope_axes_dim=config.rope_axes,
        image_condition_type=image_condition_type,
    )
    with torch.no_grad():
        for weight in model.parameters():  # biases and norm scales too: at their start they hide mistakes
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


class Weights:
    """A torch state dict read as our parameters; every entry must be read exactly once."""

    def __init__(self, model: torch.nn.Module, config: mmdit.MMDiTConfig):
        self.left = {name: value.detach().numpy() for name, value in model.state_dict().items()}
        self.heads = (config.num_heads, config.head_dim)
        self.width = config.width

    def linear(self, name: str, *, out=None, into=None) -> dict:
        kernel, bias = self.left.pop(f"{name}.weight").T, self.left.pop(f"{name}.bias")
        out = out or kernel.shape[1:]
        return {"kernel": kernel.reshape(*(into or kernel.shape[:1]), *out), "bias": bias.reshape(out)}

    def mlp(self, first: str, second: str) -> dict:
        return {"fc_in": self.linear(first), "fc_out": self.linear(second)}

    def embedder(self, name: str) -> dict:
        return self.mlp(f"{name}.linear_1", f"{name}.linear_2")

    def modulation(self, name: str, chunks: int) -> dict:
        return {"linear": self.linear(name, out=(chunks, self.width))}

    def norm(self, name: str) -> dict:
        return {"scale": self.left.pop(f"{name}.weight")}

    def qkv(self, attn: str, names: str = "to_{}", norms: str | None = "norm_{}") -> dict:
        tree = {x: self.linear(f"{attn}.{names.format(x)}", out=self.heads) for x in "qkv"}
        return tree | ({f"{x}_norm": self.norm(f"{attn}.{norms.format(x)}") for x in "qk"} if norms else {})

    def refiner_block(self, name: str) -> dict:
        return {
            **self.qkv(f"{name}.attn", norms=None),
            "out": self.linear(f"{name}.attn.to_out.0", into=self.heads),
            "norm1": self.norm(f"{name}.norm1") | {"bias": self.left.pop(f"{name}.norm1.bias")},
            "norm2": self.norm(f"{name}.norm2") | {"bias": self.left.pop(f"{name}.norm2.bias")},
            "mlp": self.mlp(f"{name}.ff.net.0.proj", f"{name}.ff.net.2"),
            "modulation": self.modulation(f"{name}.norm_out.linear", 2),
        }

    def dual_block(self, name: str) -> dict:
        return {
            "video": {
                "modulation": self.modulation(f"{name}.norm1.linear", 6),
                "attention": self.qkv(f"{name}.attn"),
                "out": self.linear(f"{name}.attn.to_out.0", into=self.heads),
                "mlp": self.mlp(f"{name}.ff.net.0.proj", f"{name}.ff.net.2"),
            },
            "text": {
                "modulation": self.modulation(f"{name}.norm1_context.linear", 6),
                "attention": self.qkv(f"{name}.attn", "add_{}_proj", "norm_added_{}"),
                "out": self.linear(f"{name}.attn.to_add_out", into=self.heads),
                "mlp": self.mlp(f"{name}.ff_context.net.0.proj", f"{name}.ff_context.net.2"),
            },
        }

    def single_block(self, name: str) -> dict:
        joined = self.linear(f"{name}.proj_out")
        return {
            "modulation": self.modulation(f"{name}.norm.linear", 3),
            "attention": self.qkv(f"{name}.attn"),
            "mlp_in": self.linear(f"{name}.proj_mlp"),
            "out": {"kernel": joined["kernel"][: self.width].reshape(*self.heads, self.width)},
            "mlp_out": {"kernel": joined["kernel"][self.width :], "bias": joined["bias"]},
        }

    def params(self, config: mmdit.MMDiTConfig) -> dict:
        patch = self.left.pop("x_embedder.proj.weight")[:, :, 0]  # [D, C, 2, 2]
        last = self.linear("proj_out")  # outputs (C, 2, 2)
        by_channel = (CHANNELS, 2, 2)
        tree = {
            "patch_embed": {
                "kernel": patch.transpose(2, 3, 1, 0).reshape(-1, self.width),
                "bias": self.left.pop("x_embedder.proj.bias"),
            },
            "time": {"mlp": self.embedder("time_text_embed.timestep_embedder")},
            "pooled": self.embedder("time_text_embed.text_embedder"),
            "text_refiner": {
                "time": {"mlp": self.embedder("context_embedder.time_text_embed.timestep_embedder")},
                "pooled": self.embedder("context_embedder.time_text_embed.text_embedder"),
                "proj_in": self.linear("context_embedder.proj_in"),
                "blocks": self.stacked(
                    self.refiner_block, "context_embedder.token_refiner.refiner_blocks", config.num_refiner_layers
                ),
            },
            "dual_blocks": self.stacked(self.dual_block, "transformer_blocks", config.num_dual_layers),
            "single_blocks": self.stacked(self.single_block, "single_transformer_blocks", config.num_single_layers),
            "final_modulation": self.modulation("norm_out.linear", 2),
            "proj_out": {
                "kernel": last["kernel"].reshape(-1, *by_channel).transpose(0, 2, 3, 1).reshape(self.width, -1),
                "bias": last["bias"].reshape(by_channel).transpose(1, 2, 0).reshape(-1),
            },
        }
        if config.guidance_embed:
            tree["guidance"] = {"mlp": self.embedder("time_text_embed.guidance_embedder")}
        assert not self.left, f"never read: {sorted(self.left)}"
        return tree

    @staticmethod
    def stacked(read, name: str, count: int) -> dict:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *[read(f"{name}.{i}") for i in range(count)])


def inputs(seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "latents": draw(2, CHANNELS, FRAMES, 2 * HEIGHT, 2 * WIDTH),
        "text": draw(2, TEXT, TEXT_WIDTH),
        "pooled": draw(2, POOLED_WIDTH),
    }


def theirs(
    model: HunyuanVideoTransformer3DModel, x: dict[str, np.ndarray], guidance: float | None, frames: int
) -> np.ndarray:
    with torch.no_grad():
        out = model(
            hidden_states=torch.from_numpy(x["latents"][:, :, :frames]),
            timestep=torch.tensor(T) * 1000,
            encoder_hidden_states=torch.from_numpy(x["text"]),
            encoder_attention_mask=torch.tensor([[i < n for i in range(TEXT)] for n in TEXT_LENGTHS]).long(),
            pooled_projections=torch.from_numpy(x["pooled"]),
            guidance=None if guidance is None else torch.full((2,), guidance * 1000),
        )
    return to_tokens(out.sample.numpy())


def to_tokens(latents_BCFHW: np.ndarray) -> np.ndarray:
    """[B, F * H/2 * W/2, (row, column, channel)]."""
    b, c, f, h, w = latents_BCFHW.shape
    split = latents_BCFHW.reshape(b, c, f, h // 2, 2, w // 2, 2)
    return split.transpose(0, 2, 3, 5, 4, 6, 1).reshape(b, -1, 4 * c)


def packed(
    x: dict[str, np.ndarray], *, sequences: int, frames: int, clean_first: bool
) -> tuple[np.ndarray, np.ndarray, PackedBatch[np.ndarray]]:
    """Both samples as one window a sequence, or as two windows of one sequence; 5 tokens of padding behind."""
    tokens = to_tokens(x["latents"][:, :, :frames])
    n, slots = tokens.shape[1], 2 // sequences
    shape = PackedShape(
        latent_tokens=slots * n + 5,
        text_tokens=slots * TEXT,
        windows=slots,
        latent_frames=slots * frames,
        frames=1,
        patch_channels=4 * CHANNELS,
        text_width=TEXT_WIDTH,
        pooled_width=POOLED_WIDTH,
        audio_width=0,
        audio_tokens=0,
        keypoints=0,
        pose_frames=0,
    )
    batch = jax.tree.map(ArraySpec.zeros, shape.arrays(sequences))
    noisy, t = (
        np.ones((sequences, shape.latent_tokens, 4 * CHANNELS), np.float32),
        np.zeros((sequences, slots), np.float32),
    )
    grid = np.stack(np.meshgrid(*(np.arange(s) for s in (frames, HEIGHT, WIDTH)), indexing="ij"), -1).reshape(-1, 3)
    for i in range(2):
        b, g = divmod(i, slots)
        rows, texts = slice(g * n, (g + 1) * n), slice(g * TEXT, g * TEXT + TEXT_LENGTHS[i])
        noisy[b, rows], t[b, g] = tokens[i], T[i]
        batch.segment_ids_BL[b, rows] = g + 1
        batch.positions_BL3[b, rows] = grid
        batch.is_reference_BL[b, rows] = clean_first & (grid[:, 0] == 0)
        batch.text_BSE[b, texts] = x["text"][i, : TEXT_LENGTHS[i]]
        batch.text_segment_ids_BS[b, texts] = g + 1
        batch.pooled_BGE[b, g] = x["pooled"][i]
    return noisy, t, batch


def ours(
    config, params, x, *, sequences: int, frames: int, guidance: float | None, clean_first: bool = False
) -> np.ndarray:
    noisy, t, batch = packed(x, sequences=sequences, frames=frames, clean_first=clean_first)
    run = jax.jit(lambda p, z, t, batch: mmdit.apply(config, p, z, t, batch, guidance=guidance or 1.0))
    out = np.asarray(run(params, noisy, t, batch))
    n = frames * HEIGHT * WIDTH
    slots = 2 // sequences
    return np.stack([out[i // slots, i % slots * n : (i % slots + 1) * n] for i in range(2)])


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    ("sequences", "frames", "guidance"),
    [(2, FRAMES, None), (1, FRAMES, None), (1, 1, 0.5)],
    ids=["a window a sequence, masked text", "two windows packed into one", "single frame, guidance embedding"],
)
def test_velocity_is_that_of_diffusers(sequences: int, frames: int, guidance: float | None, measured) -> None:
    config = config_of(guidance_embed=guidance is not None)
    model = oracle(config)
    params, x = Weights(model, config).params(config), inputs()
    expected = theirs(model, x, guidance, frames)
    found = ours(config, params, x, sequences=sequences, frames=frames, guidance=guidance)
    assert np.abs(expected).max() > 0.1
    measured(
        "velocity, base model against diffusers' HunyuanVideo, random weights",
        relative_error(found, expected),
        TOLERANCE,
    )


def test_clean_tokens_are_those_of_the_image_to_video_model() -> None:
    """A clean first frame (reference tokens here) is modulated as diffusers' `token_replace` form does it."""
    config = config_of()
    model = oracle(config, image_condition_type="token_replace")
    params, x = Weights(model, config).params(config), inputs()
    expected = theirs(model, x, None, FRAMES)[:, HEIGHT * WIDTH :]
    found = ours(config, params, x, sequences=1, frames=FRAMES, guidance=None, clean_first=True)[:, HEIGHT * WIDTH :]
    assert relative_error(found, expected) <= TOLERANCE
    noisy = ours(config, params, x, sequences=1, frames=FRAMES, guidance=None)[:, HEIGHT * WIDTH :]
    assert relative_error(noisy, expected) > 100 * TOLERANCE, (
        "the first frame's time makes no difference: nothing was tested"
    )


def test_parameters_are_exactly_diffusers_weights() -> None:
    """Same tree, same shapes, same count as `abstract_params` says."""
    config = config_of(guidance_embed=True)
    model = oracle(config)
    params = Weights(model, config).params(config)
    shapes, axes = mmdit.abstract_params(config)
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, shapes)
    is_axes = lambda x: isinstance(x, tuple)  # noqa: E731
    assert jax.tree.structure(axes, is_leaf=is_axes) == jax.tree.structure(shapes)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == sum(weight.numel() for weight in model.parameters())


def test_full_size_has_every_key_and_shape(measured) -> None:
    config = experiment.load_config("configs/omnihuman_13b.py").model
    with torch.device("meta"):
        model = HunyuanVideoTransformer3DModel()
    here = {(entry.name, tuple(entry.shape)) for entry in kt.key_table(config).only(("base",)).entries}
    unlike = here ^ {(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    measured("13 B, full size: names or shapes unlike those of diffusers' module on the meta device", len(unlike), 0)
    shapes, _ = mmdit.abstract_params(mmdit.MMDiTConfig(guidance_embed=True))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == sum(weight.numel() for weight in model.parameters())
