"""What a source holds, whatever it is: videos with where they lie and what is said of them, and what is passed over."""

import dataclasses
import hashlib
from collections.abc import Mapping

from data_pipelines.curate.video_files import Address


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CaptionOptions:
    """default: of videos without a sidecar; encoding: of sidecars that are neither UTF-8 nor marked as UTF-16."""

    default: str = "A video."
    encoding: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FoundVideo:
    """A video of a source.

    size, version: a video of the same name, size and version is the same one; version is a time of change in ns, or
        `version_of` what the storage says.
    caption, caption_source, caption_error: the last says why there is none; then the others are "".
    """

    address: Address
    size: int
    version: int
    caption: str
    caption_source: str
    caption_error: str = ""
    split: str = "train"


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """videos: by name (`file_names.plain`). passed_over: reason -> names of what is no video."""

    videos: Mapping[str, FoundVideo]
    passed_over: Mapping[str, list[str]]


def version_of(*facts: object) -> int:
    """A number for what tells one version of a file from the next; not negative, below 2**63."""
    return int(hashlib.sha256(repr(facts).encode("utf-8", "surrogatepass")).hexdigest()[:15], 16)


def bad(problem: str) -> FoundVideo:
    """What a source names and nothing can be opened for: a dead letter of the scan, with this reason."""
    return FoundVideo(
        address=Address(problem=problem), size=0, version=version_of(problem), caption="", caption_source="default"
    )
