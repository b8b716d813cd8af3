"""The paper's claims about training ratios, asked of the theatre: arms, hypotheses, the smallest effects that count.

All of it is decided before the first run; docs/ablations.md says why. A run keeps the fingerprint of these values and
does not go on under others.
"""

from omnihuman_jax.ablation.suite import Arm, ArmGroup, Comparison, Suite
from omnihuman_jax.stages import Stage

_STEPS = 1200


def _faces(name: str, *, audio: float, reference: float = 0.7) -> Stage:
    return Stage(name=name, steps=_STEPS, text=0.9, reference=reference, audio=audio, motion=0.3)


def _bodies(name: str, *, pose: float) -> Stage:
    return Stage(name=name, steps=1000, text=0.9, reference=0.7, audio=0.5, pose=pose, motion=0.3)


FACES = ArmGroup(
    name="faces",
    what="drawn close-ups of 48 x 48 pixels",
    shared=(Stage(name="shared", steps=800, text=0.9, reference=0.7, motion=0.3),),
    arms=(
        Arm(name="audio_10", stage=_faces("audio_10", audio=0.1)),
        Arm(name="audio_50", stage=_faces("audio_50", audio=0.5)),
        Arm(name="audio_100", stage=_faces("audio_100", audio=1.0)),
        Arm(name="reference_30", stage=_faces("reference_30", audio=0.5, reference=0.3)),
        Arm(name="strong_only", stage=_faces("strong_only", audio=0.5), strong_only=True),
    ),
    seconds_per_step=0.5,
)

BODIES = ArmGroup(
    name="bodies",
    what="drawn half bodies of 64 x 48 pixels",
    shared=(
        Stage(name="shared", steps=600, text=0.9, reference=0.7, motion=0.3),
        Stage(name="shared_audio", steps=600, text=0.9, reference=0.7, audio=0.5, motion=0.3),
    ),
    arms=(
        Arm(name="pose_20", stage=_bodies("pose_20", pose=0.2)),
        Arm(name="pose_50", stage=_bodies("pose_50", pose=0.5)),
        Arm(name="pose_80", stage=_bodies("pose_80", pose=0.8)),
    ),
    seconds_per_step=0.67,
)

PAPER = Suite(
    name="paper",
    parts=(FACES, BODIES),
    comparisons=(
        Comparison(
            name="little audio, worse lips",
            claim="audio on 10 % of the windows gives worse lip-sync than on 50 %",
            part="faces",
            metric="mouth_correlation",
            more="audio_50",
            less="audio_10",
            smallest=0.05,
        ),
        Comparison(
            name="only audio, less motion",
            claim="audio on all windows, which leaves the strong clips alone, moves the mouth less than on 50 %",
            part="faces",
            metric="mouth_range",
            more="audio_50",
            less="audio_100",
            smallest=0.05,
        ),
        Comparison(
            name="only audio, unseen faces",
            claim="audio on all windows gives worse lip-sync on faces that were not seen than on 50 %",
            part="faces",
            metric="mouth_correlation",
            more="audio_50",
            less="audio_100",
            smallest=0.05,
        ),
        Comparison(
            name="little reference, drift",
            claim="a reference on 30 % of the windows lets the face drift more over 30 seconds than on 70 %",
            part="faces",
            metric="drift",
            more="reference_30",
            less="audio_50",
            smallest=0.1,
            doubtful="no drift was seen in a first trial, with the reference on 90 % and a still background",
        ),
        Comparison(
            name="principle 1",
            claim="clips that are too weak for audio, kept for the weaker conditions, make lips better on unseen faces",
            part="faces",
            metric="mouth_correlation",
            more="audio_50",
            less="strong_only",
            smallest=0.05,
        ),
        Comparison(
            name="little pose, exaggerated",
            claim="pose on 20 % of the windows gives wider gestures under sound alone than on 50 %",
            part="bodies",
            metric="gesture_range",
            more="pose_20",
            less="pose_50",
            smallest=0.1,
            doubtful="drawn gestures follow a known law, without the blur and wrong fingers that the paper speaks of",
        ),
        Comparison(
            name="much pose, stiff",
            claim="pose on 80 % of the windows gives narrower gestures under sound alone than on 50 %",
            part="bodies",
            metric="gesture_range",
            more="pose_50",
            less="pose_80",
            smallest=0.1,
        ),
    ),
    seeds=(1, 2, 3),
    split="unseen_face_and_speech",
    windows=48,
    sampling_steps=12,
    guidance_scale=3.0,
    chains=8,
    chain_s=30.0,
    evaluation_s=100.0,
    chain_cost_s=20.0,
)

SUITES = {suite.name: suite for suite in (PAPER,)}
