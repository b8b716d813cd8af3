"""`omnihuman data check | report | publish | pose`: what is wrong with a data set, what is in it, into a bucket with
it, and a pose out of its clips.
"""

import argparse
import sys
from collections.abc import Sequence

from omnihuman_jax.runtime import exit_codes
from omnihuman_jax.runtime.locations import local, location
from omnihuman_jax.runtime.progress import progress_bar

_LISTED = 100


def check(options: argparse.Namespace) -> int:
    """Prints every problem; 0 where there is none."""
    from omnihuman_jax.data.dataset_check import check_dataset, num_checked

    found = 0
    with progress_bar(stays=True) as progress:
        bar = progress.add_task("checking records", total=num_checked(options.dataset, options.sample) or None)
        problems = check_dataset(
            options.dataset,
            sample=options.sample,
            hashes=not options.no_hashes,
            on_record=lambda: progress.advance(bar),
        )
        for problem in problems:
            found += 1
            if found <= _LISTED:
                print(problem)
    if found > _LISTED:
        print(f"and {found - _LISTED} more")
    print(f"{options.dataset}: {found or 'no'} problem{'s' * (found != 1)}", file=sys.stderr)
    return exit_codes.USER_ERROR if found else 0


def report(options: argparse.Namespace) -> int:
    """Writes the page."""
    from data_pipelines.curate.data_facts import read_facts
    from omnihuman_jax.reporting.data_page import write_page

    write_page(options.out, read_facts(options.dataset))
    print(f"{options.out}: open it in a browser")
    return 0


def publish(options: argparse.Namespace) -> int:
    """Brings what a bucket lacks there."""
    from omnihuman_jax.data import publish as publishing
    from omnihuman_jax.data.generations import read_manifest

    files = [path for one in read_manifest(options.dataset) for path in publishing.files_of(options.dataset, one)]
    with progress_bar("bytes", stays=True) as progress:
        bar = progress.add_task("bringing files", total=sum(path.stat().st_size for path in files) or None)
        numbers = publishing.publish(options.dataset, options.to, lambda nbytes: progress.advance(bar, nbytes))
    told = f"generation{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))} brought" if numbers else "up to date"
    print(f"{options.to}: {told}")
    return 0


def pose(options: argparse.Namespace) -> int:
    """Writes a clip's keypoints as a file for `generate --pose`."""
    from data_pipelines.curate.clip_sets import iter_clips, load_landmarks

    for clips in iter_clips(options.sets):
        for clip in clips:
            if options.clip in (clip.clip_id, clip.video):
                load_landmarks(options.sets, clip).save_pose(options.out, clip.height, clip.width)
                print(f"{options.out}: {clip.frames} frames of {clip.label}")
                return 0
    raise ValueError(f"{options.sets}: no clip {options.clip}; give a clip_id of it, or the name of a video")


def main(argv: Sequence[str]) -> int:
    """`omnihuman data`."""
    parser = argparse.ArgumentParser(prog="omnihuman data", description="What is in a data set, and what is wrong.")
    commands = parser.add_subparsers(required=True, metavar="check | report | publish | pose")
    one = commands.add_parser("check", help="compare files, catalog and records; exit code 2 if anything is wrong")
    one.add_argument(
        "dataset",
        type=location,
        metavar="DATASET",
        help="of a disk or a bucket; DATASET@2 for its second generation",
    )
    one.add_argument("--sample", type=float, default=1.0, help="share of the records that are read (default: all)")
    one.add_argument("--no-hashes", action="store_true", help="do not compare the files' bytes with what encode wrote")
    one.set_defaults(run=check)
    two = commands.add_parser("report", help="one page that loads nothing from anywhere")
    two.add_argument(
        "dataset",
        type=location,
        metavar="DATASET",
        help="a data set, or the sets or table of one to come; of a disk or a bucket",
    )
    two.add_argument("--out", type=local, required=True, metavar="FILE.html")
    two.set_defaults(run=report)
    four = commands.add_parser("publish", help="bring a data set, or what was appended to it, into a bucket")
    four.add_argument("dataset", type=local, metavar="DATASET")
    four.add_argument("--to", required=True, metavar="gs://BUCKET/DATASET")
    four.set_defaults(run=publish)
    three = commands.add_parser("pose", help="a clip's keypoints as a file for `generate --pose`")
    three.add_argument("sets", type=location, metavar="SETS", help="folder of `omnihuman curate` or `omnihuman select`")
    three.add_argument("--clip", required=True, help="a clip_id, or the name of a video (its first clip)")
    three.add_argument("--out", type=local, required=True, metavar="FILE.npz")
    three.set_defaults(run=pose)
    options = parser.parse_args(list(argv))
    return int(options.run(options))
