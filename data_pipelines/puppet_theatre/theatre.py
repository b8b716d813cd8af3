"""`omnihuman theatre --out DIR --hours H --seed S`: drawn people who speak, with the truth about every frame.

    DIR/videos/theatre-000017.mp4, .txt    what `omnihuman curate` reads; splits.json says what is held out
    DIR/truth/theatre-000017.npz           opening of the mouth, keypoints, colours, planted faults (`truth.py`)
    DIR/clips/                             what `omnihuman encode` reads: tags and landmarks of the truth
    DIR/theatre.json                       seed, programme, voices, funnel

Every clip is a pure function of (seed, its number, programme, voices): clips that exist are not drawn again, a longer
run adds to a shorter one, and any number of processes draws the same bits.
"""

import argparse
import collections
import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from data_pipelines.curate.clips import Clip, write_text
from data_pipelines.curate.held_out import SPLITS_FILE
from data_pipelines.engines.local_pool import LocalPool
from data_pipelines.puppet_theatre.clips_of_truth import write_clips_of_truth
from data_pipelines.puppet_theatre.programme import PROGRAMMES, ClipPlan, fingerprint, plan_clip
from data_pipelines.puppet_theatre.voices import RECORDINGS, VOICES, Cast, Speech, find_cast
from data_pipelines.sample_media import cache_folder
from omnihuman_jax.conditions import Condition
from omnihuman_jax.runtime.locations import local
from omnihuman_jax.runtime.progress import progress_bar
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.typing import FPS, SAMPLE_RATE_HZ

THEATRE_FILE = "theatre.json"
# Nearly lossless: what a codec does to a picture is for whoever studies that.
_CRF = 14


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TheatreConfig:
    """What is played.

    voices      all that are installed, the neural one alone, or the recorded ones alone (`VOICES`)
    lines       where spoken lines are kept
    recordings  a folder with a folder of prompts for each speaker
    """

    hours: float
    seed: int = 0
    programme: str = "biased"
    lines: Path = dataclasses.field(default_factory=lambda: cache_folder() / "theatre_lines")
    recordings: Path = RECORDINGS
    voices: str = "all"
    workers: int = 2

    def validate(self) -> None:
        if not 0 < self.hours < 10_000:
            raise ValueError(f"--hours {self.hours}: more than 0, and less than 10000")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: 0 or more")
        if self.programme not in PROGRAMMES:
            raise ValueError(f"--programme {self.programme!r}: one of {', '.join(PROGRAMMES)}")
        if self.workers < 1:
            raise ValueError(f"--workers {self.workers}: at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """A clip to be drawn, in whichever process."""

    out: Path
    seed: int
    plan: ClipPlan
    cast: Cast
    lines: Path
    recordings: Path


def theatre(out: Path, config: TheatreConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Draws what is not there yet; returns the summary that it also writes to theatre.json.

    Raises:
        ValueError: wrong settings, no voice, or `out` holds another theatre.
        ChildProcessError: a worker, or the neural voice, died.
    """
    config.validate()
    cast = find_cast(config.recordings, config.voices)
    plans = plans_of(config, cast)
    _claim(out, config, cast)
    for folder in ("videos", "truth"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    splits = {f"{plan.name}.mp4": plan.split for plan in plans}
    write_text(out / "videos" / SPLITS_FILE, json.dumps(splits, indent=0) + "\n")
    tasks = [
        _Task(out=out, seed=config.seed, plan=plan, cast=cast, lines=config.lines, recordings=config.recordings)
        for plan in plans
        if not truth_path(out, plan.name).is_file()
    ]
    _draw_all(tasks, len(plans), config.workers, progress)
    clips = write_clips_of_truth(out, [plan.name for plan in plans])
    summary = {**_identity(config, cast), "drawn": len(tasks), **_summary(plans, clips)}
    write_text(out / THEATRE_FILE, json.dumps(summary, indent=1) + "\n")
    return summary


def truth_path(out: Path, name: str) -> Path:
    return out / "truth" / f"{name}.npz"


def plans_of(config: TheatreConfig, cast: Cast) -> list[ClipPlan]:
    """The first plans that fill the hours: a longer theatre begins with the clips of a shorter one."""
    plans: list[ClipPlan] = []
    left = round(config.hours * 3600 * FPS)
    while left > 0:
        plans.append(plan_clip(config.seed, len(plans), PROGRAMMES[config.programme], cast))
        left -= plans[-1].frames
    return plans


def _identity(config: TheatreConfig, cast: Cast) -> dict[str, Any]:
    """What decides every bit of every clip."""
    return {
        "seed": config.seed,
        "programme": config.programme,
        "programme_fingerprint": fingerprint(PROGRAMMES[config.programme]),
        "voices": list(cast.training),
        "held_out_voices": list(cast.held_out),
        "prompts": {voice: len(prompts) for voice, prompts in cast.prompts.items()},
    }


def _claim(out: Path, config: TheatreConfig, cast: Cast) -> None:
    """Writes whose folder this is; ValueError if it is another theatre's."""
    ours, file = _identity(config, cast), out / THEATRE_FILE
    if file.is_file():
        theirs = json.loads(file.read_text())
        if other := [name for name, value in ours.items() if theirs.get(name) != value]:
            raise ValueError(
                f"{out}: holds a theatre with another {', '.join(other)} ({theirs.get(other[0])}, not "
                f"{ours[other[0]]}); choose another --out, or the same options"
            )
        return
    if (out / "videos").is_dir() and any((out / "videos").iterdir()):
        raise ValueError(f"{out}/videos: holds videos of something else; choose another --out")
    write_text(file, json.dumps(ours, indent=1) + "\n")


def _draw_all(tasks: list[_Task], total: int, workers: int, progress: Progress | None) -> None:
    bar = progress.add_task("drawing clips", total=total) if progress else None
    if progress and bar is not None:
        progress.advance(bar, total - len(tasks))
    for name in _drawn(tasks, workers):
        if progress and bar is not None:
            progress.update(bar, advance=1, text=name)


def _drawn(tasks: list[_Task], workers: int) -> Iterator[str]:
    """Names of clips as they are finished. One process is this one: a clip or two are drawn before another starts."""
    if workers == 1:
        yield from map(draw_clip, tasks)
        return
    with LocalPool[_Task, str](workers) as pool:
        for task, name in pool.run(draw_clip, tasks):
            if name is None:
                raise ChildProcessError(
                    f"the process that drew {task.plan.name} died (out of memory?); finished clips are kept; run again "
                    "with --workers 1"
                )
            yield name


@functools.cache
def _speech(lines: Path, recordings: Path) -> Speech:
    """One neural voice a process."""
    return Speech(lines, recordings)


def draw_clip(task: _Task) -> str:
    """Draws a clip into its three files, the truth last: where it is, the clip is whole."""
    from data_pipelines.puppet_theatre.performance import perform  # skia, in the processes that draw alone

    played = perform(task.seed, task.plan, task.cast, _speech(task.lines, task.recordings))
    video = task.out / "videos" / f"{task.plan.name}.mp4"
    media_omnihuman.write_video(
        video, iter(played.frames_THW3), FPS, audio=played.wave, sample_rate=SAMPLE_RATE_HZ, crf=_CRF
    )
    write_text(video.with_suffix(".txt"), played.caption + "\n")
    played.truth.save(truth_path(task.out, task.plan.name))
    return task.plan.name


def _summary(plans: Sequence[ClipPlan], clips: Sequence[Clip]) -> dict[str, Any]:
    return {
        "clips": len(plans),
        "hours": round(sum(plan.frames for plan in plans) / FPS / 3600, 4),
        "strong_hours_share": round(sum(p.frames for p in plans if p.strong) / sum(p.frames for p in plans), 4),
        "splits": dict(collections.Counter(plan.split for plan in plans)),
        "faults": dict(collections.Counter(plan.fault for plan in plans)),
        "eligible_s": {
            c.label: round(sum(clip.seconds for clip in clips if c.label in clip.eligible), 1) for c in Condition
        },
    }


def summary_table(summary: dict[str, Any]) -> Table:
    table = Table(title=f"{summary['clips']} clips, {summary['hours']:.2f} h, programme {summary['programme']}")
    table.add_column("")
    table.add_column("", overflow="fold")
    table.add_row("drawn in this run", str(summary["drawn"]))
    table.add_row(
        "voices", ", ".join(summary["voices"]) + f"; held out: {', '.join(summary['held_out_voices']) or '-'}"
    )
    for name in ("splits", "faults", "eligible_s"):
        table.add_row(name.replace("_", " "), ", ".join(f"{key} {value}" for key, value in summary[name].items()))
    return table


_NEXT = """next:
  omnihuman encode {out}/clips --out {out}/dataset ...             tags and landmarks of the truth
  omnihuman curate --source {out}/videos --out {out}/curated       what the filters make of the same videos
docs/theatre.md has the whole commands, and what the theatre does not show."""


def main(argv: Sequence[str] | None = None) -> int:
    """`omnihuman theatre --out DIR --hours H --seed S`."""
    width = max(map(len, PROGRAMMES))
    programmes = "\n".join(f"  {name:<{width}} {programme.what}" for name, programme in PROGRAMMES.items())
    parser = argparse.ArgumentParser(
        prog="omnihuman theatre",
        description="Draw people who speak, with the truth about every frame: opening of the mouth, keypoints, faults.",
        epilog=f"programmes:\n{programmes}\n\n"
        "example: omnihuman theatre --out runs/theatre --hours 0.25 --seed 0 --programme faces\n\n"
        + _NEXT.format(out="runs/theatre"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, type=local, help="folder; clips that are there already are kept")
    parser.add_argument("--hours", required=True, type=float, help="hours of video in all")
    parser.add_argument("--seed", type=int, default=0, help="of the world (default: %(default)s)")
    parser.add_argument("--programme", default="biased", choices=PROGRAMMES, help="what is played (%(default)s)")
    parser.add_argument(
        "--voices",
        choices=VOICES,
        default="all",
        help="who speaks: all that is installed (default), the neural voice alone, or recorded prompts alone",
    )
    parser.add_argument(
        "--recordings", type=local, default=RECORDINGS, help="folder with a folder of prompts a speaker (%(default)s)"
    )
    parser.add_argument("--lines", type=local, help="where spoken lines are kept (default: the cache of sample-media)")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw (default: %(default)s)")
    options = parser.parse_args(argv)
    given = {"lines": options.lines} if options.lines else {}
    config = TheatreConfig(
        hours=options.hours,
        seed=options.seed,
        programme=options.programme,
        recordings=options.recordings,
        voices=options.voices,
        workers=options.workers,
        **given,
    )
    with progress_bar(stays=True) as progress:
        summary = theatre(options.out, config, progress)
    console = Console()
    console.print(summary_table(summary))
    console.print(_NEXT.format(out=options.out), highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
