"""What is measured while a run trains: each evaluator is built once, and gives numbers by name for any weights.

`Evaluator` is all that the hook (`training_samples.py`) asks for: another one is a function and a line in `evaluators`.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from omnihuman_jax import sharding
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data import packing
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.record_source import RecordSource
from omnihuman_jax.data.records import WindowRecord
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.evaluation import condition_gain, mouth
from omnihuman_jax.evaluation.bootstrap import Estimate
from omnihuman_jax.models import mmdit
from omnihuman_jax.sampling import lip_sync, trained_run, window_inputs
from omnihuman_jax.sampling.sampler import sampler_for, shape_for
from omnihuman_jax.sampling.window_inputs import SampledData
from omnihuman_jax.training.sample_budget import SamplesConfig
from omnihuman_jax.typing import Array, Batch, PackedShape, Params

logger = logging.getLogger(__name__)

Evaluator = Callable[[Params], Mapping[str, float]]
"""Weights, placed like the run's -> numbers by name. Called on every process; what only process 0 knows is empty on the
others.
"""

# What `driven_window` calls the window that a condition is taken from.
_GIVEN = {
    Condition.TEXT: "text", Condition.REFERENCE: "picture", Condition.AUDIO: "sound", Condition.POSE: "pose",
}  # fmt: skip
# Resamples of an interval: enough for two digits, and cheap between two steps.
_DRAWS = 500


def evaluators(
    run: trained_run.TrainedRun, data: Sequence[SampledData], config: SamplesConfig, sampling: SamplingConfig
) -> list[Evaluator]:
    """All that the config asks for and the model and the data can give; a word on what they cannot."""
    found: list[Evaluator] = []
    for condition, branch in ((Condition.AUDIO, run.config.model.audio), (Condition.POSE, run.config.model.pose)):
        if config.gain_windows and branch is not None:
            counts = window_inputs.shares(config.gain_windows, len(data))
            subjects = [
                pair
                for one, count in zip(data, counts, strict=True)
                for pair in gain_subjects(one.catalog, one.records, condition, config.split, count)
            ]
            if len(subjects) > 1:
                found.append(ConditionGain(run, condition, subjects, config))
            else:
                logger.info("samples: the gain of %s is not measured: no windows of two clips have it", condition.label)
    if config.truth:
        if len(data) > 1:
            logger.info("samples: the mouth is measured on windows of the first data set, %s", data[0].name)
        found.append(MouthCorrelation(run, Path(config.truth), config, sampling))
    return found


def gain_subjects(
    catalog: Catalog, source: RecordSource, condition: Condition, split: str, count: int
) -> list[tuple[WindowRecord, WindowRecord]]:
    """(window, a window of another clip whose condition drives it too), of one length, and of one size where it is the
    reference; fixed for a data set.
    """
    _, rows = window_inputs.held_out(catalog, split, ConditionSet.of(condition, Condition.REFERENCE))
    chosen = window_inputs.spread(catalog, rows, count)
    records = [record for row in chosen if (record := source[int(catalog.record[row])]) is not None]
    pairs = []
    for i, record in enumerate(records):
        turned = (*records[i + 1 :], *records[:i])
        other = next((o for o in turned if o.clip_id != record.clip_id and _can_drive(o, record, condition)), None)
        if other is not None:
            pairs.append((record, other))
    return pairs


def _can_drive(other: WindowRecord, record: WindowRecord, condition: Condition) -> bool:
    return condition is not Condition.REFERENCE or other.latents_FHWC.shape[1:] == record.latents_FHWC.shape[1:]


def three(name: str, found: Estimate) -> dict[str, float]:
    """An estimate as curves: its value, and the ends of its interval; nothing where there is no value."""
    values = {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


class ConditionGain:
    """`gain/audio`, `harm/audio` (or another's): `evaluation/condition_gain.py` on fixed windows, from fixed noise.

    The gain is the share of the denoising loss that the window's own signal takes off, the harm what another window's
    puts on; `_low` and `_high` are the ends of their 95 % intervals.
    """

    def __init__(
        self,
        run: trained_run.TrainedRun,
        condition: Condition,
        subjects: Sequence[tuple[WindowRecord, WindowRecord]],
        config: SamplesConfig,
    ):
        self._run, self._condition = run, condition
        self.people = [record.clip_id for record, _ in subjects]
        windows = {
            kind: [_driven(run, *pair, slot, kind, condition) for slot, pair in enumerate(subjects)]
            for kind in condition_gain.KINDS
        }
        shape = shape_for(run, windows["own"] + windows["other"])
        ways = run.mesh.shape["data"] * run.mesh.shape["fsdp"]
        self._rows = -(-min(config.batch, len(subjects)) // ways) * ways
        shardings = sharding.batch_shardings(run.mesh, shape, self._rows)
        self._batches = {kind: list(self._packed(own, shape, shardings)) for kind, own in windows.items()}
        # Plain numbers: a key made under one mesh is refused under another by JAX 0.10.
        self._key_data = np.asarray(jax.random.key_data(jax.random.key(config.seed)))
        replicated = NamedSharding(run.mesh, PartitionSpec())
        places = jax.tree.map(lambda leaf: leaf.sharding, run.params)
        self._losses: Any = jax.jit(
            self._window_losses, in_shardings=(places, shardings, replicated, replicated), out_shardings=replicated
        )

    def _packed(self, windows: Sequence[packing.PackInput], shape: PackedShape, shardings: Any) -> Iterator[Any]:
        """Placed batches of one size; the last window fills up the last one."""
        for first in range(0, len(windows), self._rows):
            part = [*windows[first : first + self._rows]]
            part += [part[-1]] * (self._rows - len(part))
            batch = packing.pack_batch([[window] for window in part], shape)
            yield jax.device_put(batch, shardings)

    def _window_losses(self, params: Params, batch: Batch, t: jax.Array, key_data: jax.Array) -> jax.Array:
        config = self._run.config

        def velocity(tokens_BLC: Array, t_BG: Array, batch: Batch) -> Array:
            return mmdit.apply(
                config.model,
                params,
                jnp.asarray(tokens_BLC),
                jnp.asarray(t_BG),
                batch,
                execution=config.execution,
                dtype=self._run.dtype,
            )

        return condition_gain.window_losses(velocity, batch, t, jax.random.wrap_key_data(key_data))[:, 0]

    def losses(self, params: Params) -> dict[str, np.ndarray]:
        """The denoising loss of every window, [N] by `condition_gain.KINDS`: the mean over `condition_gain.TIMES`."""
        losses = {}
        with jax.set_mesh(self._run.mesh):
            for kind, batches in self._batches.items():
                of_times = [
                    np.concatenate(
                        [np.asarray(self._losses(params, batch, np.float32(t), self._key_data)) for batch in batches]
                    )
                    for t in condition_gain.TIMES
                ]
                losses[kind] = np.mean(of_times, axis=0)[: len(self.people)]
        return losses

    def __call__(self, params: Params) -> dict[str, float]:
        """See `Evaluator`."""
        found = condition_gain.gain(self.losses(params), self.people, draws=_DRAWS)
        label = self._condition.label
        return three(f"gain/{label}", found.own) | three(f"harm/{label}", found.harm_of_other)

    def compilations(self) -> int:
        """How many programs it has been compiled into."""
        return int(self._losses._cache_size())


def _driven(
    run: trained_run.TrainedRun,
    record: WindowRecord,
    other: WindowRecord,
    slot: int,
    kind: str,
    condition: Condition,
) -> packing.PackInput:
    """All else, noise too, is the same whatever the kind."""
    active = window_inputs.with_text(ConditionSet.of(Condition.REFERENCE, condition), record)
    if kind == "absent":
        active = active.without(condition)
    given = {_GIVEN[condition]: other if kind == "other" else record}
    return window_inputs.driven_window(run.spec, record, active, slot, with_truth=True, **given)


class MouthCorrelation:
    """`mouth/correlation`: sampled mouths of drawn people against the truth, driven by their own sound (lip-sync).

    0 for mouths that move at random or not at all; the ceiling, `mouth/ceiling`, is what the codec's round trip of the
    truth reaches. Process 0 decodes and reads; the others sample with it.
    """

    def __init__(
        self, run: trained_run.TrainedRun, truth: Path, config: SamplesConfig, sampling: SamplingConfig
    ) -> None:
        catalog = Catalog.load(run.dataset)
        needed = ConditionSet.of(Condition.REFERENCE, Condition.AUDIO)
        split, _ = window_inputs.held_out(catalog, config.split, needed)
        self._run, self._seed = run, config.seed
        self._subjects = lip_sync.subjects_of(run, run.dataset, truth, split, config.mouth_windows)
        self._inputs = self._subjects.inputs(run, ("own",))
        self._sampler = sampler_for(run, sampling, self._inputs, config.batch)
        trips = [self._subjects.round_trips[window.row] for window, _ in self._subjects.pairs]
        self._ceiling = mouth.correlation(self._subjects.read(trips), self._truth)

    @property
    def _truth(self) -> list[np.ndarray]:
        return [window.opening_T for window, _ in self._subjects.pairs]

    def __call__(self, params: Params) -> dict[str, float]:
        """See `Evaluator`."""
        latents = self._sampler.all_of(self._inputs, self._seed, params=params)
        if jax.process_index() != 0:
            return {}
        with jax.set_mesh(trained_run.one_device()):
            videos = [trained_run.decode_pictures(self._run, latent) for latent in latents]
        found = mouth.correlation_interval(
            self._subjects.read(videos), self._truth, self._subjects.people, draws=_DRAWS
        )
        return three("mouth/correlation", found) | {"mouth/ceiling": float(self._ceiling)}
