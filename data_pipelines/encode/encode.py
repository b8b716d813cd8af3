"""encode: curated clips to a dataset of windows.
`omnihuman encode --clips DIR --out DIR --codec dct --text-encoder ...`

Reads what curate left (`clips.jsonl`, landmarks), writes ArrayRecord shards, their tfds metadata, `catalog/`,
`dataset.json` (+ `.npz`) and `encode.json`, a summary. The folder appears whole or not at all. A clip that cannot be
encoded is left out whole, and `quarantine` in the summary says why: no single file ends the run.
"""

import argparse
import collections
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_pipelines.curate.clips import Clip, read_clips
from data_pipelines.encode import kept_dataset
from data_pipelines.encode.clip_encoder import (
    ClipEncoder,
    ClipStatistics,
    EncodedWindow,
    WindowConfig,
    empty_prompt,
    windows_of,
)
from data_pipelines.encode.dead_letters import DeadLetters
from data_pipelines.encode.kept_dataset import SUMMARY_FILE
from omnihuman_jax.codecs.codec import load_codec, parse_options
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.keypoints import KEYPOINT_NAMES
from omnihuman_jax.data.records import (
    DatasetSpec,
    WindowRecord,
    shard_path,
    write_dataset_metadata,
    write_shard,
)
from omnihuman_jax.encoders.speech import load_speech_encoder
from omnihuman_jax.encoders.text import MAX_TOKENS, load_text_encoder
from omnihuman_jax.runtime import file_names, files
from omnihuman_jax.runtime.locations import local
from omnihuman_jax.runtime.progress import progress_bar
from omnihuman_jax.typing import FPS, SPATIAL_STRIDE, latent_frames_of


@dataclasses.dataclass(kw_only=True, slots=True)
class EncodeConfig:
    """What encodes, and how clips are cut. Networks: a folder in Hugging Face layout or a hub id.

    codec           `dct`, or a folder (hub id) of an autoencoder in diffusers' layout
    codec_options   of that codec, such as its tiles; the rest keep their defaults
    speech_encoder  "" for none: no window is eligible for audio then
    speech_layers   () for the encoder's first, middle and last
    shard_windows   windows a shard, at most
    """

    codec: str = "dct"
    codec_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text_encoder: str = ""
    speech_encoder: str = ""
    speech_layers: tuple[int, ...] = ()
    max_text_tokens: int = MAX_TOKENS
    windows: WindowConfig = dataclasses.field(default_factory=WindowConfig)
    shard_windows: int = 256

    def validate(self) -> None:
        """ValueError with what is missing or wrong."""
        self.windows.validate()
        if not self.text_encoder:
            raise ValueError(
                "--text-encoder is missing; give its folder or hub id (windows without text use the embedding of "
                "its empty prompt)"
            )
        if self.shard_windows < 1:
            raise ValueError(f"--shard-windows must be at least 1, not {self.shard_windows}")


def encode(
    clips_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    config: EncodeConfig,
    console: Console | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Encodes every clip of `clips_dir` into the dataset `out_dir`; returns the summary that it also writes there.

    A dataset that the same clips, settings, networks and code made is kept as it is.

    Raises:
        FileNotFoundError: no clips, or a network that is not there.
        ValueError: wrong settings, not one clip that can be encoded, or `out_dir` holds something else and `overwrite`
            is False.
    """
    config.validate()
    console = console or Console(stderr=True)
    clips_dir, out_dir = Path(clips_dir), Path(out_dir)
    clips = read_clips(clips_dir)
    made_by = kept_dataset.made_by(clips_dir, clips, dataclasses.asdict(config))
    networks = {"codec": config.codec, "text_encoder": config.text_encoder, "speech_encoder": config.speech_encoder}
    if (summary := kept_dataset.existing(out_dir, made_by, networks, overwrite=overwrite)) is not None:
        told = f"{out_dir}: already encoded from these clips with these settings ({summary['windows']} windows)"
        console.print(file_names.printable(told), markup=False, highlight=False)
        return summary
    total = sum(len(windows_of(clip, config.windows)) for clip in clips)
    if not total:
        raise ValueError(
            f"{clips_dir}: none of its {len(clips)} clips is long enough for a window of "
            f"{config.windows.frames} frames; curate longer clips, or give shorter --window-frames"
        )
    with files.whole_folder(out_dir, overwrite=overwrite) as folder:
        summary = _encode_into(folder, clips_dir, clips, config, total, console) | {"made_by": made_by}
        files.write_text(folder / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    return summary


def _encode_into(
    folder: Path, clips_dir: Path, clips: Sequence[Clip], config: EncodeConfig, total: int, console: Console
) -> dict[str, Any]:
    """Writes the dataset into a new `folder`; returns the summary."""
    codec = load_codec(config.codec, config.codec_options)
    text = load_text_encoder(config.text_encoder)
    speech = load_speech_encoder(config.speech_encoder, config.speech_layers or None) if config.speech_encoder else None
    empty = empty_prompt(text, config.max_text_tokens)
    spec = DatasetSpec(
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
    encoder = ClipEncoder(clips_dir, codec, text, speech, config.windows, config.max_text_tokens)
    letters = DeadLetters(clips_dir)
    statistics: dict[str, ClipStatistics] = {}
    rows: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    with progress_bar(stays=True, console=console) as progress:
        task = progress.add_task("encoding windows", total=total)

        def records() -> Iterator[WindowRecord]:
            for clip in clips:
                statistics[clip.clip_id], windows = letters.encoded(encoder, clip, spec)
                progress.advance(task, len(windows_of(clip, config.windows)))
                for window in windows:
                    rows.append(_catalog_row(len(rows), window))
                    yield window.record

        shards = _write_shards(folder, records(), spec, -(-total // config.shard_windows), config, digest.update)
    if not shards:
        first = letters.rows[0]
        raise ValueError(
            f"{clips_dir}: none of its {len(clips)} clips can be encoded; the first, {first['clip_id']}:"
            f" {first['reason']}"
        )
    spec = dataclasses.replace(spec, records_sha256=digest.hexdigest())
    write_dataset_metadata(folder, spec, shards)
    columns: dict[str, Any] = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    catalog = Catalog(**columns, empty_text_tokens=spec.empty_text_tokens)
    catalog.save(folder)
    summary = _summary(catalog, statistics, clips, sum(size for _, size in shards))
    return summary | {"quarantine": letters.rows}


def _write_shards(
    folder: Path,
    records: Iterator[WindowRecord],
    spec: DatasetSpec,
    expected: int,
    config: EncodeConfig,
    on_record: Callable[[bytes], None],
) -> list[tuple[int, int]]:
    """(records, bytes) of each shard. Their names say how many there are: fewer than `expected` where clips are left
    out.
    """
    shards: list[tuple[int, int]] = []
    while (record := next(records, None)) is not None:
        some = itertools.chain([record], itertools.islice(records, config.shard_windows - 1))
        shards.append(write_shard(shard_path(folder, len(shards), expected), some, spec, on_record))
    if len(shards) != expected:
        for shard in range(len(shards)):
            files.move_into_place(shard_path(folder, shard, expected), shard_path(folder, shard, len(shards)))
    return shards


def _catalog_row(index: int, window: EncodedWindow) -> dict[str, Any]:
    record = window.record
    return {
        "window_id": record.window_id,
        "clip_id": record.clip_id,
        "split": window.split,
        "record": index,
        "start_frame": window.window.start,
        "latent_frames": latent_frames_of(record.frames),
        "latent_height": window.height // SPATIAL_STRIDE,
        "latent_width": window.width // SPATIAL_STRIDE,
        "height": window.height,
        "width": window.width,
        "text_tokens": len(record.text_SE),
        "num_references": len(record.references_RHWC),
        "duration_s": record.frames / FPS,
        "eligible": record.eligible,
    }


def _summary(
    catalog: Catalog, statistics: dict[str, ClipStatistics], clips: Sequence[Clip], size: int
) -> dict[str, Any]:
    """What `encode.json` holds: counts of windows, and what the codec did to each clip and to all of them."""
    rows, overall = [], ClipStatistics()
    for clip in clips:
        mine, clip_statistics = catalog.clip_id == clip.clip_id, statistics[clip.clip_id]
        if not mine.any():
            rows.append({"clip_id": clip.clip_id, "windows": 0})
            continue
        overall.add(clip_statistics)
        rows.append(
            {
                "clip_id": clip.clip_id,
                "height": int(catalog.height[mine][0]),
                "width": int(catalog.width[mine][0]),
                "source_height": clip.height,
                "source_width": clip.width,
                "windows": int(mine.sum()),
                "by_frames": _counts(catalog.frames[mine]),
                "eligible": {c.label: int((catalog.eligible[mine] >> c & 1).sum()) for c in Condition},
                "round_trip_psnr_db": round(clip_statistics.psnr, 3),
                "latent_std": [round(float(std), 4) for std in clip_statistics.latent_std_C],
            }
        )
    return {
        "windows": len(catalog),
        "bytes": size,
        "by_frames": _counts(catalog.frames),
        "by_eligible": {
            ConditionSet(int(bits)).label: n for bits, n in sorted(collections.Counter(catalog.eligible).items())
        },
        "by_split": {str(name): n for name, n in sorted(collections.Counter(catalog.split).items())},
        "latent_std": [round(float(std), 4) for std in overall.latent_std_C],
        "clips": rows,
    }


def _counts(values: np.ndarray) -> dict[str, int]:
    return {str(value): count for value, count in sorted(collections.Counter(values.tolist()).items())}


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """The summary as a table, a row a clip; dB is the PSNR of the codec's round trip."""
    lengths = list(summary["by_frames"])
    table = Table(
        title=f"{summary['windows']} windows of {' / '.join(lengths)} frames, {summary['bytes'] / 2**20:.1f} MiB"
    )
    table.add_column("clip", overflow="fold")
    for column in ("size", "windows", *(c.label for c in Condition), "dB"):
        table.add_column(column, justify="right", no_wrap=True)
    dead = {row["clip_id"]: row["reason"] for row in summary.get("quarantine", ())}
    for row in summary["clips"]:
        if not row["windows"]:
            table.add_row(Text(row["clip_id"]), "", "left out" if row["clip_id"] in dead else "too short")
            continue
        table.add_row(
            Text(row["clip_id"]),
            f"{row['width']}x{row['height']}",
            "/".join(str(row["by_frames"].get(n, 0)) for n in lengths),
            *(str(row["eligible"][c.label]) for c in Condition),
            f"{row['round_trip_psnr_db']:.1f}",
        )
    console.print(table)
    for clip_id, reason in dead.items():
        line = file_names.printable(f"encode: {clip_id}: {reason}")
        console.print(line, soft_wrap=True, markup=False, highlight=False)


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
        "--clips", required=True, type=local, metavar="DIR", help="folder written by `omnihuman curate`"
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
    parser.add_argument("--text-encoder", required=True, metavar="DIR", help="folder in Hugging Face layout, or hub id")
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
        "--stride", type=int, default=cut.stride, help="frames between window starts (default: %(default)s)"
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
    )
    console = Console(stderr=True)
    print_summary(encode(options.clips, options.out, config, console, options.overwrite), console)
    return 0
