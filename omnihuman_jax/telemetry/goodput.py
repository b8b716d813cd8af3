"""Goodput: of the time since a run first began, the share in which steps were computed that had not been computed
before.

Input are the event logs of `telemetry/events.py`; the account is process 0's, whose loop all others keep step with.
"""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omnihuman_jax.runtime.locations import local

KINDS = ("productive", "repeated", "compile", "restore", "save", "samples", "data_wait", "start_up", "down")
"""Where the time goes: new steps, steps that a restart made again, compiling, choosing and reading a checkpoint, saves
that the loop waited for, samples and evaluations between steps, waiting for data, the rest of a process's time, and
time without a sign of any process."""

COLORS = {
    "productive": "#1b7f4b", "repeated": "#b5540c", "compile": "#7440c4", "restore": "#0e7c74", "save": "#1f5fbf",
    "samples": "#c23b78", "data_wait": "#c9a227", "start_up": "#8a8f98", "down": "#d8d4ca",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """Seconds [begin, end) since the run first began, and what they were."""

    begin: float
    end: float
    kind: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One start of the run.

    code: exit code, None where the process was killed
    first, last: steps that it finished (0, 0: none); new: how many of them no earlier attempt had finished
    seconds: by kind, all of `KINDS`; `down` is the time before it, since the last sign of the attempt before
    """

    number: int
    processes: int
    code: int | None
    first: int
    last: int
    new: int
    seconds: dict[str, float]
    stretches: tuple[Stretch, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Goodput:
    """Of a whole run; `host_ratio` is the slowest host's own time over the median's, as (process, ratio), None for one
    host.
    """

    attempts: tuple[Attempt, ...]
    seconds: dict[str, float]
    wall: float
    host_ratio: tuple[str, float] | None

    @property
    def share(self) -> float:
        """Productive seconds over all."""
        return self.seconds["productive"] / self.wall if self.wall else 0.0


def read_goodput(run_dir: Path | str) -> Goodput:
    """Adds up the event logs of a run; FileNotFoundError where there are none."""
    folder = local(run_dir) / "events"
    files = sorted(folder.glob("*-0.jsonl"), key=lambda path: int(path.name.split("-")[0]))
    logs = [events for path in files if (events := _read(path))]
    if not logs:
        raise FileNotFoundError(f"{folder} has no event log; give the run directory of `omnihuman train`")
    origin, last_sign, furthest = logs[0][0]["t"], logs[0][0]["t"], 0
    attempts = []
    for path, events in zip(files, logs):
        attempt = _attempt(int(path.name.split("-")[0]), events, origin, last_sign, furthest)
        attempts.append(attempt)
        last_sign = max(last_sign, events[-1]["t"])
        furthest = max(furthest, attempt.last)
    seconds = {kind: sum(attempt.seconds[kind] for attempt in attempts) for kind in KINDS}
    return Goodput(attempts=tuple(attempts), seconds=seconds, wall=last_sign - origin, host_ratio=_straggler(logs))


def _read(path: Path) -> list[dict[str, Any]]:
    """The log's lines from its start on; a line that a kill cut short is left out."""
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events if events and events[0]["event"] == "start" else []


def _attempt(number: int, events: Sequence[dict[str, Any]], origin: float, last_sign: float, furthest: int) -> Attempt:
    start = max(events[0]["t"], last_sign)
    stretches = [Stretch(begin=last_sign - origin, end=start - origin, kind="down")] if start > last_sign else []
    at, first, last, new = start, 0, 0, 0

    def add(kind: str, begin: float, end: float) -> None:
        nonlocal at
        begin, end = max(begin, at), max(end, at)
        if begin > at:
            stretches.append(Stretch(begin=at - origin, end=begin - origin, kind="start_up"))
        if end > begin:
            stretches.append(Stretch(begin=begin - origin, end=end - origin, kind=kind))
        at = end

    for event in events[1:]:
        if event["event"] == "span":
            add(event["kind"] if event["kind"] in KINDS else "start_up", event["t"] - event["s"], event["t"])
        elif event["event"] == "steps":
            count = event["last"] - event["first"] + 1
            again = min(count, max(0, furthest - event["first"] + 1))
            began = event["t"] - event["s"]
            add("data_wait", began - event["wait_s"], began)
            add("repeated", began, began + event["s"] * again / count)
            add("productive", began + event["s"] * again / count, event["t"])
            first, last, new = first or event["first"], max(last, event["last"]), new + count - again
    end = events[-1]
    if end["t"] > at:
        stretches.append(Stretch(begin=at - origin, end=end["t"] - origin, kind="start_up"))
    seconds = {kind: sum(s.end - s.begin for s in stretches if s.kind == kind) for kind in KINDS}
    return Attempt(
        number=number, processes=events[0]["processes"], code=end.get("code"), first=first, last=last, new=new,
        seconds=seconds, stretches=tuple(stretches),
    )  # fmt: skip


def _straggler(logs: Sequence[Sequence[dict[str, Any]]]) -> tuple[str, float] | None:
    """Of the last attempt that compared hosts: the process that is slowest in the median of its comparisons."""
    for events in reversed(logs):
        rows = [event["host_s"] for event in events if event["event"] == "hosts" and len(event["host_s"]) > 1]
        if rows:
            names = {name for row in rows for name in row}
            median = {name: statistics.median(row[name] for row in rows if name in row) for name in names}
            name = max(median, key=lambda name: median[name])
            return name, median[name] / max(statistics.median(median.values()), 1e-9)
    return None


def picture(goodput: Goodput, *, width: int = 900) -> str:
    """A standalone SVG: a bar an attempt over the run's own time, coloured by kind, and a legend with totals."""
    left, right, top, line = 90, 20, 76, 24
    height = top + line * len(goodput.attempts) + 34
    span = max(goodput.wall, 1e-9)

    def px(seconds: float) -> float:
        return left + seconds / span * (width - left - right)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        f' font-size="12" role="img" aria-label="goodput {goodput.share:.1%}"><rect width="{width}" height="{height}"'
        ' fill="#ffffff"/>'
    ]
    for index, kind in enumerate(KINDS):
        x, y = left + (index % 4) * 195, 18 + index // 4 * 18
        text = f"{kind.replace('_', ' ')} {goodput.seconds[kind]:.1f} s ({goodput.seconds[kind] / span:.1%})"
        out.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{COLORS[kind]}"/>')
        out.append(f'<text x="{x + 15}" y="{y}" fill="#1d1f23">{text}</text>')
    for index, attempt in enumerate(goodput.attempts):
        y = top + line * index
        ended = "killed" if attempt.code is None else f"exit {attempt.code}"
        out.append(
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end" fill="#1d1f23">{attempt.number}: {ended}</text>'
        )
        for stretch in attempt.stretches:
            wide = max(px(stretch.end) - px(stretch.begin), 0.3)
            title = f"<title>{stretch.kind.replace('_', ' ')}, {stretch.end - stretch.begin:.2f} s</title>"
            color = COLORS[stretch.kind]
            out.append(
                f'<rect x="{px(stretch.begin):.1f}" y="{y}" width="{wide:.1f}" height="17"'
                f' fill="{color}">{title}</rect>'
            )
    out.append(f'<text x="{left}" y="{height - 10}" fill="#5c616b">0 s</text>')
    out.append(
        f'<text x="{width - right}" y="{height - 10}" text-anchor="end" fill="#5c616b">{goodput.wall:.1f} s</text>'
    )
    return "".join(out) + "</svg>\n"
