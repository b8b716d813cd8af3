"""What became of every video and clip: as a record (`funnel.json`), as a table, and what was passed over.

Names and reasons come from the footage: they are text to the terminal, never markup.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from data_pipelines.curate import file_stages
from data_pipelines.curate.clips import Clip
from data_pipelines.curate.footage import passed_over_lines
from omnihuman_jax.conditions import Condition
from omnihuman_jax.runtime import file_names
from omnihuman_jax.typing import FPS

# Beyond this the table counts reasons instead of listing clips.
_MAX_LISTED = 40


def funnel_of(
    scans: Sequence[file_stages.Scan],
    tasks: Sequence[file_stages.AnalysisTask],
    analyses: Mapping[str, file_stages.Analysis],
    clips: Sequence[Clip],
    unread_captions: Mapping[str, str],
    passed_over: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """The record. `unread_captions`: video -> why; `passed_over`: reason -> names, as `footage.look_into` has them.

    A row of `quarantine` says which video, in which stage (scan, score, caption), why, and in `score` which clip.
    """
    quarantine = [{"video": scan.name, "stage": "scan", "reason": scan.error} for scan in scans if scan.error]
    quarantine += [
        {"video": task.video.name, "clip_id": task.clip_id, "stage": "score", "reason": analyses[task.clip_id].error}
        for task in tasks
        if analyses[task.clip_id].error
    ]
    quarantine += [{"video": name, "stage": "caption", "reason": why} for name, why in unread_captions.items()]
    dropped = [
        {
            "video": scan.name,
            "start_frame": start,
            "end_frame": end,
            "reason": f"a shot of {(end - start) / FPS:.2f} s is too short",
        }
        for scan in scans
        for start, end in scan.too_short
    ]
    labels = [condition.label for condition in Condition]
    return {
        "videos": len(scans),
        "quarantine": quarantine,
        "passed_over": {reason: list(names) for reason, names in passed_over.items()},
        "dropped": dropped,
        "clips": len(clips),
        "seconds": sum(clip.seconds for clip in clips),
        "eligible": {label: sum(label in clip.eligible for clip in clips) for label in labels},
        "eligible_seconds": {label: sum(clip.seconds for clip in clips if label in clip.eligible) for label in labels},
        "rows": [
            {
                "clip_id": clip.clip_id,
                "video": clip.video,
                "seconds": clip.seconds,
                "eligible": list(clip.eligible),
                "reasons": clip.reasons,
                "scores": clip.scores,
            }
            for clip in clips
        ],
        "computed": {"videos": sum(s.computed for s in scans), "clips": sum(a.computed for a in analyses.values())},
    }


def funnel_table(funnel: dict[str, Any]) -> Table:
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
    if funnel["clips"] <= _MAX_LISTED:
        for row in funnel["rows"]:
            marks = [Text("yes", "green") if label in row["eligible"] else Text("-", "red") for label in labels]
            table.add_row(_text(row["clip_id"]), f"{row['seconds']:.1f}", *marks, _text(_why_not(row["reasons"])))
        for left_out in [*funnel["quarantine"], *funnel["dropped"]]:
            name = left_out.get("clip_id", left_out["video"])
            reason = f"left out: {left_out['reason']}"
            table.add_row(_text(name), "", *[""] * len(labels), _text(reason), style="dim")
    else:
        failed = Counter((label, r["reason"]) for row in funnel["rows"] for label, r in row["reasons"].items())
        for reason in sorted({reason for _, reason in failed}):
            table.add_row("", "", *[str(-failed[label, reason] or "") for label in labels], reason)
        for what, left_out in (("not readable", funnel["quarantine"]), ("shots too short", funnel["dropped"])):
            table.add_row(f"{len(left_out)}", "", *[""] * len(labels), what, style="dim")
    table.add_section()
    table.add_row("eligible clips", "", *[str(funnel["eligible"][label]) for label in labels], "")
    table.add_row(
        "eligible s", f"{funnel['seconds']:.1f}", *[f"{funnel['eligible_seconds'][label]:.1f}" for label in labels], ""
    )
    return table


def _why_not(reasons: dict[str, dict[str, Any]]) -> str:
    """`text, pose: blurred (3, 15); audio: silent (-120, -60)`: conditions that fail for one reason share an entry."""
    by_reason: dict[str, list[str]] = {}
    for label, r in reasons.items():
        by_reason.setdefault(f"{r['reason']} ({r['score']:.3g}, {r['threshold']:.3g})", []).append(label)
    return "; ".join(f"{', '.join(conditions)}: {reason}" for reason, conditions in by_reason.items())


def left_out_lines(funnel: dict[str, Any], listed: int = 8) -> list[str]:
    """What a reader of the table has to know besides: each dead letter where the table only counts them, and what was
    passed over in the folder.
    """
    dead = funnel["quarantine"] if funnel["clips"] > _MAX_LISTED else []
    lines = [f"{row['stage']}: {row.get('clip_id', row['video'])}: {row['reason']}" for row in dead[:listed]]
    if len(dead) > listed:
        lines.append(f"and {len(dead) - listed} more that are not readable")
    passed_over = [f"passed over: {line}" for line in passed_over_lines(funnel["passed_over"], listed)]
    return [file_names.printable(line) for line in [*lines, *passed_over]]


def _text(text: str) -> Text:
    return Text(file_names.printable(text), overflow="fold")
