"""Lip-sync of a trained run, measured on windows of the theatre whose truth is known (`docs/theatre.md`).

Every window is sampled with its own sound, with another clip's, and with none, from the same noise. A readout fitted on
the codec's round trip of the same clip's *other* windows says how far the mouth is open in each picture.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.puppet_theatre.truth import Truth
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data import packing
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.data.records import WindowRecord
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.evaluation import mouth, sheet
from omnihuman_jax.evaluation.bootstrap import Estimate, estimate
from omnihuman_jax.runtime.locations import Location
from omnihuman_jax.sampling import joints, trained_run, window_inputs, wrists
from omnihuman_jax.sampling.kept_samples import KeptSampler

LABELS = {"own": "own sound", "other": "another's sound", "none": "no sound"}
DRIVINGS = tuple(LABELS)
_NEEDED = ConditionSet.of(Condition.REFERENCE, Condition.AUDIO)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TruthWindow:
    """A window of the dataset, and what is true of it.

    start, video_frame: where it begins in its clip, and in its video; opening_T of the mouth; wrists_T4 and arms_T4 as
    of `wrists.py`, joints_TK of `joints.joints_of`; box_4, what the mouth reaches, and face_4, where the face is on
    average, x0, y0, x1, y1 in the window's pixels; person: whose it is.
    """

    row: int
    clip: str
    record: WindowRecord
    start: int
    video_frame: int
    opening_T: np.ndarray
    wrists_T4: np.ndarray
    arms_T4: np.ndarray
    joints_TK: np.ndarray
    box_4: np.ndarray
    face_4: np.ndarray
    person: str


def load_windows(
    dataset: Location, truth_dir: Path, split: str, needed: ConditionSet = _NEEDED
) -> dict[str, list[TruthWindow]]:
    """All windows of a split that are eligible for `needed` (a reference and audio), of the longest length, by clip and
    in order.

    Raises:
        FileNotFoundError, ValueError: no such windows, or no truth of their clips.
    """
    catalog, source = Catalog.load(dataset), open_records(dataset)
    rows = window_inputs.longest_rows(catalog, catalog.split == split, needed)
    if not len(rows):
        known = ", ".join(sorted(set(catalog.split.tolist())))
        raise ValueError(
            f"{dataset}: no window of split {split} is eligible for {needed.label}; its splits are {known}"
        )
    clips: dict[str, list[TruthWindow]] = {}
    truths: dict[str, Truth] = {}
    for row in sorted(rows.tolist(), key=lambda r: (catalog.clip_id[r], int(catalog.start_frame[r]))):
        clip, record = str(catalog.clip_id[row]), source[int(catalog.record[row])]
        if record is None:
            continue
        name, _, shot = clip.rpartition("-")
        if clip not in truths:
            truths[clip] = Truth.load(truth_dir / f"{name}.npz")
        truth = truths[clip]
        start = int(catalog.start_frame[row])
        first = truth.facts["shots"][int(shot)][0] + start
        frames = slice(first, first + int(catalog.frames[row]))
        scale = _scale(truth, int(catalog.height[row]), int(catalog.width[row]))
        clips.setdefault(clip, []).append(
            TruthWindow(
                row=row,
                clip=clip,
                record=record,
                start=start,
                video_frame=first,
                opening_T=truth.opening_T[frames].astype(np.float64),
                wrists_T4=wrists.wrists_of(truth, frames),
                arms_T4=wrists.arms_of(truth, frames),
                joints_TK=joints.joints_of(truth, frames),
                box_4=_reach(truth.mouth_box_T4) * scale,
                face_4=truth.face_box_T4.mean(0) * scale,
                person=str(truth.facts["plan"]["person"]),
            )
        )
    return {clip: windows for clip, windows in clips.items() if len(windows) > 1}


def _scale(truth: Truth, height: int, width: int) -> np.ndarray:
    """[4]: from pixels of the drawing to those of a window, for a box."""
    drawn_height, drawn_width = truth.facts["size_px"]
    return np.array([width / drawn_width, height / drawn_height] * 2)


def _reach(boxes_T4: np.ndarray) -> np.ndarray:
    """The box around the boxes of a whole clip."""
    return np.concatenate([boxes_T4[:, :2].min(0), boxes_T4[:, 2:].max(0)])


def choose(clips: Mapping[str, Sequence[TruthWindow]], count: int) -> list[tuple[TruthWindow, TruthWindow]]:
    """`count` times at most (window, a window of another clip whose sound drives it too), spread over clips and over
    time.
    """
    if len(clips) < 2:
        raise ValueError(f"lip-sync is measured on windows of 2 clips or more, not {len(clips)}; make a longer theatre")
    names = sorted(clips)
    measured = sheet.evenly(len(names), count)
    share, rest = divmod(count, len(measured))
    more = set(measured[sheet.evenly(len(measured), rest)].tolist())
    chosen = []
    for number in measured.tolist():
        own, others = clips[names[number]], clips[names[(number + max(1, len(names) // 2)) % len(names)]]
        for k in sheet.evenly(len(own), share + (number in more)):
            chosen.append((own[k], others[k % len(others)]))
    return chosen


def driven(
    window: TruthWindow, other: TruthWindow, driving: str, slot: int, run: trained_run.TrainedRun
) -> packing.PackInput:
    """The window as the model is to see it: text, reference, and the sound of `driving`."""
    active = ConditionSet.of(Condition.TEXT, Condition.REFERENCE)
    if driving != "none":
        active = active | ConditionSet.of(Condition.AUDIO)
    sound = other if driving == "other" else window
    return window_inputs.driven_window(run.spec, window.record, active, slot, sound=sound.record)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Subjects:
    """What is measured of a split: windows, each with one of another clip; all windows of the clips, and all round
    trips by row; a readout for each measured window.
    """

    split: str
    clips: Mapping[str, Sequence[TruthWindow]]
    pairs: Sequence[tuple[TruthWindow, TruthWindow]]
    round_trips: Mapping[int, np.ndarray]
    readouts: Sequence[mouth.Readout]

    @property
    def people(self) -> list[str]:
        return [window.person for window, _ in self.pairs]

    def inputs(self, run: trained_run.TrainedRun, drivings: Sequence[str]) -> list[packing.PackInput]:
        """Every pair under each driving; a window's noise is the same in all of them."""
        return [driven(w, o, kind, slot, run) for kind in drivings for slot, (w, o) in enumerate(self.pairs)]

    def read(self, videos: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The opening of the mouth in each video of the pairs' windows."""
        return [f(mouth.crop(video, w.box_4)) for f, video, (w, _) in zip(self.readouts, videos, self.pairs)]

    def gestures(self, videos: Sequence[np.ndarray]) -> list[np.ndarray | None]:
        """`wrists.moments_of` each video of the pairs' windows."""
        found = []
        for video, (window, _) in zip(videos, self.pairs, strict=True):
            others = [(self.round_trips[w.row], w.wrists_T4) for w in apart_from(window, self.clips[window.clip])]
            found.append(wrists.moments_of(others, video, window.wrists_T4))
        return found


def subjects_of(run: trained_run.TrainedRun, dataset: Location, truth_dir: Path, split: str, windows: int) -> Subjects:
    """The windows of a split that are measured, and the readouts fitted on the others of their clips."""
    clips = load_windows(dataset, truth_dir, split)
    pairs = choose(clips, windows)
    round_trips = {
        window.row: trained_run.decode_pictures(run, window.record.latents_FHWC)
        for name in clips
        for window in clips[name]
    }
    readouts = [readout_of(clips[w.clip], w, round_trips) for w, _ in pairs]
    return Subjects(split=split, clips=clips, pairs=pairs, round_trips=round_trips, readouts=readouts)


def measure_lip_sync(
    run: trained_run.TrainedRun,
    subjects: Subjects,
    *,
    batch: int = 16,
    config: SamplingConfig | None = None,
    seed: int = 0,
    keep: Path | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """(correlations with their intervals, the lag curve, plain values all; the videos of some windows, window id ->
    label -> uint8 [T, H, W, 3]: the truth, and each driving).
    """
    config = config or run.config.sampling
    pairs, round_trips, read = subjects.pairs, subjects.round_trips, subjects.read
    inputs = subjects.inputs(run, DRIVINGS)
    latents = KeptSampler(run, config, inputs, batch, keep).all_of(inputs, seed, on_progress)
    videos = [trained_run.decode_pictures(run, latent) for latent in latents]
    pictures = {kind: videos[i * len(pairs) : (i + 1) * len(pairs)] for i, kind in enumerate(DRIVINGS)}
    found = {kind: read(pictures[kind]) for kind in DRIVINGS}
    own, other = [w.opening_T for w, _ in pairs], [o.opening_T for _, o in pairs]
    people = subjects.people
    estimates = {
        "ceiling: the codec's round trip": (read([round_trips[w.row] for w, _ in pairs]), own),
        "own sound": (found["own"], own),
        "another clip's sound, against its truth": (found["other"], other),
        "own sound, against another clip's truth": (found["own"], other),
        "no sound": (found["none"], own),
    }
    curve = mouth.lag_curve(found["own"], own)
    hands = subjects.gestures(pictures["own"])
    still = subjects.gestures([round_trips[w.row] for w, _ in pairs])
    result = {
        "split": subjects.split,
        "step": run.step,
        "weights": run.weights,
        "guidance": dataclasses.asdict(config.guidance),
        "sampling_steps": config.num_steps,
        "correlation": {name: plain(mouth.correlation_interval(a, b, people)) for name, (a, b) in estimates.items()},
        "lag_curve": {str(lag): None if math.isnan(value) else round(value, 4) for lag, value in curve.items()},
        "peak_lag_frames": mouth.peak_lag(curve),
        "lags": {name: mouth.peak_lag(mouth.lag_curve(a, b)) for name, (a, b) in estimates.items()},
        "gesture_range": {"ceiling": _gesture_range(still, people), "own sound": _gesture_range(hands, people)},
        # What each window contributes under its own sound: (sum ab, sum aa, sum bb) of what was read and the truth.
        "windows": [
            {
                "window": window.record.window_id,
                "person": window.person,
                "mouth": mouth.moments(read, window.opening_T).tolist(),
                "gestures": None if moved is None else moved.tolist(),
            }
            for (window, _), read, moved in zip(pairs, found["own"], hands, strict=True)
        ],
    }
    examples = {}
    for k in sheet.evenly(len(pairs), 6):
        window = pairs[k][0]
        rows = {"truth": round_trips[window.row]} | {LABELS[kind]: pictures[kind][k] for kind in DRIVINGS}
        examples[window.record.window_id] = {label: sheet.to_uint8(video) for label, video in rows.items()}
    return result, examples


def _gesture_range(hands: Sequence[np.ndarray | None], people: Sequence[str]) -> dict[str, Any] | None:
    """How far the wrists move under sound alone, as a share of the truth; None where none is to be seen."""
    seen = [(rows, person) for rows, person in zip(hands, people, strict=True) if rows is not None]
    if not seen:
        return None
    return plain(estimate(np.array([rows for rows, _ in seen]), [person for _, person in seen], mouth.range_of))


def plain(found: Estimate) -> dict[str, Any]:
    """None for numbers that JSON does not have: a mouth that does not move at all."""
    return {k: None if math.isnan(v) else v for k, v in dataclasses.asdict(found).items()}


def apart_from(measured: TruthWindow, windows: Sequence[TruthWindow]) -> list[TruthWindow]:
    """Those of a clip's windows that share no frame with the measured one."""
    return [w for w in windows if abs(w.start - measured.start) >= len(measured.opening_T)]


def readout_of(
    windows: Sequence[TruthWindow], measured: TruthWindow, round_trips: Mapping[int, np.ndarray]
) -> mouth.Readout:
    """The mouth's, fitted on the clip's windows that share no frame with the measured one; ValueError where there are
    none.
    """
    others = apart_from(measured, windows)
    if not others:
        raise ValueError(
            f"clip {measured.clip}: no window apart from {measured.record.window_id}; the readout needs "
            "longer clips, or shorter windows"
        )
    crops = np.concatenate([mouth.crop(round_trips[w.row], measured.box_4) for w in others])
    return mouth.fit_readout(crops, np.concatenate([w.opening_T for w in others]))
