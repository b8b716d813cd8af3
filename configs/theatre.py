"""Lip-sync on drawn close-ups: a model of 4.9 M parameters that learns on a laptop's CPU to move a mouth that it has
never seen to speech that it has never heard.

    omnihuman theatre --out runs/theatre --hours 0.25 --seed 1 --programme faces
    omnihuman encode runs/theatre/clips --out runs/theatre/dataset ...   (docs/theatre.md has the options)
    omnihuman train --config configs/theatre.py --run runs/theatre/run

One stage from random weights: text and reference nearly always, audio on most windows, motion frames on some.

The same model, under other names (`configs/theatre.py:NAME`):

    large_faces  close-ups of 64 x 64 pixels: lips that can be read better, and come later; 6,000 steps
    bodies       half-length figures of 64 x 48 pixels (`--programme bodies`), driven by pose
    speaking     such figures of 128 x 96 (`--programme speaking_bodies`), driven by sound, on top of a run on close-ups
                 (`--config.initial_weights=RUN`)
"""

import dataclasses

from omnihuman_jax.checkpoint.writer import CheckpointConfig
from omnihuman_jax.config import DataConfig, ExperimentConfig
from omnihuman_jax.data.plan import PlanConfig
from omnihuman_jax.diffusion.flow_matching import FlowMatchingConfig
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.models.audio_adapter import AudioAdapterConfig
from omnihuman_jax.models.mmdit import MMDiTConfig
from omnihuman_jax.models.pose_guider import PoseGuiderConfig
from omnihuman_jax.serving.guidance_omnihuman import GuidanceConfig
from omnihuman_jax.sharding import MeshConfig
from omnihuman_jax.stages import Stage, StageSchedule
from omnihuman_jax.telemetry.metrics import LoggingConfig
from omnihuman_jax.training.optimizer import EmaConfig, OptimizerConfig

NEIGHBOURS = 2  # frames of audio that a latent frame hears on each side of its own


def get_config(name: str = "faces") -> ExperimentConfig:
    """`faces`, or a name of the file's head; ValueError for another one.

    Dataset: dct codec (48 channels), MiniLM (384), Whisper tiny's layers 0, 2, 4 (3 x 384), 75 keypoints; 48 x 48
    pixels where the head says nothing else.
    """
    made = {"faces": lambda faces: faces, "large_faces": _large_faces, "bodies": _bodies, "speaking": _speaking}
    if name not in made:
        raise ValueError(f"no theatre {name!r}; there are {', '.join(made)}")
    return made[name](_faces())


def _large_faces(faces: ExperimentConfig) -> ExperimentConfig:
    # 25 frames at 64 x 64 are 7 x 16 tokens, and 16 more of the reference: four windows a sequence.
    plan = dataclasses.replace(faces.data.plan, latent_tokens=4 * 128)
    data = dataclasses.replace(faces.data, dataset="runs/large/dataset", plan=plan)
    # With 4,000 steps lips have 0.74, and rise still.
    (row,) = faces.stages.rows
    stages = StageSchedule(rows=(dataclasses.replace(row, steps=6000),))
    return dataclasses.replace(faces, name="theatre-large-faces", data=data, stages=stages)


def _bodies(faces: ExperimentConfig) -> ExperimentConfig:
    # 25 frames at 64 x 48 are 7 x 12 tokens, and 12 more of the reference: four windows a sequence.
    plan = dataclasses.replace(faces.data.plan, latent_tokens=4 * 96)
    assert faces.model.pose is not None
    return dataclasses.replace(
        faces,
        name="theatre-bodies",
        data=dataclasses.replace(faces.data, dataset="runs/bodies/dataset", plan=plan),
        # With a bump of 0.3 tokens pose takes nearly twice of the held-out loss that it does with 0.75; 16 points of a
        # token in place of 4 add nothing that could be measured (docs/theatre.md).
        model=dataclasses.replace(faces.model, pose=dataclasses.replace(faces.model.pose, samples=4, sigma=0.3)),
        stages=StageSchedule(rows=(Stage(name="pose", steps=1000, text=0.9, reference=0.9, pose=0.7, motion=0.3),)),
    )


def _speaking(faces: ExperimentConfig) -> ExperimentConfig:
    # 25 frames at 128 x 96 are 7 x 48 tokens, and 48 more of the reference: two windows a sequence.
    plan = dataclasses.replace(
        faces.data.plan, latent_tokens=2 * 384, text_tokens=56, windows=2, latent_frames=14, frames=60
    )
    return dataclasses.replace(
        faces,
        name="theatre-speaking",
        data=dataclasses.replace(faces.data, dataset="runs/speaking/dataset", plan=plan),
        stages=StageSchedule(rows=(Stage(name="audio", steps=2000, text=0.9, reference=0.9, audio=0.7, motion=0.3),)),
        # What weights that move mouths already take on top.
        optimizer=dataclasses.replace(faces.optimizer, learning_rate=1e-3),
    )


def _faces() -> ExperimentConfig:
    return ExperimentConfig(
        name="theatre",
        data=DataConfig(
            dataset="runs/theatre/dataset",
            # 25 frames at 48 x 48 are 7 x 9 tokens, and 9 more of the reference: four windows a sequence.
            plan=PlanConfig(
                sequences_per_step=4,
                latent_tokens=288,
                text_tokens=112,
                windows=4,
                latent_frames=28,
                frames=120,
                margin=NEIGHBOURS,
                chunk_steps=16,
                block=200,
            ),
        ),
        model=MMDiTConfig(
            width=192,
            num_heads=4,
            num_dual_layers=1,
            num_single_layers=3,
            latent_channels=48,
            text_width=384,
            pooled_width=384,
            num_refiner_layers=1,
            rope_axes=(8, 20, 20),
            audio=AudioAdapterConfig(features=3 * 384, width=192, neighbours=NEIGHBOURS, num_heads=4, head_dim=32),
            pose=PoseGuiderConfig(keypoints=75, width=96, neighbours=1, sigma=0.75),
        ),
        # In a trial sound took 0.4 % off the loss at t = 0.7 and 0.2 % at 0.1 and 0.97: more windows at high noise.
        flow=FlowMatchingConfig(shift_max=1.0, logit_mean=0.5),
        stages=StageSchedule(rows=(Stage(name="audio", steps=4000, text=0.9, reference=0.9, audio=0.7, motion=0.3),)),
        optimizer=OptimizerConfig(learning_rate=2e-3, beta2=0.98, warmup_steps=30, decay="cosine"),
        ema=EmaConfig(decay=0.995),
        mesh=MeshConfig(data=1, fsdp=1),
        checkpoint=CheckpointConfig(interval=200, keep=2),
        logging=LoggingConfig(interval=20),
        sampling=SamplingConfig(num_steps=12, segment_frames=25, guidance=GuidanceConfig(scale=3.0)),
    )
