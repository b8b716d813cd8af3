"""Synthetic catalogs and datasets on disk, in the real format: what the data tests plan, read and pack."""

import dataclasses
from pathlib import Path

import numpy as np

from omnihuman_jax.conditions import ConditionSet
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.generations import ONLY, Generation, read_manifest, write_manifest
from omnihuman_jax.data.plan import PlanConfig
from omnihuman_jax.data.records import DatasetSpec, WindowRecord, shard_path, write_dataset_metadata, write_shard
from omnihuman_jax.typing import FPS, PackedShape

SIZES = ((8, 8), (8, 12), (12, 8))  # latent height x width
MARGIN = 5
TEXT_WIDTH, POOLED_WIDTH, KEYPOINTS, SPEECH_LAYERS, SPEECH_WIDTH = 6, 5, 4, (0, 2), 3

ELIGIBLE = {
    "weak": ConditionSet.from_labels(["text", "reference"]).bits,
    "pose": ConditionSet.from_labels(["text", "reference", "pose"]).bits,
    "all": ConditionSet.from_labels(["text", "reference", "audio", "pose"]).bits,
}


def catalog(n: int, *, seed: int = 0, latent_frames: tuple[int, ...] = (1, 5, 7), strong: float = 0.2) -> Catalog:
    """`n` windows of three sizes; at least one, and a share `strong`, eligible for everything; images for the weak
    only.
    """
    rng = np.random.default_rng(seed)
    frames = rng.choice(latent_frames, n)
    size = np.asarray(SIZES)[rng.integers(0, len(SIZES), n)]
    chance = rng.random(n)
    eligible = np.where(
        chance < strong, ELIGIBLE["all"], np.where(chance < 2 * strong, ELIGIBLE["pose"], ELIGIBLE["weak"])
    )
    eligible = np.where(frames == 1, ELIGIBLE["weak"], eligible)
    frames[0], eligible[0] = max(latent_frames), ELIGIBLE["all"]
    names = [f"w{i}" for i in range(n)]
    return Catalog(
        window_id=names,
        clip_id=[f"c{i // 4}" for i in range(n)],
        split=["train"] * n,
        record=np.arange(n),
        start_frame=np.zeros(n),
        latent_frames=frames,
        latent_height=size[:, 0],
        latent_width=size[:, 1],
        height=8 * size[:, 0],
        width=8 * size[:, 1],
        text_tokens=rng.integers(3, 12, n),
        num_references=rng.integers(1, 4, n),
        duration_s=(1 + 4 * (frames - 1)) / FPS,
        eligible=eligible,
        empty_text_tokens=2,
    )


def plan_config(**changes) -> PlanConfig:
    """Sequences of about 8 windows of `catalog`."""
    values = {"sequences_per_step": 4, "chunk_steps": 32, "margin": MARGIN}
    values |= {"latent_tokens": 768, "text_tokens": 160, "windows": 16, "latent_frames": 64, "frames": 384}
    return PlanConfig(**(values | changes))


def spec() -> DatasetSpec:
    rng = np.random.default_rng(99)
    return DatasetSpec(
        codec="dct",
        latent_channels=4,
        text_encoder="text",
        text_width=TEXT_WIDTH,
        pooled_width=POOLED_WIDTH,
        speech_encoder="speech",
        speech_layers=SPEECH_LAYERS,
        speech_width=SPEECH_WIDTH,
        keypoint_names=tuple(f"k{i}" for i in range(KEYPOINTS)),
        margin=MARGIN,
        empty_text_SE=rng.normal(size=(2, TEXT_WIDTH)).astype(np.float16),
        empty_pooled_E=rng.normal(size=POOLED_WIDTH).astype(np.float16),
        encoder_sha256={"model.safetensors": "0" * 64},
    )


def shape(config: PlanConfig) -> PackedShape:
    return PackedShape(
        latent_tokens=config.latent_tokens,
        text_tokens=config.text_tokens,
        windows=config.windows,
        latent_frames=config.latent_frames,
        frames=config.frames,
        patch_channels=16,
        text_width=TEXT_WIDTH,
        pooled_width=POOLED_WIDTH,
        audio_width=len(SPEECH_LAYERS) * SPEECH_WIDTH,
        audio_tokens=4 + 2 * MARGIN,
        keypoints=KEYPOINTS,
        pose_frames=6,
        floats="float16",
    )


def record(table: Catalog, row: int) -> WindowRecord:
    """The window of a catalog row, filled with noise keyed on the row; sound and keypoints where it is eligible."""
    rng = np.random.default_rng([7, row])
    eligible = int(table.eligible[row])
    frames, rows = int(table.frames[row]), int(table.frames[row]) + 2 * MARGIN
    size = (int(table.latent_height[row]), int(table.latent_width[row]), 4)
    sound, body = rows * (eligible >> 2 & 1), rows * (eligible >> 3 & 1)

    def noise(*dims: int) -> np.ndarray:
        return rng.normal(size=dims).astype(np.float16)

    audio_valid = np.ones(sound, bool)
    audio_valid[:2] = False  # the window starts three frames into its clip's sound
    return WindowRecord(
        window_id=str(table.window_id[row]),
        clip_id=str(table.clip_id[row]),
        video="Vidéo 1.mp4",
        frames=frames,
        eligible=eligible,
        latents_FHWC=noise(int(table.latent_frames[row]), *size),
        references_RHWC=noise(int(table.num_references[row]), *size),
        text=f"a person says “{row}”",
        text_SE=noise(int(table.text_tokens[row]), TEXT_WIDTH),
        pooled_E=noise(POOLED_WIDTH),
        audio_TE=noise(sound, len(SPEECH_LAYERS) * SPEECH_WIDTH),
        audio_valid_T=audio_valid,
        keypoints_TJ3=noise(body, KEYPOINTS, 3),
        keypoints_valid_T=np.ones(body, bool),
    )


def write_dataset(directory: Path, table: Catalog, num_shards: int = 2, poisoned: tuple[int, ...] = ()) -> Path:
    """The dataset of a catalog on disk; a latent of the `poisoned` rows is not a number."""

    def made(row: int) -> WindowRecord:
        window = record(table, row)
        if row in poisoned:
            window.latents_FHWC[0, 0, 0, 0] = np.nan
        return window

    parts = np.array_split(np.arange(len(table)), num_shards)
    shards = [
        write_shard(shard_path(directory, i, num_shards), (made(int(row)) for row in rows), spec())
        for i, rows in enumerate(parts)
    ]
    write_dataset_metadata(directory, spec(), shards)
    table.save(directory)
    return directory


def append(directory: Path, extra: Catalog) -> Catalog:
    """A generation that adds these windows, under ids of its own; returns its catalog."""
    there = read_manifest(directory)
    before = Catalog.load(directory)
    if there == [ONLY]:
        there = [Generation(number=1, windows=len(before), records=len(before))]
    number, count = len(there) + 1, sum(one.records for one in there)
    own = Generation(number=number, windows=len(before) + len(extra), records=len(extra))
    names = [f"g{number}-{name}" for name in extra.window_id]
    extra = dataclasses.replace(extra, window_id=names)
    folder = directory / own.folder
    shard = write_shard(shard_path(folder, 0, 1), (record(extra, row) for row in range(len(extra))), spec())
    write_dataset_metadata(folder, spec(), [shard])
    whole = before.extended(dataclasses.replace(extra, record=extra.record + count))
    whole.save(folder)
    write_manifest(directory, [*there, own])
    return whole


def damage(directory: Path, table: Catalog, row: int) -> None:
    """Flips one byte in the middle of the record of `row`, wherever it lies."""
    needle = np.ascontiguousarray(record(table, row).latents_FHWC).tobytes()
    for path in sorted(directory.glob("*.array_record-*")):
        data = bytearray(path.read_bytes())
        if (at := data.find(needle)) >= 0:
            data[at + len(needle) // 2] ^= 0xFF
            path.write_bytes(data)
            return
    raise AssertionError(f"record {row} not found in {directory}")
