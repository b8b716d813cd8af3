"""Does a measure depend on how the file was encoded? The same made videos in H.264 and H.265, at two qualities each.

A score that a codec moves as far as a better model would is no score of the model.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from omnihuman_jax.evaluation.field_table import FRECHET, FieldRow, Measure, Measured, Pair, frechet_row, window_values
from omnihuman_jax.sampling.field_features import Extractor
from omnihuman_jax.sampling.field_pairs import PairOfVideos
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.typing import FPS, SAMPLE_RATE_HZ

ENCODINGS = {
    "H.264, crf 23": ("libx264", 23),
    "H.264, crf 32": ("libx264", 32),
    "H.265, crf 23": ("libx265", 23),
    "H.265, crf 32": ("libx265", 32),
}
BOUND = 0.1
"""A measure's mean over the windows may move by this share of itself; more is said in the table [D]."""


def encode_again(source: Path, target: Path, encoding: str) -> None:
    """Pictures and sound of `source` in another encoding; left alone where it is there."""
    if target.is_file():
        return
    codec, crf = ENCODINGS[encoding]
    frames = media_omnihuman.read_video(source)
    wave = media_omnihuman.read_audio(source, SAMPLE_RATE_HZ)
    media_omnihuman.write_video(target, frames, FPS, wave, SAMPLE_RATE_HZ, crf=crf, codec=codec)


def moves(
    videos: Sequence[PairOfVideos],
    pairs: Sequence[Pair],
    extractor: Extractor,
    folder: Path,
    measures: Sequence[Measure],
    compare: Callable[[Path, Path], float],
    on_progress: Callable[[float], None] = lambda share: None,
) -> dict[str, dict[str, float]]:
    """Measure -> encoding -> the share of itself by which its mean moved; nothing of measures that have no number.

    Args:
        videos, pairs: the pairs to encode again, and what was measured of them as they were.
        compare: PSNR of a made file against the true one, which is taken of two files.
    """
    found: dict[str, dict[str, float]] = {}
    for encoding in ENCODINGS:
        again = []
        for video, pair in zip(videos, pairs):
            place = folder / encoding.replace(" ", "").replace(",", "_") / pair.name
            encode_again(video.made, place / "made.mp4", encoding)
            made: Measured = extractor.take(place / "made.mp4", place / "measured")
            psnr = {"psnr_db": np.array(compare(place / "made.mp4", video.true))}
            again.append(dataclasses.replace(pair, made={**made, **psnr}))
            on_progress(1 / len(videos) / len(ENCODINGS))
        for name, share in _shares(measures, pairs, again, extractor.missing).items():
            found.setdefault(name, {})[encoding] = share
    return found


def _shares(
    measures: Sequence[Measure], before: Sequence[Pair], after: Sequence[Pair], missing: Mapping[str, str]
) -> dict[str, float]:
    shares = {}
    for measure in measures:
        values = [window_values(measure, pairs)[0] for pairs in (before, after)]
        both = np.isfinite(values[0]) & np.isfinite(values[1])
        if both.any() and values[0][both].mean():
            shares[measure.name] = float(abs(values[1][both].mean() / values[0][both].mean() - 1))
    for row in FRECHET:
        found = [frechet_row(*row, pairs, missing).made for pairs in (before, after)]
        if found[0] is not None and found[1] is not None and found[0].value:
            shares[row[0]] = abs(found[1].value / found[0].value - 1)
    return shares


def with_moves(rows: Sequence[FieldRow], found: Mapping[str, Mapping[str, float]]) -> list[FieldRow]:
    """The rows, with a note on those that an encoding moves beyond the bound."""
    noted = []
    for row in rows:
        far = {encoding: share for encoding, share in found.get(row.name, {}).items() if share > BOUND}
        if far:
            worst = max(far, key=far.__getitem__)
            text = f"{worst} moves it by {100 * far[worst]:.0f} % (bound {100 * BOUND:.0f} %)"
            row = dataclasses.replace(row, note="; ".join(filter(None, (row.note, text))))
        noted.append(row)
    return noted
