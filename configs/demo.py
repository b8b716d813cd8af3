"""The demo: a small model on 47 seconds of sample footage, trained from nothing on 8 simulated devices of a laptop's
CPU.

    omnihuman --simulate-devices 8 train --config configs/demo.py --run runs/demo/run
    --config.data.dataset=runs/demo/dataset

A text-only stage 0 stands in for the pretrained base; then the paper's three stages (contract: stages are data).
"""

from omnihuman_jax.checkpoint.writer import CheckpointConfig
from omnihuman_jax.config import DataConfig, ExperimentConfig
from omnihuman_jax.data.plan import PlanConfig
from omnihuman_jax.diffusion.flow_matching import FlowMatchingConfig
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.models.audio_adapter import AudioAdapterConfig
from omnihuman_jax.models.execution import ExecutionConfig
from omnihuman_jax.models.mmdit import MMDiTConfig
from omnihuman_jax.models.pose_guider import PoseGuiderConfig
from omnihuman_jax.serving.guidance_omnihuman import GuidanceConfig
from omnihuman_jax.sharding import MeshConfig
from omnihuman_jax.stages import paper_stages
from omnihuman_jax.telemetry.metrics import LoggingConfig
from omnihuman_jax.training.optimizer import EmaConfig, OptimizerConfig

NEIGHBOURS = 2  # frames of audio that a latent frame hears on each side of its own


def get_config() -> ExperimentConfig:
    """Dataset: dct codec (48 channels), MiniLM (384), Whisper tiny's layers 0, 2, 4 (3 x 384), 75 keypoints, 64 x 48
    pixels.
    """
    return ExperimentConfig(
        name="demo",
        data=DataConfig(
            dataset="runs/demo/dataset",
            # A window of 25 frames at 64 x 48 is 7 x 12 tokens, and 12 more for its reference: two of them a sequence,
            # or more that are shorter.
            plan=PlanConfig(
                sequences_per_step=8,
                latent_tokens=208,
                text_tokens=64,
                windows=6,
                latent_frames=24,
                frames=128,
                margin=NEIGHBOURS,
                chunk_steps=16,
                block=200,
            ),
        ),
        model=MMDiTConfig(
            width=256,
            num_heads=4,
            num_dual_layers=1,
            num_single_layers=4,
            latent_channels=48,
            text_width=384,
            pooled_width=384,
            num_refiner_layers=1,
            rope_axes=(16, 24, 24),
            audio=AudioAdapterConfig(features=3 * 384, width=256, neighbours=NEIGHBOURS, num_heads=4, head_dim=32),
            pose=PoseGuiderConfig(keypoints=75, width=128, neighbours=1, sigma=0.75),
        ),
        execution=ExecutionConfig(remat="attention"),
        flow=FlowMatchingConfig(shift_max=1.0),
        stages=paper_stages(base_steps=50, steps=(80, 90, 440), pose=0.5),
        optimizer=OptimizerConfig(learning_rate=2e-3, beta2=0.98, warmup_steps=20, decay="cosine", final_fraction=0.05),
        ema=EmaConfig(decay=0.99),
        mesh=MeshConfig(data=1, fsdp=8),
        checkpoint=CheckpointConfig(interval=60, keep=2),
        logging=LoggingConfig(interval=10),
        sampling=SamplingConfig(num_steps=20, segment_frames=25, guidance=GuidanceConfig(scale=2.0)),
    )
