"""Numbers that must not be trained on: what is not finite, what is far off, and what a device computed wrong.

All of it is decided inside the step, from values that are computed anyway (the loss and the norm of the gradients), on
all devices alike, and what the decision depends on is in the state: a run that was stopped and continued decides the
same.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from omnihuman_jax.checkpoint import fingerprint

HISTORY = 64
"""Steps that a spike is measured against."""


@dataclasses.dataclass(kw_only=True, slots=True)
class NumericsConfig:
    """What is done about steps whose numbers are wrong.

    A step with a loss or gradient that is not finite never changes anything but the step count; that is no choice.

    max_skipped: so many of those in a row mean sick parameters: the run stops and goes back to a checkpoint before them
    max_rollbacks: so often in one run; then a person has to look
    spike_factor: a loss or gradient norm above this many medians of the last 64 steps is a spike, reported; 0: never
    skip_spikes: a spike is not trained on either
    repeat_interval: every so many steps one is computed twice, and any difference of bits ends the attempt; 0: never
    """

    max_skipped: int = 10
    max_rollbacks: int = 3
    spike_factor: float = 10.0
    skip_spikes: bool = False
    repeat_interval: int = 0

    def validate(self) -> None:
        """ValueError with the numbers."""
        if self.max_skipped < 1 or self.max_rollbacks < 0 or self.repeat_interval < 0:
            raise ValueError(
                f"numerics: max_skipped {self.max_skipped} must be >= 1, max_rollbacks {self.max_rollbacks} and"
                f" repeat_interval {self.repeat_interval} >= 0"
            )
        if self.spike_factor and self.spike_factor <= 1:
            raise ValueError(f"numerics.spike_factor {self.spike_factor} must be above 1, or 0 for no detection")
        if self.skip_spikes and not self.spike_factor:
            raise ValueError("numerics.skip_spikes needs a spike_factor")


class Health(NamedTuple):
    """What the steps so far looked like, replicated; part of the state.

    skipped: steps that changed nothing, in all, int32; skipped_in_a_row: up to and with the last one, int32
    interval_nonfinite: not finite since the last logged step, int32; spikes: in all, int32
    losses, norms: of the last 64 steps of the stage that were applied, float32 [64], a ring; applied: their number so
        far, int32
    """

    skipped: jax.Array
    skipped_in_a_row: jax.Array
    interval_nonfinite: jax.Array
    spikes: jax.Array
    losses: jax.Array
    norms: jax.Array
    applied: jax.Array

    @classmethod
    def zeros(cls) -> "Health":
        count = lambda: jnp.zeros((), jnp.int32)  # noqa: E731
        ring = lambda: jnp.zeros(HISTORY, jnp.float32)  # noqa: E731
        return cls(
            skipped=count(), skipped_in_a_row=count(), interval_nonfinite=count(), spikes=count(),
            losses=ring(), norms=ring(), applied=count(),
        )  # fmt: skip


class Verdict(NamedTuple):
    """On one step, bools. finite: loss and gradient norm are; spike: far above the ones before; applied: the update
    counts.
    """

    finite: jax.Array
    spike: jax.Array
    applied: jax.Array

    @property
    def is_wrong(self) -> bool:
        """Of a verdict on the host: someone has to hear of the step, whether its update was applied or not."""
        return bool(self.spike or not self.finite)


def judge(config: NumericsConfig, health: Health, *, loss: jax.Array, norm: jax.Array, stage_start: Any) -> Verdict:
    """The verdict on a step; a sum of squares that overflows is not finite either. The first steps of a stage are no
    spikes: another stage's losses say nothing of them.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    spike = jnp.bool_(False)
    if config.spike_factor:
        far = (loss > config.spike_factor * jnp.median(health.losses)) | (
            norm > config.spike_factor * jnp.median(health.norms)
        )
        spike = finite & (health.applied >= HISTORY) & ~jnp.bool_(stage_start) & far
    return Verdict(finite=finite, spike=spike, applied=finite & ~spike if config.skip_spikes else finite)


def remember(
    health: Health,
    verdict: Verdict,
    *,
    loss: jax.Array,
    norm: jax.Array,
    trains: jax.Array,
    stage_start: Any,
    interval_start: Any,
) -> Health:
    """Health after one more step. A step that trains nothing (`trains` false) breaks a row of skipped ones."""
    skipped = (~verdict.applied).astype(jnp.int32)
    applied = jnp.where(stage_start, 0, health.applied)
    place = (jnp.arange(HISTORY) == applied % HISTORY) & verdict.applied
    return Health(
        skipped=health.skipped + skipped,
        skipped_in_a_row=jnp.where(verdict.finite | ~trains, 0, health.skipped_in_a_row + 1),
        interval_nonfinite=jnp.where(interval_start, 0, health.interval_nonfinite)
        + (~verdict.finite).astype(jnp.int32),
        spikes=health.spikes + verdict.spike.astype(jnp.int32),
        losses=jnp.where(place, loss, health.losses),
        norms=jnp.where(place, norm, health.norms),
        applied=applied + 1 - skipped,
    )


class RepeatedStep:
    """Computes a step twice on the same devices and compares every bit of the state that comes out.

    Catches what a device gets wrong now and then; what it always gets wrong alike, only another device shows. Costs two
    more steps each time, and the memory of one more state while it runs.
    """

    def __init__(self, train_step: Any):
        def outcome(state: Any, batch: Any, controls: Any) -> jax.Array:
            leaves = jax.tree.leaves(train_step(state, batch, controls))
            return jnp.stack([fingerprint.weighted_sum(leaf) for leaf in leaves])

        self._run = jax.jit(outcome)

    def differing(self, state: Any, batch: Any, controls: Any) -> int:
        """Arrays that came out differently; the state is left as it is."""
        first, second = (jax.device_get(self._run(state, batch, controls)) for _ in range(2))
        return int((first != second).sum())
