"""The train state: a plain pytree, born sharded.

Everything that resume needs and that is not a pure function of the step is in here, running averages of the log
included: what is logged after a resume is what would have been logged without the stop.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omnihuman_jax import sharding
from omnihuman_jax.conditions import NUM_CONDITIONS
from omnihuman_jax.models import mmdit
from omnihuman_jax.training.numerics import Health
from omnihuman_jax.typing import Params

NUM_SETS = 1 << NUM_CONDITIONS

OFFLOADS: dict[str, tuple[str, ...]] = {"none": (), "moments": ("opt_state",), "moments_ema": ("opt_state", "ema")}
"""Which parts of the state wait in the host's memory between updates."""

# XLA:CPU works three times as long on the many small draws of an initialisation with its full optimisation, for a
# program that runs once, as fast, to the same bits.
_CHEAP: dict[str, bool | int | str] = {"xla_backend_optimization_level": 1}


class Counters(NamedTuple):
    """Sums over windows by active set (its bitmask is the index), replicated.

    stage_windows: windows seen in this stage, int32 [16]
    interval_windows: windows since the last logged step, int32 [16]
    interval_losses: sum of those windows' mean losses, float32 [16]
    interval_loss: sum of the steps' losses since the last logged step, float32
    interval_tokens: latent tokens in those steps, padding not counted, float32
    interval_steps: number of those steps, int32; the loss sums leave out steps whose numbers were wrong
    placeholders: windows in all that were left out because their record cannot be read, int32
    health: see `numerics`
    """

    stage_windows: jax.Array
    interval_windows: jax.Array
    interval_losses: jax.Array
    interval_loss: jax.Array
    interval_tokens: jax.Array
    interval_steps: jax.Array
    placeholders: jax.Array
    health: Health

    @classmethod
    def zeros(cls) -> "Counters":
        return cls(
            stage_windows=jnp.zeros(NUM_SETS, jnp.int32),
            interval_windows=jnp.zeros(NUM_SETS, jnp.int32),
            interval_losses=jnp.zeros(NUM_SETS, jnp.float32),
            interval_loss=jnp.zeros((), jnp.float32),
            interval_tokens=jnp.zeros((), jnp.float32),
            interval_steps=jnp.zeros((), jnp.int32),
            placeholders=jnp.zeros((), jnp.int32),
            health=Health.zeros(),
        )


class TrainState(NamedTuple):
    """Parameters (float32 master copies), optimizer moments and counts, EMA, the number of finished steps, counters."""

    params: Params
    opt_state: optax.OptState
    ema: Params
    step: jax.Array
    counters: Counters


def group_labels(axes: Params) -> Params:
    """The condition group of every parameter, as a tree like the parameters."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: mmdit.condition_group(tuple(entry.key for entry in path)),
        axes,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def initial_state(config: mmdit.MMDiTConfig, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """Step 0; call it under `jax.jit` with `state_shardings`, or moments come out replicated."""
    return state_of(mmdit.init_params(config, key), optimizer)


def state_of(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Step 0 of a run that starts from `params`: the average is the parameters, moments are zero. Under jit, as
    above.
    """
    return TrainState(
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params),
        step=jnp.zeros((), jnp.int32),
        counters=Counters.zeros(),
    )


def state_shardings(
    mesh: Mesh, shapes: Params, axes: Params, optimizer: optax.GradientTransformation, offload: str = "none"
) -> Any:
    """The sharding of every leaf of the state, as a TrainState: moments and EMA lie with their parameter, scalars
    everywhere.

    What `offload` (a key of `OFFLOADS`) names is in the pinned memory of the host of each device; ValueError where
    the platform has none.
    """
    host = OFFLOADS[offload]
    if host:
        sharding.require_host_memory(mesh, f"step.offload={offload}")
    replicated: Any = NamedSharding(mesh, PartitionSpec())
    params = jax.tree.map(
        lambda axis, leaf: sharding.named_sharding(mesh, axis, leaf.shape),
        axes,
        shapes,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )
    moments = optax.tree.map_params(
        optimizer,
        lambda leaf, place: leaf if isinstance(leaf, optax.MaskedNode) else place,
        jax.eval_shape(optimizer.init, shapes),
        in_host_memory(params) if "opt_state" in host else params,
        transform_non_params=lambda _: replicated,
        is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
    )
    counters = jax.tree.map(lambda _: replicated, jax.eval_shape(Counters.zeros))
    ema = in_host_memory(params) if "ema" in host else params
    return TrainState(params=params, opt_state=moments, ema=ema, step=replicated, counters=counters)


def in_host_memory(shardings: Any) -> Any:
    """The same splits, in the pinned memory of each device's host."""
    return jax.tree.map(lambda place: place.with_memory_kind(sharding.HOST_MEMORY), shardings)


def on_device(tree: Any, shardings: Any) -> Any:
    """Under jit: `tree` with what `shardings` keeps in host memory fetched to the devices."""

    def fetch(leaf: Any, place: Any) -> Any:
        return (
            jax.device_put(leaf, place.with_memory_kind("device"))
            if place.memory_kind == sharding.HOST_MEMORY
            else leaf
        )

    return jax.tree.map(fetch, tree, shardings)


def off_device(tree: Any, shardings: Any) -> Any:
    """Under jit: the way back from `on_device`."""
    return jax.tree.map(
        lambda leaf, place: jax.device_put(leaf, place) if place.memory_kind == sharding.HOST_MEMORY else leaf,
        tree,
        shardings,
    )


def create_train_state(
    config: mmdit.MMDiTConfig, optimizer: optax.GradientTransformation, shardings: TrainState, seed: int
) -> TrainState:
    """The state of step 0, every leaf made on the device that keeps it."""
    make = jax.jit(
        lambda key: initial_state(config, optimizer, key),
        out_shardings=shardings,
        compiler_options=_CHEAP if sharding.platform() == "cpu" else None,
    )
    return make(jax.random.fold_in(jax.random.key(seed), 0))


def continue_from(params: Params, optimizer: optax.GradientTransformation, shardings: TrainState) -> TrainState:
    """The state of step 0 around parameters that lie where `shardings` says; takes them over."""
    return jax.jit(lambda params: state_of(params, optimizer), out_shardings=shardings, donate_argnums=0)(params)


def skip_to(state: TrainState, step: int, shardings: TrainState) -> TrainState:
    """The state as it is, at another step, with nothing counted; donates `state`."""
    jump = lambda old: old._replace(step=jnp.int32(step), counters=Counters.zeros())  # noqa: E731
    return jax.jit(jump, out_shardings=shardings, donate_argnums=0)(state)


def abstract_train_state(
    config: mmdit.MMDiTConfig, optimizer: optax.GradientTransformation, shardings: TrainState
) -> TrainState:
    """Shapes, dtypes and shardings of the state without a byte allocated: what a restore is checked against."""
    shapes = jax.eval_shape(lambda key: initial_state(config, optimizer, key), jax.random.key(0))
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, shardings
    )


def misplaced_leaves(state: Any, shardings: Any) -> list[str]:
    """Names of leaves that do not lie where the table says, with both splits; an empty list is good."""
    wrong = []
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    for (path, leaf), place in zip(flat, jax.tree.leaves(shardings), strict=True):
        if not leaf.sharding.is_equivalent_to(place, leaf.ndim):
            wrong.append(f"{jax.tree_util.keystr(path)}: {leaf.sharding.spec} instead of {place.spec}")
    return wrong
