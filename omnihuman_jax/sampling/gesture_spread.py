"""Does a model gesture as freely as the law of the theatre does? The same windows and sound, from several seeds.

By the law (`data_pipelines/puppet_theatre/gesture_law.py`) the sound says the share p of a gesture, and the rest
differs from one performance to the next with a variance of 1 - p. A model that has learnt the mean alone does not
differ at all. The signals are read from the pixels like the mouth (`evaluation/mouth.py`), on whole pictures.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.puppet_theatre.gesture_law import PROSODY_SHARE
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.evaluation import mouth, spread
from omnihuman_jax.evaluation.bootstrap import estimate
from omnihuman_jax.sampling import lip_sync, trained_run
from omnihuman_jax.sampling.kept_samples import KeptSampler

_LAW = float(np.sqrt(1 - PROSODY_SHARE))


def measure_spread(
    run: trained_run.TrainedRun,
    subjects: lip_sync.Subjects,
    *,
    seeds: int,
    batch: int = 16,
    config: SamplingConfig | None = None,
    seed: int = 0,
    keep: Path | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Any] | None:
    """Plain values: `spread`, the standard deviation over seeds as a share of the law's, with its interval; `readout`,
    how much of the truth's motion within windows the readout shows on the round trip. None where no arm is to be seen.

    ValueError: fewer than two seeds.
    """
    if seeds < 2:
        raise ValueError(f"--gesture-seeds {seeds}: at least 2, or 0 to leave it out")
    readable = [(slot, *found) for slot, (window, _) in enumerate(subjects.pairs) if (found := _fit(subjects, window))]
    if not readable:
        return None
    whole = subjects.inputs(run, ("own",))
    inputs = [whole[slot] for slot, _, _ in readable]
    sampler = KeptSampler(run, config or run.config.sampling, inputs, batch, keep)
    read: list[list[np.ndarray]] = [[] for _ in readable]
    for number in range(seeds):
        latents = sampler.all_of(inputs, seed + number, lambda share: on_progress(share / seeds))
        for samples, (_, _, readout), latent in zip(read, readable, latents, strict=True):
            samples.append(readout(trained_run.decode_pictures(run, latent)))
    windows = [subjects.pairs[slot][0] for slot, _, _ in readable]
    people = [window.person for window in windows]
    rows = np.array([spread.spread_of(np.stack(samples)) for samples in read])
    motions = [
        mouth.moments_of_all(readout(subjects.round_trips[window.row]), window.arms_T4[:, seen])
        for window, (_, seen, readout) in zip(windows, readable, strict=True)
    ]
    return {
        "seeds": seeds,
        "spread": lip_sync.plain(estimate(rows, people, lambda sums: spread.deviation(sums) / _LAW)),
        "readout": lip_sync.plain(estimate(np.array(motions), people, mouth.range_of)),
    }


def _fit(subjects: lip_sync.Subjects, window: lip_sync.TruthWindow) -> tuple[np.ndarray, mouth.Readout] | None:
    """(which of the signals are seen in all frames, the readout of these); None without any."""
    others = lip_sync.apart_from(window, subjects.clips[window.clip])
    true_T4 = np.concatenate([other.arms_T4 for other in others])
    seen = np.isfinite(window.arms_T4).all(axis=0) & np.isfinite(true_T4).all(axis=0)
    if not seen.any():
        return None
    pictures = np.concatenate([subjects.round_trips[other.row] for other in others])
    return seen, mouth.fit_readout(pictures, true_T4[:, seen])
