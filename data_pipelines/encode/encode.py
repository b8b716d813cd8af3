"""encode: curated clips to a dataset of windows.
`omnihuman encode SETS --out DIR --codec dct --text-encoder ...`

Reads sets and the table that they are of, writes ArrayRecord shards, their tfds metadata, `catalog/`,
`dataset.json` (+ `.npz`) and `encode.json`, a summary. The folder appears whole or not at all. A clip that cannot be
encoded is left out whole, and `quarantine` in the summary says why: no single file ends the run.
"""

import argparse
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_pipelines.curate.clip_sets import find_sets, iter_clips, read_clips_of, read_head, table_folder
from data_pipelines.curate.clips import Clip
from data_pipelines.encode import kept_dataset
from data_pipelines.encode.clip_encoder import ClipEncoder, WindowConfig, empty_prompt
from data_pipelines.encode.dataset_finish import MADE_BY_FILE, finish
from data_pipelines.encode.dead_letters import DeadLetters
from data_pipelines.encode.kept_dataset import SUMMARY_FILE
from data_pipelines.encode.leases import LeaseHolder
from data_pipelines.encode.shard_plan import (
    PLAN_FILE,
    ShardTask,
    plan_shards,
    read_plan,
    round_trip_share,
    write_plan,
)
from data_pipelines.encode.shard_work import ShardFiles, make_shard
from data_pipelines.engines.worker_share import WorkerShare
from omnihuman_jax.codecs.codec import VideoCodec, load_codec, parse_options
from omnihuman_jax.conditions import Condition
from omnihuman_jax.data.keypoints import KEYPOINT_NAMES
from omnihuman_jax.data.records import DatasetSpec
from omnihuman_jax.encoders.speech import SpeechEncoder, load_speech_encoder
from omnihuman_jax.encoders.text import MAX_TOKENS, TextEncoder, load_text_encoder
from omnihuman_jax.runtime import file_names, files
from omnihuman_jax.runtime.locations import local
from omnihuman_jax.runtime.progress import progress_bar

_LOOK_AGAIN_S = 1.0


@dataclasses.dataclass(kw_only=True, slots=True)
class EncodeConfig:
    """What encodes, and how clips are cut. Networks: a folder in Hugging Face layout or a hub id.

    codec           `dct`, or a folder (hub id) of an autoencoder in diffusers' layout
    codec_options   of that codec, such as its tiles; the rest keep their defaults
    speech_encoder  "" for none: no window is eligible for audio then
    speech_layers   () for the encoder's first, middle and last
    shard_mib       MiB a shard, about: what a killed process has to do again
    """

    codec: str = "dct"
    codec_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text_encoder: str = ""
    speech_encoder: str = ""
    speech_layers: tuple[int, ...] = ()
    max_text_tokens: int = MAX_TOKENS
    windows: WindowConfig = dataclasses.field(default_factory=WindowConfig)
    shard_mib: float = 256.0

    def validate(self) -> None:
        """ValueError with what is missing or wrong."""
        self.windows.validate()
        if not self.text_encoder:
            raise ValueError(
                "--text-encoder is missing; give its folder or hub id (windows without text use the embedding of "
                "its empty prompt)"
            )
        if not self.shard_mib > 0:
            raise ValueError(f"--shard-mib must be greater than 0, not {self.shard_mib}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EncodeShare:
    """What of a data set a call makes. worker: where it begins among the shards, of how many; None: alone, and it
    finishes. only_finish: the shards are made, join them.
    """

    worker: WorkerShare | None = None
    only_finish: bool = False


def encode(
    sets: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    config: EncodeConfig,
    console: Console | None = None,
    overwrite: bool = False,
    share: EncodeShare | None = None,
) -> dict[str, Any]:
    """Encodes the clips of sets into the data set `out_dir`; returns the summary that it also writes there, or, of a
    worker's share, {}.

    A data set that the same clips, settings, networks and code made is kept as it is. Shards are made in the folder
    `out_dir`.encoding, by this process and by as many others as run the same command; what a killed one had finished is
    kept.

    Raises:
        FileNotFoundError: no clips, or a network that is not there.
        ValueError: wrong settings, not one clip that can be encoded, or `out_dir` holds something else and `overwrite`
            is False.
    """
    console, share = console or Console(stderr=True), share or EncodeShare()
    out_dir = Path(out_dir)
    folder = out_dir.parent / f"{out_dir.name}.encoding"
    if share.only_finish:
        kept_dataset.check_free(out_dir, overwrite=overwrite)
        return finish(folder, out_dir)
    config.validate()
    sets = find_sets(sets)
    made_by = kept_dataset.made_by(sets, dataclasses.asdict(config))
    networks = {"codec": config.codec, "text_encoder": config.text_encoder, "speech_encoder": config.speech_encoder}
    if (summary := kept_dataset.existing(out_dir, made_by, networks, overwrite=overwrite)) is not None:
        told = f"{out_dir}: already encoded from these clips with these settings ({summary['windows']} windows)"
        console.print(file_names.printable(told), markup=False, highlight=False)
        return summary
    if not _is_joined(folder, made_by):
        _make_shards(folder, sets, config, made_by, console, share.worker, overwrite=overwrite)
    return finish(folder, out_dir) if share.worker is None else {}


def _is_joined(folder: Path, made_by: Mapping[str, Any]) -> bool:
    """Whether a finish was killed that had only the folder's name left to change."""
    path = folder / SUMMARY_FILE
    return path.is_file() and json.loads(path.read_text()).get("made_by") == json.loads(json.dumps(made_by))


def _make_shards(
    folder: Path,
    sets: Path,
    config: EncodeConfig,
    made_by: Mapping[str, Any],
    console: Console,
    worker: WorkerShare | None,
    *,
    overwrite: bool,
) -> None:
    """Makes every shard that nobody has made or is making, and waits for those that others make."""
    codec = load_codec(config.codec, config.codec_options)
    text = load_text_encoder(config.text_encoder)
    speech = load_speech_encoder(config.speech_encoder, config.speech_layers or None) if config.speech_encoder else None
    spec = _spec(config, codec, text, speech)
    tasks = _claimed(folder, sets, config, made_by, spec, overwrite=overwrite)
    encoder = ClipEncoder(sets, codec, text, speech, config.windows, config.max_text_tokens, round_trip_share(tasks))
    letters = DeadLetters(table_folder(sets))
    parts = _LastPart(sets)
    order = tasks if worker is None else worker.first(tasks)
    with progress_bar(stays=True, console=console) as progress, LeaseHolder() as leases:
        bar = progress.add_task("encoding windows", total=sum(task.windows for task in tasks))
        counted: set[int] = set()
        while left := [task for task in order if task.number not in counted]:
            begun = len(counted)
            for task in left:
                at = ShardFiles(folder, task.number)
                if not at.mark.is_file():
                    if not leases.take(at.lease):
                        continue
                    if not at.mark.is_file():
                        make_shard(at, parts.clips(task), encoder, letters, spec)
                    leases.give_back(at.lease)
                counted.add(task.number)
                progress.advance(bar, task.windows)
            if len(counted) == begun:
                time.sleep(_LOOK_AGAIN_S)  # all that is left is leased


def _claimed(
    folder: Path, sets: Path, config: EncodeConfig, made_by: Mapping[str, Any], spec: DatasetSpec, *, overwrite: bool
) -> list[ShardTask]:
    """The shards of the data set that is made in `folder`, which is begun unless it is there.

    Raises:
        ValueError: something else is being made there, or no clip is long enough.
    """
    head = {"made_by": made_by, "sets": os.path.relpath(sets, folder.parent), "encoders": dict(spec.encoder_sha256)}
    head |= {name: value for name, value in read_head(sets).items() if name in ("dataset", "weight")}
    file = folder / MADE_BY_FILE
    if file.is_file() and json.loads(file.read_text()) != json.loads(json.dumps(head)):
        if not overwrite:
            raise ValueError(
                f"{folder}: shards of other clips, settings or networks are being made there; delete it, or begin anew"
                " with --overwrite"
            )
        shutil.rmtree(folder)
    if not (folder / PLAN_FILE).is_file():
        tasks = plan_shards(iter_clips(sets), config.windows, spec.latent_channels, config.shard_mib * 2**20)
        if not tasks:
            raise ValueError(
                f"{sets}: none of its clips is long enough for a window of {config.windows.frames} frames; curate"
                " longer clips, or give shorter --window-frames"
            )
        folder.mkdir(parents=True, exist_ok=True)
        files.claim(file, lambda beside: beside.write_text(json.dumps(head)))
        files.claim(folder / PLAN_FILE, lambda beside: write_plan(beside, tasks))
    if not (folder / "dataset.json").is_file():
        spec.save(folder)
    return read_plan(folder)


class _LastPart:
    """The clips of the part of the sets that was asked for last."""

    def __init__(self, sets: Path) -> None:
        self._sets = sets
        self._part = -1
        self._clips: list[Clip] = []

    def clips(self, task: ShardTask) -> list[Clip]:
        if task.part != self._part:
            self._clips, self._part = read_clips_of(self._sets, task.part), task.part
        return self._clips[task.first : task.last]


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
    """The summary as a table, a row a clip; dB is the PSNR of the codec's round trip."""
    lengths = list(summary["by_frames"])
    table = Table(
        title=f"{summary['windows']} windows of {' / '.join(lengths)} frames, {summary['bytes'] / 2**20:.1f} MiB"
    )
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
        type=local,
        metavar="SETS",
        help="folder of `omnihuman select`, or of `omnihuman curate` with its own",
    )
    parser.add_argument(
        "--out", required=True, type=local, metavar="DIR", help="folder of the new dataset; written whole or not at all"
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
    parser.add_argument("--finish", action="store_true", help="join the shards that workers made, once all are there")
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
    share = EncodeShare(worker=options.worker, only_finish=options.finish)
    if summary := encode(options.sets, options.out, config, console, options.overwrite, share):
        print_summary(summary, console)
    else:
        console.print("all shards are made; `omnihuman encode` with --finish joins them")
    return 0
