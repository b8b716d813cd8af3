"""Sizes of a step and of its packed sequences, and what a window takes of them."""

import dataclasses
import math

import numpy as np

from omnihuman_jax.conditions import Condition
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.joined_catalog import JoinedCatalog
from omnihuman_jax.data.window_index import WindowIndex
from omnihuman_jax.stages import CONTAINS, Stage
from omnihuman_jax.typing import TEMPORAL_STRIDE


@dataclasses.dataclass(kw_only=True, slots=True)
class PlanConfig:
    """Sizes of a step and of its packed sequences (`typing.PackedShape` has what they mean for the batch).

    sequences_per_step: B, over all hosts. latent_tokens L, text_tokens S, windows G, latent_frames F, frames T: what a
    sequence holds; T counts the rows of audio and pose features, a driven window takes its frames + 2 * margin.
    margin: neighbouring frames that audio or pose reads on each side (the larger m of the model's).
    chunk_steps: steps planned together. block: samples over which the ratios are exact.
    repeat_warning: a set of windows drawn more often than this, on average, is warned of.
    """

    sequences_per_step: int = 8
    latent_tokens: int = 4096
    text_tokens: int = 512
    windows: int = 8
    latent_frames: int = 64
    frames: int = 512
    margin: int = 5
    chunk_steps: int = 64
    block: int = 400
    repeat_warning: float = 4.0

    def validate(self) -> None:
        """ValueError naming the field that is out of range."""
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "margin" else 1
            if not math.isfinite(value) or value < least:
                raise ValueError(f"plan.{field.name} must be >= {least}, not {value}")

    @property
    def capacity(self) -> np.ndarray:
        """int64 [5]: what one sequence holds, in the order of `DEMANDS`."""
        return np.asarray(
            [self.latent_tokens, self.text_tokens, self.windows, self.latent_frames, self.frames], np.int64
        )


DEMANDS = ("latent_tokens", "text_tokens", "windows", "latent_frames", "frames")


def demands(catalog: Catalog | JoinedCatalog, config: PlanConfig, row: np.ndarray, active: np.ndarray) -> np.ndarray:
    """int64 [n, 5]: what windows with these active sets (bits) take of a sequence, in the order of `DEMANDS`."""
    on, numbers = CONTAINS[active], catalog.numbers(row)
    driven = on[:, Condition.AUDIO] | on[:, Condition.POSE]
    result = [
        numbers.window_tokens + np.where(on[:, Condition.REFERENCE], numbers.reference_tokens, 0),
        np.where(on[:, Condition.TEXT], numbers.text_tokens, catalog.empty_text_tokens),
        np.ones(len(row), np.int64),
        numbers.latent_frames,
        np.where(driven, numbers.frames + 2 * config.margin, 0),
    ]
    return np.stack(result, axis=1).astype(np.int64)


def check_sizes(catalog: Catalog, stage: Stage, index: WindowIndex, config: PlanConfig) -> None:
    """ValueError if a window that the stage may draw, at its largest, is bigger than a whole sequence."""
    for eligible in np.flatnonzero(index.counts):
        on = CONTAINS[eligible & stage.conditions.bits]
        tokens, with_reference, text, latents = index.largest[eligible].tolist()
        driven = on[Condition.AUDIO] or on[Condition.POSE]
        largest = [
            with_reference if on[Condition.REFERENCE] else tokens,
            max(text, catalog.empty_text_tokens),
            1,
            latents,
            1 + TEMPORAL_STRIDE * (latents - 1) + 2 * config.margin if driven else 0,
        ]
        if (np.asarray(largest) > config.capacity).any():
            raise ValueError(_too_big(catalog, stage, index, config))


def _too_big(catalog: Catalog, stage: Stage, index: WindowIndex, config: PlanConfig) -> str:
    """The first size that is over the limit, how many windows are, and the worst of them."""
    rows = index.rows
    largest = demands(catalog, config, rows, catalog.eligible[rows] & stage.conditions.bits)
    largest[:, 1] = np.maximum(catalog.text_tokens[rows], catalog.empty_text_tokens)
    dim = int((largest > config.capacity).any(axis=0).argmax())
    worst, too_big = rows[largest[:, dim].argmax()], largest[:, dim] > config.capacity[dim]
    cure = "set the stage's max_tokens or max_frames" if dim in (0, 3, 4) else "encode shorter texts"
    return (
        f"stage {stage.name!r}: {too_big.sum()} of {len(rows)} windows are bigger than a sequence: window"
        f" {catalog.window_id[worst]} needs {largest[:, dim].max()} {DEMANDS[dim]}, a sequence has"
        f" {config.capacity[dim]}; raise plan.{DEMANDS[dim]} or {cure}"
    )
