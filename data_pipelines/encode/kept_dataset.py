"""Whether the dataset in a folder is still the one that is asked for: by everything that its values were made of."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.curate import source_list
from data_pipelines.curate.clip_sets import read_head, table_folder
from data_pipelines.curate.code_digest import code_digest
from data_pipelines.curate.stage_parts import Table
from data_pipelines.encode import clip_encoder, windows
from omnihuman_jax.data.records import VERSION, DatasetSpec
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.serving.folders_omnihuman import check_weights, local_folder
from omnihuman_jax.serving.media_omnihuman import READER_VERSION

SUMMARY_FILE = "encode.json"


def made_by(sets: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but the networks' files that decides whether a dataset is still the right one, by name."""
    head = read_head(sets)
    table = Table(folder=table_folder(sets), keys=head["stages"])
    # Where videos lie does not count; their bytes, captions and splits do.
    listed = source_list.read_listings(table).drop_columns(["path", "caption_error"]).to_pylist()
    known = {"rows": listed, **{name: head[name] for name in ("stages", "rows_sha256", "landmarks_sha256")}}
    return {
        "reader": [READER_VERSION, code_digest((media_omnihuman,), lambda module: module.endswith("_omnihuman"))],
        "encoder": [clip_encoder.VERSION, code_digest((clip_encoder, windows), lambda module: False)],
        "records": VERSION,
        "settings": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "clips": hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest(),
    }


def check_free(out_dir: Path, *, overwrite: bool) -> None:
    """ValueError if a data set that is finished now would take the place of something."""
    if out_dir.exists() and any(out_dir.iterdir()) and not (overwrite and (out_dir / SUMMARY_FILE).is_file()):
        raise ValueError(f"{out_dir}: is there already; choose another --out, or replace a data set with --overwrite")


def existing(
    out_dir: Path, made_by: Mapping[str, Any], networks: Mapping[str, str], *, overwrite: bool
) -> dict[str, Any] | None:
    """The summary of the dataset in `out_dir` if it is the one asked for; None if one is to be made; ValueError if
    something else would be lost. `networks`: role -> folder or hub id.
    """
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return None
    file = out_dir / SUMMARY_FILE
    if not file.is_file():
        raise ValueError(f"{out_dir}: exists and is no dataset of `omnihuman encode`; choose another --out")
    if overwrite:
        return None
    summary = json.loads(file.read_text())
    before = summary.get("made_by", {})
    changed = [name for name in made_by if before.get(name) != made_by[name]]
    if changed := changed or _changed_networks(out_dir, networks):
        raise ValueError(
            f"{out_dir}: made from other clips or settings, or by another version ({', '.join(changed)}); choose"
            " another --out, or replace it with --overwrite"
        )
    return summary


def _changed_networks(out_dir: Path, networks: Mapping[str, str]) -> list[str]:
    """The networks whose files are not those that made the dataset."""
    recorded = DatasetSpec.load(out_dir).encoder_sha256
    changed = []
    for role, name_or_folder in networks.items():
        hashes = {name.removeprefix(f"{role}/"): d for name, d in recorded.items() if name.startswith(f"{role}/")}
        if hashes:
            try:
                check_weights(role, local_folder(name_or_folder, "give the network's folder"), hashes)
            except ValueError:
                changed.append(role)
    return changed
