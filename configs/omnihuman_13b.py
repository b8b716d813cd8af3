"""13 B: HunyuanVideo's layout with OmniHuman's inputs, for those who extend its open weights (20 dual + 40 single
blocks).

    omnihuman train --distributed --config configs/omnihuman_13b.py --run gs://BUCKET/runs/13b
    --config.data.dataset=DATASET

Meant for 256 accelerators of 80 GB or more: 32-way fsdp x 8-way context. Learning rate, decay, clip and batch are the
paper's [S2]; steps, EMA and the length of a sequence are stated nowhere [D].
"""

from configs import omnihuman_7b
from omnihuman_jax.config import ExperimentConfig


def get_config(variant: str = "") -> ExperimentConfig:
    """`omnihuman_7b` (variants too: `:720p`) with single-stream blocks behind the dual ones."""
    config = omnihuman_7b.get_config(variant)
    config.name = config.name.replace("7b", "13b")
    config.model.num_single_layers = 40
    config.model.guidance_embed = True  # the public checkpoint is distilled and wants it (fed 1.0)
    return config
