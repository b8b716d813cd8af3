"""`omnihuman curate`: its options, and what it prints (`curate.py` does the work)."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from data_pipelines.curate import adapters, source_list
from data_pipelines.curate.clip_sets import OWN_SETS
from data_pipelines.curate.curate import ENGINES, CurateConfig, Engine, curate, list_source
from data_pipelines.curate.funnel import FUNNEL_FILE, funnel_table, left_out_lines
from data_pipelines.curate.part_slices import TASK_S
from data_pipelines.curate.reach import stricter_of
from data_pipelines.curate.selection import read_thresholds
from data_pipelines.curate.stage_parts import TABLE_FILE
from omnihuman_jax.runtime import file_names
from omnihuman_jax.runtime.locations import local, location
from omnihuman_jax.runtime.progress import progress_bar
from omnihuman_jax.runtime.worker_share import WorkerShare


def _read_config(path: Path) -> CurateConfig:
    try:
        return CurateConfig.from_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parser_of_curate() -> argparse.ArgumentParser:
    """All options; their values are `CurateConfig`'s where they are given."""
    parser = argparse.ArgumentParser(
        prog="omnihuman curate",
        description="Cut videos into clips, score them, and tag each with the conditions that it is eligible for.",
        epilog="""examples:
  omnihuman curate --source footage/ --out runs/mine/clips
  omnihuman curate --source 'gs://raw/talks/**' --out gs://made/talks/clips
  omnihuman curate --source 's3://raw/talks/*.mp4' --out runs/mine/clips
  omnihuman curate --source list.parquet --out runs/mine/clips
  omnihuman curate --source 'tars/*.tar' --out runs/mine/clips
  omnihuman curate --source tfds:talks/1.0.0 --out runs/mine/clips""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--source",
        required=True,
        type=source_list.check_source,
        metavar="SOURCE",
        help="folder of videos, searched recursively, gs://BUCKET/PREFIX/** or s3://...; NAME.txt: caption of NAME.mp4"
        " (UTF-8, or UTF-16 with its mark); splits.json: what is held out. LIST.parquet: columns path (or uri),"
        " caption, split. tars/*.tar: members NAME.mp4 and NAME.txt or NAME.json. tfds:DIR: feature"
        " video or mp4 of bytes",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=location,
        metavar="TABLE",
        help=f"folder of the table, of a disk or a bucket; its sets are in {OWN_SETS}/",
    )
    parser.add_argument(
        "--config",
        type=local,
        help="JSON file: shots, thresholds, loosest, default_caption, caption_encoding, max_seconds_per_video,"
        " part_videos, task_minutes, workers, networks, person_network, pose_network, embedding_network,"
        " sync_network, caption_command, caption_timeout_s, network_device, network_gpus",
    )
    parser.add_argument(
        "--loosest",
        type=local,
        metavar="FILE",
        help="YAML or JSON, as for `omnihuman select --thresholds`: the loosest that will be selected with; clips whose"
        " 5 fps preview is out of their reach get no landmarks (default: those of the table, or the defaults)",
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
    parser.add_argument(
        "--strict",
        action="store_true",
        default=None,
        help="leave out videos that are turned, transparent, HDR, interlaced, ... instead of undoing that",
    )
    adapters.add_arguments(parser)
    parser.add_argument(
        "--shot-network", metavar="PATH.onnx", help="TransNetV2 in ONNX, which finds cuts and dissolves (docs/data.md)"
    )
    parser.add_argument("--part-videos", type=int, help=f"videos a part, at most (default {source_list.PART_VIDEOS})")
    parser.add_argument(
        "--task-minutes",
        type=float,
        metavar="M",
        help=f"minutes of video a task, about; a film, or a large part, is shared by processes in tasks of that size"
        f" (default {TASK_S / 60:g})",
    )
    parser.add_argument("--workers", type=int, help="processes of the local engine (default 2)")
    parser.add_argument(
        "--engine", choices=ENGINES, default="local", help="what makes the parts (default: %(default)s)"
    )
    parser.add_argument("--address", metavar="HOST", help="head of a running Ray cluster; without it, Ray starts here")
    parser.add_argument(
        "--worker", type=WorkerShare.parse, metavar="I/N", help="make the I-th share of N of the parts, and no sets"
    )
    parser.add_argument(
        "--list", action="store_true", help="list the source and stop: for workers that are started with --listed"
    )
    parser.add_argument(
        "--listed",
        action="store_true",
        help="do not look into the source, but take it as it was listed last: sixty-four workers need not ask a bucket"
        " sixty-four times",
    )
    parser.add_argument(
        "--retry-dead", action="store_true", help="try dead letters again that are no fault of their files"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """`omnihuman curate --source SOURCE --out TABLE`."""
    arguments = parser_of_curate().parse_args(argv)
    if arguments.address and arguments.engine != "ray":
        raise ValueError("--address is of --engine ray; give both, or neither")
    if arguments.worker and arguments.engine == "ray":
        raise ValueError("--worker is without an engine; leave out --engine ray, which shares the parts itself")
    of_listing = ("default_caption", "caption_encoding", "part_videos")
    if arguments.listed and (given := [name for name in of_listing if getattr(arguments, name) is not None]):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{options}: of the command that lists; give it with --list, and leave it out with --listed")
    config = _read_config(arguments.config) if arguments.config else CurateConfig()
    for name in (
        "max_seconds_per_video", "default_caption", "caption_encoding", "strict", "part_videos", "task_minutes",
        "workers",
    ):  # fmt: skip
        if getattr(arguments, name) is not None:
            setattr(config, name, getattr(arguments, name))
    config.take(arguments)
    if arguments.shot_network:
        config.shots.network = os.path.abspath(arguments.shot_network)
    if arguments.loosest:
        config.loosest = read_thresholds(arguments.loosest)
        if not arguments.config:  # nobody asked for sets that are looser
            config.thresholds = stricter_of(config.thresholds, config.loosest)
    if arguments.list:
        if arguments.listed or arguments.worker or arguments.retry_dead or arguments.engine != "local":
            raise ValueError("--list makes nothing; leave out --listed, --worker, --retry-dead and --engine")
        videos, parts = list_source(arguments.source, arguments.out, config)
        print(file_names.printable(f"{arguments.out}: {videos} videos in {parts} parts; now --listed makes them"))
        return 0
    engine = Engine(
        name=arguments.engine,
        address=arguments.address,
        share=arguments.worker,
        retry_dead=arguments.retry_dead,
        listed=arguments.listed,
    )
    with progress_bar(stays=True) as progress:
        funnel = curate(arguments.source, arguments.out, config, progress, engine)
    computed = funnel["computed"]
    console = Console()
    if engine.share is not None:
        left = funnel["unfinished_parts"]
        then = "run `omnihuman select`" if not left else f"{left} parts are other workers' to finish"
        done = f"{arguments.out}: {computed['videos']} videos, {computed['clips']} clips scored in this run; {then}"
        console.print(file_names.printable(done), soft_wrap=True, markup=False, highlight=False)
        return 0
    console.print(funnel_table(funnel))
    done = f"{arguments.out / TABLE_FILE}: {funnel['clips']} clips, {computed['clips']} scored in this run"
    for line in [*left_out_lines(funnel), file_names.printable(done)]:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    if not funnel["clips"]:
        raise ValueError(
            f"{arguments.source}: no clip was made; {OWN_SETS}/{FUNNEL_FILE} in {arguments.out} gives the reasons"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
