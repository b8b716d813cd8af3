"""The shards of a data set, joined: named by how many there are, with metadata, catalog and summary.

Everything is made in the folder that the shards were made in, which then gets the data set's name, or, of an append,
that of a generation, which the manifest names after that: it is there whole or not at all. Killed on the way, the next
call goes on.
"""

import collections
import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.curate.stage_parts import read_part
from data_pipelines.encode.clip_encoder import ClipStatistics
from data_pipelines.encode.dead_letters import write_letters
from data_pipelines.encode.encoded_clips import LEFT_OUT_FILE, read_known, read_left_out, write_known
from data_pipelines.encode.encoded_shards import MAX_ROWS, EncodedShards, MadeShard
from data_pipelines.encode.kept_dataset import SUMMARY_FILE, Base, newest_summary
from data_pipelines.encode.leases import LOOK_AGAIN_S, LeaseHolder
from data_pipelines.encode.shard_plan import MADE_BY_FILE, PLAN_FILE, plan_id, read_plan
from data_pipelines.encode.shard_work import ShardFiles
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.catalog_files import NUMBERS, TEXTS
from omnihuman_jax.data.generations import MANIFEST, Generation, numbered, read_manifest, write_manifest
from omnihuman_jax.data.records import DatasetSpec, shard_path, write_dataset_metadata
from omnihuman_jax.runtime import files


def finish(folder: Path, out: Path, made_by: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Joins the shards in `folder` into the data set `out`, or into its next generation; returns the summary that it
    also writes there. One at a time does so; where another one has, made by `made_by` too, the summary is that one's.

    Raises:
        FileNotFoundError: nothing is being encoded in `folder`.
        ValueError: shards are missing, or not one clip could be encoded (then `folder` is taken away), or what is to be
            appended to is not what it was.
    """
    lease = folder.with_name(f"{folder.name}.lease")  # beside the folder, which gets another name
    with LeaseHolder() as leases:
        while lease.parent.is_dir() and not leases.take(lease):
            time.sleep(LOOK_AGAIN_S)
        is_gone = not any((folder / name).is_file() for name in (PLAN_FILE, SUMMARY_FILE))
        if is_gone and made_by is not None and (out / SUMMARY_FILE).is_file():
            summary = newest_summary(out)
            if summary.get("made_by") == json.loads(json.dumps(made_by)):
                return summary
        return _finish(folder, out)


def _finish(folder: Path, out: Path) -> dict[str, Any]:
    if not (folder / SUMMARY_FILE).is_file() and (unchanged := _join(folder, out)) is not None:
        return unchanged
    summary: dict[str, Any] = json.loads((folder / SUMMARY_FILE).read_text())
    passing = [folder / name for name in (PLAN_FILE, MADE_BY_FILE, LEFT_OUT_FILE)]
    for path in [*folder.glob("part-*"), *folder.glob(".*.part"), *passing]:
        path.unlink(missing_ok=True)
    if summary.get("generation", 1) == 1:
        write_manifest(folder, [_generation(folder, summary)])
        files.replace_folder(folder, out)
        return summary
    target = out / Generation(number=summary["generation"]).folder
    target.parent.mkdir(exist_ok=True)
    files.move_into_place(folder, target)
    mark_finished(out)
    return summary


def mark_finished(out: Path) -> dict[str, Any] | None:
    """Names the next generation of `out` in its manifest if its folder is there, whole, as a finish that was killed
    leaves it; its summary, or None.
    """
    if not (out / MANIFEST).is_file():
        return None
    there = read_manifest(out)
    folder = out / Generation(number=len(there) + 1).folder
    if not (folder / SUMMARY_FILE).is_file():
        return None
    summary: dict[str, Any] = json.loads((folder / SUMMARY_FILE).read_text())
    write_manifest(out, [*there, _generation(folder, summary)])
    return summary


def is_append(folder: Path) -> bool:
    """Whether it is a generation of a data set that is being made in `folder`."""
    path = folder / SUMMARY_FILE
    if path.is_file():
        return bool(json.loads(path.read_text()).get("generation", 1) > 1)
    return (folder / MADE_BY_FILE).is_file() and "after" in json.loads((folder / MADE_BY_FILE).read_text())


def _generation(folder: Path, summary: Mapping[str, Any]) -> Generation:
    records = sum(row["records"] for row in summary["shards"])
    digest = files.file_sha256(folder / SUMMARY_FILE)
    number = int(summary.get("generation", 1))
    return Generation(number=number, windows=summary["windows"], records=records, summary_sha256=digest)


def _join(folder: Path, out: Path) -> dict[str, Any] | None:
    """Makes of the shards what is to get the data set's name. Where clips were tried again and none could be encoded:
    nothing; the summary of what there is.
    """
    tasks, plan = read_plan(folder), plan_id(folder)
    at = [ShardFiles(folder, task.number, plan) for task in tasks]
    head = json.loads((folder / MADE_BY_FILE).read_text())
    base = _base(folder, out, head.pop("after", None))
    if left := [one for one in at if not one.is_made]:
        raise ValueError(
            f"{folder}: {len(left)} of {len(at)} shards are not made yet, the first is {left[0].number}; run"
            " `omnihuman encode` without --finish"
        )
    shards = EncodedShards.of(at)
    made = shards.made
    before = None if base is None else _taken_on(folder, base)
    if not made and not (before and len(before.catalog)):
        letter = (*shards.letters, _SERVES_NONE)[0]
        shutil.rmtree(folder)
        raise ValueError(
            f"none of the {shards.num_clips} clips can be encoded; the first, {letter['clip_id']}: {letter['reason']}"
        )
    if base is not None and not made and base.summary["made_by"] == head["made_by"] and not len(read_left_out(folder)):
        shutil.rmtree(folder)
        return dict(base.summary)
    for number, shard in enumerate(made):
        final = shard_path(folder, number, len(made))
        if not final.is_file():
            files.move_into_place(shard.at.records, final)
    spec = _spec(folder, base, [shard.records_sha256 for shard in made])
    if made:
        write_dataset_metadata(folder, spec, [(shard.records, shard.bytes) for shard in made])
    else:
        spec.save(folder)
    catalog = _catalog(made, spec, before)
    catalog.save(folder)
    write_known(folder, before.clips if before else None, shards.known)
    write_letters(folder, shards.letters)
    summary = _summary(catalog, shards, before) | {"shards": _shards(folder, made), "files": _others(folder), **head}
    files.write_text(folder / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TakenOn:
    """What a new generation takes on: of the base's windows and clips those that are not left out."""

    base: Base
    catalog: Catalog
    clips: pa.Table


def _base(folder: Path, out: Path, after: Mapping[str, Any] | None) -> Base | None:
    """What is appended to; ValueError unless it is what it was when that was begun."""
    if after is None:
        return None
    base = Base.of(out)
    if base.stated != after:
        raise ValueError(
            f"{folder}: is to follow generation {after['generation']} of {out}, which is at generation"
            f" {base.generation.number} by now; delete {folder} and encode again"
        )
    return base


def _taken_on(folder: Path, base: Base) -> _TakenOn:
    gone = read_left_out(folder)["clip_id"].combine_chunks()
    known, catalog = read_known(base.folder), Catalog.load(numbered(base.out, base.generation.number))
    clips = known.filter(pc.invert(pc.is_in(known["clip_id"], value_set=gone)))
    rows = pc.invert(pc.is_in(catalog.clip_id.array, value_set=gone.cast(pa.large_string())))
    return _TakenOn(base=base, clips=clips, catalog=catalog.select(rows.to_numpy(zero_copy_only=False)))


def _spec(folder: Path, base: Base | None, digests: Sequence[str]) -> DatasetSpec:
    """Of the data set: its records are the base's and these."""
    spec = DatasetSpec.load(folder)
    if base is None:
        return dataclasses.replace(spec, records_sha256=hashlib.sha256("".join(digests).encode()).hexdigest())
    before = DatasetSpec.load(base.folder).records_sha256
    chained = hashlib.sha256("".join([before, *digests]).encode()).hexdigest() if digests else before
    return dataclasses.replace(spec, records_sha256=chained)


_SERVES_NONE = {"clip_id": "like all others", "reason": "is eligible for no condition"}


def _catalog(made: Sequence[MadeShard], spec: DatasetSpec, before: _TakenOn | None) -> Catalog:
    if not made:
        assert before is not None
        return before.catalog
    parts, first = [], before.base.records if before else 0
    for shard in made:
        rows = read_part(shard.at.rows)
        index = rows.column_names.index("record")
        parts.append(rows.set_column(index, "record", pa.array(rows["record"].to_numpy() + first)))
        first += shard.records
    together = pa.concat_tables(parts)
    # Texts stay in Arrow's memory: a Python string each would be most of it.
    arrays: dict[str, Any] = {name: together[name] for name in (*TEXTS, "split")}
    arrays |= {name: together[name].to_numpy() for name in NUMBERS}
    own = Catalog(**arrays, empty_text_tokens=spec.empty_text_tokens)
    return before.catalog.extended(own) if before else own


def _shards(folder: Path, made: Sequence[MadeShard]) -> list[dict[str, Any]]:
    return [
        {
            "name": shard_path(folder, number, len(made)).name,
            "records": shard.records,
            "bytes": shard.bytes,
            "sha256": shard.file_sha256,
        }
        for number, shard in enumerate(made)
    ]


def _others(folder: Path) -> dict[str, str]:
    """Name -> sha256 of every file of the data set beside its shards and the summary."""
    passing = (PLAN_FILE, MADE_BY_FILE, LEFT_OUT_FILE, SUMMARY_FILE)
    kept = [path for path in sorted(folder.iterdir()) if path.is_file() and ".array_record-" not in path.name]
    names = [path for path in kept if not path.name.startswith(("part-", ".", *passing))]
    return {path.name: files.file_sha256(path) for path in names}


def _summary(catalog: Catalog, shards: EncodedShards, before: _TakenOn | None) -> dict[str, Any]:
    """What `encode.json` holds: counts of windows, and what the codec did to each clip (of few) and to all of them."""
    overall, num_bytes = shards.statistics, sum(shard.bytes for shard in shards.made)
    own: dict[str, Any] = {"generation": 1}
    if before is not None:
        base, added = before.base, sum(shard.records for shard in shards.made)
        overall.add(ClipStatistics.from_json(base.summary["statistics"]))
        own = {
            "generation": base.generation.number + 1,
            "added_windows": added,
            "left_out_records": base.records + added - len(catalog),
        }
    return {
        **own,
        "windows": len(catalog),
        "bytes": num_bytes + (before.base.summary["bytes"] if before else 0),
        "by_frames": _counts(catalog.frames),
        "by_eligible": {ConditionSet(int(bits)).label: n for bits, n in _counts(catalog.eligible).items()},
        "by_split": {str(name): n for name, n in sorted(collections.Counter(catalog.split).items())},
        "round_trip_psnr_db": _rounded(overall.psnr),
        "latent_std": [round(float(std), 4) for std in overall.latent_std_C],
        "statistics": overall.to_json(),
        "num_clips": shards.num_clips + (len(before.clips) if before else 0),
        "clips": _clip_rows(catalog, shards.rows) if shards.num_clips <= len(shards.rows) else [],
        "dead_letters": len(shards.letters),
        "quarantine": shards.letters[:MAX_ROWS],
    }


def _clip_rows(catalog: Catalog, clips: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for clip in clips:
        named = {name: clip[name] for name in ("clip_id", "label", "windows", "serves") if name in clip}
        mine = catalog.clip_id == clip["clip_id"]
        if not mine.any():
            rows.append(named)
            continue
        statistics = ClipStatistics.from_json(clip["statistics"])
        rows.append(
            {
                **named,
                "height": int(catalog.height[mine][0]),
                "width": int(catalog.width[mine][0]),
                "source_height": clip["height"],
                "source_width": clip["width"],
                "by_frames": _counts(catalog.frames[mine]),
                "eligible": {c.label: int((catalog.eligible[mine] >> c & 1).sum()) for c in Condition},
                "round_trip_psnr_db": _rounded(statistics.psnr),
                "latent_std": [round(float(std), 4) for std in statistics.latent_std_C],
            }
        )
    return rows


def _rounded(decibels: float) -> float | None:
    return None if np.isnan(decibels) else round(decibels, 3)


def _counts(values: np.ndarray) -> dict[str, int]:
    found, counts = np.unique(values, return_counts=True)
    return {str(value): int(count) for value, count in zip(found.tolist(), counts, strict=True)}
