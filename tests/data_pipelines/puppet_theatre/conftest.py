"""Real speech for the puppets: sentences out of the sample media, laid out as a folder a speaker."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines.puppet_theatre import programme
from data_pipelines.puppet_theatre.programme import PROGRAMMES, Programme
from data_pipelines.puppet_theatre.theatre import TheatreConfig, theatre
from data_pipelines.puppet_theatre.voices import Cast, Speech, find_cast
from data_pipelines.sample_media import SampleMedia
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.typing import SAMPLE_RATE_HZ

# speaker -> (sample clip, seconds of each prompt)
_SPEAKERS = {
    "xx_m_jon": ("jwpIntro.mp4", 1.4),
    "yy_m_jon": ("testMovie.mp4", 1.2),
    "en_US_f_Allison": ("testMovie.mp4", 2.0),
}


@pytest.fixture(scope="session")
def recordings(sample_media: SampleMedia, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three speakers, one of them by the name of the one who is held out."""
    root = tmp_path_factory.mktemp("recordings")
    for speaker, (video, seconds) in _SPEAKERS.items():
        wave = media_omnihuman.read_audio(sample_media.videos / video)
        assert wave is not None
        (root / speaker).mkdir()
        for number, start in enumerate(np.arange(0, 5.0, 0.5)):
            part = wave[int(start * SAMPLE_RATE_HZ) : int((start + seconds) * SAMPLE_RATE_HZ)]
            soundfile.write(root / speaker / f"prompt-{number}.wav", part, SAMPLE_RATE_HZ)
    return root


@pytest.fixture(scope="session")
def cast(recordings: Path) -> Cast:
    return find_cast(recordings, "recorded")


@pytest.fixture(scope="session")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where spoken lines are kept: the recogniser hears each prompt once a session."""
    return tmp_path_factory.mktemp("lines")


@pytest.fixture(scope="session")
def speech(recordings: Path, lines: Path) -> Speech:
    return Speech(lines, recordings)


def short(**changes: object) -> Programme:
    """The programme of faults, with clips of 1.6 s in small pictures."""
    small = dataclasses.replace(PROGRAMMES["faults"], seconds=(1.6, 1.6), short_side=128)
    return dataclasses.replace(small, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def tiny_programme() -> Iterator[str]:
    """The name of a programme of short clips, `faults` and sync."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(programme.PROGRAMMES, "tiny", short(faults={"none": 1, "dubbed": 1, "cut": 1}))
        yield "tiny"


@pytest.fixture(scope="session")
def tiny_config(recordings: Path, lines: Path, tiny_programme: str) -> TheatreConfig:
    """Three clips."""
    return TheatreConfig(
        hours=3 * 1.6 / 3600, seed=2, programme=tiny_programme, voices="recorded", recordings=recordings, lines=lines,
        workers=1,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_theatre(tiny_config: TheatreConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn once, by one process, and changed by no test."""
    out = tmp_path_factory.mktemp("tiny_theatre")
    theatre(out, tiny_config)
    return out
