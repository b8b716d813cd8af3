"""Whether the dataset in a folder is still the one that is asked for, by everything that its values were made of; or
becomes it by an append, which is a new generation.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from data_pipelines.curate import source_list
from data_pipelines.curate.clip_sets import read_head, table_folder
from data_pipelines.curate.code_digest import code_digest
from data_pipelines.curate.stage_parts import Table
from data_pipelines.encode import clip_encoder, windows
from data_pipelines.encode.encoded_clips import CLIPS_FILE
from omnihuman_jax.codecs.dct import DctCodec
from omnihuman_jax.data.generations import Generation, numbered, read_manifest
from omnihuman_jax.data.identity import changed_features, features_of
from omnihuman_jax.data.records import VERSION, DatasetSpec
from omnihuman_jax.runtime import files, folders
from omnihuman_jax.runtime.locations import Location
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.serving.folders_omnihuman import check_weights, local_folder
from omnihuman_jax.serving.media_omnihuman import READER_VERSION

SUMMARY_FILE = "encode.json"
_ROWS_AT_ONCE = 10_000
_ROLES = ("codec", "text_encoder", "speech_encoder")


def made_by(sets: Location, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but the networks' files that decides whether a dataset is still the right one, by name."""
    head = read_head(sets)
    table = Table(folder=table_folder(sets), keys=head["stages"])
    known = {name: head[name] for name in ("stages", "rows_sha256", "landmarks_sha256")}
    clips = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    # Where videos lie does not count; their bytes, captions and splits do. A few at a time: Python's rows of millions
    # of videos are GB.
    for batch in source_list.read_listings(table).drop_columns(["path", "caption_error"]).to_batches(_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            clips.update(json.dumps(row, sort_keys=True).encode())
    return {
        "reader": [READER_VERSION, code_digest((media_omnihuman,), lambda module: module.endswith("_omnihuman"))],
        "encoder": [clip_encoder.VERSION, code_digest((clip_encoder, windows), lambda module: False)],
        "records": VERSION,
        "settings": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "clips": clips.hexdigest(),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """What is appended to: the newest generation of the dataset `out`, in `folder`, its summary, and how many records
    it and those before it have.
    """

    out: Location
    generation: Generation
    summary: Mapping[str, Any]
    records: int

    @property
    def folder(self) -> Location:
        return self.out / self.generation.folder if self.generation.folder else self.out

    @property
    def name(self) -> str:
        """`DATASET@2`."""
        return numbered(self.out, self.generation.number)

    @property
    def stated(self) -> dict[str, Any]:
        """What all who make the next generation have to agree on."""
        return {"generation": self.generation.number, "summary_sha256": self.generation.summary_sha256}

    @classmethod
    def of(cls, out: Location) -> "Base":
        """ValueError for a dataset that nothing can be appended to."""
        there = read_manifest(out)
        newest = there[-1]
        if not files.is_there(out / newest.folder / CLIPS_FILE):
            raise ValueError(
                f"{out}: it does not say which clips it has ({CLIPS_FILE}), so that nothing can be appended; choose"
                " another --out, or replace it with --overwrite"
            )
        summary = json.loads((out / newest.folder / SUMMARY_FILE).read_text())
        return cls(out=out, generation=newest, summary=summary, records=sum(one.records for one in there))


def newest_summary(out_dir: Location) -> dict[str, Any]:
    """The summary of the newest generation of a dataset."""
    summary: dict[str, Any] = json.loads((out_dir / read_manifest(out_dir)[-1].folder / SUMMARY_FILE).read_text())
    return summary


def check_free(out_dir: Location, *, overwrite: bool) -> None:
    """ValueError if a data set that is finished now would take the place of something."""
    if _is_free(out_dir):
        return
    if not (overwrite and files.is_there(out_dir / SUMMARY_FILE)):
        raise ValueError(f"{out_dir}: is there already; choose another --out, or replace a data set with --overwrite")


def _is_free(out_dir: Location) -> bool:
    """Whether nothing is there; or, in a bucket, what a finish has brought that was killed on the way."""
    if not out_dir.exists() or folders.is_incomplete(out_dir):
        return True
    return bool(out_dir.is_dir() and not any(out_dir.iterdir()))


def existing(
    out_dir: Location,
    made_by: Mapping[str, Any],
    settings: Mapping[str, Any],
    networks: Mapping[str, str],
    *,
    overwrite: bool,
    retry_dead: bool = False,
) -> dict[str, Any] | Base | None:
    """The summary of the dataset in `out_dir` if it is the one asked for; what to append to if it was made like that of
    other clips, or if not all of them could be encoded and `retry_dead`; None if one is to be made; ValueError if
    something else would be lost. `networks`: role -> folder or hub id.
    """
    if _is_free(out_dir):
        return None
    if not files.is_there(out_dir / SUMMARY_FILE):
        raise ValueError(f"{out_dir}: exists and is no dataset of `omnihuman encode`; choose another --out")
    if overwrite:
        return None
    summary = newest_summary(out_dir)
    before = summary.get("made_by", {})
    changed = [name for name in ("reader", "encoder", "records") if before.get(name) != made_by[name]]
    changed += _changed_settings(summary.get("settings"), settings, before.get("settings") == made_by["settings"])
    changed += _changed_networks(out_dir, networks)
    if changed:
        raise ValueError(
            f"{out_dir}: made with other settings, with other networks, or by another version ({'; '.join(changed)});"
            " choose another --out, or replace it with --overwrite"
        )
    is_whole = before.get("clips") == made_by["clips"] and not (retry_dead and summary.get("dead_letters"))
    return summary if is_whole else Base.of(out_dir)


def check_same_features(base: Base, spec: DatasetSpec) -> None:
    """ValueError unless what is appended means what the base's records mean."""
    before = features_of(DatasetSpec.load(base.name)) | {"records_sha256": ""}
    if changed := changed_features(before, features_of(spec)):
        raise ValueError(
            f"{base.out}: an append would have other features ({'; '.join(changed)}); choose another --out, or replace"
            " it with --overwrite"
        )


def _changed_settings(before: Mapping[str, Any] | None, now: Mapping[str, Any], same_digest: bool) -> list[str]:
    """`name: before -> now` of what differs; how large shards are, and where networks lie, does not count."""
    if same_digest:
        return []
    if before is None:
        return ["settings"]
    old, new = (_flat(json.loads(json.dumps(one))) for one in (before, now))
    names = [name for name in sorted(old.keys() | new.keys()) if name not in ("shard_mib", *_ROLES)]
    return [f"{name}: {old.get(name)} -> {new.get(name)}" for name in names if old.get(name) != new.get(name)]


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    parts = ({f"{name}.{n}": v for n, v in value.items()} if isinstance(value, dict) else {name: value}
             for name, value in settings.items())  # fmt: skip
    return {name: value for part in parts for name, value in part.items()}


def _changed_networks(out_dir: Location, networks: Mapping[str, str]) -> list[str]:
    """The networks whose files are not those that made the dataset; by their names, where these have no files."""
    spec = DatasetSpec.load(out_dir)
    changed = []
    for role, name_or_folder in networks.items():
        hashes = {n.removeprefix(f"{role}/"): d for n, d in spec.encoder_sha256.items() if n.startswith(f"{role}/")}
        if not hashes or name_or_folder in ("", DctCodec.name):
            if getattr(spec, role) != name_or_folder:
                changed.append(f"{role}: {getattr(spec, role) or 'none'} -> {name_or_folder or 'none'}")
            continue
        try:
            check_weights(role, local_folder(name_or_folder, "give the network's folder"), hashes)
        except ValueError:
            changed.append(role)
    return changed
