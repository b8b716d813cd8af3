"""Samples that are kept on the disk: an evaluation that was broken off goes on where it was.

A sample is known by all that decides it: the weights, how they are sampled, the seed, and every number that the window
gives to the model. So the folder may be shared by evaluations of all kinds, and what has changed is sampled again.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from omnihuman_jax.data.packing import PackInput
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.runtime import files
from omnihuman_jax.sampling.sampler import finite, sampler_for
from omnihuman_jax.sampling.trained_run import TrainedRun
from omnihuman_jax.typing import Params

_SMALL = 1 << 16
"""Values of a weight that is looked at: biases and scales, which no step of training leaves as they were."""


class KeptSampler:
    """`sampler.all_of`, of what is not in `folder` yet; without a folder, of all.

    Args:
        windows: all that will be asked for: the shape of the one program is theirs, whatever is there already.
        batch: windows a call.
    """

    def __init__(
        self, run: TrainedRun, config: SamplingConfig, windows: Sequence[PackInput], batch: int, folder: Path | None
    ):
        self._sampler, self._folder = sampler_for(run, config, windows, batch), folder
        self._origin = b""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._origin = _origin(run, config)

    def all_of(
        self, windows: Sequence[PackInput], seed: int, on_progress: Callable[[float], None] = lambda share: None
    ) -> list[np.ndarray]:
        """Latents [F, H, W, C] float32 of each window; see `Sampler.all_of`."""
        if self._folder is None:
            return finite(self._sampler.all_of(windows, seed, on_progress))
        paths = [self._folder / f"{self._name(window, seed)}.npy" for window in windows]
        found = [_load(path) for path in paths]
        left = [i for i, latents in enumerate(found) if latents is None]
        on_progress(1 - len(left) / len(windows))
        for first in range(0, len(left), self._sampler.batch):
            part = left[first : first + self._sampler.batch]
            told = functools.partial(_tell, on_progress, len(part) / len(windows))
            sampled = finite(self._sampler([windows[i] for i in part], seed, told))
            for i, latents in zip(part, sampled, strict=True):
                with files.whole_file(paths[i]) as temporary, temporary.open("wb") as file:
                    np.save(file, latents, allow_pickle=False)
                found[i] = latents
        return [latents for latents in found if latents is not None]

    def _name(self, window: PackInput, seed: int) -> str:
        return hashlib.sha256(self._origin + f"seed {seed}".encode() + input_digest(window)).hexdigest()[:32]


def input_digest(window: PackInput) -> bytes:
    """Of all that a window gives to the model."""
    digest = hashlib.sha256()
    for field in dataclasses.fields(window):
        value = getattr(window, field.name)
        if isinstance(value, np.ndarray):
            digest.update(f"{field.name} {value.dtype} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        else:
            digest.update(f"{field.name} {value!r}".encode())
    return digest.digest()


def _tell(on_progress: Callable[[float], None], share: float, done: float) -> None:
    on_progress(done * share)


def _load(path: Path) -> np.ndarray | None:
    """None where it is not there, or no whole file."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def _origin(run: TrainedRun, config: SamplingConfig) -> bytes:
    how: dict[str, Any] = {"step": run.step, "weights": run.weights, "sampling": dataclasses.asdict(config)}
    digest = hashlib.sha256(json.dumps(how, sort_keys=True, default=str).encode())
    digest.update(weights_digest(run.params))
    return digest.digest()


def weights_digest(params: Params) -> bytes:
    """Of the small weights, which a training changes as all others: another run in the same folder has another."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if leaf.size <= _SMALL and leaf.is_fully_addressable:
            digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return digest.digest()
