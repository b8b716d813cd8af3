"""Does a pose move a drawn person? The theatre's held-out windows, driven by pose without any sound.

Every window is sampled with its own pose, with another clip's, and with none, from the same noise; text and reference
stay. What the joints do in the samples is read from the pixels (`joints.py`) and compared with the window's own truth.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data import packing
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.evaluation import joint_error, mouth, sheet
from omnihuman_jax.evaluation.bootstrap import estimate
from omnihuman_jax.runtime.locations import Location
from omnihuman_jax.sampling import joints, lip_sync, trained_run, window_inputs
from omnihuman_jax.sampling.kept_samples import KeptSampler
from omnihuman_jax.sampling.lip_sync import TruthWindow

DRIVINGS = ("own pose", "another clip's pose", "no pose")
FLOOR = "floor: the codec's round trip"
_NEEDED = ConditionSet.of(Condition.REFERENCE, Condition.POSE)
_SHOWN = 6  # examples, each of another person


def measure_pose_drive(
    run: trained_run.TrainedRun,
    dataset: Location,
    truth_dir: Path,
    *,
    split: str,
    windows: int,
    batch: int = 16,
    config: SamplingConfig | None = None,
    seed: int = 0,
    keep: Path | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """(plain values by driving, examples): `error`, the mean distance of joints in heights of the figure, and
    `correlation`, of the joints' motion within windows with the truth, each with its interval; and of some windows
    uint8 videos [T, H, W, 3]: the round trip of the truth, and the samples by driving.

    Raises:
        FileNotFoundError, ValueError: no such windows, no truth of their clips, or no joint of any is to be seen.
    """
    if run.config.model.pose is None:
        raise ValueError(f"the model of {run.directory} has no pose input: leave --pose-windows out")
    clips = lip_sync.load_windows(dataset, truth_dir, split, _NEEDED)
    measured = _readable(run, clips, lip_sync.choose(clips, windows))
    if not measured:
        raise ValueError(f"{dataset}: in no window of split {split} a joint is to be seen throughout")
    inputs = [one.driven(run, kind, slot) for kind in DRIVINGS for slot, one in enumerate(measured)]
    latents = KeptSampler(run, config or run.config.sampling, inputs, batch, keep).all_of(inputs, seed, on_progress)
    videos = [trained_run.decode_pictures(run, latent) for latent in latents]
    found = {FLOOR: [one.round_trip for one in measured]}
    found |= {kind: videos[i * len(measured) : (i + 1) * len(measured)] for i, kind in enumerate(DRIVINGS)}
    first = {one.window.person: slot for slot, one in reversed([*enumerate(measured)])}
    examples = {
        measured[slot].window.record.window_id: {
            "truth" if kind == FLOOR else kind: sheet.to_uint8(of_kind[slot]) for kind, of_kind in found.items()
        }
        for slot in sorted(first.values())[:_SHOWN]
    }
    return {kind: _scores(measured, of_kind) for kind, of_kind in found.items()}, examples


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Measured:
    """A window, the one whose pose drives it too, its round trip, and the readout of its joints."""

    window: TruthWindow
    other: TruthWindow
    round_trip: np.ndarray
    readout: joints.JointReadout

    def driven(self, run: trained_run.TrainedRun, kind: str, slot: int) -> packing.PackInput:
        active = ConditionSet.of(Condition.TEXT, Condition.REFERENCE)
        if kind != "no pose":
            active = active | ConditionSet.of(Condition.POSE)
        pose = self.other if kind == "another clip's pose" else self.window
        return window_inputs.driven_window(run.spec, self.window.record, active, slot, pose=pose.record)


def _readable(
    run: trained_run.TrainedRun,
    clips: Mapping[str, Sequence[TruthWindow]],
    pairs: Sequence[tuple[TruthWindow, TruthWindow]],
) -> list[_Measured]:
    """Those of the pairs whose joints can be read."""
    decoded: dict[int, np.ndarray] = {}

    def round_trip(window: TruthWindow) -> np.ndarray:
        if window.row not in decoded:
            decoded[window.row] = trained_run.decode_pictures(run, window.record.latents_FHWC)
        return decoded[window.row]

    found = []
    for window, other in pairs:
        apart = lip_sync.apart_from(window, clips[window.clip])
        readout = joints.fit_joints([(round_trip(w), w.joints_TK) for w in apart], window.joints_TK)
        if readout is not None:
            found.append(_Measured(window=window, other=other, round_trip=round_trip(window), readout=readout))
    return found


def _scores(measured: Sequence[_Measured], videos: Sequence[np.ndarray]) -> dict[str, Any]:
    errors, motions = [], []
    for one, video in zip(measured, videos, strict=True):
        read_TK, true_TK = one.readout.read(video), one.readout.true(one.window.joints_TK)
        errors.append(joint_error.errors_of(read_TK, true_TK))
        motions.append(mouth.moments_of_all(read_TK, true_TK))
    people = [one.window.person for one in measured]
    return {
        "error": lip_sync.plain(estimate(np.array(errors), people, joint_error.mean_error)),
        "correlation": lip_sync.plain(estimate(np.array(motions), people, mouth.correlation_of)),
    }
