"""The runs of `omnihuman ablate`: the theatre's model under the stages of an arm, whose values are in
`omnihuman_jax/ablation/paper.py`.

    omnihuman train --config configs/ablations.py:faces --run runs/ablations/faces/seed_1/shared ...
    omnihuman train --config configs/ablations.py:audio_10 --run runs/ablations/faces/seed_1/audio_10
    --fork runs/ablations/faces/seed_1/shared@800 ...
"""

from configs import theatre
from omnihuman_jax.ablation.paper import PAPER
from omnihuman_jax.ablation.suite import ArmGroup
from omnihuman_jax.config import ExperimentConfig


def get_config(name: str = "faces") -> ExperimentConfig:
    """Of an arm, or of a part: the shared run that its arms fork from. ValueError for another name."""
    part, arm = _named(name)
    # With the pose input that docs/theatre.md found best for bodies.
    config = theatre.get_config(part.name)
    config.name, config.stages = f"ablations-{name}", part.schedule(part.arm(arm) if arm else None)
    config.data.plan.repeat_warning = 1000.0
    # Decay is over a run's whole schedule: the shared run's would have ended where its arms begin.
    config.optimizer.decay = "constant"
    return config


def _named(name: str) -> tuple[ArmGroup, str]:
    """(part, its arm; "" for the part itself)."""
    for part in PAPER.parts:
        arms = [arm.name for arm in part.arms]
        if name == part.name or name in arms:
            return part, name if name in arms else ""
    known = [one for part in PAPER.parts for one in (part.name, *(arm.name for arm in part.arms))]
    raise ValueError(f"no arm or part {name!r}; they are {', '.join(known)}")
