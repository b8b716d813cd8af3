"""`omnihuman evaluate --suite psnr`: do the conditions drive the output? Samples of windows against the truth.

The truth is the codec's own round trip of the window. A sample driven by the window's own pose and audio is compared
with it, and so are the still reference frame, the sample driven by another clip's pose, and (in the mouth's region too)
the one driven by another clip's audio. All samples of a window start from the same noise. The windows are held-out ones
where there are any; of windows that were trained on, it shows that conditions drive what was learnt, and nothing more.
"""

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data import packing
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.identity import features_of
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.data.records import DatasetSpec, WindowRecord
from omnihuman_jax.data.window_index import TRAIN_SPLIT
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.evaluation import psnr, sheet
from omnihuman_jax.evaluation.bootstrap import Estimate
from omnihuman_jax.evaluation.closeness import mean_interval
from omnihuman_jax.reporting import sections
from omnihuman_jax.runtime import files
from omnihuman_jax.runtime.locations import Location
from omnihuman_jax.runtime.progress import progress_bar
from omnihuman_jax.sampling import trained_range, trained_run, window_inputs
from omnihuman_jax.sampling.kept_samples import KeptSampler
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.typing import FPS, SPATIAL_STRIDE

NEEDED = ConditionSet.of(Condition.REFERENCE, Condition.AUDIO, Condition.POSE)
KEPT = "psnr_samples"
"""Folder of the samples: the same command goes on where it was broken off."""
SAMPLED = ("sample", "other_pose", "other_audio")
KINDS = ("sample", "still", "other_pose", "other_audio")
SHOWN = ("truth", "sample", "still", "other_pose")
TITLES = {
    "truth": "truth",
    "sample": "own pose + audio",
    "still": "still reference",
    "other_pose": "another's pose",
    "other_audio": "another's audio",
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A window to evaluate: its record, the record of another clip that drives it wrongly, and the mouth's pixels."""

    record: WindowRecord
    other: WindowRecord
    mouth_THW: np.ndarray | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SampledSubject:
    """The pictures of a window, float32 [T, H, W, 3] in [-1, 1], by `truth` and the names of `KINDS`."""

    subject: Subject
    pictures: Mapping[str, np.ndarray]


def choose_windows(catalog: Catalog, count: int, split: str = "") -> tuple[str, list[int], list[int]]:
    """(split, rows to evaluate, rows that drive them wrongly), both of the longest window length that at least two
    clips of the split have.

    The rows are spread over clips and, within a clip, over time; the partner is of another clip. `split`: "held_out" is
    all that is not trained on; "" too, or else what is trained on, where no two clips are held out.
    """
    tried = [split] if split else ["held_out", TRAIN_SPLIT]
    for name in tried:
        among = catalog.split != TRAIN_SPLIT if name == "held_out" else catalog.split == name
        eligible = among & ((catalog.eligible & NEEDED.bits) == NEEDED.bits)
        for frames in sorted(set(catalog.frames[eligible].tolist()), reverse=True):
            rows = np.flatnonzero(eligible & (catalog.frames == frames))
            clips = sorted(set(catalog.clip_id[rows].tolist()))
            if frames > 1 and len(clips) > 1:
                return name, *_spread(catalog, rows, clips, count)
    raise ValueError(
        f"evaluation needs windows of 2 clips that are eligible for {NEEDED.label}, all of one length above 1 frame; "
        f"split {tried[-1]} of the dataset has {int(eligible.sum())} such windows in "
        f"{len(set(catalog.clip_id[eligible].tolist()))} clips (its splits: "
        f"{', '.join(sorted(set(catalog.split.tolist())))})"
    )


def _spread(catalog: Catalog, rows: np.ndarray, clips: Sequence[str], count: int) -> tuple[list[int], list[int]]:
    by_clip = {clip: rows[catalog.clip_id[rows] == clip] for clip in clips}
    by_clip = {clip: own[np.argsort(catalog.start_frame[own], kind="stable")] for clip, own in by_clip.items()}
    chosen = window_inputs.spread(catalog, rows, count)
    # The partner comes from the clip half way round the list: neighbours in it are often of one video.
    partners = []
    for number, row in enumerate(chosen):
        other = by_clip[clips[(clips.index(catalog.clip_id[row]) + max(1, len(clips) // 2)) % len(clips)]]
        partners.append(int(other[number % len(other)]))
    return chosen, partners


def load_subjects(dataset: Location, clips: Path | None, count: int, split: str = "") -> tuple[str, list[Subject]]:
    """(split, windows to evaluate); ValueError where there are none, or where their records cannot be read."""
    catalog, source = Catalog.load(dataset), open_records(dataset)
    split, chosen, partners = choose_windows(catalog, count, split)
    subjects = []
    for row, partner in zip(chosen, partners, strict=True):
        record, other = source[int(catalog.record[row])], source[int(catalog.record[partner])]
        if record is None or other is None:
            print(
                f"skipped {catalog.window_id[row]}: its record, or that of the window it is compared with, "
                "cannot be read"
            )
            continue
        mouth = mouth_region(clips, catalog, row) if clips is not None else None
        subjects.append(Subject(record=record, other=other, mouth_THW=mouth))
    if not subjects:
        raise ValueError(f"{dataset}: none of {len(chosen)} chosen windows can be read; run `omnihuman encode` again")
    return split, subjects


def mouth_region(clips_dir: Path, catalog: Catalog, row: int) -> np.ndarray | None:
    """Bool [T, H, W]: pixels of the window inside the mouth's box, from curate's lip landmarks; None where no face was
    seen.
    """
    from data_pipelines.curate.clip_sets import load_landmarks, read_clips

    clip = next((clip for clip in read_clips(clips_dir) if clip.clip_id == catalog.clip_id[row]), None)
    if clip is None:
        raise ValueError(
            f"{clips_dir} has no clip {catalog.clip_id[row]}: give the folder that the dataset was encoded from"
        )
    landmarks = load_landmarks(clips_dir, clip)
    height, width, start = int(catalog.height[row]), int(catalog.width[row]), int(catalog.start_frame[row])
    frames = slice(start, start + int(catalog.frames[row]))
    scale = np.array([width / clip.width, height / clip.height] * 2)
    boxes = np.where(landmarks.face_T[frames, None], landmarks.mouth_box_T4[frames] * scale, np.nan)
    mask = psnr.box_mask(boxes, height, width)
    return mask if mask.any() else None


def driven_by(subject: Subject, kind: str, slot: int, run: trained_run.TrainedRun) -> packing.PackInput:
    """The window as the model is to see it for one of `SAMPLED`: all conditions, pose or audio of the other clip."""
    record, other = subject.record, subject.other
    active = window_inputs.with_text(NEEDED, record)
    return window_inputs.driven_window(
        run.spec, record, active, slot,
        sound=other if kind == "other_audio" else record,
        pose=other if kind == "other_pose" else record,
    )  # fmt: skip


def sample_subjects(
    run: trained_run.TrainedRun,
    subjects: Sequence[Subject],
    config: SamplingConfig,
    *,
    seed: int,
    batch: int,
    keep: Path | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> list[SampledSubject]:
    """Every sample of every subject, `batch` windows a call of one compiled sampler; those in `keep` are taken from
    there.
    """
    jobs = [
        (number, kind, driven_by(subject, kind, number, run))
        for number, subject in enumerate(subjects)
        for kind in SAMPLED
    ]
    windows = [window for _, _, window in jobs]
    latents = KeptSampler(run, config, windows, batch, keep).all_of(windows, seed, on_progress)
    pictures: list[dict[str, np.ndarray]] = [{} for _ in subjects]
    for number, subject in enumerate(subjects):
        still = trained_run.decode_pictures(run, subject.record.references_RHWC[:1])
        pictures[number]["truth"] = trained_run.decode_pictures(run, subject.record.latents_FHWC)
        pictures[number]["still"] = np.broadcast_to(still, pictures[number]["truth"].shape)
    for (number, kind, _), sampled in zip(jobs, latents, strict=True):
        pictures[number][kind] = trained_run.decode_pictures(run, sampled)
    return [SampledSubject(subject=subject, pictures=found) for subject, found in zip(subjects, pictures, strict=True)]


def measure(outcome: SampledSubject) -> dict[str, Any]:
    """A row of `evaluation.json`: PSNR in dB against the truth, of the whole frames and of the mouth."""
    record, pictures = outcome.subject.record, outcome.pictures
    height, width = (SPATIAL_STRIDE * side for side in record.latents_FHWC.shape[1:3])
    mouth = outcome.subject.mouth_THW
    name = files.safe_name(record.window_id)
    return {
        "window_id": record.window_id,
        "clip_id": record.clip_id,
        "source": record.video,
        "other_window_id": outcome.subject.other.window_id,
        "frames": record.frames,
        "height": height,
        "width": width,
        "sheet": f"evaluation/{name}.png",
        "video": f"evaluation/{name}.mp4",
        "psnr": {kind: psnr.psnr(pictures[kind], pictures["truth"]) for kind in KINDS},
        "psnr_mouth": (
            None if mouth is None else {kind: psnr.psnr(pictures[kind], pictures["truth"], mouth) for kind in KINDS}
        ),
    }


# What the evaluation is about: name -> (which PSNR, of what, less what), of each window.
DIFFERENCES = {
    "gain_over_still_db": ("psnr", "sample", "still"),
    "worse_with_other_pose_db": ("psnr", "sample", "other_pose"),
    "worse_with_other_audio_db": ("psnr", "sample", "other_audio"),
    "worse_with_other_audio_mouth_db": ("psnr_mouth", "sample", "other_audio"),
}


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the windows, and `DIFFERENCES` (dB, means of each window's own), each with the interval of a bootstrap
    over videos and then over their windows (`mean_intervals`, `intervals`); None where nothing was measured.
    """
    means = {key: {kind: _mean(rows, key, kind) for kind in KINDS} for key in ("psnr", "psnr_mouth")}
    found = {name: _mean(rows, *of) for name, of in DIFFERENCES.items()}
    return {
        **{f"mean_{key}": {kind: one and one.value for kind, one in by.items()} for key, by in means.items()},
        "mean_intervals": {
            key: {kind: one and dataclasses.asdict(one) for kind, one in by.items()} for key, by in means.items()
        },
        **{name: one and one.value for name, one in found.items()},
        "intervals": {name: one and dataclasses.asdict(one) for name, one in found.items()},
    }


def _mean(rows: Sequence[Mapping[str, Any]], key: str, kind: str, minus: str | None = None) -> Estimate | None:
    usable = [row for row in rows if row[key] is not None]
    if not usable:
        return None
    values_N = np.array([row[key][kind] - (row[key][minus] if minus else 0.0) for row in usable])
    return mean_interval(values_N, [row["source"] for row in usable])


def write_results(out: Path, outcomes: Sequence[SampledSubject], result: Mapping[str, Any]) -> list[Path]:
    """The pictures, then `evaluation.json`: what is named in it is there.

    `evaluation/<window>.png` shows rows of frames, `evaluation/<window>.mp4` the same videos side by side, and
    `contact_sheet.png` all rows below one another.
    """
    folder = out / "evaluation"
    rows = ("truth", "sample", "still", "other_pose")
    sheets, paths = [], []
    for outcome, row in zip(outcomes, result["windows"], strict=True):
        videos = {kind: sheet.to_uint8(outcome.pictures[kind]) for kind in (*rows, "other_audio")}
        labels = {
            TITLES[kind] if kind == "truth" else f"{TITLES[kind]}  {row['psnr'][kind]:.1f} dB": videos[kind]
            for kind in rows
        }
        sheets.append(sheet.draw_rows(labels, title=f"{row['window_id']}, {row['frames']} frames"))
        name = files.safe_name(row["window_id"])
        paths += [folder / f"{name}.png", folder / f"{name}.mp4"]
        sheet.write_png(paths[-2], sheets[-1])
        media_omnihuman.write_video(paths[-1], np.concatenate([videos[kind] for kind in rows], axis=2), FPS)
    paths.append(out / "contact_sheet.png")
    sheet.write_png(paths[-1], sheet.stack_sheets(sheets))
    paths.append(out / "evaluation.json")
    files.write_text(paths[-1], json.dumps(_finite(result), indent=2, allow_nan=False) + "\n")
    return paths


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not have (the PSNR of equal pictures)."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluate(
    run: trained_run.TrainedRun,
    out: Path,
    *,
    clips: Path | None = None,
    config: SamplingConfig | None = None,
    split: str = "",
    windows: int = 6,
    batch: int = 6,
    seed: int = 0,
    on_progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Samples windows, writes pictures and `evaluation.json` below `out`, and returns what the latter holds.

    Args:
        run: of `inference.open_run`; its dataset must be there.
        out: folder; made if need be.
        clips: folder of `omnihuman curate` that the dataset was made from: where the mouths are. None: whole frames
            only.
        config: steps and guidance.
        split: of the windows, as `choose_windows` has it.
        windows: how many windows to sample, each under three drivings.
        batch: windows a sampler call.
        seed: of the noise.
        on_progress: hears the share of the sampling done since it was last called.

    Raises:
        FileNotFoundError, ValueError: one line that names the cure.
    """
    if windows < 1 or batch < 1:
        raise ValueError(f"--windows {windows} and --batch {batch} must be at least 1")
    for condition, branch in ((Condition.AUDIO, run.config.model.audio), (Condition.POSE, run.config.model.pose)):
        if branch is None:
            raise ValueError(
                f"the model of {run.directory} has no {condition.label} input: there is nothing to evaluate here"
            )
    for warning in trained_range.check_model(run, NEEDED):
        print(f"warning: {warning}", file=sys.stderr)
    config = config or run.config.sampling
    config.validate()
    begin = time.monotonic()
    trained_run.check_features(str(run.dataset), features_of(run.spec), DatasetSpec.load(run.dataset))
    split, subjects = load_subjects(run.dataset, clips, windows, split)
    outcomes = sample_subjects(run, subjects, config, seed=seed, batch=batch, keep=out / KEPT, on_progress=on_progress)
    rows = [measure(outcome) for outcome in outcomes]
    result = {
        "split": split,
        "step": run.step,
        "weights": run.weights,
        "sampling_steps": config.num_steps,
        "guidance": dataclasses.asdict(config.guidance),
        "seed": seed,
        "seconds": round(time.monotonic() - begin, 1),
        **summarise(rows),
        "contact_sheet": "contact_sheet.png",
        "windows": rows,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_results(out, outcomes, result)
    return result


def print_table(result: Mapping[str, Any]) -> None:
    """PSNR a window, the means, and what they say."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(
        title=f"PSNR in dB against the codec's round trip (split {result['split']}, step {result['step']}, "
        f"{result['weights']} weights)"
    )
    table.add_column("window", overflow="fold")
    for heading in ("own", "still", "other pose", "other audio", "mouth, own", "mouth, other audio"):
        table.add_column(heading, justify="right")

    def cells(whole: Mapping[str, float], mouth: Mapping[str, float] | None) -> list[str]:
        values = [whole[kind] for kind in KINDS] + [mouth and mouth[kind] for kind in ("sample", "other_audio")]
        return ["-" if value is None else f"{value:.2f}" for value in values]

    for row in result["windows"]:
        table.add_row(Text(row["window_id"]), *cells(row["psnr"], row["psnr_mouth"]))
    table.add_section()
    table.add_row("mean", *cells(result["mean_psnr"], result["mean_psnr_mouth"]), style="bold")
    table.add_row("95 %", *sections.psnr_interval_cells(result))
    console.print(table)
    for label, key in (
        ("driven by its own pose and audio, against the still reference", "gain_over_still_db"),
        ("lost when driven by another clip's pose", "worse_with_other_pose_db"),
        ("lost when driven by another clip's audio, whole frame", "worse_with_other_audio_db"),
        ("lost when driven by another clip's audio, mouth region", "worse_with_other_audio_mouth_db"),
    ):
        console.print(f"  {label}: {_with_interval(result['intervals'][key])}")


def _with_interval(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not measured (no --clips, or no face)"
    return (
        f"[bold]{found['value']:+.2f} dB[/] \\[{found['low']:+.2f}, {found['high']:+.2f}], "
        f"n = {found['windows']} of {found['people']} videos"
    )


def run_suite(run: trained_run.TrainedRun, config: SamplingConfig, options: argparse.Namespace) -> int:
    """Measures, prints a table, writes evaluation.json and the pictures into --out."""
    with progress_bar("share") as bar:
        task = bar.add_task("sampling", total=1.0)
        result = evaluate(
            run,
            options.out,
            clips=options.clips,
            config=config,
            split=options.split or "",
            windows=options.windows,
            batch=options.batch,
            seed=options.seed,
            on_progress=lambda share: bar.advance(task, share),
        )
    print_table(result)
    return 0
