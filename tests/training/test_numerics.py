"""Verdicts on steps: what is not finite or far off, and what is remembered of it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnihuman_jax.training import numerics
from omnihuman_jax.training.numerics import HISTORY, Health, NumericsConfig, RepeatedStep


def run(
    config: NumericsConfig, values: list[float], *, stage_start: int | None = None, trains: bool = True
) -> tuple[Health, list]:
    """Health after steps of these losses (and gradient norms alike), and the verdicts."""

    @jax.jit
    def step(health: Health, value: jax.Array, start: jax.Array) -> tuple[Health, numerics.Verdict]:
        verdict = numerics.judge(config, health, loss=value, norm=2 * value, stage_start=start)
        health = numerics.remember(
            health,
            verdict,
            loss=value,
            norm=2 * value,
            trains=jnp.bool_(trains),
            stage_start=start,
            interval_start=start,
        )
        return health, verdict

    health, verdicts = Health.zeros(), []
    for index, value in enumerate(values):
        health, verdict = step(health, np.float32(value), np.bool_(index == stage_start))
        verdicts.append(jax.device_get(verdict))
    return jax.device_get(health), verdicts


def test_what_is_not_finite_is_not_applied_and_counted() -> None:
    health, verdicts = run(NumericsConfig(), [1, np.nan, 2, np.inf, -np.inf, 3e38])  # the last: its norm overflows
    assert [bool(v.applied) for v in verdicts] == [True, False, True, False, False, False]
    assert (health.skipped, health.skipped_in_a_row, health.applied, health.interval_nonfinite) == (4, 3, 2, 4)
    assert health.losses[:3].tolist() == [1, 2, 0] and np.isfinite(health.norms).all()
    health, _ = run(NumericsConfig(), [np.nan] * 3, trains=False)
    assert health.skipped_in_a_row == 0


@pytest.mark.parametrize("skip", [False, True])
def test_a_spike_is_measured_against_the_median_of_the_stage(skip: bool) -> None:
    config = NumericsConfig(spike_factor=3.0, skip_spikes=skip)
    usual = [1 + 0.1 * (i % 5) for i in range(HISTORY)]
    health, verdicts = run(config, [9.0, *usual, 3.5, 3.7, 1.0])
    # Too early to say at first; then above 3 x 1.2.
    assert [i for i, v in enumerate(verdicts) if v.spike] == [HISTORY + 2]
    assert [i for i, v in enumerate(verdicts) if not v.applied] == ([HISTORY + 2] if skip else [])
    assert (health.spikes, health.skipped, health.skipped_in_a_row) == (1, int(skip), 0)
    health, verdicts = run(config, [*usual, 100.0], stage_start=HISTORY)
    assert not any(v.spike for v in verdicts) and health.applied == 1, "another stage's losses say nothing of this one"


def test_numbers_that_make_no_sense() -> None:
    for wrong in (
        {"max_skipped": 0},
        {"spike_factor": 0.5},
        {"spike_factor": 0, "skip_spikes": True},
        {"repeat_interval": -1},
    ):
        with pytest.raises(ValueError, match="numerics"):
            NumericsConfig(**wrong).validate()


def test_a_step_that_does_not_repeat_itself_is_noticed() -> None:
    calls = itertools.count()

    def exact(state, batch, controls):
        return {"w": state["w"] + batch}, {"loss": batch.sum()}

    def faulty(state, batch, controls):
        off = jax.pure_callback(lambda: np.float32(1e-7 * next(calls)), jax.ShapeDtypeStruct((), jnp.float32))
        return {"w": state["w"].at[2].add(off)}, {"loss": batch.sum()}

    state, batch = {"w": jnp.ones(4)}, jnp.arange(4.0)
    assert RepeatedStep(jax.jit(exact, donate_argnums=0)).differing(state, batch, ()) == 0
    assert RepeatedStep(jax.jit(faulty, donate_argnums=0)).differing(state, batch, ()) == 1
    assert state["w"].tolist() == [1, 1, 1, 1]
