"""1 B: twelve dual blocks of width 1536, for experiments and ablations on one machine of eight accelerators.

omnihuman train --config configs/omnihuman_1b.py --run runs/1b --config.data.dataset=DATASET
"""

from configs import omnihuman_7b
from omnihuman_jax.config import ExperimentConfig
from omnihuman_jax.sharding import MeshConfig


def get_config() -> ExperimentConfig:
    """`omnihuman_7b`, smaller in every direction; its dataset fits."""
    config = omnihuman_7b.get_config()
    config.name = "omnihuman_1b"
    config.data.plan.sequences_per_step = 64
    config.data.plan.latent_tokens = 16384
    config.model.width, config.model.num_heads, config.model.num_dual_layers = 1536, 12, 12
    assert config.model.audio is not None
    config.model.audio.width, config.model.audio.num_heads = 1536, 12
    config.optimizer.learning_rate = 1e-4
    config.mesh = MeshConfig(data=-1, fsdp=8)
    return config
