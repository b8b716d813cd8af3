"""A table of numbers, as large as wanted, in the real format: what select reads, without a video."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipelines.curate import source_list, stage_parts
from data_pipelines.curate.clip_hashes import OF_PICTURES, OF_SOUND
from data_pipelines.curate.file_stages import KNOWN_SCORES
from data_pipelines.curate.stage_parts import GROUPS, SCHEMAS, STAGES, Table

_HASHES = {"preview": OF_PICTURES, "listen": OF_SOUND}


def write(
    folder: Path,
    *,
    parts: int,
    videos: int,
    clips: int,
    seed: int = 0,
    scored: int | None = None,
    hashed: bool = False,
) -> None:
    """`parts` parts of `videos` videos with `clips` clips each; scores that pass most checks, most of the time. Only
    `scored` parts have scores of their own, and the others theirs in turn: links to the same files. hashed: each clip
    has hashes of its own, in files of each part's own.
    """
    table, rng = Table(folder=folder, keys=dict.fromkeys(STAGES, "made")), np.random.default_rng(seed)
    count, listing = videos * clips, []
    video = np.repeat(np.arange(videos), clips)
    start = np.tile(np.arange(clips, dtype=np.int32) * 200, videos)
    for number in range(parts):
        sources = [f"{number:08x}{index:016x}" for index in range(videos)]
        hashes = [f"{number * videos + index:064x}"[::-1] for index in range(videos)]
        scan = {
            "source": _words(sources, video),
            "kind": _words(["clip"], np.zeros(count, int)),
            "sha256": _words(hashes, video),
            "start_frame": start,
            "end_frame": start + rng.integers(25, 200, count).astype(np.int32),
            "height": np.full(count, 480, np.int32),
            "width": np.full(count, 848, np.int32),
            "source_fps": np.full(count, 25.0),
            "bits_per_pixel": rng.random(count) * 0.1,
            "has_audio": rng.random(count) < 0.8,
        }
        ids = {"clip_id": pa.DictionaryArray.from_arrays(pa.array(video), pa.array(hashes)).cast(pa.string())}
        stages = {"scan": scan}
        if scored is None or number < scored:
            stages |= {stage: {**ids, **own} for stage, own in _scores(rng, count).items()}
        for stage in STAGES:
            if stage in stages:
                stage_parts.write_columns(table.part(stage, number), _filled(stages[stage], SCHEMAS[stage], count))
            else:
                assert scored
                table.part(stage, number).hardlink_to(table.part(stage, number % scored))
            if hashed and stage in _HASHES:
                _write_hashes(table.part(stage, number), _HASHES[stage], rng)
        row = {"part": number, "path": "gone.mp4", "caption": "a", "caption_source": "sidecar", "caption_error": ""}
        named = [{**row, "split": "train", "source": source, "name": f"{source}.mp4"} for source in sources]
        listing.append(pa.Table.from_pylist(named, schema=source_list._LISTING))
    stage_parts.write_columns(folder / "listings" / "made.parquet", pa.concat_tables(listing))
    table.save()


def _scores(rng: np.random.Generator, count: int) -> dict[str, dict[str, object]]:
    """Stage -> column -> scores of `count` clips."""
    preview: dict[str, object] = {
        "sharpness": rng.gamma(2, 60, count),
        "brightness": rng.random(count) * 255,
        "motion": rng.random(count),
        "frozen_share": rng.random(count) * 0.3,
    }
    look: dict[str, object] = {name: rng.random(count) for name in GROUPS["landmarks"]}
    preview |= {name: look[name.removeprefix("preview_")] for name in GROUPS["preview"]}
    listen: dict[str, object] = {name: rng.random(count) for name in GROUPS["lip_sync"]}
    listen |= {"loudness_dbfs": -70 * rng.random(count), "peak_dbfs": -rng.random(count)}
    preview |= {name: rng.random(count) for name in KNOWN_SCORES if name not in preview}
    listen["voice_share"] = rng.random(count)
    return {"preview": preview, "look": look, "listen": listen}


def _write_hashes(path: Path, names: tuple[str, ...], rng: np.random.Generator) -> None:
    """Gives a part random hashes; in a file of its own, where it was a link."""
    part = stage_parts.read_part(path)
    for name in names:
        place = part.column_names.index(name)
        own = pa.array(rng.integers(0, 1 << 64, len(part), np.uint64))
        part = part.set_column(place, part.schema.field(name), own.cast(part.schema.field(name).type))
    path.unlink()
    stage_parts.write_columns(path, part)


def _words(words: list[str], index: np.ndarray) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(index, pa.int32()), pa.array(words))


def _filled(columns: dict[str, object], schema: pa.Schema, count: int) -> pa.Table:
    nothing = {field.name: pa.nulls(count, field.type) for field in schema}
    arrays = [pa.array(columns[f.name]).cast(f.type) if f.name in columns else nothing[f.name] for f in schema]
    return pa.table(arrays, schema=schema)
