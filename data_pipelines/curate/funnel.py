"""What became of every video and clip: as a record (`funnel.json`), as a table, and what was passed over.

Names and reasons come from the footage: they are text to the terminal, never markup.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from data_pipelines.curate.clip_sets import read_clips
from data_pipelines.curate.footage import passed_over_lines
from data_pipelines.curate.tagging import CHECKS, PASSED, Tags
from omnihuman_jax.conditions import Condition
from omnihuman_jax.runtime import file_names
from omnihuman_jax.runtime.locations import Location
from omnihuman_jax.typing import FPS

FUNNEL_FILE = "funnel.json"
# Beyond this the table counts reasons instead of listing clips.
_MAX_LISTED = 40
# Clips, dead letters and dropped shots that the record lists; beyond, it counts them alone.
MAX_ROWS = 1000


@dataclasses.dataclass(slots=True)
class Funnel:
    """Sums over the parts of a table.

    A row of `quarantine` says which video, in which stage (of those of a table, and caption), why, and which clip.
    `duplicates`: why -> clips that are left out as others are there.
    """

    passed_over: Mapping[str, Sequence[str]]
    videos: int = 0
    clips: int = 0
    seconds: float = 0.0
    quarantine: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    dead_letters: Counter[str] = dataclasses.field(default_factory=Counter)
    dropped: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    dropped_shots: int = 0
    dropped_seconds: float = 0.0
    eligible: Counter[str] = dataclasses.field(default_factory=Counter)
    eligible_seconds: dict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    reasons: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    serves_none: int = 0
    duplicates: Counter[str] = dataclasses.field(default_factory=Counter)
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def add_videos(self, count: int, unread_captions: Mapping[str, str]) -> None:
        self.videos += count
        self._quarantine({"video": name, "stage": "caption", "reason": why} for name, why in unread_captions.items())

    def add_letters(self, letters: Iterable[Mapping[str, Any]]) -> None:
        """Dead letters, each with its video's name."""
        names = ("video", "clip_id", "stage", "reason", "exception", "tries")
        self._quarantine({name: row[name] for name in names if row[name]} for row in letters)

    def _quarantine(self, rows: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            self.dead_letters[row["stage"]] += 1
            if len(self.quarantine) < MAX_ROWS:
                self.quarantine.append(row)

    def add_short(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            seconds = (row["end_frame"] - row["start_frame"]) / FPS
            self.dropped_shots += 1
            self.dropped_seconds += seconds
            if len(self.dropped) < MAX_ROWS:
                names = ("video", "start_frame", "end_frame")
                reason = f"a shot of {seconds:.2f} s is too short"
                self.dropped.append({**{name: row[name] for name in names}, "reason": reason})

    def add_tags(self, tags: Tags, seconds: np.ndarray, used: np.ndarray) -> None:
        """The clips of a part; `used` bool [n]: those that are in the sets."""
        self.clips += int(used.sum())
        self.seconds += float(seconds[used].sum())
        self.serves_none += int((used & (tags.bits == 0)).sum())
        for condition in Condition:
            passed = used & (tags.failed[:, condition] == PASSED)
            self.eligible[condition.label] += int(passed.sum())
            self.eligible_seconds[condition.label] += float(seconds[passed].sum())
            codes, counts = np.unique(tags.failed[used & ~passed, condition], return_counts=True)
            for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
                self.reasons[condition.label, CHECKS[code].reason] += count

    def list_clips(self, sets: Location) -> None:
        """Every clip by name, where there are few."""
        if self.clips <= MAX_ROWS:
            self.rows = [
                {
                    "clip_id": clip.clip_id,
                    "label": clip.label,
                    "video": clip.video,
                    "seconds": clip.seconds,
                    "eligible": list(clip.eligible),
                    "reasons": clip.reasons,
                    "scores": clip.scores,
                }
                for clip in read_clips(sets)
            ]

    def record(self, unfinished: int) -> dict[str, Any]:
        """`funnel.json`. unfinished: parts that are not made yet."""
        labels = [condition.label for condition in Condition]
        return {
            "videos": self.videos,
            "unfinished_parts": unfinished,
            "quarantine": sorted(self.quarantine, key=lambda row: (row["video"], row["stage"])),
            "dead_letters": dict(sorted(self.dead_letters.items())),
            "passed_over": {reason: list(names) for reason, names in self.passed_over.items()},
            "dropped": self.dropped,
            "dropped_shots": self.dropped_shots,
            "dropped_seconds": self.dropped_seconds,
            "duplicates": dict(sorted(self.duplicates.items())),
            "clips": self.clips,
            "serves_none": self.serves_none,
            "seconds": self.seconds,
            "eligible": {label: self.eligible[label] for label in labels},
            "eligible_seconds": {label: self.eligible_seconds[label] for label in labels},
            "reasons": {
                label: {reason: n for (of, reason), n in sorted(self.reasons.items()) if of == label}
                for label in labels
            },
            "rows": self.rows,
        }


def funnel_table(funnel: Mapping[str, Any]) -> Table:
    """The funnel as a table: each clip (of many clips: each reason), what was left out, and how much serves each
    condition.
    """
    labels = [condition.label for condition in Condition]
    table = Table(title=f"{funnel['videos']} videos, {funnel['clips']} clips, {funnel['seconds']:.1f} s")
    table.add_column("clip", overflow="fold")
    table.add_column("s", justify="right")
    for label in labels:
        table.add_column(label, justify="center")
    table.add_column("why not (score, threshold)", overflow="fold")
    if funnel["clips"] <= _MAX_LISTED and len(funnel["rows"]) == funnel["clips"]:
        for row in funnel["rows"]:
            marks = [Text("yes", "green") if label in row["eligible"] else Text("-", "red") for label in labels]
            table.add_row(_text(row["label"]), f"{row['seconds']:.1f}", *marks, _text(_why_not(row["reasons"])))
        for left_out in [*funnel["quarantine"], *funnel["dropped"]]:
            reason = f"left out: {left_out['reason']}"
            table.add_row(_text(left_out["video"]), "", *[""] * len(labels), _text(reason), style="dim")
    else:
        reasons = funnel["reasons"]
        for reason in sorted({reason for counts in reasons.values() for reason in counts}):
            table.add_row("", "", *[str(-reasons[label].get(reason, 0) or "") for label in labels], reason)
        dead = sum(funnel["dead_letters"].values())
        for what, count in (("not readable", dead), ("shots too short", funnel["dropped_shots"])):
            table.add_row(f"{count}", "", *[""] * len(labels), what, style="dim")
    table.add_section()
    table.add_row("eligible clips", "", *[str(funnel["eligible"][label]) for label in labels], "")
    table.add_row(
        "eligible s", f"{funnel['seconds']:.1f}", *[f"{funnel['eligible_seconds'][label]:.1f}" for label in labels], ""
    )
    return table


def _why_not(reasons: Mapping[str, Mapping[str, Any]]) -> str:
    """`text, pose: blurred (3, 15); audio: silent (-120, -60)`: conditions that fail for one reason share an entry."""
    by_reason: dict[str, list[str]] = {}
    for label, r in reasons.items():
        score = "not computed" if r["score"] is None else f"{r['score']:.3g}"
        by_reason.setdefault(f"{r['reason']} ({score}, {r['threshold']:.3g})", []).append(label)
    return "; ".join(f"{', '.join(conditions)}: {reason}" for reason, conditions in by_reason.items())


def left_out_lines(funnel: Mapping[str, Any], listed: int = 8) -> list[str]:
    """What a reader of the table has to know besides: each dead letter where the table only counts them, what was
    passed over in the folder, and what is not finished.
    """
    dead = funnel["quarantine"] if funnel["clips"] > _MAX_LISTED else []
    lines = [f"{row['stage']}: {row['video']}: {row['reason']}" for row in dead[:listed]]
    if (total := sum(funnel["dead_letters"].values())) > listed and dead:
        lines.append(f"and {total - listed} more that are not readable")
    lines += [f"{count} clips are left out: {why}" for why, count in funnel["duplicates"].items()]
    lines += [f"passed over: {line}" for line in passed_over_lines(funnel["passed_over"], listed)]
    if funnel["unfinished_parts"]:
        lines.append(f"{funnel['unfinished_parts']} parts are not finished and not counted; run curate again")
    return [file_names.printable(line) for line in lines]


def _text(text: str) -> Text:
    return Text(file_names.printable(text), overflow="fold")
