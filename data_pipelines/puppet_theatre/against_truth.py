"""What curate made of a theatre, against what is true of it: its tags scored by condition and by planted fault, and its
landmarks by style and framing.

    omnihuman theatre --out runs/faults --hours 0.66 --seed 0 --programme faults
    omnihuman curate --source runs/faults/videos --out runs/faults/curated --loosest everybody.yaml
    python -m data_pipelines.puppet_theatre.against_truth --theatre runs/faults --curated runs/faults/curated

everybody.yaml has 0 for min_pose_share, min_pose_face_share and min_body_confidence, so that all clips get landmarks.
"""

import argparse
import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipelines import shares
from data_pipelines.curate.clip_sets import load_landmarks, read_clips
from data_pipelines.curate.clips import Clip, Landmarks
from data_pipelines.curate.tagging import Thresholds
from data_pipelines.puppet_theatre.faults import DELAYS, FAULTS
from data_pipelines.puppet_theatre.truth import Truth
from data_pipelines.puppet_theatre.voices import NEURAL
from data_pipelines.shares import Share
from omnihuman_jax.conditions import Condition
from omnihuman_jax.data.keypoints import BODY, LEFT_HAND, RIGHT_HAND
from omnihuman_jax.runtime.locations import local

SCORED = (Condition.AUDIO, Condition.POSE)
TAGGED = "nothing against it"
_MOVES = 0.2  # of the opening's 0..1
_HEADS = (0, 48, 64, 96, 160)  # pixels, of the face's height
# Milliseconds between sound and picture; a frame has 40, and between 200 and 280 nothing is planted.
_DELAYS = ((0, 0), (80, 120), (160, 200), (280, 320), (360, 480), (520, 640), (680, 800))
_DRAWS = 2000  # resamples of an interval
_SEEN = 0.5  # a point of the body with this confidence counts as found


@dataclasses.dataclass(frozen=True, slots=True)
class Judged:
    """A clip as curate tagged it, and the labels that it should have."""

    clip: Clip
    truth: Truth
    right: frozenset[str]

    @property
    def fault(self) -> str:
        return str(self.truth.facts["plan"]["fault"])


def judge(clips: Iterable[Clip], truth_dir: Path) -> Iterator[Judged]:
    """Every clip beside its truth; one too short to be judged by ear is not eligible for audio, whatever is on it."""
    for clip in clips:
        truth = Truth.load(truth_dir / f"{Path(clip.video).stem}.npz")
        right = set(truth.facts["eligible"])
        if clip.seconds < Thresholds().min_audio_s:
            right.discard(Condition.AUDIO.label)
        yield Judged(clip, truth, frozenset(right))


def precision_and_recall(judged: Sequence[Judged], condition: Condition) -> tuple[Share, Share]:
    """Of the clips that have the tag, those that should; of those that should, those that have it."""
    given = [condition.label in j.clip.eligible for j in judged]
    return shares.precision_and_recall(given, [condition.label in j.right for j in judged])


def right_by_fault(judged: Sequence[Judged], condition: Condition) -> dict[str, Share]:
    """fault -> clips whose tag for `condition` is as it should be."""
    hits: dict[str, list[bool]] = collections.defaultdict(list)
    for j in judged:
        hits[j.fault].append((condition.label in j.clip.eligible) == (condition.label in j.right))
    return {fault: Share(sum(found), len(found)) for fault, found in sorted(hits.items())}


def found_faults(judged: Sequence[Judged]) -> dict[str, tuple[Share, Share]]:
    """fault -> (precision, recall) of finding it: of the clips about which curate said what tells it (`Fault.told_by`),
    those that have it, or another fault that is told by the same words; of those that have it, those about which it was
    said. A fault that is allowed has none. A cut is found where its video became several clips.
    """
    found: dict[str, tuple[Share, Share]] = {}
    pieces = collections.Counter(j.clip.video for j in judged)
    for name in sorted({j.fault for j in judged}):
        words = FAULTS[name].told_by
        if name == "cut":
            said = [pieces[j.clip.video] > 1 for j in judged]
            due = [j.fault == "cut" for j in judged]
        elif words:
            said = [any(why["reason"] in words for why in j.clip.reasons.values()) for j in judged]
            due = [not set(FAULTS[j.fault].told_by).isdisjoint(words) for j in judged]
        else:
            continue
        own = [s for s, j in zip(said, judged, strict=True) if j.fault == name]
        found[name] = shares.precision_and_recall(said, due)[0], Share(sum(own), len(own))
    return found


def wrong_tags(judged: Sequence[Judged], condition: Condition) -> dict[tuple[str, str], list[str]]:
    """(fault, what curate said) -> videos of the clips whose tag for `condition` is wrong."""
    found: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for j in judged:
        given, due = condition.label in j.clip.eligible, condition.label in j.right
        if given != due:
            said = TAGGED if given else str(j.clip.reasons[condition.label]["reason"])
            found[j.fault, said].append(Path(j.clip.video).stem)
    return dict(sorted(found.items()))


def by_delay(judged: Sequence[Judged]) -> dict[str, Share]:
    """Delay of the sound in ms, "80 to 120", negative if it is early -> clips that are tagged for audio: the filter's
    curve.
    """
    hits: dict[tuple[int, int], list[bool]] = collections.defaultdict(list)
    for j in judged:
        if j.fault in ("none", *DELAYS) and Condition.AUDIO.label in _but_for_delay(j):
            delay = round(1000 * j.truth.facts["plan"]["delay_s"])
            low, high = next(group for group in _DELAYS if group[0] <= abs(delay) <= group[1])
            hits[(low, high) if delay >= 0 else (-high, -low)].append(Condition.AUDIO.label in j.clip.eligible)
    return {
        f"{low} to {high}" if low != high else str(low): Share(sum(found), len(found))
        for (low, high), found in sorted(hits.items())
    }


def _but_for_delay(judged: Judged) -> frozenset[str]:
    """What the clip would be eligible for if its sound came in time: in this programme, all that is long enough."""
    long_enough = judged.clip.seconds >= Thresholds().min_audio_s
    return judged.right | ({Condition.AUDIO.label} if long_enough else set())


@dataclasses.dataclass(frozen=True, slots=True)
class SeenClip:
    """One clip's landmarks against the truth, over the frames in which the mouth is seen; nan where nothing compares.

    face, hands   share of frames (of hands that are wholly in the picture) in which one was found
    body          median error of the body's points, in shares of the figure's height
    aperture      correlation of the lips' aperture with the drawn gap, both in heights of the face
    head_px       height of the face
    """

    style: str
    framing: str
    face: float
    hands: float
    body: float
    aperture: float
    head_px: float

    @property
    def head(self) -> str:
        """Which of `_HEADS` it is in."""
        low = max(px for px in _HEADS if px <= self.head_px)
        return f"head of {low} px or more" if low else f"head below {_HEADS[1]} px"


def see(judged: Judged, found: Landmarks) -> SeenClip:
    """Compares frame by frame."""
    truth, clip = judged.truth, judged.clip
    part = slice(clip.start_frame, clip.end_frame)
    plan, true_TJ3 = truth.facts["plan"], truth.keypoints_TJ3[part]
    both_TJ = (found.keypoints_TJ3[:, BODY, 2] > _SEEN) & (true_TJ3[:, BODY, 2] > 0)
    error_TJ = np.linalg.norm(found.keypoints_TJ3[:, BODY, :2] - true_TJ3[:, BODY, :2], axis=-1)
    hands = [
        np.asarray((found.keypoints_TJ3[:, side, 2] > 0).any(1))[(true_TJ3[:, side, 2] > 0).all(1)]
        for side in (LEFT_HAND, RIGHT_HAND)
    ]
    seen_T = found.face_T & truth.mouth_seen_T[part]
    height_T = truth.face_box_T4[part, 3] - truth.face_box_T4[part, 1]
    gap_T, aperture_T = (truth.gap_T[part] / height_T)[seen_T], found.aperture_T[seen_T]
    # A mouth that stays closed has nothing to correlate.
    moves = seen_T.sum() > 10 and np.ptp(truth.opening_T[part][seen_T]) > _MOVES and np.ptp(aperture_T) > 0
    return SeenClip(
        style=plan["style"],
        framing=plan["framing"],
        face=float(found.face_T.mean()),
        hands=_mean(np.concatenate(hands)),
        body=float(np.median(error_TJ[both_TJ])) / truth.facts["figure_px"] if both_TJ.any() else math.nan,
        aperture=float(np.corrcoef(gap_T, aperture_T)[0, 1]) if moves else math.nan,
        head_px=float(np.median(truth.face_box_T4[part, 3] - truth.face_box_T4[part, 1])),
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def tables(theatre: Path, curated: Path) -> str:
    """The tables of docs/theatre.md, in Markdown."""
    judged = list(judge(read_clips(curated), theatre / "truth"))
    played = {path.stem for path in (theatre / "truth").glob("*.npz")}
    lost = sorted(played - {Path(j.clip.video).stem for j in judged})
    lines = [f"{len(judged)} clips of {len(played)} videos; of {len(lost)} videos no clip was made", ""]
    if lost:
        lines += [", ".join(lost), ""]
    lines += _score_table(judged)
    unspoilt = [j for j in judged if j.fault not in ("turned_away", "covered", "blur", "still", "second_face")]
    looked_at = [j for j in unspoilt if j.clip.scores.get("looked_at", 1.0)]
    lines += ["", *_seen_table([see(j, load_landmarks(curated, j.clip)) for j in looked_at])]
    if without := sorted(Path(j.clip.video).stem for j in unspoilt if j not in looked_at):
        lines += ["", f"Not in the last table, as curate looked for no landmarks: {', '.join(without)}"]
    return "\n".join(lines) + "\n"


def _score_table(judged: Sequence[Judged]) -> list[str]:
    """Tags by condition and by planted fault, faults that were found, tags by delay."""
    groups = {
        "clear faults, and none": [j for j in judged if FAULTS[j.fault].clear],
        "all": judged,
        "neural voice": [j for j in judged if j.truth.facts["plan"]["voice"] == NEURAL],
        "recorded voices": [j for j in judged if j.truth.facts["plan"]["voice"] != NEURAL],
    }
    lines = ["| condition | over | precision | recall |", "|---|---|---|---|"]
    for condition in SCORED:
        for name, own in groups.items():
            precision, recall = precision_and_recall(own, condition)
            lines.append(f"| {condition.label} | {name} | {precision} | {recall} |")
    right = {condition: right_by_fault(judged, condition) for condition in SCORED}
    lines += ["", "| planted | audio tag is right | pose tag is right |", "|---|---|---|"]
    faults = sorted({j.fault for j in judged})
    lines += [f"| {f} | {right[Condition.AUDIO][f]} | {right[Condition.POSE][f]} |" for f in faults]
    lines += ["", "| planted | found: precision | recall |", "|---|---|---|"]
    lines += [f"| {f} | {precision} | {recall} |" for f, (precision, recall) in found_faults(judged).items()]
    lines += ["", "| planted | wrong tag | what curate said | clips | for one |", "|---|---|---|---|---|"]
    for condition in SCORED:
        for (fault, said), videos in wrong_tags(judged, condition).items():
            lines.append(f"| {fault} | {condition.label} | {said} | {len(videos)} | {videos[0]} |")
    lines += ["", "| sound late by, ms | tagged for audio |", "|---|---|"]
    return lines + [f"| {delay} | {share} |" for delay, share in by_delay(judged).items()]


def _seen_table(clips: Sequence[SeenClip]) -> list[str]:
    lines = ["| clips of | n | head, px | face | hands | body error | aperture r |", "|---|---|---|---|---|---|---|"]
    for subject in ("style", "framing", "head"):
        for group in dict.fromkeys(getattr(clip, subject) for clip in sorted(clips, key=lambda clip: clip.head_px)):
            own = [clip for clip in clips if getattr(clip, subject) == group]
            shares = [_with_interval(own, name, "{:.1%}") for name in ("face", "hands", "body")]
            head = np.median([clip.head_px for clip in own])
            cells = [group, str(len(own)), f"{head:.0f}", *shares, _with_interval(own, "aperture", "{:.2f}")]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _with_interval(clips: Sequence[SeenClip], name: str, form: str) -> str:
    """The mean over clips that have a number, and the 95 % interval of a bootstrap over them."""
    values = np.array([value for clip in clips if not math.isnan(value := getattr(clip, name))])
    if not values.size:
        return "-"
    means = np.random.default_rng(0).choice(values, (_DRAWS, values.size)).mean(1)
    mean, low, high = (form.format(v) for v in (values.mean(), *np.percentile(means, [2.5, 97.5])))
    return f"{mean} [{low}, {high}]"


def main() -> None:
    parser = argparse.ArgumentParser(description="Scores curate on a theatre, in Markdown.")
    parser.add_argument("--theatre", required=True, type=local, help="folder of `omnihuman theatre`")
    parser.add_argument("--curated", required=True, type=local, help="folder of `omnihuman curate` on its videos")
    options = parser.parse_args()
    print(tables(options.theatre, options.curated), end="")


if __name__ == "__main__":
    main()
