"""`omnihuman curate`: from a folder of videos to clips that know which conditions they are eligible for.

    scan     header, damage, shots -> frame ranges        a video at a time    kept in OUT/videos/<id>.json
    analyse  pictures, landmarks, sound -> raw scores     a clip at a time     kept in OUT/clips/<clip_id>/
    tag      scores -> eligible set and reasons           always made again    OUT/clips.jsonl, OUT/funnel.json

Nothing is thrown away without a reason written on it: a video that cannot be read is in the funnel's `quarantine`, a
shot that is too short in `dropped`, and a clip has a reason for each condition that it is not eligible for.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from data_pipelines.curate import decode, file_stages
from data_pipelines.curate.clips import CLIPS_FILE, Clip, write_clips, write_text
from data_pipelines.curate.held_out import with_splits
from data_pipelines.curate.shots import ShotConfig
from data_pipelines.curate.tagging import Thresholds, tag
from omnihuman_jax.conditions import Condition
from omnihuman_jax.runtime.progress import progress_bar
from omnihuman_jax.typing import FPS

FUNNEL_FILE = "funnel.json"
# Beyond this the table counts reasons instead of listing clips.
_MAX_LISTED = 40
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


@dataclasses.dataclass(kw_only=True, slots=True)
class CurateConfig:
    """What curate does. `max_seconds_per_video` reads only the beginning of long videos; None reads all of them."""

    shots: ShotConfig = dataclasses.field(default_factory=ShotConfig)
    thresholds: Thresholds = dataclasses.field(default_factory=Thresholds)
    default_caption: str = "A video."
    max_seconds_per_video: float | None = None
    workers: int = 2

    def validate(self) -> None:
        self.shots.validate()
        self.thresholds.validate()
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {self.workers}")
        if self.max_seconds_per_video is not None and self.max_seconds_per_video <= 0:
            raise ValueError(f"max_seconds_per_video must be greater than 0, not {self.max_seconds_per_video}")

    @classmethod
    def from_json(cls, text: str) -> "CurateConfig":
        """The configuration whose JSON this is; what it does not name keeps its default, an unknown name is an
        error.
        """
        given = json.loads(text)
        parts = {"shots": ShotConfig, "thresholds": Thresholds}
        try:
            return cls(**{name: parts[name](**value) if name in parts else value for name, value in given.items()})
        except TypeError as error:
            raise ValueError(f"curate configuration: {error}") from error


def curate(
    videos_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    config: CurateConfig | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Curates every video below `videos_dir` into `out_dir`; returns the funnel, also written to funnel.json.

    Idempotent and resumable: what an earlier run finished is kept, `funnel["computed"]` counts what this one had to do.

    Raises:
        FileNotFoundError, ValueError: no folder, or no videos in it.
        ChildProcessError: a worker process died.
    """
    config = config or CurateConfig()
    config.validate()
    out = Path(out_dir)
    names = decode.list_videos(videos_dir)
    ids = decode.video_ids(names)
    scan_tasks = [
        file_stages.ScanTask(
            path=str(Path(videos_dir) / name),
            name=name,
            video_id=ids[name],
            record=str(out / "videos" / f"{ids[name]}.json"),
            shots=config.shots,
            max_seconds=config.max_seconds_per_video,
        )
        for name in names
    ]
    with _Workers(config.workers) as workers:
        scans = sorted(
            _tracked(progress, "scan videos", workers, file_stages.recall_scan, file_stages.scan, scan_tasks),
            key=lambda scan: scan.name,
        )
        tasks = _analysis_tasks(scans, out)
        # Longest first: no worker is left with the longest alone at the end.
        tasks.sort(key=lambda task: task.start_frame - task.end_frame)
        analyses = {
            a.clip_id: a
            for a in _tracked(progress, "score clips", workers, file_stages.recall_analysis, file_stages.analyse, tasks)
        }
    tasks.sort(key=lambda task: (task.video.name, task.start_frame))
    clips = [_clip(task, analyses[task.clip_id], out, config) for task in tasks if not analyses[task.clip_id].error]
    _forget_others(out, ids, {task.clip_id for task in tasks})
    funnel = _funnel(scans, tasks, analyses, clips)
    write_clips(out, with_splits(videos_dir, clips))
    write_text(out / FUNNEL_FILE, json.dumps({**funnel, "config": dataclasses.asdict(config)}, indent=1) + "\n")
    return funnel


def _analysis_tasks(scans: list[file_stages.Scan], out: Path) -> list[file_stages.AnalysisTask]:
    tasks = []
    for scan in scans:
        for number, (start, end) in enumerate(scan.ranges):
            assert scan.video is not None
            clip_id = f"{scan.video.video_id}-{number:03d}"
            folder = str(out / "clips" / clip_id)
            tasks.append(
                file_stages.AnalysisTask(
                    clip_id=clip_id, video=scan.video, start_frame=start, end_frame=end, folder=folder
                )
            )
    return tasks


def _clip(task: file_stages.AnalysisTask, analysis: file_stages.Analysis, out: Path, config: CurateConfig) -> Clip:
    eligible, reasons = tag(analysis.scores, config.thresholds)
    caption, caption_source = decode.caption_of(task.video.path, config.default_caption)
    return Clip(
        clip_id=task.clip_id,
        video=task.video.name,
        path=os.path.relpath(task.video.path, out),
        sha256=task.video.sha256,
        start_frame=task.start_frame,
        end_frame=task.end_frame,
        fps=FPS,
        height=task.video.height,
        width=task.video.width,
        has_audio=task.video.has_audio,
        caption=caption,
        caption_source=caption_source,
        landmarks=f"clips/{task.clip_id}/landmarks.npz",
        scores=analysis.scores,
        eligible=eligible,
        reasons=reasons,
    )


def _forget_others(out: Path, ids: dict[str, str], clip_ids: set[str]) -> None:
    """Takes away what earlier runs kept of videos and cuts that are no more."""
    for record in (out / "videos").glob("*.json"):
        if record.stem not in ids.values():
            record.unlink(missing_ok=True)
    for folder in (out / "clips").glob("*"):
        if folder.is_dir() and folder.name not in clip_ids:
            file_stages.forget(folder)


def _funnel(
    scans: list[file_stages.Scan],
    tasks: list[file_stages.AnalysisTask],
    analyses: dict[str, file_stages.Analysis],
    clips: list[Clip],
) -> dict[str, Any]:
    quarantine = [{"video": scan.name, "reason": scan.error} for scan in scans if scan.error]
    quarantine += [
        {"video": task.video.name, "clip_id": task.clip_id, "reason": analyses[task.clip_id].error}
        for task in tasks
        if analyses[task.clip_id].error
    ]
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


class _Workers:
    """A pool of processes, or this process alone for one worker. Started with the first task, so idle runs start
    none.
    """

    def __init__(self, count: int) -> None:
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None
        self._count = count

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, function: Callable[[_Task], _Result], tasks: Sequence[_Task]) -> Iterator[_Result]:
        """Yields the results as they come."""
        if self._count == 1 or len(tasks) <= 1:
            yield from map(function, tasks)
            return
        if self._pool is None:
            # Not forked: the parent may hold threads of JAX, and MediaPipe starts its own.
            context = multiprocessing.get_context("spawn")
            self._pool = concurrent.futures.ProcessPoolExecutor(self._count, mp_context=context)
        try:
            for future in concurrent.futures.as_completed([self._pool.submit(function, task) for task in tasks]):
                yield future.result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker process died (out of memory?); finished clips are kept; run the same command with --workers 1"
            ) from error


def _tracked(
    progress: Progress | None,
    title: str,
    workers: _Workers,
    recall: Callable[[_Task], _Result | None],
    compute: Callable[[_Task], _Result],
    tasks: Sequence[_Task],
) -> list[_Result]:
    """The results of all tasks: recalled where an earlier run has them, computed by the workers where not."""
    bar = progress.add_task(title, total=len(tasks)) if progress else None
    results, left = [], []
    for task in tasks:
        known = recall(task)
        if known is None:
            left.append(task)
        else:
            results.append(known)
    if progress and bar is not None:
        progress.advance(bar, len(results))
    for result in workers.run(compute, left):
        results.append(result)
        if progress and bar is not None:
            progress.advance(bar)
    return results


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
            marks = ["[green]yes[/green]" if label in row["eligible"] else "[red]-[/red]" for label in labels]
            table.add_row(row["clip_id"], f"{row['seconds']:.1f}", *marks, _why_not(row["reasons"]))
        for left_out in [*funnel["quarantine"], *funnel["dropped"]]:
            name = left_out.get("clip_id", left_out["video"])
            table.add_row(name, "", *[""] * len(labels), f"left out: {left_out['reason']}", style="dim")
    else:
        failed = Counter((label, r["reason"]) for row in funnel["rows"] for label, r in row["reasons"].items())
        for reason in sorted({reason for _, reason in failed}):
            table.add_row("", "", *[str(-failed[label, reason] or "") for label in labels], reason)
        for what, left_out in (("videos not readable", funnel["quarantine"]), ("shots too short", funnel["dropped"])):
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


def main(argv: Sequence[str] | None = None) -> int:
    """`omnihuman curate --videos DIR --out DIR`."""
    parser = argparse.ArgumentParser(
        prog="omnihuman curate",
        description="Cut videos into clips, score them, and tag each with the conditions that it is eligible for.",
        epilog="example: omnihuman curate --videos footage/ --out runs/mine/clips",
    )
    parser.add_argument(
        "--videos",
        required=True,
        type=Path,
        help="folder of videos, searched recursively; NAME.txt: caption of NAME.mp4; splits.json: what is held out",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for clips.jsonl, funnel.json and the landmarks")
    parser.add_argument(
        "--config", type=Path, help="JSON file: shots, thresholds, default_caption, max_seconds_per_video, workers"
    )
    parser.add_argument(
        "--max-seconds-per-video", type=float, help="read at most this many seconds of each video, from its beginning"
    )
    parser.add_argument("--default-caption", help="caption of a video without a .txt beside it")
    parser.add_argument("--workers", type=int, help="processes (default 2)")
    arguments = parser.parse_args(argv)
    config = CurateConfig.from_json(arguments.config.read_text()) if arguments.config else CurateConfig()
    for name in ("max_seconds_per_video", "default_caption", "workers"):
        if getattr(arguments, name) is not None:
            setattr(config, name, getattr(arguments, name))
    console = Console()
    with progress_bar(stays=True) as progress:
        funnel = curate(arguments.videos, arguments.out, config, progress)
    console.print(funnel_table(funnel))
    computed = funnel["computed"]
    console.print(
        f"{arguments.out / CLIPS_FILE}: {funnel['clips']} clips, {computed['clips']} scored in this run", soft_wrap=True
    )
    if not funnel["clips"]:
        raise ValueError(f"{arguments.videos}: no clip was made; {FUNNEL_FILE} in {arguments.out} gives the reasons")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
