"""The files of a run's folder, and the few numbers that matter: read from the files that the other commands wrote."""

import collections
import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omnihuman_jax.conditions import Condition
from omnihuman_jax.reporting import charts

LABELS = tuple(condition.label for condition in Condition)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The files of a run's folder: parsed JSON where there is some, None or empty where there is not.

    metrics: lines of metrics.jsonl. steps: stamps of `omnihuman demo` by name. catalog: a small summary of the windows.
    samples: videos of `omnihuman generate`. comparisons, contact_sheet: what `omnihuman evaluate` drew.
    rounds: (finished steps, folder) of the samples that training made, in order.
    """

    root: Path
    run: Path
    config: Mapping[str, Any] | None
    metrics: Sequence[Mapping[str, Any]]
    funnel: Mapping[str, Any] | None
    evaluation: Mapping[str, Any] | None
    catalog: Mapping[str, Any] | None
    steps: Mapping[str, Mapping[str, Any]]
    samples: Sequence[Path]
    comparisons: Sequence[Path]
    contact_sheet: Path | None
    rounds: Sequence[tuple[int, Path]] = ()


def read_folder(root: Path) -> RunFolder:
    """Reads `root`: the folder around a run (clips/, dataset/, run/, samples/ ...), or a run folder alone.

    FileNotFoundError if there is nothing to report on.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root} is no folder; give the folder of a demo, or the run folder of `omnihuman train`"
        )
    run = root if (root / "metrics.jsonl").is_file() else root / "run"
    folder = RunFolder(
        root=root,
        run=run,
        config=_read_json(run / "config.json"),
        metrics=_read_metrics(run / "metrics.jsonl"),
        funnel=_read_json(root / "clips" / "sets" / "funnel.json"),
        evaluation=_read_json(root / "evaluation.json") or _read_json(run / "evaluation.json"),
        catalog=_read_catalog(root / "dataset"),
        steps={
            path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((root / ".steps").glob("*.json"))
        },
        samples=sorted((root / "samples").rglob("*.mp4")),
        comparisons=sorted((root / "evaluation").glob("*.mp4")),
        contact_sheet=sheet if (sheet := root / "contact_sheet.png").is_file() else None,
        rounds=sorted(
            (int(path.name.removeprefix("step_")), path)
            for path in (run / "training_samples").glob("step_*")
            if path.name.removeprefix("step_").isdigit()
        ),
    )
    if not folder.metrics and folder.funnel is None and folder.evaluation is None:
        raise FileNotFoundError(
            f"{root} has no metrics.jsonl, clips/sets/funnel.json or evaluation.json; nothing to report on yet"
        )
    return folder


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); remove it and run the command that writes it again") from None


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; one that a kill cut short is left out, and a value that is not finite (text) becomes a
    float.
    """
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        records.append(
            {k: float(v) if isinstance(v, str) and v in ("nan", "inf", "-inf") else v for k, v in record.items()}
        )
    return records


def _read_catalog(dataset: Path) -> dict[str, Any] | None:
    if not dataset.is_dir():
        return None
    from omnihuman_jax.data.catalog import Catalog

    catalog = Catalog.load(dataset)
    return {
        "windows": len(catalog.latent_frames),
        "hours": float(catalog.duration_s.sum()) / 3600,
        "tokens": int(catalog.window_tokens.sum()),
        "sizes": (
            collections.Counter(
                f"{f} x {h} x {w}"
                for f, h, w in zip(catalog.latent_frames, catalog.latent_height, catalog.latent_width)
            ).most_common(6)
        ),
        "eligible": {c.label: int(sum(int(bits) >> c & 1 for bits in catalog.eligible)) for c in Condition},
    }


def stages_of(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The records of each stage, in order."""
    stages: list[tuple[str, list[Mapping[str, Any]]]] = []
    for record in metrics:
        name = str(record.get("stage", ""))
        if not stages or stages[-1][0] != name:
            stages.append((name, []))
        stages[-1][1].append(record)
    return stages


def worst_ratio(metrics: Sequence[Mapping[str, Any]]) -> tuple[float, str] | None:
    """The largest |realised - target| over whole stages, in percentage points, and where; None without records."""
    gaps = [
        (abs(records[-1][f"ratio/{label}"] - records[-1][f"ratio_target/{label}"]) * 100, f"{label} in stage {name}")
        for name, records in stages_of(metrics)
        for label in LABELS
        if f"ratio_target/{label}" in records[-1]
    ]
    return max(gaps) if gaps else None


def ends_of_loss(metrics: Sequence[Mapping[str, Any]]) -> tuple[float, float, int] | None:
    """(mean of the first, mean of the last, how many): loss over a twentieth of the logged lines at either end."""
    losses = [record["loss"] for record in metrics if math.isfinite(record["loss"])]
    count = max(1, len(losses) // 20)
    return (statistics.fmean(losses[:count]), statistics.fmean(losses[-count:]), count) if losses else None


def key_numbers(root: Path) -> list[tuple[str, str, str]]:
    """(label, value, what it says) of the few numbers that matter: for the page's head and for the demo's last
    words.
    """
    folder = read_folder(root)
    rows: list[tuple[str, str, str]] = []
    if folder.funnel:
        seconds = folder.funnel["seconds"]
        eligible = ", ".join(f"{label} {folder.funnel['eligible'].get(label, 0)}" for label in LABELS)
        rows.append(
            (
                "clips curated",
                f"{folder.funnel['clips']}",
                f"{seconds:.0f} s of {folder.funnel['videos']} videos; eligible: {eligible}",
            )
        )
    if folder.catalog:
        rows.append(("windows encoded", f"{folder.catalog['windows']}", f"{folder.catalog['tokens']:,} video tokens"))
    if folder.metrics:
        last = folder.metrics[-1]
        first_loss, last_loss, count = ends_of_loss(folder.metrics) or (math.nan, math.nan, 0)
        rows.append(("steps trained", f"{last['step']}", f"{len(stages_of(folder.metrics))} stages"))
        rows.append(
            ("loss", f"{first_loss:.3f} → {last_loss:.3f}", f"mean of the first and the last {count} logged lines")
        )
        if gap := worst_ratio(folder.metrics):
            rows.append(("ratios met to", f"{gap[0]:.2f} pp", f"worst: {gap[1]}"))
        timed = [record for record in folder.metrics if "tokens_per_s" in record]
        rate = statistics.median([record["tokens_per_s"] for record in timed] or [math.nan])
        share = statistics.median([record["matmul_peak_share"] for record in timed] or [math.nan])
        rows.append(
            (
                "throughput",
                f"{charts.number(rate)} tokens/s",
                f"{share:.0%} of the matrix-multiply peak measured in the same process",
            )
        )
    if resume := folder.steps.get("train", {}).get("resume"):
        equal = "equal to the last bit" if not resume["different"] else f"{len(resume['different'])} DIFFERENT"
        rows.append(
            (
                "kill -9 and resume",
                equal,
                (
                    f"killed at step {resume['killed_at']}, went on from {resume['checkpoint']}; {resume['values']}"
                    " values came twice"
                ),
            )
        )
    rows.extend(evaluation_numbers(folder.evaluation))
    return rows


def decibels(value: float) -> str:
    """`+1.23 dB`; what rounds to zero has no sign."""
    return f"{value:+.2f} dB" if abs(value) >= 0.005 else "0.00 dB"


def evaluation_numbers(evaluation: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """The evaluation's headline numbers as (label, value, note)."""
    if evaluation is None:
        return []
    rows = []
    for label, key, note in (
        (
            "gain over a still picture",
            "gain_over_still_db",
            "sample driven by its own pose and audio; PSNR against the codec's round trip",
        ),
        ("another clip's pose", "worse_with_other_pose_db", "change of that PSNR when the pose is another clip's"),
        (
            "another clip's voice, mouth",
            "worse_with_other_audio_mouth_db",
            "change in the mouth's region when the audio is another clip's",
        ),
    ):
        if (value := evaluation.get(key)) is not None:
            rows.append(
                (
                    label,
                    decibels(value if key.startswith("gain") else -value),
                    f"{note}; {len(evaluation['windows'])} windows",
                )
            )
    return rows
