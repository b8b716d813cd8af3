"""`omnihuman evaluate --suite theatre`: mouths, joints, gestures and long videos of drawn people."""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnihuman_jax.ablation.suite import METRICS, rows_of
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.evaluation import sheet
from omnihuman_jax.evaluation.bootstrap import Estimate
from omnihuman_jax.evaluation.paired import paired_effect
from omnihuman_jax.reporting import theatre_page
from omnihuman_jax.runtime import files
from omnihuman_jax.runtime.locations import local
from omnihuman_jax.runtime.progress import progress_bar
from omnihuman_jax.sampling import trained_range, trained_run
from omnihuman_jax.sampling.drift import measure_drift, summarise
from omnihuman_jax.sampling.gesture_spread import measure_spread
from omnihuman_jax.sampling.lip_sync import Subjects, TruthWindow, measure_lip_sync, plain, subjects_of
from omnihuman_jax.sampling.pose_drive import measure_pose_drive
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.serving.windows_omnihuman import MOTION_FRAMES
from omnihuman_jax.typing import FPS, SAMPLE_RATE_HZ

RESULT_FILE = "lip_sync.json"
PAGE_FILE, VIDEOS = "lip_sync.html", "lip_sync_videos"
KEPT = "theatre_samples"
"""Folder of the samples: the same command goes on where it was broken off."""
CHAINS = "theatre_chains"
"""Folder of the long videos, with their sound."""
POSE_FILE, POSE_PICTURE = "pose_drive.json", "pose_drive.png"
SHOWN = 4  # examples in the moving picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--suite",
        choices=("psnr", "gain", "theatre", "field", "all"),
        default="psnr",
        help=(
            "what is measured: PSNR against the windows (default), what each condition takes off the denoising loss,"
            " lip-sync on the theatre's held-out windows, the field's measures on held-out windows or pairs of videos,"
            " or all of them"
        ),
    )
    parser.add_argument(
        "--truth", type=local, metavar="DIR", help="suite theatre: folder `truth` of `omnihuman theatre`"
    )
    parser.add_argument(
        "--split",
        help="which windows (suite theatre: unseen_face_and_speech; others: held_out, all that are not train)",
    )
    parser.add_argument(
        "--chains", type=int, default=0, metavar="N",
        help="suite theatre: long videos of so many clips: drift of colours, and the mouth at the end (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--pose-windows", type=int, default=0, metavar="N",
        help=(
            "suite theatre: joints of so many windows driven by pose without sound, three times each; with --windows 0"
            " nothing else, for clips without sound (%(default)s)"
        ),
    )  # fmt: skip
    parser.add_argument(
        "--gesture-seeds", type=int, default=0, metavar="N",
        help="suite theatre: how much arms differ over so many seeds, each of --windows (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--against", type=local, metavar="FILE",
        help="suite theatre: lip_sync.json of another evaluation of the same windows: how much this one differs",
    )  # fmt: skip
    parser.add_argument(
        "--chain-seconds", type=float, default=30.0, metavar="S", help="how long they are (%(default)s)"
    )


def run_suite(run: trained_run.TrainedRun, config: SamplingConfig, options: argparse.Namespace) -> int:
    """Measures, prints a table, writes lip_sync.json, .html, .png and .gif, and videos, into --out."""
    if options.truth is None:
        raise ValueError("--suite theatre needs --truth, the folder `truth` that `omnihuman theatre` wrote")
    split = options.split or "unseen_face_and_speech"
    if not options.windows:
        return _pose_alone(run, config, options, split)
    # Read first: a wrong file is said before hours of sampling.
    other = read_result(options.against) if options.against else None
    for warning in trained_range.check_model(run, ConditionSet.of(Condition.REFERENCE, Condition.AUDIO)):
        print(f"warning: {warning}", file=sys.stderr)
    subjects = subjects_of(run, run.dataset, options.truth, split, options.windows)
    sampled: dict[str, Any] = {"batch": options.batch, "config": config, "seed": options.seed}
    sampled["keep"] = options.out / KEPT
    with progress_bar("share") as bar:

        def task(what: str) -> Callable[[float], None]:
            number = bar.add_task(what, total=1.0)
            return lambda share: bar.advance(number, share)

        result, examples = measure_lip_sync(run, subjects, on_progress=task("sampling"), **sampled)
        if options.pose_windows:
            result["joints"], driven = measure_pose_drive(
                run, run.dataset, options.truth, split=split, windows=options.pose_windows,
                on_progress=task("pose alone"), **sampled,
            )  # fmt: skip
            _write_rows(options.out / POSE_PICTURE, driven)
        if options.gesture_seeds:
            result["gesture_spread"] = measure_spread(
                run, subjects, seeds=options.gesture_seeds, on_progress=task("other seeds"), **sampled
            )
        if options.chains:
            chains = measure_drift(
                run, subjects.clips, count=options.chains, seconds=options.chain_seconds,
                on_progress=task("long videos"), **sampled,
                on_chain=functools.partial(_write_chain, options.out / CHAINS, options.truth),
            )  # fmt: skip
            result["windows"] += chains
            result["chains"] = {"seconds": options.chain_seconds} | summarise(chains)
    if other is not None:
        result["against"] = {"file": str(options.against)} | differences(result, other)
    write_results(options.out, result, examples, subjects, options.truth)
    print_table(result)
    return 0


def _pose_alone(run: trained_run.TrainedRun, config: SamplingConfig, options: argparse.Namespace, split: str) -> int:
    """What `--windows 0` leaves: prints a table, writes pose_drive.json and .png into --out."""
    for name in ("chains", "gesture_seeds", "against"):
        if getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')} needs windows with sound: give --windows, at least 1")
    for warning in trained_range.check_model(run, ConditionSet.of(Condition.REFERENCE, Condition.POSE)):
        print(f"warning: {warning}", file=sys.stderr)
    with progress_bar("share") as bar:
        number = bar.add_task("pose alone", total=1.0)
        joints, examples = measure_pose_drive(
            run, run.dataset, options.truth, split=split, windows=options.pose_windows, batch=options.batch,
            config=config, seed=options.seed, keep=options.out / KEPT,
            on_progress=lambda share: bar.advance(number, share),
        )  # fmt: skip
    result = {
        "split": split,
        "step": run.step,
        "weights": run.weights,
        "sampling_steps": config.num_steps,
        "joints": joints,
    }
    _write_rows(options.out / POSE_PICTURE, examples)
    files.write_text(options.out / POSE_FILE, json.dumps(result, indent=2) + "\n")
    print_table(result)
    return 0


def _write_rows(path: Path, examples: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Windows below each other, a row of frames for each video of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = [sheet.draw_rows(rows, title=window, columns=10) for window, rows in examples.items()]
    sheet.write_png(path, sheet.stack_sheets(drawn))


def read_result(path: Path) -> dict[str, Any]:
    """A `lip_sync.json`; FileNotFoundError, or ValueError for what is none."""
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        is_result = any("mouth" in one for one in result["windows"])
    except FileNotFoundError:
        raise FileNotFoundError(f"--against {path}: not there; give the {RESULT_FILE} of another --out") from None
    except (ValueError, KeyError, TypeError):
        is_result = False
    if not is_result:
        raise ValueError(f"--against {path}: not a {RESULT_FILE} of `omnihuman evaluate --suite theatre`")
    return result


def differences(result: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """This result's numbers less the other's, on the windows of both, each with its interval; ValueError where there
    are none.
    """
    found: dict[str, Any] = {}
    for name in ("mouth_correlation", "mouth_range", "gesture_range"):
        mine, theirs = rows_of(result, name), rows_of(other, name)
        if common := sorted(mine.keys() & theirs.keys()):
            more, less = (np.array([[own[one] for one in common]]) for own in (mine, theirs))
            effect = paired_effect(more, less, [person for _, person in common], METRICS[name].of_sums)
            between = Estimate(effect.value, effect.low, effect.high, effect.windows, effect.people)
            found[METRICS[name].what] = plain(between)
    if not found:
        raise ValueError("--against: the other evaluation has none of these windows; give --split and --windows alike")
    return found


def write_results(
    out: Path,
    result: Mapping[str, Any],
    examples: Mapping[str, Mapping[str, np.ndarray]],
    subjects: Subjects,
    truth_dir: Path,
) -> None:
    """The pictures and videos, with the sound of the theatre's video where that is beside the truth; then the page, and
    last the numbers.
    """
    _write_rows(out / "lip_sync.png", examples)
    shapes = {window: rows["truth"].shape for window, rows in examples.items()}
    alike = [rows for window, rows in examples.items() if shapes[window] == next(iter(shapes.values()))]
    sheet.write_gif(out / "lip_sync.gif", alike[:SHOWN], FPS)
    by_id = {window.record.window_id: window for window, _ in subjects.pairs}
    shown = []
    for name, rows in examples.items():
        place = f"{VIDEOS}/{files.safe_name(name)}.mp4"
        wave = _sound(by_id[name], truth_dir)
        media_omnihuman.write_video(out / place, sheet.side_by_side([rows]), FPS, wave, SAMPLE_RATE_HZ)
        shown.append((name, place))
    labels = list(next(iter(examples.values()), {}))
    files.write_text(out / PAGE_FILE, theatre_page.page(result, shown, labels))
    files.write_text(out / RESULT_FILE, json.dumps(result, indent=2) + "\n")


def _write_chain(folder: Path, truth_dir: Path, windows: Sequence[TruthWindow], video: np.ndarray) -> None:
    """A long video with the sound that drove it, so that what its numbers say can be looked at."""
    waves = [_sound(window, truth_dir) for window in windows]
    skipped = MOTION_FRAMES * SAMPLE_RATE_HZ // FPS
    wave = None
    if all(one is not None for one in waves):
        wave = np.concatenate([one if i == 0 else one[skipped:] for i, one in enumerate(waves) if one is not None])
    folder.mkdir(parents=True, exist_ok=True)
    played = sheet.side_by_side([{windows[0].clip: sheet.to_uint8(video)}])
    path = folder / f"{files.safe_name(windows[0].clip)}.mp4"
    media_omnihuman.write_video(path, played, FPS, wave, SAMPLE_RATE_HZ)


def _sound(window: TruthWindow, truth_dir: Path) -> np.ndarray | None:
    """Of the window, out of the video that `omnihuman theatre` wrote; None where it is not there, or silent."""
    video = truth_dir.parent / "videos" / f"{window.clip.rpartition('-')[0]}.mp4"
    if not video.is_file():
        return None
    length = len(window.opening_T) / FPS
    return media_omnihuman.read_audio(video, SAMPLE_RATE_HZ, window.video_frame / FPS, length)


def print_table(result: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=f"against the truth, split {result['split']}, step {result['step']}, {result['weights']}")
    for heading in theatre_page.HEAD:
        table.add_column(heading, justify="right" if heading else "left")
    for title, rows in theatre_page.sections(result):
        table.add_section()
        table.add_row(f"[bold]{title}[/]")
        for row in rows:
            table.add_row(*row)
    console.print(table)
    if "peak_lag_frames" in result:
        console.print(f"  {theatre_page.lag(result)}")
