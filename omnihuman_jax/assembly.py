"""What a run is made of: mesh, data plan, optimizer, step. `train` runs it, `plan` compiles it elsewhere, `replay`
looks at it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from omnihuman_jax import sharding
from omnihuman_jax.config import (
    ExperimentConfig,
    compute_dtype,
    data_rows,
    packed_shape,
)
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.joined_catalog import JoinedCatalog
from omnihuman_jax.data.joined_records import Records, open_datasets
from omnihuman_jax.data.plan import Plan
from omnihuman_jax.models import flops, mmdit
from omnihuman_jax.runtime import platform_flags, processes
from omnihuman_jax.training import optimizer as optim
from omnihuman_jax.training import placement, splits, train_state
from omnihuman_jax.training.train_step import Controls, Objective, make_train_step, place_controls
from omnihuman_jax.typing import ArraySpec, PackedBatch, PackedShape


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepParts:
    """The train step of a config on a mesh, and what it needs: no data, no array. `omnihuman plan` compiles the
    same.
    """

    config: ExperimentConfig
    mesh: Mesh
    shape: PackedShape
    batch_shardings: PackedBatch[NamedSharding]
    dtype: Any
    optimizer: Any
    groups: tuple[str, ...]
    num_parameters: int
    state_shardings: train_state.TrainState
    train_step: Any

    @property
    def sequences(self) -> int:
        """Of the global batch."""
        return self.config.data.plan.sequences_per_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts(StepParts):
    """Everything that a run is made of and that does not change while it runs."""

    plan: Plan
    records: Records
    rows: range


def assemble(
    config: ExperimentConfig, retry: Callable[[str, Callable[[], Any]], Any] = lambda what, look: look()
) -> Parts:
    """Mesh, data plan and the (not yet compiled) step; ValueError or FileNotFoundError if they do not fit together.

    `retry(what, look)` returns what `look` returns; a caller that waits for the dataset's storage gives its own.
    """
    config.validate()
    mesh = sharding.create_mesh(config.mesh)
    rows = data_rows(config)

    def look() -> tuple[Records, Catalog | JoinedCatalog]:
        return open_datasets(rows, retries=config.data.retries, delay_s=config.data.retry_delay_s)

    records, catalog = retry(f"opening {config.data.label}", look)
    plan = Plan(catalog, config.stages, config.data.plan, config.seed)
    step = assemble_step(config, mesh, packed_shape(config, records.spec))
    parts = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
    return Parts(**parts, plan=plan, records=records, rows=placement.local_rows(mesh, step.sequences))


def assemble_step(config: ExperimentConfig, mesh: Mesh, shape: PackedShape) -> StepParts:
    """The (not yet compiled) step for batches of `shape` on `mesh`, of real or only described devices."""
    sequences = config.data.plan.sequences_per_step
    splits.check_ways(mesh.shape, config.model, config.execution.attention, config.data.plan, config.step.micro_batches)
    shapes, axes = mmdit.abstract_params(config.model)
    labels = train_state.group_labels(axes)
    optimizer = optim.create_optimizer(config.optimizer, labels, axes, seed=config.seed)
    shardings = train_state.state_shardings(mesh, shapes, axes, optimizer, config.step.offload)
    dtype = compute_dtype(config, sharding.platform_of(mesh))
    objective = Objective(
        model=config.model, execution=config.execution, flow=config.flow, seed=config.seed, dtype=dtype
    )
    step = make_train_step(
        objective, optimizer, config.optimizer, config.ema, labels,
        mesh=mesh, shape=shape, batch=sequences, shardings=shardings, config=config.step, numbers=config.numerics,
    )  # fmt: skip
    return StepParts(
        config=config,
        mesh=mesh,
        shape=shape,
        batch_shardings=sharding.batch_shardings(mesh, shape, sequences),
        dtype=objective.dtype,
        optimizer=optimizer,
        groups=optim.present_groups(labels),
        num_parameters=flops.count_parameters(shapes),
        state_shardings=shardings,
        train_step=step,
    )


def compile_step(parts: StepParts, state: train_state.TrainState) -> Any:
    """The step as one program for all stages, compiled before any process runs it: it can only be called, never
    recompiled.
    """
    compiled = lower_step(parts, state).compile()
    platform_flags.give_back_memory()
    processes.wait_for_peers("omnihuman_train_step_compiled")
    return compiled


def lower_step(parts: StepParts, state: train_state.TrainState, platforms: tuple[str, ...] | None = None) -> Any:
    """The traced and lowered step; `state` may be abstract. `platforms`: others than the mesh's, to look at and not to
    run.
    """
    batch = jax.tree.map(ArraySpec.abstract, parts.shape.arrays(parts.sequences), parts.batch_shardings)
    return parts.train_step.trace(state, batch, controls_at(parts.config, parts.groups, 0)).lower(
        lowering_platforms=platforms
    )


def controls_at(config: ExperimentConfig, groups: Sequence[str], step: int) -> Controls:
    """What `step` takes as inputs besides its batch: learning rate, which groups train, which sums restart."""
    schedule = config.stages
    index, stage = schedule.stage_at(step)
    introduced = [condition.label for condition in schedule.introduced(step)]
    trainable = optim.trainable_groups(introduced, stage.frozen)
    stage_start = step == schedule.starts[index]
    return place_controls(
        Controls(
            learning_rate=optim.learning_rate_at(
                config.optimizer, step, schedule.total_steps, stage.learning_rate_scale
            ),
            trainable={group: trainable[group] for group in groups},
            stage_start=stage_start,
            interval_start=stage_start or step % config.logging.interval == 0,
        )
    )
