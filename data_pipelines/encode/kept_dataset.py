"""Whether the dataset in a folder is still the one that is asked for: by everything that its values were made of."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.curate.clips import CLIPS_FILE, Clip
from data_pipelines.curate.code_digest import code_digest
from data_pipelines.encode import clip_encoder, windows
from omnihuman_jax.data.records import VERSION, DatasetSpec
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.serving.folders_omnihuman import check_weights, local_folder
from omnihuman_jax.serving.media_omnihuman import READER_VERSION

SUMMARY_FILE = "encode.json"


def made_by(clips_dir: Path, clips: Sequence[Clip], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but the networks' files that decides whether a dataset is still the right one, by name."""
    rows = hashlib.sha256((clips_dir / CLIPS_FILE).read_bytes())
    for clip in clips:
        landmarks = clips_dir / clip.landmarks
        rows.update(landmarks.read_bytes() if landmarks.is_file() else b"")
    return {
        "reader": [READER_VERSION, code_digest((media_omnihuman,), lambda module: module.endswith("_omnihuman"))],
        "encoder": [clip_encoder.VERSION, code_digest((clip_encoder, windows), lambda module: False)],
        "records": VERSION,
        "settings": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "clips": rows.hexdigest(),
    }


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
