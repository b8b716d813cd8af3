"""A tiny trained run and a video, for the tests of every room: made once a session, changed by none."""

import numpy as np
import pytest

from omnihuman_jax.sampling import trained_run
from omnihuman_jax.serving import media_omnihuman
from tests.sampling import tiny_run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> tiny_run.TinyRun:
    return tiny_run.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def run(tiny) -> trained_run.TrainedRun:
    return trained_run.open_run(tiny.run)


@pytest.fixture(scope="session")
def talking(tmp_path_factory):
    """A video of 30 frames with sound: image, voice and (to a pose network) nobody."""
    path = tmp_path_factory.mktemp("media") / "talking.mp4"
    frames = tiny_run.moving_picture(5, 30, 64, 96)
    sound = 0.3 * np.sin(np.arange(30 * 640) / 9).astype(np.float32)
    media_omnihuman.write_video(path, ((frames + 1) * 127.5).astype(np.uint8), audio=sound)
    return path
