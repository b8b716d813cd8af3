"""`omnihuman curate`: from a folder of videos to clips that know which conditions they are eligible for.

    scan     header, damage, shots -> frame ranges        a video at a time    kept in OUT/videos/<id>.json
    analyse  pictures, landmarks, sound -> raw scores     a clip at a time     kept in OUT/clips/<clip_id>/
    tag      scores -> eligible set and reasons           always made again    OUT/clips.jsonl, OUT/funnel.json

Nothing is thrown away without a reason written on it: a video, clip or caption that cannot be read is in the funnel's
`quarantine` with its stage, a file that is no video in `passed_over`, a shot that is too short in `dropped`, and a clip
has a reason for each condition that it is not eligible for. No single file ends the run, not even one that kills the
process that reads it.
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress

from data_pipelines.curate import captions, file_stages, footage
from data_pipelines.curate.clips import CLIPS_FILE, Clip, write_clips, write_text
from data_pipelines.curate.funnel import funnel_of, funnel_table, left_out_lines
from data_pipelines.curate.held_out import with_splits
from data_pipelines.curate.shots import ShotConfig
from data_pipelines.curate.tagging import Thresholds, tag
from data_pipelines.curate.workers import DIED, Workers
from omnihuman_jax.plain_values import check_finite, structure
from omnihuman_jax.runtime import file_names
from omnihuman_jax.runtime.locations import local
from omnihuman_jax.runtime.progress import progress_bar
from omnihuman_jax.typing import FPS

FUNNEL_FILE = "funnel.json"
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


@dataclasses.dataclass(kw_only=True, slots=True)
class CurateConfig:
    """What curate does. `max_seconds_per_video` reads only the beginning of long videos; None reads all of them.

    caption_encoding: of captions that are neither UTF-8 nor marked as UTF-16; "": there are none.
    """

    shots: ShotConfig = dataclasses.field(default_factory=ShotConfig)
    thresholds: Thresholds = dataclasses.field(default_factory=Thresholds)
    default_caption: str = "A video."
    caption_encoding: str = ""
    max_seconds_per_video: float | None = None
    workers: int = 2

    def validate(self) -> None:
        check_finite(self)
        self.shots.validate()
        self.thresholds.validate()
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {self.workers}")
        if self.max_seconds_per_video is not None and self.max_seconds_per_video <= 0:
            raise ValueError(f"max_seconds_per_video must be greater than 0, not {self.max_seconds_per_video}")
        captions.check_encoding(self.caption_encoding)
        captions.check_text("default_caption", self.default_caption)

    @classmethod
    def from_json(cls, text: str) -> "CurateConfig":
        """The configuration whose JSON this is; what it does not name keeps its default, an unknown name or a value of
        another type is an error.
        """
        return structure(cls, json.loads(text), whole="a curate configuration")


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
        ChildProcessError: no worker process starts.
    """
    config = config or CurateConfig()
    config.validate()
    out = Path(out_dir)
    found = footage.look_into(videos_dir, besides=out)
    footage.check_any(videos_dir, found)
    ids = footage.video_ids(list(found.videos))
    scan_tasks = [
        file_stages.ScanTask(
            path=str(path),
            name=name,
            video_id=ids[name],
            record=str(out / "videos" / f"{ids[name]}.json"),
            shots=config.shots,
            max_seconds=config.max_seconds_per_video,
        )
        for name, path in found.videos.items()
    ]
    with Workers[Any, Any](config.workers) as workers:
        scans = _tracked(progress, "scan videos", workers, _SCAN, scan_tasks)
        scans.sort(key=lambda scan: scan.name)
        tasks = _analysis_tasks(scans, out)
        # Longest first: no worker is left with the longest alone at the end.
        tasks.sort(key=lambda task: task.start_frame - task.end_frame)
        analyses = {a.clip_id: a for a in _tracked(progress, "score clips", workers, _SCORE, tasks)}
    tasks.sort(key=lambda task: (task.video.name, task.start_frame))
    texts, unread = _captions([scan for scan in scans if scan.ranges], found.videos, config)
    clips = [
        _clip(task, analyses[task.clip_id], texts[task.video.name], out, config)
        for task in tasks
        if not analyses[task.clip_id].error and task.video.name in texts
    ]
    _forget_others(out, ids, {task.clip_id for task in tasks})
    funnel = funnel_of(scans, tasks, analyses, clips, unread, found.passed_over)
    write_clips(out, with_splits(videos_dir, clips))
    write_text(out / FUNNEL_FILE, json.dumps({**funnel, "config": dataclasses.asdict(config)}, indent=1) + "\n")
    return funnel


def _captions(
    scans: Sequence[file_stages.Scan], paths: dict[str, Path], config: CurateConfig
) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """(video -> caption and its source, video -> why its caption cannot be read)."""
    texts, unread = {}, {}
    for scan in scans:
        try:
            texts[scan.name] = captions.caption_of(paths[scan.name], config.default_caption, config.caption_encoding)
        except captions.CaptionError as error:
            unread[scan.name] = file_names.printable(str(error))
    return texts, unread


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


def _clip(
    task: file_stages.AnalysisTask,
    analysis: file_stages.Analysis,
    caption: tuple[str, str],
    out: Path,
    config: CurateConfig,
) -> Clip:
    eligible, reasons = tag(analysis.scores, config.thresholds)
    return Clip(
        clip_id=task.clip_id,
        video=task.video.name,
        path=file_names.plain(os.path.relpath(task.video.path, out)),
        sha256=task.video.sha256,
        start_frame=task.start_frame,
        end_frame=task.end_frame,
        fps=FPS,
        height=task.video.height,
        width=task.video.width,
        has_audio=task.video.has_audio,
        caption=caption[0],
        caption_source=caption[1],
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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Stage:
    """How a stage's result is found again, made by a worker, or stated where the worker died."""

    recall: Callable[[Any], Any]
    compute: Callable[[Any], Any]
    failed: Callable[[Any, str], Any]


_SCAN = _Stage(recall=file_stages.recall_scan, compute=file_stages.scan, failed=file_stages.failed_scan)
_SCORE = _Stage(recall=file_stages.recall_analysis, compute=file_stages.analyse, failed=file_stages.failed_analysis)


def _tracked(
    progress: Progress | None, title: str, workers: Workers[Any, Any], stage: _Stage, tasks: Sequence[Any]
) -> list[Any]:
    """The results of all tasks: recalled where an earlier run has them, computed by the workers where not."""
    bar = progress.add_task(title, total=len(tasks)) if progress else None
    results, left = [], []
    for task in tasks:
        known = stage.recall(task)
        if known is None:
            left.append(task)
        else:
            results.append(known)
    if progress and bar is not None:
        progress.advance(bar, len(results))
    for task, result in workers.run(stage.compute, left):
        results.append(stage.failed(task, DIED) if result is None else result)
        if progress and bar is not None:
            progress.advance(bar)
    return results


def _read_config(path: Path) -> CurateConfig:
    try:
        return CurateConfig.from_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


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
        type=local,
        help="folder of videos, searched recursively; NAME.txt holds the caption of NAME.mp4 (UTF-8, or UTF-16 with its"
        " mark), splits.json what is held out",
    )
    parser.add_argument(
        "--out", required=True, type=local, help="folder for clips.jsonl, funnel.json and the landmarks"
    )
    parser.add_argument(
        "--config",
        type=local,
        help="JSON file: shots, thresholds, default_caption, caption_encoding, max_seconds_per_video, workers",
    )
    parser.add_argument(
        "--max-seconds-per-video", type=float, help="read at most this many seconds of each video, from its beginning"
    )
    parser.add_argument("--default-caption", help="caption of a video without a .txt beside it")
    parser.add_argument(
        "--caption-encoding",
        metavar="NAME",
        help="encoding of captions that are neither UTF-8 nor marked as UTF-16, such as cp1252 (default: refuse them)",
    )
    parser.add_argument("--workers", type=int, help="processes (default 2)")
    arguments = parser.parse_args(argv)
    config = _read_config(arguments.config) if arguments.config else CurateConfig()
    for name in ("max_seconds_per_video", "default_caption", "caption_encoding", "workers"):
        if getattr(arguments, name) is not None:
            setattr(config, name, getattr(arguments, name))
    console = Console()
    with progress_bar(stays=True) as progress:
        funnel = curate(arguments.videos, arguments.out, config, progress)
    console.print(funnel_table(funnel))
    done = f"{arguments.out / CLIPS_FILE}: {funnel['clips']} clips, {funnel['computed']['clips']} scored in this run"
    for line in [*left_out_lines(funnel), file_names.printable(done)]:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    if not funnel["clips"]:
        raise ValueError(f"{arguments.videos}: no clip was made; {FUNNEL_FILE} in {arguments.out} gives the reasons")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
