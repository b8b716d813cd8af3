"""What lies in a folder of footage: its videos, and everything else by the reason why it is passed over."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from omnihuman_jax.runtime import file_names

VIDEO_SUFFIXES = frozenset((
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".m2t",
    ".3gp", ".3g2", ".wmv", ".asf", ".flv", ".f4v", ".mxf", ".ogv", ".dv",
))  # fmt: skip
SIDECAR = ".txt"

# Why a file or folder is passed over; the first is what no person put there.
SYSTEM = "hidden and system files"
OTHER_TYPE = "files of other types"
LINKED_FOLDER = "linked folders, which are not followed (curate each as another --source into the same --out)"
BROKEN_LINK = "links to nothing"
NO_FILE = "neither files nor folders"
UNREADABLE = "folders that cannot be read"
EMPTY_SIDECAR = "captions that are empty"
LONE_SIDECAR = "captions without a video"

_SYSTEM_NAMES = {
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
    "lost+found", "$recycle.bin", "system volume information", "@eadir", "__macosx",
}  # fmt: skip


@dataclasses.dataclass(slots=True)
class Footage:
    """What `look_into` found; all names are `file_names.plain` and relative to the folder, in order.

    videos       name -> path
    passed_over  reason -> names; a folder's ends in `/`
    """

    videos: dict[str, Path]
    passed_over: dict[str, list[str]]


def look_into(folder: str | os.PathLike[str], besides: str | os.PathLike[str] | None = None) -> Footage:
    """Everything below `folder`, but for the folder `besides` (curate's own, if it lies in there).

    Raises:
        FileNotFoundError: no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; give the folder that holds the videos")
    found: dict[str, list[Path]] = {}
    for path, kind in _walk(root, None if besides is None else os.path.abspath(besides)):
        found.setdefault(kind, []).append(path)
    videos = found.pop("", [])
    sidecars = found.pop(SIDECAR, [])
    with_video = {video.with_suffix("") for video in videos}
    for path in sidecars:
        kind = LONE_SIDECAR if path.with_suffix("") not in with_video else EMPTY_SIDECAR if _is_blank(path) else ""
        if kind:
            found.setdefault(kind, []).append(path)

    def name(path: Path) -> str:
        folder_mark = "/" if path.is_dir() and not path.is_symlink() else ""
        return file_names.plain(path.relative_to(root)) + folder_mark

    return Footage(
        videos=dict(sorted((name(path), path) for path in videos)),
        passed_over={kind: sorted(map(name, found[kind])) for kind in sorted(found)},
    )


def check_any(folder: str | os.PathLike[str], footage: Footage) -> None:
    """ValueError without a video, with what there is instead."""
    if footage.videos:
        return
    there = "; ".join(passed_over_lines(footage.passed_over))
    raise ValueError(
        f"{folder}: no videos in it; files of these kinds are read: {' '.join(sorted(VIDEO_SUFFIXES))}"
        + (f"; there are: {there}" if there else "")
    )


def passed_over_lines(passed_over: dict[str, list[str]], listed: int = 8) -> list[str]:
    """A line a reason: how many, and the first names."""
    lines = []
    for kind, names in passed_over.items():
        more = f" and {len(names) - listed} more" if len(names) > listed else ""
        lines.append(f"{kind}: {len(names)} ({', '.join(names[:listed])}{more})")
    return lines


def _walk(root: Path, besides: str | None) -> Iterator[tuple[Path, str]]:
    """(path, why it is passed over) of all files, and of folders that are not entered; "" for a video."""
    unreadable: list[Path] = []
    for folder, folders, names in os.walk(root, onerror=lambda error: unreadable.append(Path(error.filename))):
        here = Path(folder)
        for name in list(folders):
            path = here / name
            if os.path.abspath(path) == besides:
                folders.remove(name)
            elif path.is_symlink() or _is_system(name):
                folders.remove(name)
                yield path, SYSTEM if _is_system(name) else LINKED_FOLDER
        for name in names:
            yield here / name, _kind(here / name)
    if root in unreadable:
        raise PermissionError(f"{root}: cannot be read; give it read permission, or choose another folder")
    yield from ((path, UNREADABLE) for path in unreadable)


def kind_of(name: str) -> str:
    """Why a file of a bucket or an archive is passed over, by its name; "" for a video, `SIDECAR` for a caption."""
    parts = PurePosixPath(name)
    if any(_is_system(part) for part in parts.parts):
        return SYSTEM
    return _kind_by_suffix(parts.suffix)


def _kind(path: Path) -> str:
    if _is_system(path.name):
        return SYSTEM
    if not path.exists():
        return BROKEN_LINK
    return _kind_by_suffix(path.suffix) if path.is_file() else NO_FILE


def _kind_by_suffix(suffix: str) -> str:
    suffix = suffix.lower()
    return "" if suffix in VIDEO_SUFFIXES else suffix if suffix == SIDECAR else OTHER_TYPE


def _is_system(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _SYSTEM_NAMES


def _is_blank(path: Path) -> bool:
    """As `is_blank` has it; what cannot be read is not known to be."""
    try:
        with path.open("rb") as file:
            return is_blank(file.read(4096))
    except OSError:
        return False


def is_blank(data: bytes) -> bool:
    """Without any text; a mark of UTF-8 or UTF-16 alone is none."""
    return len(data) < 4096 and not data.removeprefix(b"\xef\xbb\xbf").strip(b"\xff\xfe\0 \t\r\n\v\f")
