"""The field's measures as a table: one row a measure, over pairs of a made and a true video.

Every number stands with its interval (a bootstrap over people, then over each one's windows) and with the windows that
it is over; what could not be measured is a row that says why, and has no number.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from omnihuman_jax.evaluation.bootstrap import Estimate
from omnihuman_jax.evaluation.closeness import closeness_interval, mean_interval
from omnihuman_jax.evaluation.eyebrow_dynamics import eyebrow_dynamics
from omnihuman_jax.evaluation.face_identity import identity_distance
from omnihuman_jax.evaluation.frechet import UNBIASED_FROM, frechet_interval
from omnihuman_jax.evaluation.hands import hand_confidence, hand_variance
from omnihuman_jax.evaluation.head_motion import head_motion
from omnihuman_jax.evaluation.keypoint_distance import keypoint_distance, missing_keypoints
from omnihuman_jax.evaluation.lip_dynamics import lip_dynamics
from omnihuman_jax.evaluation.lip_loudness import lip_loudness_gap
from omnihuman_jax.evaluation.lip_opening import lip_opening
from omnihuman_jax.evaluation.silent_lips import silent_lip_movement

Measured: TypeAlias = Mapping[str, np.ndarray]
"""What was taken from one video, by name: mesh_TK3, keypoints_TJ3, height, loudness_T, silent_T, inception_ND,
i3d_ND, sync_3, identity_N128, score_NAME; what was not taken is not there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """A number of one pair. needs: arrays of both videos. of_truth: the true video alone has it too, and the made
    one's is to be close to it.
    """

    name: str
    unit: str
    needs: tuple[str, ...]
    of: Callable[[Measured, Measured], float]
    of_truth: bool = False


def _silent(made: Measured, true: Measured) -> float:
    return silent_lip_movement(lip_opening(made["mesh_TK3"]), made["silent_T"])


def _loudness(made: Measured, true: Measured) -> float:
    return lip_loudness_gap(lip_opening(made["mesh_TK3"]), made["loudness_T"], made["silent_T"])


def _sync(place: int) -> Callable[[Measured, Measured], float]:
    return lambda made, true: float(made["sync_3"][place])


_BODY, _FACE, _SOUND = ("keypoints_TJ3",), ("mesh_TK3",), ("mesh_TK3", "loudness_T")
MEASURES = (
    Measure(name="PSNR", unit="dB", needs=("psnr_db",), of=lambda made, true: float(made["psnr_db"])),
    Measure(
        name="AKD",
        unit="% of height",
        needs=_BODY,
        of=lambda made, true: keypoint_distance(made["keypoints_TJ3"], true["keypoints_TJ3"], int(true["height"])),
    ),
    Measure(
        name="keypoints missing",
        unit="share",
        needs=_BODY,
        of=lambda made, true: missing_keypoints(made["keypoints_TJ3"], true["keypoints_TJ3"]),
    ),
    Measure(
        name="HKC (ours)",
        unit="confidence",
        needs=_BODY,
        of=lambda made, true: hand_confidence(made["keypoints_TJ3"], true["keypoints_TJ3"]),
        of_truth=True,
    ),
    Measure(
        name="HKV (ours)",
        unit="(% of height)^2",
        needs=_BODY,
        of=lambda made, true: hand_variance(made["keypoints_TJ3"], int(made["height"])),
        of_truth=True,
    ),
    Measure(
        name="lip dynamics (THEval)",
        unit="eye distances^2",
        needs=_FACE,
        of=lambda made, true: lip_dynamics(made["mesh_TK3"]),
        of_truth=True,
    ),
    Measure(
        name="eyebrow dynamics (THEval)",
        unit="eye distances",
        needs=_FACE,
        of=lambda made, true: eyebrow_dynamics(made["mesh_TK3"]),
        of_truth=True,
    ),
    Measure(
        name="head motion (ours)",
        unit="degrees",
        needs=_FACE,
        of=lambda made, true: head_motion(made["mesh_TK3"]),
        of_truth=True,
    ),
    Measure(name="silent-lip movement (ours)", unit="eye distances", needs=_SOUND, of=_silent, of_truth=True),
    Measure(name="lip-loudness gap (ours)", unit="share", needs=_SOUND, of=_loudness, of_truth=True),
    Measure(
        name="identity distance (dlib)",
        unit="0.6: another person",
        needs=("identity_N128",),
        of=lambda made, true: identity_distance(made["identity_N128"], true["identity_N128"]),
        of_truth=True,
    ),
    Measure(name="Sync-C", unit="", needs=("sync_3",), of=_sync(0), of_truth=True),
    Measure(name="Sync-D", unit="", needs=("sync_3",), of=_sync(1), of_truth=True),
)
FRECHET = (("FID", "inception_ND", "frames"), ("FVD", "i3d_ND", "clips of 16 frames"))
SCORERS = ("IQA", "ASE", "mouth quality", "face quality", "global aesthetics")
"""Scores of networks with weights that cannot be had here: rows that an adapter fills (`--scorer`)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldRow:
    """A line of the table. `made`, `closeness` and `true`, the same measure of the true videos, hold value, interval
    and n; `missing` says why there is no number; `note` is what has to be known about it.
    """

    name: str
    unit: str
    made: Estimate | None = None
    true: Estimate | None = None
    closeness: Estimate | None = None
    missing: str = ""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """What was measured of a made video and of the true one; `person`: whose they are, for the bootstrap."""

    name: str
    person: str
    made: Measured
    true: Measured


def scorer_measures(names: Sequence[str]) -> tuple[Measure, ...]:
    """Measures of adapters, by name."""

    def of(name: str) -> Callable[[Measured, Measured], float]:
        return lambda made, true: float(made[f"score_{name}"])

    return tuple(Measure(name=n, unit="", needs=(f"score_{n}",), of=of(n), of_truth=True) for n in names)


def window_values(measure: Measure, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """The measure of each pair's made video and of its true one, [N] float64 each; nan where it has none."""
    made, true = np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)
    for i, pair in enumerate(pairs):
        if all(name in pair.made and (name in pair.true or not measure.of_truth) for name in measure.needs):
            made[i] = measure.of(pair.made, pair.true)
            true[i] = measure.of(pair.true, pair.true) if measure.of_truth else np.nan
    return made, true


def row_of(measure: Measure, pairs: Sequence[Pair], missing: Mapping[str, str]) -> FieldRow:
    """The measure over all pairs that have it; `missing`: array -> why it was not taken."""
    if reasons := [missing[name] for name in measure.needs if name in missing]:
        return FieldRow(name=measure.name, unit=measure.unit, missing=reasons[0])
    made, true = window_values(measure, pairs)
    has = np.isfinite(made) & (np.isfinite(true) | (not measure.of_truth))
    if not has.any():
        return FieldRow(
            name=measure.name, unit=measure.unit, missing="nothing in these videos to measure it on (face, hand, sound)"
        )
    people = [pair.person for pair, used in zip(pairs, has) if used]
    note = "" if has.all() else f"{int(has.sum())} of {len(pairs)} windows show what it needs"
    return FieldRow(
        name=measure.name,
        unit=measure.unit,
        made=mean_interval(made[has], people),
        true=mean_interval(true[has], people) if measure.of_truth else None,
        closeness=closeness_interval(made[has], true[has], people)
        if measure.of_truth and len(people) and measure.name != "identity distance (dlib)" and true[has].mean()
        else None,
        note=note,
    )


def frechet_row(name: str, array: str, of: str, pairs: Sequence[Pair], missing: Mapping[str, str]) -> FieldRow:
    """A Frechet distance between all made and all true videos' features."""
    if array in missing:
        return FieldRow(name=name, unit="", missing=missing[array])
    used = [pair for pair in pairs if len(pair.made.get(array, ())) and len(pair.true.get(array, ()))]
    counts = [sum(len(features[array]) for features in side) for side in zip(*((p.made, p.true) for p in used))]
    if not used or min(counts) < 2:
        return FieldRow(name=name, unit="", missing=f"needs two {of} or more of each side")
    note = f"{counts[0]} made and {counts[1]} true {of}"
    if min(counts) < UNBIASED_FROM:
        note += f": biased upwards below {UNBIASED_FROM}, compare only with as many"
    people = [pair.person for pair in used]
    return FieldRow(
        name=name,
        unit="",
        made=frechet_interval([p.made[array] for p in used], [p.true[array] for p in used], people),
        note=note,
    )


def table(pairs: Sequence[Pair], missing: Mapping[str, str], scorers: Sequence[str] = ()) -> list[FieldRow]:
    """All rows; ValueError without pairs.

    Args:
        missing: array -> why it was not taken of any video.
        scorers: names of adapters that were run.
    """
    if not pairs:
        raise ValueError("there is no pair of videos to measure")
    rows = [frechet_row(*row, pairs, missing) for row in FRECHET]
    rows += [row_of(measure, pairs, missing) for measure in MEASURES]
    names = [*SCORERS, *(name for name in scorers if name not in SCORERS)]
    return rows + [row_of(measure, pairs, missing) for measure in scorer_measures(names)]
