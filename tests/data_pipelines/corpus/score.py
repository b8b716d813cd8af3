"""What `omnihuman curate` made of the corpus, against what was planted: tables in Markdown, and every miss by name.

    python -m tests.data_pipelines.corpus.make --out runs/corpus
    omnihuman curate --source runs/corpus/videos --out runs/corpus/table
    python -m tests.data_pipelines.corpus.score --corpus runs/corpus --table runs/corpus/table

Thresholds are curate's defaults, and for what no default asks for those that docs/data.md gives as a start.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from data_pipelines.curate import source_list
from data_pipelines.curate.clip_sets import ROWS_FILE, find_sets, read_head, scan_scores
from data_pipelines.curate.file_stages import BY_PREVIEW
from data_pipelines.curate.part_tags import DUPLICATE
from data_pipelines.curate.stage_parts import STAGES, Table, clip_rows
from data_pipelines.curate.tagging import CHECKS, Thresholds
from data_pipelines.shares import Share, precision_and_recall
from omnihuman_jax.conditions import Condition
from omnihuman_jax.typing import FPS
from tests.data_pipelines.corpus.make import TrueVideo, read_truth
from tests.data_pipelines.corpus.plan import LATE
from tests.data_pipelines.corpus.scenes import TALKING
from tests.data_pipelines.test_text_recall import FOUND

# Those of docs/data.md, "a start": none of them was moved for the corpus.
START = Thresholds(
    max_letterbox_share=0.02, max_text_area_share=FOUND, min_source_fps=20, max_dark_share=0.5, min_hand_share=0.25
)
TEXT_LANE = f"text laid over, scenes without letters, `max_text_area_share` {FOUND}"
_LONG_ENOUGH = Thresholds().min_audio_s * FPS
_PERSON = ("looked_at", "pose_share", "face_share", "body_confidence")


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """A clip as curate made it: frames [start, end), all scores, the reason for each condition that it is not tagged
    with, why it is left out of the sets, and its group of duplicates.
    """

    video: str
    start: int
    end: int
    height: int
    width: int
    scores: dict[str, float]
    reasons: dict[str, str | None]
    left_out: str | None
    group: int

    def fails(self, score: str, thresholds: Thresholds, of: Condition | None = None) -> bool:
        """Whether any check of this score that all conditions ask for, or `of`, fails."""
        value = np.array([self.scores.get(score, np.nan)])
        asked = [check for check in CHECKS if check.score == score and check.of in (None, of)]
        assert asked, score
        return any(bool(check.failed(value, thresholds)[0]) for check in asked)

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong with its pictures by the defaults."""
        return not any(self.fails(check.score, Thresholds()) for check in CHECKS if check.of is None)


@dataclasses.dataclass(frozen=True, slots=True)
class Judged:
    truth: TrueVideo
    clips: tuple[Made, ...]

    @property
    def clip(self) -> Made:
        """The longest."""
        return max(self.clips, key=lambda clip: clip.end - clip.start)


def read_made(folder: Path) -> Iterator[Made]:
    """All clips of a table, those that are left out too."""
    sets = find_sets(folder)
    table = Table.open(folder)
    with pq.ParquetFile(sets / ROWS_FILE) as file:
        for index, number in enumerate(map(int, read_head(sets)["parts"])):
            names = {row["source"]: row["name"] for row in source_list.listed_in(table, number)}
            scanned = clip_rows(table.read("scan", number))
            scored = [table.read(stage, number).to_pylist() for stage in STAGES[1:]]
            chosen = file.read_row_group(index).to_pylist() if scanned else []
            for scan, mine, *rows in zip(scanned, chosen, *scored, strict=True):
                own: dict[str, Any] = {key: value for row in rows for key, value in row.items()}
                scores = {**own, **scan_scores(scan), "looked_at": float(own["landmarks_why"] != BY_PREVIEW)}
                yield Made(
                    video=names[scan["source"]],
                    start=scan["start_frame"],
                    end=scan["end_frame"],
                    height=scan["height"],
                    width=scan["width"],
                    scores={key: value for key, value in scores.items() if isinstance(value, (int, float))},
                    reasons={c.label: mine[f"{c.label}_reason"] for c in Condition},
                    left_out=mine["left_out"],
                    group=mine["dedup_group"],
                )


def judge(truths: Sequence[TrueVideo], folder: Path) -> list[Judged]:
    """The videos of the parts of a table that are finished.

    Raises:
        ValueError: of a video there is no clip: no fault of the corpus makes a video unreadable.
    """
    table = Table.open(folder)
    numbers = map(int, read_head(find_sets(folder))["parts"])
    by_video: dict[str, list[Made]] = {
        row["name"]: [] for number in numbers for row in source_list.listed_in(table, number)
    }
    for clip in read_made(folder):
        by_video[clip.video].append(clip)
    if lost := [name for name, clips in by_video.items() if not clips]:
        raise ValueError(f"no clip was made of {', '.join(lost)}; look into funnel.json of the table's sets")
    return [
        Judged(truth, tuple(sorted(by_video[truth.name], key=lambda clip: clip.start)))
        for truth in truths
        if truth.name in by_video
    ]


def _ranges(judged: Judged) -> list[tuple[int, int]]:
    return [(clip.start, clip.end) for clip in judged.clips]


def _dissolved(judged: Judged) -> bool:
    (_, begin), (end, _) = judged.truth.shots
    if len(judged.clips) != 2:
        return False
    first, second = _ranges(judged)
    return begin - 1 <= first[1] <= end and begin <= second[0] <= end + 1


def _black(judged: Judged) -> bool:
    expected = [(0, judged.truth.frames)] if len(judged.truth.shots) == 1 else _trimmed(judged.truth)
    dark = [None not in clip.reasons.values() and clip.fails("brightness", START) for clip in judged.clips]
    return _ranges(judged) == expected and dark == judged.truth.black


def _trimmed(truth: TrueVideo) -> list[tuple[int, int]]:
    """Two shots, without the frames on both sides of the cut that curate leaves out."""
    (_, cut), (_, end) = truth.shots
    return [(0, cut - 1), (cut + 1, end)]


def _size(judged: Judged) -> bool:
    return all((clip.height, clip.width) == (judged.truth.height, judged.truth.width) for clip in judged.clips)


# Fault -> (what has to hold, of a video).
EXACT: dict[str, tuple[str, Callable[[Judged], bool]]] = {
    "silent": (
        "no audio tag, for silence or for want of a track",
        lambda j: j.clip.reasons["audio"] == ("silent" if j.truth.sound == "silence" else "no audio track"),
    ),
    "cut": ("two clips that end and begin at the cut, to the frame", lambda j: _ranges(j) == _trimmed(j.truth)),
    "dissolve": ("two clips that meet in the dissolve", _dissolved),
    "black": ("the black shot alone is too dark, and serves nothing", _black),
    "letterbox": (
        "bars measured to 1 % of the lines",
        lambda j: abs(j.clip.scores["letterbox_share"] - j.truth.letterbox) <= 0.01,
    ),
    "vertical": ("its size, higher than wide", lambda j: _size(j) and j.clip.height > j.clip.width),
    "rotated": (
        "its size as it is shown, the face upright",
        lambda j: _size(j) and not j.clip.fails("face_share", Thresholds(), Condition.POSE),
    ),
    "fps12": (
        "12 frames a second; fails min_source_fps 20",
        lambda j: abs(j.clip.scores["source_fps"] - 12) < 0.1 and j.clip.fails("source_fps", START),
    ),
    "vfr": ("as long as it is shown", lambda j: abs(sum(c.end - c.start for c in j.clips) - j.truth.frames) <= 1),
    "frozen": (
        "serves nothing: frozen, or hardly any motion",
        lambda j: set(j.clip.reasons.values()) <= {"frozen picture", "hardly any motion"},
    ),
    "same bytes": ("in the sets once", lambda j: True),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Lane:
    """A yes or no of curate against what was planted, over some videos: (name, given, due) of each."""

    name: str
    rows: tuple[tuple[str, bool, bool], ...]

    @property
    def scored(self) -> tuple[Share, Share]:
        return precision_and_recall([given for _, given, _ in self.rows], [due for _, _, due in self.rows])

    @property
    def misses(self) -> list[str]:
        return [f"{name} ({'given' if given else 'not given'})" for name, given, due in self.rows if given != due]


def lanes(all_of: Sequence[Judged]) -> list[Lane]:
    """Text, persons, hands, duplicates and lip-sync."""
    one_shot = [j for j in all_of if len(j.truth.shots) == 1 and not j.truth.black[0] and not j.truth.frozen]
    plain = [j for j in one_shot if not j.truth.scene_text]

    def text(of: Sequence[Judged], name: str, asked: Thresholds = START) -> Lane:
        return Lane(name, tuple((j.truth.name, j.clip.fails("text_area_share", asked), bool(j.truth.text)) for j in of))

    # Of a face behind a panel nobody can say whether it is one.
    seen = [j for j in one_shot if j.truth.fault != "hands_hidden" and j.clip.is_sound]
    looked = [j for j in one_shot if j.clip.scores["looked_at"]]
    spoken = [j for j in one_shot if in_question(j.truth)]
    return [
        text(plain, TEXT_LANE),
        text(plain, "the same, 0.02", Thresholds(max_text_area_share=0.02)),
        text(one_shot, f"text laid over, all scenes, {FOUND}"),
        Lane("somebody is there", tuple((j.truth.name, _person(j.clip), j.truth.faces > 0) for j in seen)),
        Lane(
            "two faces",
            tuple(
                (j.truth.name, j.clip.fails("faces_share", Thresholds(), Condition.AUDIO), j.truth.faces == 2)
                for j in looked
                if j.truth.faces > 0 and j.truth.fault != "hands_hidden"
            ),
        ),
        Lane(
            "a hand is seen",
            tuple(
                (j.truth.name, not j.clip.fails("hand_share", START, Condition.POSE), j.truth.hands)
                for j in looked
                if j.truth.hands is not None
            ),
        ),
        duplicates(all_of),
        Lane("lip-sync: the audio tag", tuple((j.truth.name, _speaks(j), _in_sync(j.truth)) for j in spoken)),
    ]


def _person(clip: Made) -> bool:
    return not any(clip.fails(score, Thresholds(), Condition.POSE) for score in _PERSON)


def in_question(truth: TrueVideo) -> bool:
    """Whether it has one face and a voice for long enough."""
    return truth.faces == 1 and truth.sound in ("own", "other") and truth.frames >= _LONG_ENOUGH


def _speaks(judged: Judged) -> bool:
    return judged.clip.reasons["audio"] is None


def _in_sync(truth: TrueVideo) -> bool:
    return truth.sound == "own" and truth.late_s <= Thresholds().max_lip_sync_offset_s


def duplicates(all_of: Sequence[Judged]) -> Lane:
    """A row for every pair that is one, or is given as one; `same_moments` says how many of the latter could be."""
    due, given = _pairs(all_of)
    return Lane(
        "duplicates, pairs",
        tuple((" = ".join(pair), pair in given, pair in due) for pair in sorted(due | given)),
    )


def same_moments(all_of: Sequence[Judged]) -> Share:
    """Of the pairs that show the same moments of a scene under the same sound, in two crops (or one with bars or text),
    how many are given as duplicates. They are no copies by construction, and no other films either.
    """
    due, given = _pairs(all_of)
    pairs = _same_moments(all_of, due)
    return Share(len(pairs & given), len(pairs))


_Pairs = set[tuple[str, str]]


def _pairs(all_of: Sequence[Judged]) -> tuple[_Pairs, _Pairs]:
    """(pairs that are duplicates by construction; pairs that are given as duplicates)."""
    judged_names = {j.truth.name for j in all_of}
    due = {(j.truth.original, j.truth.name) for j in all_of if j.truth.original in judged_names}
    groups: dict[int, set[str]] = {}
    for judged in all_of:
        for clip in judged.clips:
            if clip.group >= 0:
                groups.setdefault(clip.group, set()).add(judged.truth.name)
    given = {_ordered(pair, due) for names in groups.values() for pair in itertools.combinations(sorted(names), 2)}
    return due, given


def _same_moments(all_of: Sequence[Judged], due: _Pairs) -> _Pairs:
    """Pairs of one scene, nine tenths of whose frames are the same, both mirrored or neither. A scene that is shorter
    than a video begins at its first frame in all of them.
    """
    one_shot = [j.truth for j in all_of if len(j.truth.shots) == 1 and j.truth.sound != "other"]
    found = set()
    for a, b in itertools.combinations(sorted(one_shot, key=lambda truth: truth.name), 2):
        shared = min(a.start + a.frames, b.start + b.frames) - max(a.start, b.start)
        if (a.scene, a.mirrored, a.sound) == (b.scene, b.mirrored, b.sound) and shared >= 0.9 * max(a.frames, b.frames):
            found.add(_ordered((a.name, b.name), due))
    return found - due


def _ordered(pair: tuple[str, str], known: set[tuple[str, str]]) -> tuple[str, str]:
    return pair if pair in known or pair[::-1] not in known else pair[::-1]


def sound_groups(all_of: Sequence[Judged]) -> dict[str, Share]:
    """Whose sound it is -> how many are tagged for audio."""
    groups: dict[str, list[bool]] = {}
    for judged in all_of:
        truth = judged.truth
        if in_question(truth) and len(truth.shots) == 1 and not truth.frozen:
            groups.setdefault(_whose(truth), []).append(_speaks(judged))
    return {name: Share(sum(tagged), len(tagged)) for name, tagged in sorted(groups.items())}


def _whose(truth: TrueVideo) -> str:
    if truth.sound == "own":
        late = f", {LATE / FPS} s late" if truth.late_s else ""
        return f"own sound of `{truth.scene}`{late}"
    return "another's sound, a face that talks" if truth.scene in TALKING else "another's sound, a silent face"


def exact(all_of: Sequence[Judged]) -> dict[str, tuple[str, Share, list[str]]]:
    """Fault -> what has to hold, of how many it does, and the names of the others."""
    found = {}
    for fault, (what, holds) in EXACT.items():
        if fault == "same bytes":
            originals = {j.truth.name: j for j in all_of}
            mine = [j for j in all_of if j.truth.original in originals and j.truth.how == "bytes"]
            wrong = [
                j.truth.name
                for j in mine
                if [j.clip.left_out, originals[j.truth.original].clip.left_out].count(DUPLICATE) != 1
            ]
        else:
            mine = [j for j in all_of if j.truth.fault == fault]
            wrong = [j.truth.name for j in mine if not holds(j)]
        found[fault] = (what, Share(len(mine) - len(wrong), len(mine)), wrong)
    whole = [j for j in all_of if len(j.truth.shots) == 1]
    wrong = [j.truth.name for j in whole if len(j.clips) != 1]
    found["all others"] = ("one shot is one clip", Share(len(whole) - len(wrong), len(whole)), wrong)
    return found


def tables(all_of: Sequence[Judged]) -> str:
    """The tables of docs/data.md, and below them every miss."""
    seconds = sum(j.truth.frames for j in all_of) / FPS
    lines = [f"{len(all_of)} videos, {seconds:.0f} s", "", "| planted | what has to hold | right |", "|---|---|---|"]
    by_fault = exact(all_of)
    lines += [f"| {fault} | {what} | {share.hits} of {share.total} |" for fault, (what, share, _) in by_fault.items()]
    lines += ["", "| yes or no | videos | precision | recall |", "|---|---|---|---|"]
    yes_or_no = lanes(all_of)
    for lane in yes_or_no:
        precision, recall = lane.scored
        lines.append(f"| {lane.name} | {len(lane.rows)} | {precision} | {recall} |")
    lines += ["", f"The same moments of a scene in two crops, given as duplicates: {same_moments(all_of)}"]
    lines += ["", "| sound | tagged for audio |", "|---|---|"]
    lines += [f"| {name} | {share} |" for name, share in sound_groups(all_of).items()]
    lines += ["", "Misses:"]
    lines += [f"- {fault}: {', '.join(wrong)}" for fault, (_, _, wrong) in by_fault.items() if wrong]
    lines += [f"- {lane.name}: {', '.join(lane.misses)}" for lane in yes_or_no if lane.misses]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, type=Path, help="folder of `make`")
    parser.add_argument("--table", required=True, type=Path, help="folder of `omnihuman curate` on its videos")
    options = parser.parse_args(argv)
    truths = read_truth(options.corpus)
    judged = judge(truths, options.table)
    if len(judged) < len(truths):
        print(f"{len(truths) - len(judged)} videos are in parts that are not finished: run curate again\n")
    print(tables(judged), end="")


if __name__ == "__main__":
    main()
