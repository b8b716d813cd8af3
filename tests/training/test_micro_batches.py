"""A step in micro-batches is the step of the large batch: loss, gradients, windows' means, counters."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

from omnihuman_jax import sharding
from omnihuman_jax.training import micro_batches
from omnihuman_jax.training.train_step import StepConfig, gradients
from omnihuman_jax.typing import PackedBatch
from tests import quick_xla
from tests.training import tiny

WAYS = sharding.MeshConfig(data=2, fsdp=1, context=2, tensor=2)


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly() -> Iterator[None]:
    with quick_xla.compiled_quickly():
        yield


def computed(trainer: tiny.Trainer, num: int, batch: PackedBatch[np.ndarray]) -> Any:
    params = jax.device_put(tiny.random_params(trainer.config), trainer.shardings.params)

    def run(params: Any, batch: Any) -> Any:
        return gradients(
            params, trainer.objective, np.int32(5), batch,
            num=num, mesh=trainer.mesh, shape=tiny.packed_shape(), shardings=trainer.shardings.params,
        )  # fmt: skip

    with jax.set_mesh(trainer.mesh):
        return jax.device_get(jax.jit(run)(params, trainer.place(batch)))


@pytest.mark.slow
def test_gradients_of_four_parts_are_those_of_the_whole(measured: Callable[[str, float, float], None]) -> None:
    trainer = tiny.Trainer(WAYS)
    # Rows of very different numbers of noisy tokens, two of them without any: a mean of means would be another number.
    windows = [tiny.window(i, motion=i % 3 == 0, latent_frames=(3, 1, 2)[i % 3]) for i in range(9)]
    batch = tiny.batch_of([windows[:3], windows[3:4], [], windows[4:5], windows[5:7], windows[7:8], [], windows[8:]])
    loss, losses, grads = computed(trainer, 1, batch)
    part_loss, part_losses, part_grads = computed(trainer, 4, batch)
    measured("loss, in 4 micro-batches against the whole", abs(part_loss / loss - 1), 1e-6)
    np.testing.assert_array_equal(part_losses.counted_BG, losses.counted_BG)
    np.testing.assert_allclose(
        part_losses.window_loss_BG, losses.window_loss_BG, rtol=1e-6
    )  # in the order of the batch
    norm = np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in jax.tree.leaves(grads)))
    difference = jax.tree.map(lambda a, b: np.square(a - b, dtype=np.float64).sum(), part_grads, grads)
    measured("gradient, in 4 micro-batches against the whole", np.sqrt(sum(jax.tree.leaves(difference))) / norm, 1e-6)


def test_every_device_keeps_its_rows_and_the_order_comes_back() -> None:
    trainer = tiny.Trainer(WAYS)
    batch = tiny.some_batch()
    split = jax.jit(lambda batch: micro_batches.split_rows(batch, mesh=trainer.mesh, shape=tiny.packed_shape(), num=2))
    with jax.set_mesh(trainer.mesh):
        placed = trainer.place(batch)
        text = split.lower(placed).compile().as_text()
        parts = split(placed)
        whole = jax.device_get(micro_batches.merge_rows(parts, mesh=trainer.mesh))
    assert not any(name in text for name in ("all-to-all", "all-gather", "all-reduce", "collective-permute"))
    # Two devices along `data`, of rows 0-3 and 4-7: a part is the first or the second half of each.
    np.testing.assert_array_equal(np.asarray(parts.latents_BLC)[0], batch.latents_BLC[[0, 1, 4, 5]])
    np.testing.assert_array_equal(whole.slot_BG, batch.slot_BG)


@pytest.mark.slow
def test_counters_and_update_do_not_depend_on_the_parts() -> None:
    states = []
    for num in (1, 2):
        trainer = tiny.Trainer(sharding.MeshConfig(data=2, fsdp=2, tensor=2), step=StepConfig(micro_batches=num))
        state = trainer.initial()
        for k in range(2):
            state, metrics = trainer.step(state, tiny.some_batch(16 * k), rate=1e-3)
        assert trainer.step_fn._cache_size() == 1
        states.append((jax.device_get(state), metrics))
    (one, metrics), (two, other) = states
    assert other["loss"] == pytest.approx(metrics["loss"], rel=1e-6)
    assert other["grad_norm"] == pytest.approx(metrics["grad_norm"], rel=1e-6)
    np.testing.assert_array_equal(two.counters.stage_windows, one.counters.stage_windows)
    assert two.counters.interval_tokens == one.counters.interval_tokens
    np.testing.assert_allclose(two.counters.interval_losses, one.counters.interval_losses, rtol=1e-6)


def test_a_number_of_parts_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"step\.micro_batches must be >= 1, not 0"):
        StepConfig(micro_batches=0).validate()
