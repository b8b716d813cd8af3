"""Records and packed batches per CPU second, beside a bare loop over the same shards, in one run.

    python -m tests.benchmarks.reader_speed            # part of `make bench`

The bare loop reads ArrayRecord shards at random places and deserialises with tensorflow-datasets, which is what a data
source of its gives. Ours are `RecordSource`, which parses a record in place and checks it, and the loader, which packs
whole batches on 1 and on 4 threads. Where `webdataset` is installed (`pip install webdataset==1.0.2`), its own loop is
beside them: the same arrays as members of tar files (.npy, and all in one of its own .ten), read from front to end,
which is what it does best, and decoded by itself. They take turns, `--rounds` times; medians of records per second of
the process's CPU time. Three sizes of record: small ones of 25 frames, 33 frames at 480 x 832, and 129 frames at
720 x 1280, as a 13 B run has them.
"""

import argparse
import dataclasses
import importlib.util
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from omnihuman_jax.conditions import ConditionSet
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.pipeline import make_loader
from omnihuman_jax.data.plan import Plan, PlanConfig
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.data.records import (
    DatasetSpec,
    WindowRecord,
    features,
    shard_path,
    write_dataset_metadata,
    write_shard,
)
from omnihuman_jax.stages import Stage, StageSchedule
from omnihuman_jax.typing import FPS, PackedShape

SIZES = {"small": (7, 32, 32), "480p": (9, 60, 104), "720p": (33, 90, 160)}  # latent frames, height, width
CHANNELS, TEXT, TEXT_WIDTH, AUDIO, KEYPOINTS, MARGIN = 16, 64, 512, 768, 75, 5
ALL = ConditionSet.from_labels(["text", "reference", "audio", "pose"])


def spec() -> DatasetSpec:
    """Widths of a real dataset, with a small text encoder."""
    return DatasetSpec(
        codec="none", latent_channels=CHANNELS, text_encoder="none", text_width=TEXT_WIDTH, pooled_width=TEXT_WIDTH,
        speech_encoder="none", speech_layers=(0,), speech_width=AUDIO,
        keypoint_names=tuple(f"k{i}" for i in range(KEYPOINTS)), margin=MARGIN,
        empty_text_SE=np.zeros((2, TEXT_WIDTH), np.float16), empty_pooled_E=np.zeros(TEXT_WIDTH, np.float16),
    )  # fmt: skip


def rows_of(size: tuple[int, int, int]) -> int:
    """Frames of a window, and its margins."""
    return 1 + 4 * (size[0] - 1) + 2 * MARGIN


def record(number: int, size: tuple[int, int, int]) -> WindowRecord:
    """A window of noise."""
    frames, height, width = size
    rows, rng = rows_of(size), np.random.default_rng(number)

    def noise(*dims: int) -> np.ndarray:
        return rng.standard_normal(dims, np.float32).astype(np.float16)

    return WindowRecord(
        window_id=f"w{number}", clip_id=f"c{number}", video="video.mp4", frames=rows - 2 * MARGIN,
        eligible=ALL.bits, latents_FHWC=noise(frames, height, width, CHANNELS),
        references_RHWC=noise(1, height, width, CHANNELS), text="a person speaks",
        text_SE=noise(TEXT, TEXT_WIDTH), pooled_E=noise(TEXT_WIDTH), audio_TE=noise(rows, AUDIO),
        audio_valid_T=np.ones(rows, bool), keypoints_TJ3=noise(rows, KEYPOINTS, 3),
        keypoints_valid_T=np.ones(rows, bool),
    )  # fmt: skip


def write_dataset(folder: Path, count: int, size: tuple[int, int, int]) -> None:
    """`count` windows of noise."""
    frames, height, width = size
    rows = rows_of(size)
    shards = [
        write_shard(
            shard_path(folder, shard, 2),
            (record(number, size) for number in range(shard * count // 2, (shard + 1) * count // 2)),
            spec(),
        )
        for shard in range(2)
    ]
    write_dataset_metadata(folder, spec(), shards)
    ones = np.ones(count, np.int64)
    Catalog(
        window_id=[f"w{i}" for i in range(count)], clip_id=[f"c{i}" for i in range(count)], split=["train"] * count,
        record=np.arange(count), start_frame=0 * ones, latent_frames=frames * ones, latent_height=height * ones,
        latent_width=width * ones, height=8 * height * ones, width=8 * width * ones, text_tokens=TEXT * ones,
        num_references=ones, duration_s=(rows - 2 * MARGIN) / FPS * ones, eligible=ALL.bits * ones,
        empty_text_tokens=2,
    ).save(folder)  # fmt: skip


def write_tars(folder: Path, count: int, size: tuple[int, int, int], *, together: bool) -> list[str]:
    """The same windows as WebDataset has them, two archives: a member an array, or all `together` in its own format."""
    import webdataset

    paths = [str(folder / f"{together}-{shard}.tar") for shard in range(2)]
    for shard, path in enumerate(paths):
        with webdataset.TarWriter(path) as tar:
            for number in range(shard * count // 2, (shard + 1) * count // 2):
                window = dataclasses.asdict(record(number, size))
                arrays = {name.lower(): a for name, a in window.items() if isinstance(a, np.ndarray)}
                # Its own format knows no booleans.
                own = [a.astype(np.uint8) if a.dtype == bool else a for a in arrays.values()]
                members = {"ten": own} if together else {f"{name}.npy": a for name, a in arrays.items()}
                tar.write({"__key__": f"{number:06d}", "txt": window["text"], **members})
    return paths


def web_dataset(paths: Sequence[str]) -> Callable[[int], int]:
    """Reads so many windows, from front to end and again."""
    import webdataset

    def read(number: int) -> int:
        windows = webdataset.WebDataset(list(paths), shardshuffle=False).decode().repeat()
        for window in itertools.islice(windows, number):
            found = window["ten"][0] if "ten" in window else window["latents_fhwc.npy"]
            assert isinstance(found, np.ndarray)
        return number

    return read


def loops(folder: Path, size: tuple[int, int, int], count: int, number: int) -> dict[str, Callable[[], int]]:
    """Name -> a function that reads about `number` records of `count` and returns how many it read."""
    import tensorflow_datasets as tfds

    records = open_records(folder)
    builder = tfds.builder_from_directory(str(folder))
    raw = builder.as_data_source(split="train", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    layout = features(records.spec)
    order = np.random.default_rng(0).permutation(count).tolist()

    plan, shape = planned(folder, size, number)

    def bare() -> int:
        for i in range(number):
            layout.deserialize_example_np(raw[order[i % count]])
        return number

    def source() -> int:
        for i in range(number):
            assert records[order[i % count]] is not None
        return number

    def packed(threads: int) -> int:
        loader = make_loader(plan, records, records.spec, shape, 0, 1, 0, threads)
        return sum(int((batch.window_BG >= 0).sum()) for batch in loader)

    tars = {}
    if importlib.util.find_spec("webdataset"):
        apart, together = (web_dataset(write_tars(folder, count, size, together=one)) for one in (False, True))
        tars = {"WebDataset, .npy": lambda: apart(number), "WebDataset, .ten": lambda: together(number)}
    return {
        "bare loop": bare,
        **tars,
        "RecordSource": source,
        "packed, 1 thread": lambda: packed(1),
        "packed, 4 threads": lambda: packed(4),
    }


def planned(folder: Path, size: tuple[int, int, int], windows: int) -> tuple[Plan, PackedShape]:
    """Steps of 2 sequences of 4 windows with their references, about so many windows in all."""
    frames, height, width = size
    rows = rows_of(size)
    config = PlanConfig(
        sequences_per_step=2, latent_tokens=4 * (frames + 1) * height * width // 4, text_tokens=4 * TEXT, windows=4,
        latent_frames=4 * frames, frames=4 * rows, margin=MARGIN, chunk_steps=16,
    )  # fmt: skip
    shape = PackedShape(
        latent_tokens=config.latent_tokens, text_tokens=config.text_tokens, windows=4,
        latent_frames=config.latent_frames, frames=config.frames, patch_channels=4 * CHANNELS, text_width=TEXT_WIDTH,
        pooled_width=TEXT_WIDTH, audio_width=AUDIO, audio_tokens=4 + 2 * MARGIN, keypoints=KEYPOINTS, pose_frames=6,
        floats="float16",
    )  # fmt: skip
    stage = Stage(name="all", steps=max(1, windows // 8), text=1.0, reference=1.0, audio=1.0, pose=1.0)
    return Plan(Catalog.load(folder), StageSchedule(rows=(stage,)), config, seed=0), shape


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=300, help="of records that each loop reads in a round")
    options = parser.parse_args(argv)
    print("| records | loop | records per CPU second | MB per CPU second | of the bare loop |\n|---|---|---|---|---|")
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder, rate = Path(temporary) / "dataset", {}
            write_dataset(folder, count := 64, size)
            nbytes = sum(path.stat().st_size for path in folder.glob("*.array_record*")) / count
            made = loops(folder, size, count, max(16, int(options.mib * 2**20 / nbytes)))
            for loop in made.values():
                loop()
            for _ in range(options.rounds):
                for title, loop in made.items():
                    begin = time.process_time()
                    read = loop()
                    rate.setdefault(title, []).append(read / (time.process_time() - begin))
        bare = statistics.median(rate["bare loop"])
        for title, rates in rate.items():
            median = statistics.median(rates)
            print(
                f"| {name}, {nbytes / 1e6:.2f} MB | {title} | {median:,.0f} | {median * nbytes / 1e6:,.0f} |"
                f" {median / bare:.0%} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
