"""The loss, and what it is differentiated to, do not depend on how the mesh splits model and batch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from omnihuman_jax import sharding
from omnihuman_jax.attention.dispatch import AttentionStrategy
from omnihuman_jax.models import mmdit
from omnihuman_jax.models.execution import ExecutionConfig
from omnihuman_jax.training.train_step import loss_fn
from tests.training import tiny

# A dual block, a single block and a refiner block: every kind of weight, and a text stream whose output is used.
CONFIG = tiny.model_config(dual=1, single=1, refiner=1)
PLAIN = (8, 1, 1, 1)
TOLERANCE = 1e-5


@functools.lru_cache
def computed(ways: tuple[int, int, int, int], gradient: bool, context_parallel: str = "gather") -> Any:
    """((loss, losses of windows), gradient or None) on the mesh (data, fsdp, context, tensor), on the host."""
    execution = ExecutionConfig(remat="none", attention=AttentionStrategy(context_parallel=context_parallel))
    mesh = sharding.create_mesh(sharding.MeshConfig(**dict(zip(sharding.MESH_AXES, ways, strict=True))))
    shapes, axes = mmdit.abstract_params(CONFIG)
    place = jax.tree.map(lambda leaf, axis: sharding.named_sharding(mesh, axis, leaf.shape), shapes, axes)
    batch_place = sharding.batch_shardings(mesh, tiny.packed_shape(), tiny.SEQUENCES)
    objective = tiny.objective(CONFIG, execution)

    def loss(params: Any, batch: Any) -> Any:
        value, losses = loss_fn(params, objective, np.int32(5), batch)
        return value, losses.window_loss_BG

    run = jax.value_and_grad(loss, has_aux=True) if gradient else lambda params, batch: (loss(params, batch), None)
    with jax.set_mesh(mesh):
        params, batch = jax.device_put((tiny.random_params(CONFIG), tiny.some_batch()), (place, batch_place))
        lowered = jax.jit(run, in_shardings=(place, batch_place)).lower(params, batch)
        return jax.device_get((lowered.compile() if context_parallel == "gather" else uncached(lowered))(params, batch))


def uncached(lowered: Any) -> Any:
    """Compiled anew each time.

    What XLA:CPU reads back from the persistent cache no longer keeps independent collectives in one order on all
    devices: the permutes and gathers of these programs then wait for each other for ever (docs/meshes.md).
    """
    name = "jax_persistent_cache_min_compile_time_secs"
    kept = jax.config.values[name]
    jax.config.update(name, 1e9)  # never written; the option makes it a program that no older cache holds
    try:
        return lowered.compile(compiler_options={"xla_cpu_parallel_codegen_split_count": 31})
    finally:
        jax.config.update(name, kept)


@pytest.mark.parametrize(
    "ways",
    [
        pytest.param((1, 8, 1, 1), marks=pytest.mark.slow),
        (2, 2, 1, 2),
        pytest.param((1, 2, 2, 2), marks=pytest.mark.slow),
    ],
    ids=lambda ways: "x".join(str(way) for way in ways),
)
def test_the_loss_of_every_window(
    ways: tuple[int, int, int, int], measured: Callable[[str, float, float], None]
) -> None:
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
    measured("gradient of a parameter, data x fsdp x tensor against 8-way data", largest_error(split, plain), 1e-4)


def worst_error(found: Any, expected: Any) -> tuple[str, float]:
    """The parameter whose gradient differs most, relative to its own largest value, and by how much."""
    flat, _ = jax.tree_util.tree_flatten_with_path(expected)
    largest = max(np.abs(leaf).max() for _, leaf in flat)
    errors = {}
    for (path, leaf), ours in zip(flat, jax.tree.leaves(found), strict=True):
        # The floor: a key's bias moves no softmax, so that its gradient is nothing but rounding.
        errors[jax.tree_util.keystr(path)] = np.abs(ours - leaf).max() / max(np.abs(leaf).max(), 1e-3 * largest)
    worst = max(errors, key=lambda path: errors[path])
    return worst, errors[worst]


def largest_error(found: Any, expected: Any) -> float:
    """`worst_error`'s, which must be below 1e-4."""
    worst, error = worst_error(found, expected)
    assert error < 1e-4, f"{worst}: {error}"
    return error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "ways"),
    [
        ("ulysses_ring", (2, 1, 4, 1)),  # two heads: rings of two, of pairs that share out heads
        pytest.param("ulysses", (2, 2, 2, 1), marks=pytest.mark.slow),
        pytest.param("ring", (2, 1, 4, 1), marks=pytest.mark.slow),
        pytest.param("ring", (1, 2, 2, 2), marks=pytest.mark.slow),
        pytest.param("gather", (1, 2, 2, 2), marks=pytest.mark.slow),
    ],
)
def test_what_context_parallelism_exchanges_changes_neither_loss_nor_gradients(
    mode: str, ways: tuple[int, int, int, int], measured: Callable[[str, float, float], None]
) -> None:
    (loss, _), split = computed(ways, True, mode)
    (expected, _), plain = computed(PLAIN, True)
    measured(
        "loss, context parallel (gather, ulysses, ring, both) against 8-way data", abs(loss / expected - 1), TOLERANCE
    )
    error = largest_error(split, plain)
    measured("gradient of a parameter, context parallel (gather, ulysses, ring, both) against 8-way data", error, 1e-4)
