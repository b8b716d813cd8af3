"""encode: curated clips to a dataset of windows.
`omnihuman encode SETS --out DIR --codec dct --text-encoder ...`

Reads sets and the table that they are of, writes ArrayRecord shards, their tfds metadata, `catalog/`,
`dataset.json` (+ `.npz`) and `encode.json`, a summary. The folder appears whole or not at all. A clip that cannot be
encoded is left out whole, and `dead_letters.parquet` says why: no single file ends the run.

Where a dataset is there that was made like that of other clips, what it lacks is appended: a new generation
(`omnihuman_jax/data/generations.py`), beside which the old ones stay as they are.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_pipelines.curate.clip_sets import find_sets, table_folder
from data_pipelines.encode import kept_dataset
from data_pipelines.encode.claim import Claim, EncodeConfig, SetParts, claimed, tell
from data_pipelines.encode.clip_encoder import WindowConfig, empty_prompt
from data_pipelines.encode.dataset_finish import clear_moved, finish, is_append, mark_finished
from data_pipelines.encode.dead_letters import LETTERS_FILE, DeadLetters
from data_pipelines.encode.decode_ahead import AheadEncoder
from data_pipelines.encode.kept_dataset import SUMMARY_FILE, Base
from data_pipelines.encode.leases import LOOK_AGAIN_S, LeaseHolder
from data_pipelines.encode.shard_plan import PLAN_FILE, ShardTask, plan_id, round_trip_share
from data_pipelines.encode.shard_work import ShardFiles, make_shard, read_marks
from omnihuman_jax.codecs.codec import VideoCodec, load_codec, parse_options
from omnihuman_jax.conditions import Condition
from omnihuman_jax.data.generations import split_name
from omnihuman_jax.data.keypoints import KEYPOINT_NAMES
from omnihuman_jax.data.records import DatasetSpec
from omnihuman_jax.encoders.speech import SpeechEncoder, load_speech_encoder
from omnihuman_jax.encoders.text import TextEncoder, load_text_encoder
from omnihuman_jax.runtime import file_names, files
from omnihuman_jax.runtime.locations import Location, StrPath, is_remote, location
from omnihuman_jax.runtime.progress import progress_bar
from omnihuman_jax.runtime.worker_share import WorkerShare


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EncodeShare:
    """What of a data set a call makes. worker: where it begins among the shards, of how many; None: alone, and it
    finishes. only_finish: the shards are made, join them. devices: so many of this process's; 0: all, but of CPUs one.
    """

    worker: WorkerShare | None = None
    only_finish: bool = False
    devices: int = 0


def encode(
    sets: StrPath,
    out_dir: StrPath,
    config: EncodeConfig,
    console: Console | None = None,
    overwrite: bool = False,
    share: EncodeShare | None = None,
    retry_dead: bool = False,
) -> dict[str, Any]:
    """Encodes the clips of sets into the data set `out_dir`; returns the summary that it also writes there, or, of a
    worker's share, {}.

    A data set that the same clips, settings, networks and code made is kept as it is; one of other clips gets a
    generation of these: clips that it has are not opened, those that it lacks are encoded, and those that the sets do
    not have any more are left out of the new generation. Shards are made in the folder `out_dir`.encoding, by this
    process and by as many others as run the same command; what a killed one had finished is kept. retry_dead: clips
    that could not be encoded are tried again, though nothing else changed.

    Raises:
        FileNotFoundError: no clips, or a network that is not there.
        ValueError: wrong settings, not one clip that can be encoded, `out_dir` names a generation, or it holds
            something else, or a data set of other settings or networks, and `overwrite` is False.
    """
    console, share = console or Console(stderr=True), share or EncodeShare()
    out_dir = location(out_dir)
    dataset, number = split_name(out_dir)
    if number is not None:
        raise ValueError(f"--out {out_dir}: an append makes the next generation by itself; give {dataset}")
    folder = out_dir.parent / f"{out_dir.name}.encoding"
    marked = None if overwrite else mark_finished(out_dir)
    cleared = clear_moved(folder, out_dir)
    marked = marked or (None if overwrite else cleared)
    if share.only_finish:
        if marked is not None:
            return marked
        if not is_append(folder):
            kept_dataset.check_free(out_dir, overwrite=overwrite)
        return finish(folder, out_dir)
    config.validate()
    sets = find_sets(sets)
    settings = dataclasses.asdict(config)
    made_by = kept_dataset.made_by(sets, settings)
    networks = {"codec": config.codec, "text_encoder": config.text_encoder, "speech_encoder": config.speech_encoder}
    found = kept_dataset.existing(out_dir, made_by, settings, networks, overwrite=overwrite, retry_dead=retry_dead)
    base = found if isinstance(found, Base) else None
    if isinstance(found, dict):
        return _kept(found, f"{out_dir}: already encoded from these clips with these settings", console)
    if not _is_joined(folder, made_by):
        claim = Claim(folder=folder, sets=sets, config=config, made_by=made_by, base=base)
        if not _make_shards(claim, console, share, overwrite=overwrite):
            assert base is not None
            return _kept(base.summary, f"{out_dir}: has the windows of these clips already", console)
    return finish(folder, out_dir, made_by) if share.worker is None else {}


def _kept(summary: Mapping[str, Any], told: str, console: Console) -> dict[str, Any]:
    """The summary of a dataset that stays as it is."""
    told += f" ({summary['windows']} windows)"
    if dead := summary.get("dead_letters"):
        told += f"; {dead} of {summary['num_clips']} clips could not be encoded: --retry-dead tries them again"
    tell(console, told)
    return dict(summary)


def _is_joined(folder: Location, made_by: Mapping[str, Any]) -> bool:
    """Whether a finish was killed that had only the folder's name left to change."""
    path = folder / SUMMARY_FILE
    return files.is_there(path) and json.loads(path.read_text()).get("made_by") == json.loads(json.dumps(made_by))


def _make_shards(claim: Claim, console: Console, share: EncodeShare, *, overwrite: bool) -> bool:
    """Makes every shard that nobody has made or is making, and waits for those that others make. False where the data
    set that is appended to has all that is asked for, and no more.
    """
    config, folder, worker = claim.config, claim.folder, share.worker
    devices = _devices(share.devices)
    codec = load_codec(config.codec, config.codec_options)
    text = load_text_encoder(config.text_encoder)
    speech = load_speech_encoder(config.speech_encoder, config.speech_layers or None) if config.speech_encoder else None
    spec = _spec(config, codec, text, speech)
    parts = SetParts(claim.sets, claim.base)
    tasks = claimed(claim, parts, spec, console, overwrite=overwrite)
    if tasks is None:
        return False
    plan = plan_id(folder)
    # With one device too: the program of a device is the same however many there are.
    codec = codec.over(Mesh(np.array(devices), ("data",)))
    given = (claim.sets, codec, text, speech, config.windows, config.max_text_tokens, round_trip_share(tasks))
    ahead = AheadEncoder(*given, devices=len(devices))
    letters = DeadLetters(table_folder(claim.sets))
    order = tasks if worker is None else worker.first(tasks)
    with ahead as encoder, progress_bar(stays=True, console=console) as progress, LeaseHolder() as leases:
        bar = progress.add_task("encoding windows", total=sum(task.windows for task in tasks))
        counted: set[int] = set()
        while left := [task for task in order if task.number not in counted]:
            begun = len(counted)
            made = _made_in_bucket(folder, left, plan)
            for task in left:
                at = ShardFiles(folder, task.number, plan)
                if task.number not in made and not at.is_made:
                    if not files.is_there(folder / PLAN_FILE):
                        return True  # another one has made the rest, and is finishing or has finished
                    if not leases.take(at.lease):
                        continue
                    if not at.is_made:
                        make_shard(at, parts.clips(task), encoder, letters, spec)
                    leases.give_back(at.lease)
                counted.add(task.number)
                progress.advance(bar, task.windows)
            if len(counted) == begun:
                time.sleep(LOOK_AGAIN_S)  # all that is left is leased
    return True


def _made_in_bucket(folder: Location, tasks: Sequence[ShardTask], plan: str) -> set[int]:
    """Shards that are made, found at once; none of a folder on a disk, of which each is looked at in its turn."""
    if not is_remote(folder):
        return set()
    marks = read_marks([ShardFiles(folder, task.number, plan) for task in tasks])
    return {task.number for task, mark in zip(tasks, marks, strict=True) if mark.get("plan") == plan}


def _devices(count: int) -> list[jax.Device]:
    """Those that share the codec's batches; ValueError for more than there are."""
    there = jax.local_devices()
    if not 0 <= count <= len(there):
        raise ValueError(f"--devices {count}: this process has {len(there)} ({there[0].platform}); 0 takes all")
    # The cores of a CPU are all behind its one device; more of it are simulated, for tests.
    return there[: count or (1 if there[0].platform == "cpu" else len(there))]


def _spec(config: EncodeConfig, codec: VideoCodec, text: TextEncoder, speech: SpeechEncoder | None) -> DatasetSpec:
    empty = empty_prompt(text, config.max_text_tokens)
    return DatasetSpec(
        codec=codec.name,
        latent_channels=codec.latent_channels,
        text_encoder=text.ref,
        text_width=text.width,
        pooled_width=text.pooled_width,
        speech_encoder=speech.ref if speech else "",
        speech_layers=speech.layers if speech else (),
        speech_width=speech.width if speech else 0,
        keypoint_names=KEYPOINT_NAMES,
        margin=config.windows.margin,
        empty_text_SE=empty.tokens[0].astype(np.float16),
        empty_pooled_E=empty.pooled[0].astype(np.float16),
        codec_options=codec.options,
        max_text_tokens=config.max_text_tokens,
        encoder_sha256={
            **{f"codec/{name}": digest for name, digest in codec.sha256.items()},
            **{f"text_encoder/{name}": digest for name, digest in text.sha256.items()},
            **{f"speech_encoder/{name}": digest for name, digest in (speech.sha256 if speech else {}).items()},
        },
    )


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """The summary as a table, a row a clip that was encoded; dB is the PSNR of the codec's round trip."""
    lengths = list(summary["by_frames"])
    title = f"{summary['windows']} windows of {' / '.join(lengths)} frames, {summary['bytes'] / 2**20:.1f} MiB"
    if (number := summary.get("generation", 1)) > 1:
        title = f"generation {number}: {title}; {summary['added_windows']} windows are new"
    table = Table(title=title)
    table.add_column("clip", overflow="fold")
    for column in ("size", "windows", *(c.label for c in Condition), "dB"):
        table.add_column(column, justify="right", no_wrap=True)
    dead = {row["clip_id"]: row["reason"] for row in summary["quarantine"]}
    for row in summary["clips"]:
        if not row["windows"]:
            why = "left out" if row["clip_id"] in dead else "serves none" if "serves" in row else "too short"
            table.add_row(_shown(row["label"]), "", why)
            continue
        decibels = row["round_trip_psnr_db"]
        table.add_row(
            _shown(row["label"]),
            f"{row['width']}x{row['height']}",
            "/".join(str(row["by_frames"].get(n, 0)) for n in lengths),
            *(str(row["eligible"][c.label]) for c in Condition),
            "-" if decibels is None else f"{decibels:.1f}",
        )
    console.print(table)
    for clip_id, reason in dead.items():
        line = file_names.printable(f"encode: {clip_id}: {reason}")
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    if more := summary["dead_letters"] - len(dead):
        kept = f"; all are in {LETTERS_FILE}" if LETTERS_FILE in summary.get("files", ()) else ""
        console.print(f"encode: {more:,} more clips are left out{kept}", soft_wrap=True)


def _shown(label: str) -> Text:
    return Text(file_names.printable(label))


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers with commas between, such as 1,17,25") from None


def _area(text: str) -> int:
    """`96x80`, width x height, or a number of pixels."""
    try:
        return int(np.prod([int(part) for part in text.lower().split("x", 1)]))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: a size such as 832x480, or a number of pixels") from None


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line of `omnihuman encode`."""
    default, cut = EncodeConfig(), WindowConfig()
    parser = argparse.ArgumentParser(
        prog="omnihuman encode", description="Encodes curated clips into a dataset of windows."
    )
    parser.add_argument(
        "sets",
        type=location,
        metavar="SETS",
        help="folder of `omnihuman select`, or of `omnihuman curate` with its own; of a disk or a bucket",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=location,
        metavar="DIR",
        help="folder of the new dataset, of a disk or a bucket; written whole or not at all",
    )
    parser.add_argument(
        "--codec", default=default.codec, metavar="DIR", help="dct, or a VAE's folder or hub id (default: %(default)s)"
    )
    parser.add_argument(
        "--codec-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the codec, such as tile_height=0; may be repeated",
    )
    parser.add_argument("--text-encoder", default="", metavar="DIR", help="folder in Hugging Face layout, or hub id")
    parser.add_argument(
        "--speech-encoder",
        default="",
        metavar="DIR",
        help="speech encoder, a folder in Hugging Face layout or a hub id; without it no window has audio",
    )
    parser.add_argument(
        "--speech-layers",
        type=_integers,
        default=(),
        metavar="0,2,4",
        help="hidden layers to store, with commas between (default: first, middle, last)",
    )
    parser.add_argument(
        "--area",
        type=_area,
        default=cut.area,
        metavar="WxH",
        help="size of a frame in pixels, kept approximately at each clip's own aspect ratio (default: 832x480)",
    )
    parser.add_argument(
        "--window-frames",
        type=_integers,
        default=cut.frames,
        metavar="1,17,25",
        help="window lengths in frames, each 1 + 4n, with commas between",
    )
    parser.add_argument(
        "--stride", type=int, default=cut.stride, help="frames between window starts (default: a window's own length)"
    )
    parser.add_argument(
        "--image-stride",
        type=int,
        default=cut.image_stride,
        help="frames between the images cut from a clip (default: %(default)s)",
    )
    parser.add_argument(
        "--references",
        type=int,
        default=cut.references,
        help="reference images stored a window, at most (default: %(default)s)",
    )
    parser.add_argument(
        "--margin",
        type=int,
        default=cut.margin,
        help="frames of audio features and keypoints stored on each side of a window (default: %(default)s)",
    )
    parser.add_argument("--max-text-tokens", type=int, default=default.max_text_tokens, help="default: %(default)s")
    parser.add_argument(
        "--shard-mib", type=float, default=default.shard_mib, help="size of a shard, about (default: %(default)g)"
    )
    parser.add_argument(
        "--worker",
        type=WorkerShare.parse,
        metavar="I/N",
        help="make shards with N - 1 others that run the same command; `--finish` then joins them",
    )
    parser.add_argument(
        "--devices",
        type=int,
        default=0,
        metavar="N",
        help="share the codec's batches among N of this process's devices (default: all; of CPUs one)",
    )
    parser.add_argument("--finish", action="store_true", help="join the shards that workers made, once all are there")
    parser.add_argument(
        "--retry-dead", action="store_true", help="try clips again that could not be encoded, as an append"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset in --out")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """`omnihuman encode`."""
    options = parse_arguments(argv)
    windows = WindowConfig(
        area=options.area,
        frames=options.window_frames,
        stride=options.stride,
        image_stride=options.image_stride,
        references=options.references,
        margin=options.margin,
    )
    config = EncodeConfig(
        codec=options.codec,
        codec_options=parse_options(options.codec_option),
        text_encoder=options.text_encoder,
        speech_encoder=options.speech_encoder,
        speech_layers=options.speech_layers,
        max_text_tokens=options.max_text_tokens,
        windows=windows,
        shard_mib=options.shard_mib,
    )
    if options.worker and options.finish:
        raise ValueError("--finish is for one call once all workers are done; leave out --worker")
    console = Console(stderr=True)
    share = EncodeShare(worker=options.worker, only_finish=options.finish, devices=options.devices)
    if summary := encode(options.sets, options.out, config, console, options.overwrite, share, options.retry_dead):
        print_summary(summary, console)
    else:
        console.print("all shards are made; `omnihuman encode` with --finish joins them")
    return 0
