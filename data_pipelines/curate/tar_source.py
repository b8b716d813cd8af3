"""The videos of archives, as WebDataset has them: members NAME.mp4, and NAME.txt or NAME.json beside them.

Nothing is unpacked: a video is where its bytes begin in the archive. NAME.json may say `caption` and `split`.
"""

import glob
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data_pipelines.curate import bucket_source, footage, video_files
from data_pipelines.curate.found_videos import CaptionOptions, Found, FoundVideo, bad, version_of
from data_pipelines.curate.video_files import Address
from omnihuman_jax.runtime import file_names, storage
from omnihuman_jax.runtime.locations import is_remote

SUFFIX = ".tar"
_JSON = ".json"
_MAX_TEXT_BYTES = (1 << 20) + 1
REPEATED = "members of a name that their archive has already"


def find(pattern: str, options: CaptionOptions) -> Found:
    """The videos of all archives that a pattern, a path or a URI stands for.

    An archive that is cut, or none, is a dead letter; the members before the cut are there.

    Raises:
        FileNotFoundError: there is no such archive.
    """
    videos: dict[str, FoundVideo] = {}
    passed_over: dict[str, list[str]] = {}
    for name, place, version in _archives(pattern):
        members = _Members(name, place, version)
        try:
            members.read()
        except (tarfile.TarError, OSError, EOFError) as error:
            why = str(error) if isinstance(error, tarfile.TarError) else storage.cause(error)
            whole = f"; {len(members.videos)} videos before that are read" if members.videos else ""
            videos[file_names.plain(name)] = bad(f"the archive is cut, or none ({why}){whole}; copy it again")
        videos |= members.found(options)
        for kind, names in members.passed_over().items():
            passed_over.setdefault(kind, []).extend(names)
    return Found(dict(sorted(videos.items())), {kind: sorted(passed_over[kind]) for kind in sorted(passed_over)})


def _archives(pattern: str) -> Iterator[tuple[str, str, int]]:
    """(name, path or URI, version) of each archive."""
    if is_remote(pattern):
        listing = bucket_source.listed(pattern)
        for name, info in listing.objects.items():
            if name.endswith(SUFFIX):
                yield name, listing.uri(name), bucket_source.object_version(info)
        return
    paths = sorted(glob.glob(pattern, recursive=True)) if not os.path.isfile(pattern) else [pattern]
    if not paths:
        raise FileNotFoundError(f"{pattern}: no such archive; give a pattern such as tars/*.tar, in quotes")
    home = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    for path in paths:
        yield os.path.relpath(path, home), path, Path(path).stat().st_mtime_ns


class _Members:
    """The members of an archive: videos (name -> offset, size), texts beside them, and the names of all others."""

    def __init__(self, name: str, place: str, version: int):
        self._name, self._place, self._version = name, place, version
        self.videos: dict[str, tuple[int, int]] = {}
        self._texts: dict[str, bytes] = {}
        self._others: dict[str, list[str]] = {}

    def read(self) -> None:
        """Goes through the headers; what was found before an error stays."""
        with video_files.opened(self._place) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if not member.isdir():
                    self._add(archive, member)

    def _add(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        kind = footage.kind_of(member.name)
        kind = _JSON if kind == footage.OTHER_TYPE and member.name.lower().endswith(_JSON) else kind
        if not member.isreg() or member.issparse():
            kind = footage.NO_FILE
        elif member.name in self.videos or member.name in self._texts:
            kind = REPEATED
        if kind == "":
            self.videos[member.name] = (member.offset_data, member.size)
        elif kind in (footage.SIDECAR, _JSON):
            stream = archive.extractfile(member)
            assert stream is not None
            self._texts[member.name] = stream.read(_MAX_TEXT_BYTES)
        else:
            self._others.setdefault(kind, []).append(member.name)

    def found(self, options: CaptionOptions) -> dict[str, FoundVideo]:
        """Name, which begins with the archive's -> video."""
        beside = {_stem(name): name for name in reversed(self._texts) if not name.lower().endswith(_JSON)}
        facts = {_stem(name): name for name in reversed(self._texts) if name.lower().endswith(_JSON)}
        found = {}
        for name, (offset, size) in self.videos.items():
            sidecar = beside.get(_stem(name), "")
            told = bucket_source.captioned(sidecar, self._texts.get(sidecar), options)
            split = "train"
            if stated := facts.get(_stem(name)):
                told, split = _stated(stated, self._texts[stated], told)
            found[file_names.plain(f"{self._name}/{name}")] = FoundVideo(
                address=Address(place=self._place, offset=offset, size=size),
                size=size,
                version=version_of(self._version, offset),
                caption=told[0],
                caption_source=told[1],
                caption_error=told[2],
                split=split,
            )
        return found

    def passed_over(self) -> dict[str, list[str]]:
        """Reason -> names."""
        stems = {_stem(name) for name in self.videos}
        kinds = {kind: list(names) for kind, names in self._others.items()}
        if lone := [name for name in self._texts if _stem(name) not in stems]:
            kinds[footage.LONE_SIDECAR] = lone
        return {kind: [file_names.plain(f"{self._name}/{name}") for name in names] for kind, names in kinds.items()}


def _stated(name: str, data: bytes, told: tuple[str, str, str]) -> tuple[tuple[str, str, str], str]:
    """(caption as `captioned` has it, split) with what a .json says, which is asked where there is no .txt."""
    where = file_names.plain(PurePosixPath(name).name)
    try:
        stated = json.loads(data.decode("utf-8"))
        facts = {key: stated[key] for key in ("caption", "split") if key in stated}
    except (ValueError, TypeError) as error:
        return ("", "", file_names.printable(f"{where}: not JSON ({error})")), "train"
    if wrong := [key for key, value in facts.items() if not (isinstance(value, str) and value.strip())]:
        return ("", "", f"{where}: {wrong[0]} must be text"), "train"
    if "caption" in facts and told[1] == "default":
        told = (" ".join(facts["caption"].split()), "sidecar", "")
    return told, facts.get("split", "train")


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
