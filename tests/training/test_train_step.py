"""The step on one mesh: one program for every stage, leaves where the table says, and sums that mean what they say."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from omnihuman_jax import sharding
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.models.execution import ExecutionConfig
from omnihuman_jax.training import train_state
from omnihuman_jax.training.train_step import StepConfig, loss_fn, noisy_tokens
from omnihuman_jax.typing import PackedBatch
from tests.training import tiny

TEXT = ConditionSet.of(Condition.TEXT)


@pytest.fixture(scope="module")
def trainer() -> tiny.Trainer:
    return tiny.Trainer(sharding.MeshConfig(data=2, fsdp=4))


@pytest.fixture(scope="module")
def window_losses():
    """(batch, step) -> (loss, mean loss of each window by its slot number), of the tiny model on one device."""
    config = tiny.model_config(dual=1, single=1)
    objective = tiny.objective(config)
    params = tiny.random_params(config)
    run = jax.jit(lambda batch, step: loss_fn(params, objective, step, batch))

    def losses(batch: PackedBatch[np.ndarray], step: int = 3) -> tuple[float, dict[int, float]]:
        loss, windows = jax.device_get(run(batch, np.int32(step)))
        counted = windows.counted_BG
        return float(loss), dict(
            zip(batch.slot_BG[counted].tolist(), windows.window_loss_BG[counted].tolist(), strict=True)
        )

    return losses


def group(trainer: tiny.Trainer, state: train_state.TrainState, name: str) -> list[np.ndarray]:
    """Everything that belongs to a group: parameters, EMA, moments and counts."""
    labels = jax.tree.leaves(trainer.labels)
    leaves = [zip(jax.tree.leaves(tree), labels, strict=True) for tree in (state.params, state.ema)]
    picked = [leaf for pairs in leaves for leaf, label in pairs if label == name]
    return [np.array(leaf) for leaf in picked + jax.tree.leaves(state.opt_state.inner_states[name])]


def same(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_one_program_for_every_stage_and_groups_that_stand_still(trainer: tiny.Trainer) -> None:
    state = trainer.initial()
    batch = tiny.some_batch()
    for trainable in (("base",), ("base", "audio"), ("audio",), ("base", "audio", "pose")):
        before = {name: group(trainer, state, name) for name in ("base", "audio", "pose")}
        # The batch is fully conditioned: audio and pose have gradients even where their groups may not move.
        state, metrics = trainer.step(state, batch, trainable=trainable, rate=1e-3)
        for name, leaves in before.items():
            assert same(leaves, group(trainer, state, name)) == (name not in trainable), (name, trainable)
        assert {name for name, rate in metrics["rates"].items() if rate > 0} == set(trainable)
        assert train_state.misplaced_leaves(state, trainer.shardings) == []
    assert trainer.step_fn._cache_size() == 1
    assert int(state.step) == 4


def test_a_step_that_is_not_finite_changes_nothing_but_the_count(trainer: tiny.Trainer) -> None:
    state, _ = trainer.step(trainer.initial(), tiny.some_batch(), interval_start=True)
    before = jax.device_get(state)
    poisoned = tiny.some_batch(first=50)
    poisoned.latents_BLC[3, 5] = np.nan
    state, metrics = trainer.step(state, poisoned)
    assert np.isnan(metrics["loss"]) and not metrics["verdict"].applied and metrics["skipped_in_a_row"] == 1
    assert state.step == 2
    for name in ("params", "ema", "opt_state"):
        assert same(jax.tree.leaves(getattr(before, name)), jax.tree.leaves(getattr(state, name))), name
    # The interval's mean is that of the steps that count.
    counters = metrics["counters"]
    assert counters.interval_loss == before.counters.interval_loss and counters.health.interval_nonfinite == 1
    assert (
        np.isfinite(counters.interval_losses).all()
        and counters.stage_windows.sum() > before.counters.stage_windows.sum()
    )
    state, metrics = trainer.step(state, tiny.some_batch(first=100))
    assert metrics["verdict"].applied and metrics["skipped_in_a_row"] == 0 and metrics["counters"].health.skipped == 1
    assert not same(jax.tree.leaves(before.params), jax.tree.leaves(state.params))


def test_training_lowers_the_loss(trainer: tiny.Trainer) -> None:
    state, losses = trainer.initial(), []
    for _ in range(25):
        state, metrics = trainer.step(state, tiny.some_batch(), rate=3e-3)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert trainer.step_fn._cache_size() == 1


@pytest.mark.slow
def test_moments_and_block_inputs_in_host_memory_are_the_same_step(trainer: tiny.Trainer) -> None:
    """On CPU both memories are one, so this proves that the values pass; test_host_offload.py proves where they lie on
    a TPU.
    """
    execution = ExecutionConfig(remat="block_offload")
    other = tiny.Trainer(trainer.mesh_config, execution=execution, step=StepConfig(offload="moments_ema"))
    left, right = trainer.initial(), other.initial()
    for k in range(2):
        left, metrics = trainer.step(left, tiny.some_batch(16 * k), rate=1e-3)
        right, others = other.step(right, tiny.some_batch(16 * k), rate=1e-3)
        assert others["loss"] == pytest.approx(metrics["loss"], rel=1e-6)
    assert other.step_fn._cache_size() == 1 and train_state.misplaced_leaves(right, other.shardings) == []
    kinds = {
        name: {leaf.sharding.memory_kind for leaf in jax.tree.leaves(getattr(right, name))}
        for name in ("params", "ema")
    }
    assert kinds == {"params": {"device"}, "ema": {"pinned_host"}}
    moments = right.opt_state.inner_states["base"].inner_state[0]
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves((moments.mu, moments.nu))} == {"pinned_host"}
    for one, two in zip(jax.tree.leaves(left.ema), jax.tree.leaves(right.ema), strict=True):
        np.testing.assert_allclose(np.asarray(two), np.asarray(one), rtol=1e-4, atol=1e-5)


def test_a_platform_without_pinned_memory_says_so() -> None:
    class Memory:
        kind = "device"

    class Device:
        platform = "cpu"

        def addressable_memories(self) -> list[Memory]:
            return [Memory()]

    mesh = SimpleNamespace(devices=np.asarray([Device()]))
    with pytest.raises(
        ValueError, match=r"step.offload=moments needs pinned_host memory; cpu devices here have device"
    ):
        sharding.require_host_memory(mesh, "step.offload=moments")  # type: ignore[arg-type]


def test_counters_sum_over_stage_and_interval(trainer: tiny.Trainer) -> None:
    state, steps = trainer.initial(), []
    for k, (stage_start, interval_start) in enumerate([(True, True), (False, False), (False, True), (False, False)]):
        state, metrics = trainer.step(
            state, tiny.some_batch(16 * k), stage_start=stage_start, interval_start=interval_start
        )
        steps.append(metrics)
    last = steps[-1]["counters"]
    assert (
        last.stage_windows[tiny.ALL.bits] == last.stage_windows[TEXT.bits] == 4 * 8 and last.stage_windows.sum() == 64
    )
    assert last.interval_windows.sum() == 32 and last.interval_steps == 2
    assert last.interval_loss == np.float32(steps[2]["loss"]) + np.float32(steps[3]["loss"])
    assert last.interval_tokens == sum((tiny.some_batch(16 * k).segment_ids_BL > 0).sum() for k in (2, 3))
    state, metrics = trainer.step(state, tiny.some_batch(), stage_start=True, interval_start=True)
    assert metrics["counters"].stage_windows.sum() == 16 and metrics["counters"].interval_loss == metrics["loss"]


def test_a_window_costs_the_same_whatever_it_is_packed_with(window_losses, measured) -> None:
    sets = (tiny.ALL, TEXT, ConditionSet.of(Condition.REFERENCE, Condition.POSE), ConditionSet.of(Condition.AUDIO))
    windows = [tiny.window(i, active=sets[i % 4], motion=i % 3 == 0, latent_frames=(3, 1, 2)[i % 3]) for i in range(8)]
    loss, alone = window_losses(tiny.batch_of([[window] for window in windows]))
    rows = [windows[4:1:-1], [windows[7], windows[0], windows[5]], [windows[6], windows[1]]]
    other_loss, packed = window_losses(tiny.batch_of([*rows, *([] for _ in range(5))]))
    assert sorted(alone) == sorted(packed) == list(range(8))
    for slot, value in alone.items():
        measured("loss of a window, packed differently and batched differently", abs(packed[slot] / value - 1), 1e-5)
    assert other_loss == pytest.approx(loss, rel=1e-5)
    # Another step or another slot of the plan draws other noise.
    assert abs(window_losses(tiny.batch_of([[window] for window in windows]), step=4)[0] - loss) > 1e-3


def test_a_batch_of_stored_halves_is_widened_before_anything_is_computed(window_losses, measured) -> None:
    """float16 as data sets hold it: what the step makes of it is what it makes of the same numbers in float32."""
    halves = tiny.some_batch()
    assert halves.latents_BLC.dtype == halves.keypoints_BTJ3.dtype == np.float16
    whole = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float16 else x, halves)
    loss, windows = window_losses(halves)
    same_loss, same_windows = window_losses(whole)
    assert loss == pytest.approx(same_loss, rel=1e-6) and windows.keys() == same_windows.keys()
    for slot, value in windows.items():
        measured("loss of a window, batch of float16 and of float32", abs(value / same_windows[slot] - 1), 1e-6)


def test_the_loss_is_the_mean_over_noisy_tokens_and_windows_report_their_own(window_losses) -> None:
    small, large = tiny.window(0, latent_frames=1), tiny.window(1, latent_frames=3, motion=True)
    empty: list = [[] for _ in range(6)]
    loss, windows = window_losses(tiny.batch_of([[small], [large], *empty]))
    # 4 tokens a latent frame; motion gives the first two latents of the large one away.
    assert loss == pytest.approx((4 * windows[0] + 4 * windows[1]) / 8, rel=1e-6)


def test_what_carries_no_loss() -> None:
    batch = tiny.batch_of(
        [[tiny.window(0, motion=True, latent_frames=3), None, tiny.window(2, active=TEXT, latent_frames=1)]]
    )
    # Reference (4 tokens), two motion latents (8), one noisy latent (4), then the text-only image (4 noisy tokens).
    assert np.asarray(noisy_tokens(batch))[0].tolist() == 12 * [False] + 8 * [True] + (64 - 20) * [False]
    batch.window_BG[0, 2] = -1  # a window that could not be read
    assert np.asarray(noisy_tokens(batch)).sum() == 4


def test_an_empty_batch_costs_nothing(window_losses) -> None:
    assert window_losses(tiny.batch_of([[] for _ in range(8)])) == (0.0, {})
