"""The train step: one pure function of (state, batch, controls), compiled once for all stages, meshes pinned."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omnihuman_jax import conditions, segments, sharding
from omnihuman_jax.data.packing import UNREADABLE
from omnihuman_jax.diffusion import flow_matching, solver
from omnihuman_jax.models import mmdit
from omnihuman_jax.models.execution import ExecutionConfig
from omnihuman_jax.training import micro_batches, numerics
from omnihuman_jax.training import optimizer as optim
from omnihuman_jax.training.numerics import Health, NumericsConfig
from omnihuman_jax.training.train_state import NUM_SETS, OFFLOADS, Counters, TrainState, off_device, on_device
from omnihuman_jax.typing import Batch, PackedShape, Params

# What a random number is for; folded into the run's key together with (step, slot).
INIT_STREAM, T_STREAM, NOISE_STREAM = 0, 1, 2


@dataclasses.dataclass(kw_only=True, slots=True)
class StepConfig:
    """How a step is computed, never what: other values change its results by rounding only.

    micro_batches: parts that a step's sequences are computed in, one after the other; the global batch stays
        `data.plan.sequences_per_step`, a multiple of micro_batches x the mesh's data and fsdp ways. One part's
        activations are in memory at a time.
    offload: what waits in the host's memory between updates: `none`, `moments` (Adam's) or `moments_ema`.
    """

    micro_batches: int = 1
    offload: str = "none"

    def validate(self) -> None:
        """ValueError on a value that no step can be computed with."""
        if self.micro_batches < 1:
            raise ValueError(f"step.micro_batches must be >= 1, not {self.micro_batches}")
        if self.offload not in OFFLOADS:
            raise ValueError(f"step.offload {self.offload!r} is unknown; it is one of {', '.join(OFFLOADS)}")


class Controls(NamedTuple):
    """What a stage changes about the step, as inputs, so that stages share one program.

    learning_rate: float32, before each group's warm-up
    trainable: group -> bool
    stage_start, interval_start: bool, the first step of a stage or of a logging interval: its sums restart
    """

    learning_rate: Any
    trainable: dict[str, Any]
    stage_start: Any
    interval_start: Any


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """What the loss needs to know: the model and how it is computed, the flow, the run's seed, the compute dtype."""

    model: mmdit.MMDiTConfig
    execution: ExecutionConfig
    flow: flow_matching.FlowMatchingConfig
    seed: int
    dtype: Any


class Losses(NamedTuple):
    """window_loss_BG: mean squared velocity error of a window, 0 where it has no noisy token; counted_BG: whether it
    has.
    """

    window_loss_BG: jax.Array
    counted_BG: jax.Array


def draw_t(objective: Objective, step: jax.Array, batch: Batch) -> jax.Array:
    """The timestep of every window, [B, G] float32 in (0, 1), keyed on (seed, step, slot of the plan)."""
    windows = batch.slot_BG.shape[1]
    tokens_BG = flow_matching.video_tokens_of_slot(batch.segment_ids_BL, batch.is_reference_BL, windows)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(objective.seed), T_STREAM), step)

    def draw(slot: jax.Array, tokens: jax.Array) -> jax.Array:
        return flow_matching.sample_t(jax.random.fold_in(key, slot), jnp.maximum(tokens, 1), objective.flow)

    return jax.vmap(jax.vmap(draw))(jnp.asarray(batch.slot_BG), tokens_BG)


def draw_noise(objective: Objective, step: jax.Array, batch: Batch) -> jax.Array:
    """Standard normal noise [B, L, C] float32, keyed on (seed, step, slot, token in its window)."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(objective.seed), NOISE_STREAM), step)
    slot_BL = segments.of_window(batch.slot_BG, batch.segment_ids_BL)
    return solver.token_noise(key, slot_BL, batch.token_BL, batch.latents_BLC.shape[-1])


def noisy_tokens(batch: Batch) -> jax.Array:
    """Tokens that carry loss, [B, L] bool: video tokens of readable windows that are not given clean."""
    readable_BL = segments.of_window(batch.window_BG >= 0, batch.segment_ids_BL)
    return jnp.asarray(readable_BL & ~conditions.clean_mask(batch))


def loss_fn(
    params: Params, objective: Objective, step: jax.Array, batch: Batch, total: jax.Array | None = None
) -> tuple[jax.Array, Losses]:
    """Squared velocity error, mean over all noisy video tokens of the *global* batch (contract), and the windows' own
    means.

    `total`: noisy tokens of the global batch, where `batch` is a part of it; the parts' losses then add up to the mean.
    """
    t_BG = draw_t(objective, step, batch)
    noise_BLC = sharding.constrain(draw_noise(objective, step, batch), "batch", "tokens", None)
    noisy_BL = noisy_tokens(batch)
    t_BL = jnp.where(noisy_BL, flow_matching.token_t(t_BG, batch.segment_ids_BL), 0.0)
    tokens_BLC = flow_matching.add_noise(batch.latents_BLC, noise_BLC, t_BL)
    velocity_BLC = mmdit.apply(
        objective.model, params, tokens_BLC, t_BG, batch, execution=objective.execution, dtype=objective.dtype
    )
    target_BLC = flow_matching.velocity_target(batch.latents_BLC, noise_BLC)
    error_BL = jnp.mean(jnp.square(velocity_BLC.astype(jnp.float32) - target_BLC), axis=-1)
    # where, not times: a token that does not count must not count even when it is not finite.
    error_BL = jnp.where(noisy_BL, error_BL, 0.0)
    window_loss_BG, count_BG = flow_matching.window_means(
        error_BL, noisy_BL, batch.segment_ids_BL, batch.slot_BG.shape[1]
    )
    total = jnp.sum(count_BG) if total is None else total
    loss = jnp.sum(error_BL) / jnp.maximum(total, 1)
    return loss, Losses(window_loss_BG=window_loss_BG, counted_BG=count_BG > 0)


def count_sets(losses: Losses, active_BG4: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(windows [16] int32, sum of their mean losses [16] float32) by active set."""
    bits_BG = jnp.sum(active_BG4 * jnp.array([1 << i for i in range(conditions.NUM_CONDITIONS)], jnp.int32), axis=-1)
    member = (bits_BG[:, :, None] == jnp.arange(NUM_SETS)) & losses.counted_BG[:, :, None]
    return jnp.sum(member, axis=(0, 1), dtype=jnp.int32), jnp.sum(
        jnp.where(member, losses.window_loss_BG[:, :, None], 0.0), axis=(0, 1)
    )


def advance(
    counters: Counters,
    controls: Controls,
    *,
    loss: jax.Array,
    windows: jax.Array,
    losses: jax.Array,
    tokens: jax.Array,
    placeholders: jax.Array,
    health: Health,
    finite: jax.Array,
) -> Counters:
    """Counters after one more step; sums of a stage or interval that starts with it start with it."""
    # One loss that is not a number would make the sums of the whole interval none.
    loss, losses, means = jnp.where(finite, loss, 0.0), jnp.where(finite, losses, 0.0), jnp.where(finite, windows, 0)
    stage = lambda old: jnp.where(controls.stage_start, jnp.zeros_like(old), old)  # noqa: E731
    interval = lambda old: jnp.where(controls.interval_start, jnp.zeros_like(old), old)  # noqa: E731
    return Counters(
        stage_windows=stage(counters.stage_windows) + windows,
        interval_windows=interval(counters.interval_windows) + means,
        interval_losses=interval(counters.interval_losses) + losses,
        interval_loss=interval(counters.interval_loss) + loss,
        interval_tokens=interval(counters.interval_tokens) + tokens,
        interval_steps=interval(counters.interval_steps) + 1,
        placeholders=counters.placeholders + placeholders,
        health=health,
    )


def gradients(
    params: Params,
    objective: Objective,
    step: jax.Array,
    batch: Batch,
    *,
    num: int,
    mesh: Mesh,
    shape: PackedShape,
    shardings: Any,
) -> tuple[jax.Array, Losses, Params]:
    """(loss, losses of the windows, gradients) of a global batch, computed in `num` parts; `shardings` are the
    parameters'.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if num == 1:
        (loss, losses), grads = grad_fn(params, objective, step, batch)
        return loss, losses, grads
    # One normaliser: a mean of the parts' means would weigh a token by what shares its part.
    total = jnp.sum(noisy_tokens(batch), dtype=jnp.int32)

    def one(rows: Batch) -> tuple[tuple[jax.Array, Params], Losses]:
        (loss, losses), grads = grad_fn(params, objective, step, rows, total)
        return (loss, grads), losses

    parts = micro_batches.split_rows(batch, mesh=mesh, shape=shape, num=num)
    (loss, grads), losses = micro_batches.accumulate(one, parts, (NamedSharding(mesh, PartitionSpec()), shardings))
    return loss, micro_batches.merge_rows(losses, mesh=mesh), grads


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    optimizer_config: optim.OptimizerConfig,
    ema_config: optim.EmaConfig,
    labels: Params,
    *,
    mesh: Mesh,
    shape: PackedShape,
    batch: int,
    shardings: TrainState,
    config: StepConfig | None = None,
    numbers: NumericsConfig | None = None,
) -> Any:
    """The jitted step `(state, batch, controls) -> (state, metrics)`; it donates the state.

    All shardings are pinned: left to inference the step compiles twice. `metrics` (replicated): loss and
    grad_norm of this step, the learning rate of each group, the counters, and the verdict on its numbers.
    """
    config = config or StepConfig()
    numbers = numbers or NumericsConfig()

    def step_fn(state: TrainState, batch: Batch, controls: Controls) -> tuple[TrainState, dict[str, Any]]:
        loss, losses, grads = gradients(
            state.params, objective, state.step, batch,
            num=config.micro_batches, mesh=mesh, shape=shape, shardings=shardings.params,
        )  # fmt: skip
        # Loss and gradients of the whole step are known, and nothing has moved yet: whether it counts is decided here,
        # once, for the update, the counters and whoever reads the metrics.
        grads, norm = optim.trained_gradients(labels, grads, controls.trainable)
        verdict = numerics.judge(numbers, state.counters.health, loss=loss, norm=norm, stage_start=controls.stage_start)
        params, ema, opt_state, rates = optim.update(
            optimizer,
            optimizer_config,
            ema_config,
            labels,
            grads=grads,
            norm=norm,
            accepted=verdict.applied,
            params=state.params,
            ema=on_device(state.ema, shardings.ema),
            opt_state=on_device(state.opt_state, shardings.opt_state),
            learning_rate=controls.learning_rate,
            trainable=controls.trainable,
        )
        health = numerics.remember(
            state.counters.health, verdict, loss=loss, norm=norm,
            trains=jnp.any(jnp.stack(list(controls.trainable.values()))),
            stage_start=controls.stage_start, interval_start=controls.interval_start,
        )  # fmt: skip
        windows, set_losses = count_sets(losses, jnp.asarray(batch.active_BG4))
        tokens = jnp.sum(batch.segment_ids_BL > 0, dtype=jnp.float32)
        counters = advance(
            state.counters, controls, loss=loss, windows=windows, losses=set_losses, tokens=tokens,
            placeholders=jnp.sum(batch.window_BG == UNREADABLE, dtype=jnp.int32),
            health=health, finite=verdict.finite,
        )  # fmt: skip
        metrics = {"loss": loss, "grad_norm": norm, "rates": rates, "counters": counters, "verdict": verdict}
        metrics["skipped_in_a_row"] = health.skipped_in_a_row
        ema, opt_state = off_device((ema, opt_state), (shardings.ema, shardings.opt_state))
        return TrainState(params=params, opt_state=opt_state, ema=ema, step=state.step + 1, counters=counters), metrics

    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        step_fn,
        in_shardings=(shardings, sharding.batch_shardings(mesh, shape, batch), replicated),
        out_shardings=(shardings, replicated),
        donate_argnums=0,
    )


def place_controls(controls: Controls) -> Controls:
    """Controls with the dtypes that the compiled step was traced with."""
    return Controls(
        learning_rate=np.float32(controls.learning_rate),
        trainable={group: np.bool_(value) for group, value in controls.trainable.items()},
        stage_start=np.bool_(controls.stage_start),
        interval_start=np.bool_(controls.interval_start),
    )
