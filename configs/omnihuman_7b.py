"""7 B: the pure dual-stream form, as the paper's base model is described (20 dual blocks of width 3072).

    omnihuman train --distributed --config configs/omnihuman_7b.py --run gs://BUCKET/runs/7b
    --config.data.dataset=DATASET

Meant for 256 accelerators of 40 GB or more: 32-way fsdp x 8-way context. Learning rate, decay, clip and batch are the
paper's [S2]; steps, EMA and the length of a sequence are stated nowhere [D]. `configs/omnihuman_7b.py:720p` is the same
at 720p x 129 frames, for 64 accelerators or more (docs/scale.md).
"""

import dataclasses

from omnihuman_jax.checkpoint.writer import CheckpointConfig
from omnihuman_jax.config import DataConfig, ExperimentConfig
from omnihuman_jax.data.plan import PlanConfig
from omnihuman_jax.models.audio_adapter import AudioAdapterConfig
from omnihuman_jax.models.execution import ExecutionConfig
from omnihuman_jax.models.mmdit import MMDiTConfig
from omnihuman_jax.models.pose_guider import PoseGuiderConfig
from omnihuman_jax.sharding import MeshConfig
from omnihuman_jax.stages import paper_stages
from omnihuman_jax.training.optimizer import EmaConfig, OptimizerConfig

# 129 frames at 720 x 1280 are 33 latent frames of 45 x 80 tokens, 118,800, and 3,600 more for the reference: 122,400;
# filled up to a multiple of 8 x 1024, so that each of 8 ways holds whole kernel blocks.
VARIANTS = {
    "": PlanConfig(
        # 32 K tokens: a window of 77 frames at 480 x 832 with its reference.
        sequences_per_step=256, latent_tokens=32768, text_tokens=1024, windows=8, latent_frames=96, frames=512, margin=5
    ),
    "720p": PlanConfig(
        sequences_per_step=256, latent_tokens=122_880, text_tokens=1024, windows=4, latent_frames=36, frames=192,
        margin=5
    ),
}  # fmt: skip


def get_config(variant: str = "") -> ExperimentConfig:
    """Dataset: a VAE of 16 channels, text 4096 + 768 pooled, four layers of wav2vec2-base (4 x 768), 75 keypoints.

    `variant` "720p": one clip of 129 frames at 720p a sequence (or several smaller windows), Ulysses over `context`.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is unknown; there are {', '.join(filter(None, VARIANTS))}, or none")
    config = _config()
    config.data.plan = dataclasses.replace(VARIANTS[variant])
    if variant:
        config.name = f"omnihuman_7b_{variant}"
        config.execution.attention.context_parallel = "ulysses"
        # Running the attention kernel a second time would cost a fifth of the step, its outputs are a few GB a device.
        config.execution.remat = "attention"
        # 64 shards, and `data` over the rest: among all chips of a torus XLA would gather weights by an all-reduce.
        config.mesh = MeshConfig(data=-1, fsdp=8, context=8)
    return config


def _config() -> ExperimentConfig:
    return ExperimentConfig(
        name="omnihuman_7b",
        data=DataConfig(read_threads=16),
        model=MMDiTConfig(
            width=3072,
            num_heads=24,
            num_dual_layers=20,
            num_single_layers=0,
            latent_channels=16,
            text_width=4096,
            pooled_width=768,
            audio=AudioAdapterConfig(features=4 * 768, width=3072, neighbours=5, num_heads=24, head_dim=128),
            pose=PoseGuiderConfig(keypoints=75, width=256, neighbours=1),
        ),
        execution=ExecutionConfig(remat="block"),
        stages=paper_stages(steps=40_000),
        optimizer=OptimizerConfig(learning_rate=5e-5, weight_decay=0.01, clip_norm=1.0, warmup_steps=1000),
        ema=EmaConfig(decay=0.9999),
        mesh=MeshConfig(data=-1, fsdp=32, context=8),
        checkpoint=CheckpointConfig(interval=500, keep=3, keep_every=10_000),
    )
