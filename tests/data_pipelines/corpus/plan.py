"""Which videos the corpus has: 240, each with a planted fault, or none. A pure function of the seed."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tests.data_pipelines.corpus.scenes import NOBODY, ONE_FACE, SCENES, TALKING
from tests.data_pipelines.written_text import KINDS

# Frames: long enough to judge lip-sync (5 s), and long enough to be a clip.
LONG, SHORT = 127, 60
LATE = 10
DISSOLVE = 12
# Fault -> videos.
COUNTS: Mapping[str, int] = {
    "none": 24, "dubbed": 18, "late": 12, "silent": 10, "hands_shown": 10, "hands_hidden": 8, "cut": 12, "dissolve": 10,
    "black": 10, "letterbox": 12, "text": 24, "vertical": 10, "rotated": 9, "fps12": 8, "vfr": 9, "two_faces": 14,
    "nobody": 16, "duplicate": 16, "frozen": 8,
}  # fmt: skip
# How a duplicate is made of its original.
COPIES = ("bytes", "crf", "smaller", "h265")
_COPIED = ("none", "silent", "vertical", "nobody")
_WITHOUT_TEXT = ("speech", "smile", "hands", "toy", "street")
_VERTICAL = (*TALKING, "smile")
# Of a hand before a face nobody can say whether the face is seen.
_FACES = tuple(name for name in ONE_FACE if not SCENES[name].hands)
_PAIRS = [(picture, heard) for picture in TALKING for heard in TALKING if picture != heard]
_SILENT_FACES = [(picture, heard) for picture in ("smile", "carphone") for heard in TALKING]
_WITH_SILENT = [*_PAIRS, *_SILENT_FACES]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A video.

    scene, start, frames  what is seen; a scene that is shorter goes back and forth
    zoom, at              how much of the scene's picture is used (share of the sides), and where (shares of what is
                          left over)
    other, other_start    the second scene, of a cut, a dissolve, two faces
    heard, heard_start    the scene whose sound it has, and from which frame on; "": no track;  "silence": a silent one
    how                   what the fault varies in: the text, the way of a copy, degrees, the share of bars
    original              of a duplicate, the name of the video that it is made of
    """

    name: str
    fault: str
    scene: str
    start: int
    frames: int
    zoom: float
    at: tuple[float, float]
    mirrored: bool
    heard: str = ""
    heard_start: int = 0
    other: str = ""
    other_start: int = 0
    how: Any = ""
    original: str = ""


def plan(seed: int = 0, counts: Mapping[str, int] = COUNTS) -> list[Planned]:
    """The videos in the order of their names; a duplicate comes after its original."""
    videos: list[Planned] = []
    for fault, count in counts.items():
        for number in range(count):
            rng = np.random.default_rng([seed, *fault.encode(), number])
            name = f"{fault}-{number:02d}.mp4"
            if fault == "duplicate":
                # Of the first of each, so that a part of the corpus has them too.
                original = next(
                    video for video in videos if video.name == f"{_COPIED[number % 4]}-{number // 4:02d}.mp4"
                )
                videos.append(_copy_of(original, name, COPIES[(number + number // 4) % 4]))
            else:
                videos.append(_planned(fault, number, name, rng))
    return videos


def _copy_of(original: Planned, name: str, how: str) -> Planned:
    return dataclasses.replace(original, name=name, fault="duplicate", how=how, original=original.name)


def _planned(fault: str, number: int, name: str, rng: np.random.Generator) -> Planned:
    own = _of_fault(fault, number, rng)
    scene, frames = SCENES[own["scene"]], own.setdefault("frames", SHORT)
    first = own.pop("not_before", 0)
    start = int(rng.integers(first, max(first, scene.frames - frames) + 1))
    if own.pop("in_sync", False):
        own |= {"heard": scene.name, "heard_start": start}
    elif fault == "late":
        own |= {"heard": scene.name, "heard_start": start - LATE}
    elif own.get("heard") in SCENES:
        own["heard_start"] = int(rng.integers(0, SCENES[own["heard"]].frames - frames + 1))
    if own.get("other"):
        own["other_start"] = int(rng.integers(0, max(0, SCENES[own["other"]].frames - frames) + 1))
    return Planned(
        name=name,
        fault=fault,
        start=start,
        zoom=float(rng.uniform(0.88, 1.0)),
        at=(float(rng.random()), float(rng.random())),
        mirrored=bool(rng.integers(2)),
        **own,
    )


def _of_fault(fault: str, number: int, rng: np.random.Generator) -> dict[str, Any]:
    """The scene and what is planted; in turn, so that every kind is there as often as any other."""

    def turn(values: Any, every: int = 1) -> Any:
        return values[number // every % len(values)]

    match fault:
        case "none":
            scene = turn((*TALKING, *TALKING, "carphone", "smile"))
            return {"scene": scene, "frames": LONG if scene in TALKING else SHORT, "in_sync": scene in TALKING}
        case "dubbed":
            scene, heard = turn(_WITH_SILENT)
            return {"scene": scene, "frames": LONG, "heard": heard}
        case "late":
            return {"scene": turn(TALKING), "frames": LONG, "not_before": LATE}
        case "silent":
            return {"scene": turn(TALKING), "heard": turn(("", "silence"))}
        case "hands_shown" | "hands_hidden":
            return {"scene": "hands"}
        case "cut" | "dissolve":
            scene, other = rng.choice([*_FACES, *NOBODY], 2, replace=False).tolist()
            return {"scene": scene, "other": other, "frames": 80, "how": int(rng.integers(30, 41))}
        case "black":
            return {"scene": turn(_FACES), "how": turn(("whole", "half"))}
        case "letterbox":
            return {"scene": turn(_FACES), "how": round(float(rng.uniform(0.16, 0.36)), 3)}
        case "text":
            return {"scene": turn(_WITHOUT_TEXT), "how": turn(KINDS)}
        case "vertical":
            scene = turn(_VERTICAL)
            return {"scene": scene, "in_sync": scene in TALKING}
        case "rotated":
            return {"scene": turn(TALKING), "in_sync": True, "how": turn((90, 180, 270))}
        case "fps12" | "vfr":
            return {"scene": turn(TALKING), "in_sync": True}
        case "two_faces":
            if number % 3 == 2:
                return {"scene": "statement"}
            scene, other = rng.choice(_FACES, 2, replace=False).tolist()
            return {"scene": scene, "other": other}
        case "nobody":
            return {"scene": turn(NOBODY)}
        case "frozen":
            return {"scene": turn(TALKING), "in_sync": True}
    raise ValueError(f"no such fault: {fault}; those of COUNTS are {', '.join(COUNTS)}")


def described(video: Planned) -> dict[str, Any]:
    return dataclasses.asdict(video)


def subset(videos: list[Planned], each: int) -> Iterator[Planned]:
    """The first videos of every fault, and the originals of those that are copies."""
    kept = [video for video in videos if int(video.name.rpartition("-")[2].removesuffix(".mp4")) < each]
    names = {video.original for video in kept}
    yield from (video for video in videos if video in kept or video.name in names)
