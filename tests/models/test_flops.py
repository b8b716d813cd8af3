"""The formula for the model's operations, against XLA's own count where that one can be trusted: one layer of each
kind.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from omnihuman_jax.attention.dispatch import AttentionStrategy
from omnihuman_jax.models import flops, mmdit
from omnihuman_jax.models.audio_adapter import AudioAdapterConfig
from omnihuman_jax.models.execution import ExecutionConfig
from omnihuman_jax.models.pose_guider import PoseGuiderConfig
from omnihuman_jax.typing import ArraySpec, PackedShape

CONFIG = mmdit.MMDiTConfig(
    width=512, num_heads=4, num_dual_layers=1, num_single_layers=1, num_refiner_layers=1, text_width=256,
    pooled_width=128,
    audio=AudioAdapterConfig(features=256, width=512, neighbours=2, num_heads=4),
    pose=PoseGuiderConfig(keypoints=75, width=256),
    guidance_embed=True,
)  # fmt: skip
SHAPE = PackedShape(
    latent_tokens=1024, text_tokens=256, windows=2, latent_frames=16, frames=128, patch_channels=CONFIG.patch_channels,
    text_width=256, pooled_width=128, audio_width=256, audio_tokens=8, keypoints=75, pose_frames=6,
)  # fmt: skip


@pytest.mark.parametrize("without", [(), ("audio",), ("pose",), ("audio", "pose")])
def test_against_xla(without: tuple[str, ...]) -> None:
    config = dataclasses.replace(CONFIG, **dict.fromkeys(without))
    batch = jax.tree.map(ArraySpec.abstract, SHAPE.arrays(1))
    params, _ = mmdit.abstract_params(config)
    dense = ExecutionConfig(remat="none", attention=AttentionStrategy(kernel="dense"))
    t_BG = jnp.ones((1, 2))
    forward = jax.jit(
        lambda params, batch: mmdit.apply(config, params, batch.latents_BLC, t_BG, batch, execution=dense)
    )
    counted = forward.lower(params, batch).cost_analysis()["flops"]
    # XLA counts norms, GELUs, heatmaps and table look-ups as well: some per cent at this width.
    assert 0.9 < flops.forward_flops(config, SHAPE) / counted < 1.0


def test_a_layer_more_costs_what_the_first_did() -> None:
    one, two, three = (flops.forward_flops(dataclasses.replace(CONFIG, num_dual_layers=n), SHAPE) for n in (1, 2, 3))
    assert two - one == three - two > 0
    assert flops.train_step_flops(CONFIG, SHAPE, 4) == 12 * flops.forward_flops(CONFIG, SHAPE)


def test_attention_grows_with_the_square() -> None:
    long = dataclasses.replace(SHAPE, latent_tokens=128 * 1024, text_tokens=256)
    plain = dataclasses.replace(CONFIG, audio=None, pose=None)
    length = long.latent_tokens + long.text_tokens
    assert flops.forward_flops(plain, long) == pytest.approx(2 * 4 * length**2 * 512, rel=0.1)


def test_an_unknown_parameter_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rule for the parameter hands/kernel"):
        flops._rows(("hands", "kernel"), SHAPE)
