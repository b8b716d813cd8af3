"""Clips that cannot be encoded: left out whole, each with its reason, while the others go on.

What is no fault of any clip (a full disk or memory, storage that does not answer, a lost device) ends the command: the
shards that are made stay, and the next call goes on.

    dead_letters.parquet    of a generation: a row a clip that could not be encoded
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from jax.errors import JaxRuntimeError

from data_pipelines.curate.clips import Clip
from data_pipelines.curate.stage_parts import read_part, write_columns
from data_pipelines.encode.clip_encoder import ClipEncoder, ClipStatistics, EncodedWindow, OpenClip
from omnihuman_jax.data.records import DatasetSpec
from omnihuman_jax.runtime import file_names, files, storage
from omnihuman_jax.runtime.locations import Location

LETTERS_FILE = "dead_letters.parquet"
_TEXTS = ("clip_id", "video", "stage", "reason", "exception")
_LETTER = pa.schema([*(pa.field(name, pa.string()) for name in _TEXTS), pa.field("tries", pa.int32())])
_OF_A_FILE = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedClip:
    """What became of a clip; no windows of one that could not be encoded."""

    statistics: ClipStatistics = dataclasses.field(default_factory=ClipStatistics)
    windows: list[EncodedWindow] = dataclasses.field(default_factory=list)


class DeadLetters:
    """The clips that cannot be encoded, and why."""

    def __init__(self, table: Location) -> None:
        self._table = table
        self._hashes: dict[Path, str] = {}
        self._rows: list[dict[str, str | int]] = []

    def taken(self) -> list[dict[str, str | int]]:
        """The rows since the last call."""
        rows, self._rows = self._rows, []
        return rows

    def encoded(self, encoder: ClipEncoder, clips: Sequence[Clip], spec: DatasetSpec) -> list[EncodedClip]:
        """All windows of each clip, or none. What is no fault of a clip is raised."""
        found = [EncodedClip() for _ in clips]
        opened: dict[int, OpenClip] = {}
        letters: dict[int, dict[str, str | int]] = {}
        for i, clip in enumerate(clips):
            with _letter(clip, letters, i):
                self._check_video(clip)
                opened[i] = encoder.open(clip)
        try:
            made = encoder.latents(list(opened.values())) if len(opened) > 1 else None
        except Exception as problem:
            if _is_of_all(problem):
                problem.add_note(f"encode was at {len(opened)} clips, {clips[min(opened)].clip_id} and those behind it")
                problem.add_note("if it ends there each time, --devices 1 tells which of them it is")
                raise
            made = None  # one of them is to blame: each alone
        for number, (i, one) in enumerate(opened.items()):
            with _letter(clips[i], letters, i):
                latents = made[number] if made else encoder.latents([one])[0]
                windows = list(encoder.windows(one, latents))
                for window in windows:
                    window.record.validate(spec)
                    window.record.check_finite()
                found[i] = EncodedClip(latents.statistics, windows)
        self._rows += [letters[i] for i in sorted(letters)]  # whatever went wrong first
        return found

    def _check_video(self, clip: Clip) -> None:
        """The video is the one that curate looked at: its cuts, tags and landmarks are worth nothing for another."""
        path = clip.video_path(self._table)
        if path not in self._hashes:
            self._hashes[path] = files.file_sha256(path)
        if (found := self._hashes[path]) != clip.sha256:
            raise ValueError(
                f"{path}: changed since curate (sha256 {found[:12]}..., was {clip.sha256[:12]}...); run curate again"
            )


def write_letters(folder: Path, letters: Sequence[Mapping[str, Any]]) -> None:
    """Writes the dead letters of the generation in this folder, if there are any."""
    if letters:
        write_columns(folder / LETTERS_FILE, pa.Table.from_pylist(list(letters), schema=_LETTER))


def read_letters(folder: Path) -> list[dict[str, Any]]:
    """All dead letters of the generation in this folder."""
    path = folder / LETTERS_FILE
    return list(read_part(path).to_pylist()) if path.is_file() else []


@contextlib.contextmanager
def _letter(clip: Clip, letters: dict[int, dict[str, str | int]], place: int) -> Iterator[None]:
    """What goes wrong with the clip becomes its dead letter; what is no fault of it is raised."""
    try:
        yield
    except Exception as problem:
        if _is_of_all(problem):
            if not isinstance(problem, ImportError):
                problem.add_note(f"encode was at clip {clip.clip_id} of {file_names.printable(clip.video)}")
            if isinstance(problem, MemoryError | JaxRuntimeError):
                problem.add_note(
                    "if it ends there each time, take that video out of the source, run curate and select, and"
                    " encode again"
                )
            raise
        text = " ".join((str(problem) or type(problem).__name__).split())
        known = isinstance(problem, ValueError | FileNotFoundError)
        reason = file_names.printable(text if known else f"{type(problem).__name__}: {text}")
        of_clip = {"clip_id": clip.clip_id, "video": clip.video, "stage": "encode"}
        letters[place] = {**of_clip, "reason": reason, "exception": type(problem).__name__, "tries": 1}


def _is_of_all(problem: Exception) -> bool:
    """Whether it would befall other clips too: an extra that is not installed, a disk, memory, storage, a device."""
    if isinstance(problem, ImportError | MemoryError | JaxRuntimeError) or storage.does_not_answer(problem):
        return True
    return isinstance(problem, OSError) and not isinstance(problem, _OF_A_FILE)
