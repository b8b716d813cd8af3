"""The MMDiT against `diffusers` in several odd configurations, and its gradients against autograd's.

Weights come through the key table that imports and exports use, so what is proven is what users get.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.interop import key_table as kt
from omnihuman_jax.models import mmdit
from omnihuman_jax.models.execution import ExecutionConfig
from omnihuman_jax.serving.modeling_omnihuman import OmniHumanForVideo
from tests.interop.cases import Window, odd_config, packed_batch, random_tensors, shape_for, torch_batch, torch_config

TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
PLAIN = ExecutionConfig(remat="none")  # compiles faster

EVERY = ConditionSet.of(*Condition)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes of a model, and of a batch of two windows whose texts differ in length (the shorter one is masked)."""

    model: dict
    frames: int
    height: int
    width: int
    text: tuple[int, int] = (7, 4)


CASES = {
    "3 heads, 3 dual and 1 single blocks, wide": Case(
        model={"num_dual_layers": 3, "num_single_layers": 1, "guidance_embed": True}, frames=3, height=2, width=7
    ),
    "5 heads, 1 dual and 4 single blocks, 3 refiner blocks, tall": Case(
        model={
            "width": 70,
            "num_heads": 5,
            "rope_axes": (2, 4, 8),
            "rope_theta": 10.0,
            "num_dual_layers": 1,
            "num_single_layers": 4,
            "num_refiner_layers": 3,
            "mlp_ratio": 2.5,
        },
        frames=2,
        height=9,
        width=1,
        text=(3, 11),
    ),
    "7 heads, dual blocks only, a single frame, one text token": Case(
        model={
            "width": 42,
            "num_heads": 7,
            "rope_axes": (2, 2, 2),
            "num_single_layers": 0,
            "guidance_embed": True,
            "latent_channels": 16,
        },
        frames=1,
        height=5,
        width=3,
        text=(1, 6),
    ),
    "1 head, 1 dual and 5 single blocks, a long clip": Case(
        model={"width": 22, "num_heads": 1, "rope_axes": (4, 8, 10), "num_dual_layers": 1, "num_single_layers": 5},
        frames=11,
        height=3,
        width=2,
        text=(5, 5),
    ),
}


def oracle(config: mmdit.MMDiTConfig) -> HunyuanVideoTransformer3DModel:
    """diffusers' class in the sizes of `config`, with random weights."""
    model = HunyuanVideoTransformer3DModel(
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        num_layers=config.num_dual_layers,
        num_single_layers=config.num_single_layers,
        num_refiner_layers=config.num_refiner_layers,
        mlp_ratio=config.mlp_ratio,
        guidance_embeds=config.guidance_embed,
        text_embed_dim=config.text_width,
        pooled_projection_dim=config.pooled_width,
        rope_theta=config.rope_theta,
        rope_axes_dim=config.rope_axes,
    ).eval()
    tensors = random_tensors(kt.key_table(config))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    return model


class Compared:
    """One case in both libraries: the same weights, latents, texts and times."""

    T = (0.3125, 0.85)

    def __init__(self, case: Case):
        self.case, self.config = case, odd_config(audio=None, pose=None, **case.model)
        self.model = oracle(self.config)
        self.table = kt.key_table(self.config)
        state = self.model.state_dict()
        self.params = self.table.from_torch(lambda name: state[name].numpy())
        tokens = case.frames * case.height * case.width
        shape = shape_for(
            self.config, latent_tokens=tokens, text_tokens=max(case.text), windows=1, latent_frames=case.frames
        )
        text = ConditionSet.of(Condition.TEXT)
        windows = [
            Window(latents=case.frames, height=case.height, width=case.width, text_tokens=length, active=text)
            for length in case.text
        ]
        self.batch = packed_batch(shape, [[window] for window in windows], seed=3)
        self.guidance = 0.5 if self.config.guidance_embed else 1.0

    def ours(self, params: dict, tokens_BLC: jax.Array) -> jax.Array:
        t_BG = jnp.asarray(self.T, jnp.float32)[:, None]
        return mmdit.apply(self.config, params, tokens_BLC, t_BG, self.batch, execution=PLAIN, guidance=self.guidance)

    def theirs(self, tokens_BLC: torch.Tensor) -> torch.Tensor:
        case, channels = self.case, self.config.latent_channels
        grid = (2, case.frames, case.height, case.width, 2, 2, channels)
        latents = tokens_BLC.reshape(grid).permute(0, 6, 1, 2, 4, 3, 5)
        out = self.model(
            latents.reshape(2, channels, case.frames, 2 * case.height, 2 * case.width),
            torch.tensor(self.T) * 1000,
            torch.from_numpy(self.batch.text_BSE),
            torch.from_numpy(self.batch.text_segment_ids_BS).long(),
            torch.from_numpy(self.batch.pooled_BGE)[:, 0],
            guidance=torch.full((2,), self.guidance * 1000) if self.config.guidance_embed else None,
        ).sample
        patches = out.reshape(2, channels, case.frames, case.height, 2, case.width, 2)
        return patches.permute(0, 2, 3, 5, 4, 6, 1).reshape(tokens_BLC.shape)


@functools.cache
def compared(name: str) -> Compared:
    return Compared(CASES[name])


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def largest_gradient_error(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """Norm of the difference over the norm, the largest over all tensors.

    A gradient that is zero but for rounding (a key's bias where nothing normalises keys: the softmax does not see it)
    is measured against a thousandth of the median norm.
    """
    assert ours.keys() == theirs.keys()
    norms = {name: float(np.linalg.norm(value)) for name, value in theirs.items()}
    floor = 1e-3 * float(np.median(list(norms.values())))
    assert floor > 0
    return max(float(np.linalg.norm(ours[name] - theirs[name])) / max(norms[name], floor) for name in norms)


def gradients(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """By name; zero for a parameter that the output does not depend on (the text's half of a last dual block)."""
    return {
        name: np.zeros(weight.shape, np.float32) if weight.grad is None else weight.grad.numpy()
        for name, weight in model.named_parameters()
    }


def in_torch_names(table: kt.KeyTable, tree: dict) -> dict[str, np.ndarray]:
    """A tree like the parameters, as arrays by the names and in the shapes of the torch module."""
    return {source.name: source.read() for source in table.to_torch(kt.array_reader(tree), np.dtype(np.float32))}


@pytest.mark.parametrize("name", CASES)
def test_velocity_is_that_of_diffusers(name, measured):
    case = compared(name)
    tokens = case.batch.latents_BLC
    found = np.asarray(jax.jit(case.ours)(case.params, tokens))
    with torch.no_grad():
        expected = case.theirs(torch.from_numpy(tokens)).numpy()
    assert 0.2 < expected.std() < 20
    measured("velocity, odd configurations against diffusers' HunyuanVideo", relative_error(found, expected), TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_diffusers(name, measured):
    """Of a squared error, with respect to every parameter and to the latents."""
    case = compared(name)
    tokens = case.batch.latents_BLC
    target = np.random.default_rng(5).standard_normal(tokens.shape).astype(np.float32)
    grads, tokens_grad = jax.jit(jax.grad(lambda p, z: jnp.mean(jnp.square(case.ours(p, z) - target)), argnums=(0, 1)))(
        case.params, tokens
    )
    z = torch.from_numpy(tokens).requires_grad_()
    (case.theirs(z) - torch.from_numpy(target)).square().mean().backward()
    theirs = gradients(case.model) | {"latents": z.grad.numpy()}
    ours = in_torch_names(case.table, grads) | {"latents": np.asarray(tokens_grad)}
    claim = "gradient of a parameter or of the latents, against autograd through diffusers' HunyuanVideo"
    measured(claim, largest_gradient_error(ours, theirs), GRADIENT_TOLERANCE)


@pytest.mark.slow
def test_gradients_with_every_condition_are_those_of_the_exported_module(measured):
    """Packed windows with reference, motion, audio and pose: a squared error over the tokens that are noisy."""
    config = odd_config(num_dual_layers=1, num_single_layers=1)
    table = kt.key_table(config)
    tensors = random_tensors(table, seed=2)
    module = OmniHumanForVideo(torch_config(config))
    module.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    windows = [
        Window(latents=3, height=3, width=5, text_tokens=6, active=EVERY, motion=True),
        Window(latents=2, height=2, width=3, text_tokens=4, active=ConditionSet.of(Condition.AUDIO)),
    ]
    batch = packed_batch(shape_for(config, latent_tokens=90, windows=2), [windows], seed=4)
    t_BG = np.array([[0.3, 0.8]], np.float32)
    real = batch.segment_ids_BL > 0
    tokens = batch.latents_BLC

    def loss(params: dict) -> jax.Array:
        velocity = mmdit.apply(config, params, tokens, t_BG, batch, execution=PLAIN)
        return jnp.mean(jnp.where(real[..., None], jnp.square(velocity), 0))

    grads = jax.jit(jax.grad(loss))(table.from_torch(tensors.__getitem__))
    velocity = module(
        torch.from_numpy(tokens),
        torch.from_numpy(t_BG),
        torch_batch(batch),
    )
    torch.where(torch.from_numpy(real)[..., None], velocity.square(), 0).mean().backward()
    theirs = gradients(module)
    claim = "gradient of a parameter, every condition, against autograd through the exported module"
    measured(claim, largest_gradient_error(in_torch_names(table, grads), theirs), GRADIENT_TOLERANCE)
