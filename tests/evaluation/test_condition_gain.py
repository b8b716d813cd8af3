"""The gain of a condition, with a velocity whose error is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnihuman_jax import segments
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data.packing import PackInput, pack_batch
from omnihuman_jax.evaluation.condition_gain import KINDS, gain, window_losses
from omnihuman_jax.typing import Array, Batch
from tests.data import synthetic

ACTIVE = ConditionSet.of(Condition.TEXT, Condition.REFERENCE, Condition.POSE)
FRAMES, MARGIN = 9, synthetic.MARGIN


def window(slot: int, size: tuple[int, int] = (4, 6)) -> PackInput:
    """A window that is driven by pose; its audio is the number of its slot."""
    random = np.random.default_rng(slot)
    rows = FRAMES + 2 * MARGIN
    return PackInput(
        latents_FHWC=random.normal(size=(3, *size, 4)).astype(np.float32),
        reference_HWC=random.normal(size=(*size, 4)).astype(np.float32),
        text_SE=random.normal(size=(3, synthetic.TEXT_WIDTH)).astype(np.float32),
        pooled_E=random.normal(size=synthetic.POOLED_WIDTH).astype(np.float32),
        audio_TE=np.full((rows, 6), slot + 1, np.float32),
        audio_valid_T=np.ones(rows, bool),
        keypoints_TJ3=np.tile(np.array([2.0, 1.0, 1.0], np.float32), (rows, synthetic.KEYPOINTS, 1)),
        keypoints_valid_T=np.ones(rows, bool),
        margin=MARGIN,
        slot=slot,
        active=ACTIVE,
    )


def heard(own: PackInput, kind: str, other: PackInput) -> PackInput:
    """The window without sound, with its own, or with another's."""
    if kind == "absent":
        return own
    sound = {"own": own, "other": other}[kind]
    return dataclasses.replace(own, active=ACTIVE | ConditionSet.of(Condition.AUDIO), audio_TE=sound.audio_TE)


def packed(windows: list[PackInput]) -> Batch:
    """One sequence of two slots."""
    limits = synthetic.plan_config(latent_tokens=64, windows=2, latent_frames=8, frames=64, text_tokens=16)
    return pack_batch([windows], synthetic.shape(limits))


def oracle(factors: dict[str, float], clean_BLC: Array):
    """A velocity that is off by a share of the target: which share depends on the audio that a window is given."""

    def velocity(tokens_BLC: Array, t_BG: Array, batch: Batch) -> Array:
        t_BL = segments.of_window(t_BG, batch.segment_ids_BL)[..., None]
        target_BLC = (tokens_BLC - clean_BLC) / t_BL  # noise - clean
        heard_BG = jnp.asarray(batch.active_BG4[..., Condition.AUDIO])
        own_BG = jnp.asarray(batch.audio_BTE[:, 0, :1]) == jnp.asarray(batch.slot_BG) + 1  # of the first slot
        share_BG = jnp.where(heard_BG, jnp.where(own_BG, factors["own"], factors["other"]), factors["absent"])
        return target_BLC * (1 - segments.of_window(share_BG, batch.segment_ids_BL)[..., None])

    return velocity


def test_the_loss_is_the_share_of_the_target_that_is_missed() -> None:
    windows = [window(slot) for slot in range(3)]
    losses = {}
    factors = {"absent": 1.0, "own": 0.5, "other": 1.2}
    for kind in KINDS:
        driven = [heard(w, kind, windows[(i + 1) % 3]) for i, w in enumerate(windows)]
        rows = []
        for w in driven:  # one a sequence
            batch = packed([w])
            loss_BG = window_losses(oracle(factors, batch.latents_BLC), batch, 0.6, jax.random.key(0))
            assert loss_BG.shape == (1, 2) and loss_BG[0, 1] == 0
            rows.append(float(loss_BG[0, 0]))
        losses[kind] = np.array(rows)
    # The same noise in all three: the ratio is exact, window by window.
    assert np.allclose(losses["own"], 0.25 * losses["absent"], rtol=1e-4)
    assert np.allclose(losses["other"], 1.44 * losses["absent"], rtol=1e-4)
    found = gain(losses, ["a", "a", "b"])
    assert found.own.value == pytest.approx(0.75, abs=1e-4) and found.own.high - found.own.low < 1e-3
    assert found.harm_of_other.value == pytest.approx(0.44, abs=1e-3) and found.own.people == 2


def test_a_windows_loss_depends_on_nothing_that_shares_its_batch() -> None:
    windows = [window(slot) for slot in range(2)]

    def off_by_input(tokens_BLC: Array, t_BG: Array, batch: Batch) -> Array:
        return jnp.asarray(tokens_BLC)

    together = window_losses(off_by_input, packed(windows), 0.3, jax.random.key(1))[0]
    alone = [window_losses(off_by_input, packed([w]), 0.3, jax.random.key(1))[0, 0] for w in windows]
    assert np.allclose(together, alone, rtol=1e-6)
