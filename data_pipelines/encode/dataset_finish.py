"""The shards of a data set, joined: named by how many there are, with metadata, catalog and summary.

Everything is made in the folder that the shards were made in, which then gets the data set's name, or, of an append,
that of a generation, which the manifest names after that: it is there whole or not at all. Killed on the way, the next
call goes on. In a bucket, what the folder holds is copied (`moved_objects.py`).
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.curate.stage_parts import read_part
from data_pipelines.encode import moved_objects
from data_pipelines.encode.clip_encoder import ClipStatistics
from data_pipelines.encode.dead_letters import write_letters
from data_pipelines.encode.encoded_clips import LEFT_OUT_FILE, read_known, read_left_out, write_known
from data_pipelines.encode.encoded_shards import MAX_ROWS, EncodedShards, MadeShard
from data_pipelines.encode.kept_dataset import SUMMARY_FILE, Base, newest_summary
from data_pipelines.encode.leases import LOOK_AGAIN_S, LeaseHolder
from data_pipelines.encode.shard_plan import MADE_BY_FILE, PLAN_FILE, plan_id, read_plan
from data_pipelines.encode.shard_work import ShardFiles, read_marks
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.catalog_files import NUMBERS, TEXTS
from omnihuman_jax.data.dataset_files import look_again
from omnihuman_jax.data.generations import MANIFEST, Generation, read_manifest, write_manifest
from omnihuman_jax.data.records import DatasetSpec, shard_path, write_dataset_metadata
from omnihuman_jax.runtime import files, folders, scratch
from omnihuman_jax.runtime.locations import Location, is_remote

# Of the folder that a data set is made in, and not of the data set.
_PASSING = (PLAN_FILE, MADE_BY_FILE, LEFT_OUT_FILE)


def finish(folder: Location, out: Location, made_by: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Joins the shards in `folder` into the data set `out`, or into its next generation; returns the summary that it
    also writes there. One at a time does so; where another one has, made by `made_by` too, the summary is that one's.

    Raises:
        FileNotFoundError: nothing is being encoded in `folder`.
        ValueError: shards are missing, or not one clip could be encoded (then `folder` is taken away), or what is to be
            appended to is not what it was.
    """
    lease = folder.with_name(f"{folder.name}.lease")  # beside the folder, which gets another name
    with LeaseHolder() as leases:
        while (is_remote(lease) or lease.parent.is_dir()) and not leases.take(lease):
            time.sleep(LOOK_AGAIN_S)
        is_gone = not any(files.is_there(folder / name) for name in (PLAN_FILE, SUMMARY_FILE))
        if is_gone and made_by is not None and files.is_there(out / SUMMARY_FILE):
            summary = newest_summary(out)
            if summary.get("made_by") == json.loads(json.dumps(made_by)):
                return summary
        return _finish(folder, out)


def _finish(folder: Location, out: Location) -> dict[str, Any]:
    if not files.is_there(folder / SUMMARY_FILE) and (unchanged := _join(folder, out)) is not None:
        return unchanged
    summary: dict[str, Any] = json.loads((folder / SUMMARY_FILE).read_text())
    if is_remote(folder):
        _move_in_bucket(folder, out, summary)
        return summary
    for path in [*folder.glob("part-*"), *folder.glob(".*.part"), *(folder / name for name in _PASSING)]:
        path.unlink(missing_ok=True)
    if summary.get("generation", 1) == 1:
        write_manifest(folder, [_generation(folder, summary)])
        folders.replace_folder(folder, out)
        return summary
    target = out / Generation(number=summary["generation"]).folder
    target.parent.mkdir(exist_ok=True)
    files.move_into_place(folder, target)
    mark_finished(out)
    return summary


def _move_in_bucket(folder: Location, out: Location, summary: Mapping[str, Any]) -> None:
    """Gives the objects of a folder their place in the data set, and what is left of it goes."""
    is_first = summary.get("generation", 1) == 1
    target = out if is_first else out / Generation(number=summary["generation"]).folder
    there = moved_objects.names_in(folder)
    at = _planned(folder)
    # By their marks: a worker that was killed may have left records of clips that could not be encoded after all.
    records = [one.records.name for one, mark in zip(at, read_marks(at), strict=True) if mark.get("records")]
    names = dict(zip(records, (row["name"] for row in summary["shards"]), strict=True))
    names |= {name: name for name in there if not name.startswith(("part-", *_PASSING))}
    moved_objects.copy(folder, target, names, ("dataset.json", SUMMARY_FILE), alone=is_first)
    if is_first:
        write_manifest(out, [_generation(folder, summary)])
        files.remove(out / folders.INCOMPLETE)
    else:
        mark_finished(out)
    moved_objects.remove(folder, last=SUMMARY_FILE)
    look_again()


def _planned(folder: Location) -> list[ShardFiles]:
    """All shards that are made in `folder`."""
    tasks, plan = read_plan(folder), plan_id(folder)  # the first says what to do where there is none
    return [ShardFiles(folder, task.number, plan) for task in tasks]


def clear_moved(folder: Location, out: Location) -> dict[str, Any] | None:
    """Takes away the folder of a bucket whose objects have their place in the data set, as a finish leaves it that is
    killed behind the last of them; the summary, or None.
    """
    if not is_remote(folder) or not files.is_there(folder / SUMMARY_FILE):
        return None
    stated = files.read_bytes(folder / SUMMARY_FILE)
    summary: dict[str, Any] = json.loads(stated)
    number = summary.get("generation", 1)
    there = (out / Generation(number=number).folder if number > 1 else out) / SUMMARY_FILE
    if folders.is_incomplete(out) or not (files.is_there(out / MANIFEST) and files.is_there(there)):
        return None
    if files.read_bytes(there) != stated or number > len(read_manifest(out)):
        return None
    moved_objects.remove(folder, last=SUMMARY_FILE)
    return summary


def mark_finished(out: Location) -> dict[str, Any] | None:
    """Names the next generation of `out` in its manifest if its folder is there, whole, as a finish that was killed
    leaves it; its summary, or None.
    """
    if not files.is_there(out / MANIFEST):
        return None
    there = read_manifest(out)
    folder = out / Generation(number=len(there) + 1).folder
    if not files.is_there(folder / SUMMARY_FILE):
        return None
    summary: dict[str, Any] = json.loads((folder / SUMMARY_FILE).read_text())
    write_manifest(out, [*there, _generation(folder, summary)])
    return summary


def is_append(folder: Location) -> bool:
    """Whether it is a generation of a data set that is being made in `folder`."""
    path = folder / SUMMARY_FILE
    if files.is_there(path):
        return bool(json.loads(path.read_text()).get("generation", 1) > 1)
    return files.is_there(folder / MADE_BY_FILE) and "after" in json.loads((folder / MADE_BY_FILE).read_text())


def _generation(folder: Location, summary: Mapping[str, Any]) -> Generation:
    records = sum(row["records"] for row in summary["shards"])
    digest = files.file_sha256(folder / SUMMARY_FILE)
    number = int(summary.get("generation", 1))
    return Generation(number=number, windows=summary["windows"], records=records, summary_sha256=digest)


def _join(folder: Location, out: Location) -> dict[str, Any] | None:
    """Makes of the shards what is to get the data set's name. Where clips were tried again and none could be encoded:
    nothing; the summary of what there is.
    """
    at = _planned(folder)
    head = json.loads((folder / MADE_BY_FILE).read_text())
    base = _base(folder, out, head.pop("after", None))
    if left := [one for one, mark in zip(at, read_marks(at), strict=True) if mark.get("plan") != one.plan]:
        raise ValueError(
            f"{folder}: {len(left)} of {len(at)} shards are not made yet, the first is {left[0].number}; run"
            " `omnihuman encode` without --finish"
        )
    shards = EncodedShards.of(at)
    made = shards.made
    before = None if base is None else _taken_on(folder, base)
    if not made and not (before and len(before.catalog)):
        letter = (*shards.letters, _SERVES_NONE)[0]
        folders.remove_folder(folder)
        raise ValueError(
            f"none of the {shards.num_clips} clips can be encoded; the first, {letter['clip_id']}: {letter['reason']}"
        )
    if base is not None and not made and base.summary["made_by"] == head["made_by"] and not len(read_left_out(folder)):
        folders.remove_folder(folder)
        return dict(base.summary)
    with _written_in(folder) as work:
        for number, shard in enumerate(made):
            final = shard_path(work, number, len(made))
            if work != folder:
                final.touch()  # tfds wants to see the names
            elif not final.is_file():
                files.move_into_place(shard.at.records, final)
        spec = _spec(work, base, [shard.records_sha256 for shard in made])
        if made:
            write_dataset_metadata(work, spec, [(shard.records, shard.bytes) for shard in made])
        else:
            spec.save(work)
        catalog = _catalog(made, spec, before)
        catalog.save(work)
        write_known(work, before.clips if before else None, shards.known)
        write_letters(work, shards.letters)
        summary = _summary(catalog, shards, before) | {"shards": _shards(work, made), "files": _others(work), **head}
        files.write_text(work / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    return None


@contextlib.contextmanager
def _written_in(folder: Location) -> Iterator[Path]:
    """Where what describes the shards is written: the folder itself; one on the disk, whose files then go to a
    bucket's.
    """
    if not is_remote(folder):
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(dir=scratch.own_folder()) as made:
        work = Path(made)
        for name in ("dataset.json", "dataset.npz"):
            (work / name).write_bytes((folder / name).read_bytes())
        yield work
        moved_objects.bring(work, folder, SUMMARY_FILE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TakenOn:
    """What a new generation takes on: of the base's windows and clips those that are not left out."""

    base: Base
    catalog: Catalog
    clips: pa.Table


def _base(folder: Location, out: Location, after: Mapping[str, Any] | None) -> Base | None:
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


def _taken_on(folder: Location, base: Base) -> _TakenOn:
    gone = read_left_out(folder)["clip_id"].combine_chunks()
    known, catalog = read_known(base.folder), Catalog.load(base.name)
    clips = known.filter(pc.invert(pc.is_in(known["clip_id"], value_set=gone)))
    rows = pc.invert(pc.is_in(catalog.clip_id.array, value_set=gone.cast(pa.large_string())))
    return _TakenOn(base=base, clips=clips, catalog=catalog.select(rows.to_numpy(zero_copy_only=False)))


def _spec(folder: Path, base: Base | None, digests: Sequence[str]) -> DatasetSpec:
    """Of the data set: its records are the base's and these."""
    spec = DatasetSpec.load(folder)
    if base is None:
        return dataclasses.replace(spec, records_sha256=hashlib.sha256("".join(digests).encode()).hexdigest())
    before = DatasetSpec.load(base.name).records_sha256
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
    passing = (*_PASSING, SUMMARY_FILE)
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
