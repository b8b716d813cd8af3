"""The config file of the tests' training runs: two stages on `tests.data.synthetic`, a third of a second of CPU a
step.
"""

from omnihuman_jax.checkpoint.writer import CheckpointConfig
from omnihuman_jax.config import DataConfig, ExperimentConfig
from omnihuman_jax.models.audio_adapter import AudioAdapterConfig
from omnihuman_jax.models.execution import ExecutionConfig
from omnihuman_jax.models.mmdit import MMDiTConfig
from omnihuman_jax.models.pose_guider import PoseGuiderConfig
from omnihuman_jax.sharding import MeshConfig
from omnihuman_jax.stages import Stage, StageSchedule
from omnihuman_jax.telemetry.metrics import LoggingConfig
from omnihuman_jax.training.optimizer import EmaConfig, OptimizerConfig
from tests.data import synthetic


def get_config() -> ExperimentConfig:
    """The pose stage begins in the middle, so that a stop and a stage change fall together or apart as a test likes."""
    plan = synthetic.plan_config(
        latent_tokens=192, text_tokens=32, windows=4, latent_frames=16, frames=96, chunk_steps=8, block=40
    )
    return ExperimentConfig(
        name="tiny",
        seed=11,
        data=DataConfig(plan=plan, read_threads=1),
        model=MMDiTConfig(
            width=32,
            num_heads=2,
            num_dual_layers=1,
            num_single_layers=0,
            mlp_ratio=2.0,
            latent_channels=4,
            text_width=synthetic.TEXT_WIDTH,
            pooled_width=synthetic.POOLED_WIDTH,
            num_refiner_layers=0,
            rope_axes=(4, 6, 6),
            audio=AudioAdapterConfig(features=6, width=16, neighbours=synthetic.MARGIN, num_heads=2, head_dim=8),
            pose=PoseGuiderConfig(keypoints=synthetic.KEYPOINTS, width=16, neighbours=1),
        ),
        execution=ExecutionConfig(remat="none"),
        stages=StageSchedule(
            rows=(
                Stage(name="audio", steps=5, text=0.8, reference=0.6, audio=0.5),
                Stage(name="pose", steps=7, text=0.8, reference=0.6, audio=0.5, pose=0.25, learning_rate_scale=0.5),
            )
        ),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2, decay="cosine"),
        ema=EmaConfig(decay=0.9),
        mesh=MeshConfig(data=2, fsdp=2),
        checkpoint=CheckpointConfig(interval=100, keep=5),
        logging=LoggingConfig(interval=1, tensorboard=False),
    )
