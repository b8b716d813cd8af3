"""`omnihuman evaluate --suite field`: the field's scores on pairs of a made and a true video.

The pairs are a folder's, or a run's held-out windows, sampled here. Everything is kept below --out: a second run takes
only what is missing, and with weights that were given later, only what they add.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.evaluation import field_table, psnr, sheet
from omnihuman_jax.reporting import pairs_page
from omnihuman_jax.runtime import files
from omnihuman_jax.runtime.locations import local
from omnihuman_jax.runtime.progress import progress_bar
from omnihuman_jax.sampling import codec_check, field_features, field_pairs, trained_range, trained_run
from omnihuman_jax.serving import media_omnihuman

RESULT_FILE, PAGE_FILE, FOLDER = "field.json", "field.html", "field"
MAX_PSNR_DB = 100.0
CHECKED = 4
"""Pairs that the codec check encodes again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the suite field."""
    group = parser.add_argument_group("suite field")
    group.add_argument(
        "--pairs", type=local, metavar="DIR", help="made/NAME.mp4 and true/NAME.mp4; without it, the run's windows"
    )
    group.add_argument(
        "--drive",
        choices=tuple(field_pairs.DRIVES),
        default="audio",
        help="what drives the run's windows, text and reference beside it (%(default)s)",
    )
    for name, what in (("inception", "Inception-v3 (FID)"), ("i3d", "I3D (FVD)"), ("syncnet", "SyncNet (Sync-C, -D)")):
        group.add_argument(f"--{name}", type=local, metavar="FILE", help=f"weights of {what}, as .safetensors")
    group.add_argument(
        "--scorer",
        action="append",
        default=[],
        metavar="NAME=FILE.py",
        help="a score of your own, or IQA, ASE, ...: score(frames uint8 [T, H, W, 3]) -> float; the file is run",
    )
    group.add_argument(
        "--codec-check",
        action="store_true",
        help=f"encode {CHECKED} made videos again, in H.264 and H.265, and say which scores that moves",
    )


def parse_scorers(texts: Sequence[str]) -> dict[str, Path]:
    """NAME=FILE.py of each; ValueError for one that is not."""
    found = {}
    for text in texts:
        name, _, path = text.partition("=")
        if not name.strip() or not path:
            raise ValueError(f"--scorer {text!r}: give NAME=FILE.py")
        found[name.strip()] = local(path)
        field_features.load_scorer(name.strip(), found[name.strip()])
    return found


def run_suite(run: trained_run.TrainedRun | None, config: SamplingConfig | None, options: argparse.Namespace) -> int:
    """Measures, prints a table, writes field.json, field.html and field/ into --out."""
    networks = field_features.Networks(
        inception=options.inception,
        i3d=options.i3d,
        syncnet=options.syncnet,
        scorers=parse_scorers(options.scorer),
    )
    with progress_bar("share") as bar:
        task = bar.add_task("sampling", total=1.0)
        videos = _pairs(run, config, options, lambda share: bar.advance(task, share))
        bar.update(task, description="measuring", completed=0.0)
        result = measure(
            videos, options.out, networks, check=options.codec_check, on_progress=lambda s: bar.advance(task, s)
        )
    result["of"] = _origin(run, options)
    files.write_text(options.out / RESULT_FILE, json.dumps(_finite(result), indent=2, allow_nan=False) + "\n")
    shown = [(v.name, v.person, _link(v.true, options.out), _link(v.made, options.out)) for v in videos]
    files.write_text(options.out / PAGE_FILE, pairs_page.page(result, shown))
    print_table(result)
    print(f"{options.out / PAGE_FILE}: open it in a browser")
    return 0


def _pairs(
    run: trained_run.TrainedRun | None,
    config: SamplingConfig | None,
    options: argparse.Namespace,
    on_progress: Callable[[float], None],
) -> list[field_pairs.PairOfVideos]:
    if options.pairs is not None or run is None:
        return field_pairs.read_pairs(options.pairs)
    active = field_pairs.DRIVES[options.drive] | ConditionSet.of(Condition.TEXT)
    for warning in trained_range.check_model(run, active):
        print(f"warning: {warning}", file=sys.stderr)
    return field_pairs.make_pairs(
        run,
        options.out / FOLDER / "pairs",
        split=options.split or "held_out",
        drive=options.drive,
        windows=options.windows,
        batch=options.batch,
        config=config,
        seed=options.seed,
        clips=options.clips,
        on_progress=on_progress,
    )


def measure(
    videos: Sequence[field_pairs.PairOfVideos],
    out: Path,
    networks: field_features.Networks,
    *,
    check: bool = False,
    on_progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Plain values: rows (`field_table.FieldRow`), the number of pairs and people, and what the codec check found.

    ValueError, FileNotFoundError: a video or a network's file cannot be read, or two videos of a pair differ in size.
    """
    extractor, folder = field_features.Extractor(networks), out / FOLDER / "measured"
    pairs = []
    for video in videos:
        psnr_db = compare(video.made, video.true)
        sides = {side: extractor.take(getattr(video, side), folder / video.name / side) for side in ("made", "true")}
        made = {**sides["made"], "psnr_db": np.array(psnr_db)}
        pairs.append(field_table.Pair(name=video.name, person=video.person, made=made, true=sides["true"]))
        on_progress(1 / len(videos))
    names = list(networks.scorers)
    rows = field_table.table(pairs, extractor.missing, names)
    result: dict[str, Any] = {"pairs": len(pairs), "people": len({pair.person for pair in pairs})}
    if check:
        some = sheet.evenly(len(videos), CHECKED)
        measures = [*field_table.MEASURES, *field_table.scorer_measures(names)]
        found = codec_check.moves(
            [videos[i] for i in some], [pairs[i] for i in some], extractor, out / FOLDER / "codecs", measures, compare
        )
        rows = codec_check.with_moves(rows, found)
        result["codec_check"] = {"pairs": len(some), "bound": codec_check.BOUND, "moved_by": found}
    return result | {"rows": [row.to_json() for row in rows]}


def compare(made: Path, true: Path) -> float:
    """PSNR in dB of two files' pictures, 100 for equal ones; ValueError where they differ in size or length."""
    frames = [media_omnihuman.read_video(path) for path in (made, true)]
    if frames[0].shape != frames[1].shape:
        raise ValueError(
            f"{made}: {len(frames[0])} frames of {frames[0].shape[1]}x{frames[0].shape[2]}, its true video has "
            f"{len(frames[1])} of {frames[1].shape[1]}x{frames[1].shape[2]}: cut and scale them to one"
        )
    return min(MAX_PSNR_DB, psnr.psnr(*(sheet.to_float(video) for video in frames)))


def _origin(run: trained_run.TrainedRun | None, options: argparse.Namespace) -> dict[str, Any]:
    if options.pairs is not None or run is None:
        return {"pairs": str(options.pairs)}
    return {
        "run": str(run.directory),
        "step": run.step,
        "weights": run.weights,
        "split": options.split or "held_out",
        "drive": options.drive,
        "true": "the codec's round trip of each window",
    }


def _link(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path, out)).as_posix()


def _finite(value: Any) -> Any:
    """None for numbers that JSON does not have, such as the PSNR of two equal files."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(result: Mapping[str, Any]) -> None:
    """A row a measure."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=f"{result['pairs']} pairs of {result['people']} people")
    for heading in pairs_page.HEAD:
        table.add_column(heading, justify="left" if heading in ("measure", "note") else "right", overflow="fold")
    for row in result["rows"]:
        table.add_row(*pairs_page.cells(row))
    console.print(table)
