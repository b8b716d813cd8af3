"""What is made where: the shards of a data set, or of its next generation, agreed on by all who encode them."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from data_pipelines.curate.clip_sets import iter_clips, read_clips_of, read_head
from data_pipelines.curate.clips import Clip
from data_pipelines.encode.clip_encoder import WindowConfig
from data_pipelines.encode.encoded_clips import (
    LEFT_OUT_FILE,
    ClipKeys,
    KeyedClip,
    Keys,
    as_array,
    keys_of,
    left_out,
    read_known,
    write_left_out,
)
from data_pipelines.encode.kept_dataset import SUMMARY_FILE, Base, check_same_features
from data_pipelines.encode.shard_plan import (
    MADE_BY_FILE,
    PLAN_FILE,
    ShardTask,
    keys_digest,
    plan_shards,
    read_plan,
    write_plan,
)
from omnihuman_jax.data.records import DatasetSpec
from omnihuman_jax.encoders.text import MAX_TOKENS
from omnihuman_jax.runtime import file_names, files, folders
from omnihuman_jax.runtime.locations import Location, seen_from


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
class Claim:
    """A data set, or a generation of the one in `base`, that is made in `folder`."""

    folder: Location
    sets: Location
    config: EncodeConfig
    made_by: Mapping[str, Any]
    base: Base | None


def claimed(
    claim: Claim, parts: "SetParts", spec: DatasetSpec, console: Console, *, overwrite: bool
) -> list[ShardTask] | None:
    """The shards that are made in the claim's folder, which is begun unless it is there; None where there is nothing to
    add to the base, and nothing to leave out.

    Raises:
        ValueError: something else is being made there, or no clip is long enough.
    """
    folder, base, config = claim.folder, claim.base, claim.config
    head = {"made_by": claim.made_by, "sets": seen_from(folder.parent, claim.sets)}
    head |= {"encoders": dict(spec.encoder_sha256), "settings": dataclasses.asdict(config)}
    head |= {name: value for name, value in read_head(claim.sets).items() if name in ("dataset", "weight")}
    head |= {"after": base.stated} if base else {}
    file = folder / MADE_BY_FILE
    is_another = files.is_there(file) and not _is_head(file, head)
    if is_another or files.is_there(folder / SUMMARY_FILE):  # the summary of what only its finish is left of
        if not overwrite:
            raise _another(folder)
        folders.remove_folder(folder)
    if not files.is_there(folder / PLAN_FILE):
        known = read_known(base.folder) if base else None
        gone = None
        tasks = plan_shards(parts.all(), config.windows, spec.latent_channels, config.shard_mib * 2**20)
        if base is not None and known is not None:
            check_same_features(base, spec)
            gone = left_out(known, parts.keys())
            if not tasks and not len(gone):
                return None
            windows = sum(task.windows for task in tasks)
            told = f"{base.out}: generation {base.generation.number + 1}: {windows} windows to encode"
            tell(
                console, told + f"; {len(gone)} clips that the sets have not, or not so, are left out" * (len(gone) > 0)
            )
        elif not tasks:
            raise ValueError(
                f"{claim.sets}: none of its clips is long enough for a window of {config.windows.frames} frames; curate"
                " longer clips, or give shorter --window-frames"
            )
        folders.make_folder(folder)
        files.claim(file, lambda beside: beside.write_text(json.dumps(head)))
        if not _is_head(file, head):  # begun while these clips were being planned
            raise _another(folder)
        if gone is not None:
            files.claim(folder / LEFT_OUT_FILE, lambda beside: write_left_out(beside, gone))
        files.claim(folder / PLAN_FILE, lambda beside: write_plan(beside, tasks))
    if not files.is_there(folder / "dataset.json"):
        spec.save(folder)
    return read_plan(folder)


def _is_head(file: Location, head: Mapping[str, Any]) -> bool:
    return bool(json.loads(file.read_text()) == json.loads(json.dumps(head)))


def _another(folder: Location) -> ValueError:
    return ValueError(
        f"{folder}: shards of other clips, settings or networks are being made there; delete it, or begin anew with"
        " --overwrite"
    )


class SetParts:
    """The clips of each part of the sets that are to be encoded, with their keys: all, or those that the base lacks."""

    def __init__(self, sets: Location, base: Base | None) -> None:
        self._sets, self._head = sets, read_head(sets)
        self._keys = ClipKeys(sets)
        self._known = None if base is None else Keys.of([keys_of(read_known(base.folder))])
        self._seen: list[np.ndarray] = []
        self._part = -1
        self._clips: list[KeyedClip] = []

    def clips(self, task: ShardTask) -> list[KeyedClip]:
        """Of a shard; the part that was asked for last is kept. ValueError unless they are those that were planned."""
        head = read_head(self._sets)
        # Keys do not tell landmarks of one `curate` from those of another, but by the stages that they began with.
        if head["stages"] != self._head["stages"] or task.part >= len(head["parts"]):
            raise self._selected_anew()
        if task.part != self._part:
            self._clips, self._part = self._wanted(read_clips_of(self._sets, task.part)), task.part
        clips = self._clips[task.first : task.last]
        if keys_digest(clips) != task.keys_sha256:
            raise self._selected_anew()
        return clips

    def all(self) -> Iterator[list[KeyedClip]]:
        """Part by part; the keys of all clips of the sets are remembered."""
        for clips in iter_clips(self._sets):
            yield self._wanted(clips, remember=True)
        if read_head(self._sets) != self._head:
            raise self._selected_anew()

    def keys(self) -> Keys:
        """Of all clips of the sets, once `all` has gone through them."""
        return Keys.of(self._seen)

    def _selected_anew(self) -> ValueError:
        return ValueError(
            f"{self._sets}: has other clips than when encoding them began, as it was selected anew meanwhile; encode"
            " again, and while that runs select into another --out"
        )

    def _wanted(self, clips: Sequence[Clip], *, remember: bool = False) -> list[KeyedClip]:
        keyed = [KeyedClip(clip, self._keys.of(clip)) for clip in clips]
        if self._known is None:
            return keyed
        keys = as_array([one.key for one in keyed])
        self._seen += [keys] if remember else []
        return [one for one, has in zip(keyed, self._known.has(keys), strict=True) if not has]


def tell(console: Console, text: str) -> None:
    console.print(file_names.printable(text), markup=False, highlight=False, soft_wrap=True)
