"""The loss, and what it is differentiated to, do not depend on how the mesh splits model and batch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from omnihuman_jax import sharding
from omnihuman_jax.models import mmdit
from omnihuman_jax.training.train_step import loss_fn
from tests.training import tiny

# A dual block, a single block and a refiner block: every kind of weight, and a text stream whose output is used.
CONFIG = tiny.model_config(dual=1, single=1, refiner=1)
PLAIN = (8, 1, 1, 1)
TOLERANCE = 1e-5


@functools.lru_cache
def computed(ways: tuple[int, int, int, int], gradient: bool) -> Any:
    """((loss, losses of windows), gradient or None) on the mesh (data, fsdp, context, tensor), on the host."""
    mesh = sharding.create_mesh(sharding.MeshConfig(**dict(zip(sharding.MESH_AXES, ways, strict=True))))
    shapes, axes = mmdit.abstract_params(CONFIG)
    place = jax.tree.map(lambda leaf, axis: sharding.named_sharding(mesh, axis, leaf.shape), shapes, axes)
    batch_place = sharding.batch_shardings(mesh, tiny.packed_shape(), tiny.SEQUENCES)
    objective = tiny.objective(CONFIG)

    def loss(params: Any, batch: Any) -> Any:
        value, losses = loss_fn(params, objective, np.int32(5), batch)
        return value, losses.window_loss_BG

    run = jax.value_and_grad(loss, has_aux=True) if gradient else lambda params, batch: (loss(params, batch), None)
    with jax.set_mesh(mesh):
        params, batch = jax.device_put((tiny.random_params(CONFIG), tiny.some_batch()), (place, batch_place))
        return jax.device_get(jax.jit(run, in_shardings=(place, batch_place))(params, batch))


@pytest.mark.parametrize("ways", [(1, 8, 1, 1), (2, 2, 1, 2), (1, 2, 2, 2)], ids=lambda ways: "x".join(str(way) for way in ways))
def test_the_loss_of_every_window(ways: tuple[int, int, int, int], measured: Callable[[str, float, float], None]) -> None:
    (loss, windows), _ = computed(ways, ways == (2, 2, 1, 2))
    (expected_loss, expected_windows), _ = computed(PLAIN, True)
    measured("loss, any mesh against 8-way data", abs(loss / expected_loss - 1), TOLERANCE)
    filled = expected_windows > 0
    np.testing.assert_array_equal(windows > 0, filled)
    error = np.abs(windows[filled] / expected_windows[filled] - 1).max()
    measured("loss of a window, any mesh against 8-way data", error, TOLERANCE)


def test_the_gradient_of_every_parameter(measured: Callable[[str, float, float], None]) -> None:
    _, plain = computed(PLAIN, True)
    _, split = computed((2, 2, 1, 2), True)
    flat, _ = jax.tree_util.tree_flatten_with_path(plain)
    largest = max(np.abs(leaf).max() for _, leaf in flat)
    for (path, expected), found in zip(flat, jax.tree.leaves(split), strict=True):
        # The floor: a key's bias moves no softmax, so that its gradient is nothing but rounding.
        error = np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-3 * largest)
        assert error < 1e-4, f"{jax.tree_util.keystr(path)}: {error}"
        measured("gradient of a parameter, data x fsdp x tensor against 8-way data", error, 1e-4)
