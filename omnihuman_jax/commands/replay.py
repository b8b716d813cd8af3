"""Replay: what went wrong at a step? Its batch, out of the plan, through the model of the nearest checkpoint, window by
window.

    omnihuman replay --run runs/mine/run 1234

STEP is the number in metrics.jsonl, nonfinite.jsonl and spikes.jsonl. Noise and timesteps are those of the step. A
window that is named alone did it; none, and the parameters are to blame (or the steps since the checkpoint: see which
one was taken).
"""

import argparse
import dataclasses
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from omnihuman_jax import config as experiment
from omnihuman_jax import sharding
from omnihuman_jax.assembly import Parts, assemble
from omnihuman_jax.checkpoint.folder import checkpoint_directory
from omnihuman_jax.checkpoint.reader import CheckpointReader
from omnihuman_jax.checkpoint.record import RunRecord
from omnihuman_jax.config import ExperimentConfig, to_json
from omnihuman_jax.data.packing import PackInput, pack_batch
from omnihuman_jax.data.pipeline import window_input
from omnihuman_jax.data.plan import PlacedWindow
from omnihuman_jax.models import mmdit
from omnihuman_jax.runtime import bucket_folder
from omnihuman_jax.runtime.locations import Location, location
from omnihuman_jax.runtime.progress import progress_bar
from omnihuman_jax.training import placement, train_state
from omnihuman_jax.training.resume import first_state, with_generations
from omnihuman_jax.training.run_guard import Rollbacks
from omnihuman_jax.training.train_step import Objective, loss_fn


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """One window alone, or the whole batch (`window` ""): its loss, and the norm of the gradients of all parameters and
    of each group's: exactly 0 where the window is without the group's condition.
    """

    window: str
    slot: int
    active: str
    loss: float
    grad_norm: float
    group_norms: Mapping[str, float]
    inputs_finite: bool

    @property
    def wrong(self) -> list[str]:
        """What is not finite."""
        named = (("input", 0.0 if self.inputs_finite else math.nan), ("loss", self.loss), ("gradient", self.grad_norm))
        return [name for name, value in named if not math.isfinite(value)]


def replay(config: ExperimentConfig, run_dir: Location, step: int) -> tuple[int, Iterator[Replayed]]:
    """(step of the checkpoint whose parameters are used, 0 for the initial ones; the whole batch, then each of its
    windows).

    Where no checkpoint before the step is left, the run's first parameters: random ones, those of `initial_weights`, or
    those of `fork` and its step.

    Raises:
        ValueError: a step outside the schedule, or a run of other data.
    """
    parts = assemble(config)
    if not 1 <= step <= config.stages.total_steps:
        raise ValueError(f"step {step} is not in the schedule: steps are 1 to {config.stages.total_steps}")
    abstract = train_state.abstract_train_state(config.model, parts.optimizer, parts.state_shardings)
    with jax.set_mesh(parts.mesh), CheckpointReader(checkpoint_directory(run_dir)) as checkpoints:
        before = [saved for saved in checkpoints.steps if saved < step]
        if before:
            params = checkpoints.restore_part(before[-1], "params", abstract.params)
        else:
            state, begun = first_state(parts, RunRecord(config=to_json(config), fingerprint="", step=0))
            params = state.params
    return (before[-1] if before else begun.step), _windows(parts, params, step - 1)


def steps_between(run_dir: Path, checkpoint: int, step: int) -> int:
    """Steps that the run trained after a checkpoint and before `step`: without those that rollbacks jumped over."""
    jumps = {line["checkpoint"]: line["to"] for line in Rollbacks(run_dir).done() if line["to"] < step}
    return sum(not any(at <= done < to for at, to in jumps.items()) for done in range(checkpoint, step - 1))


def _windows(parts: Parts, params: Any, step: int) -> Iterator[Replayed]:
    config, plan = parts.config, parts.plan
    objective = Objective(
        model=config.model, execution=config.execution, flow=config.flow, seed=config.seed, dtype=parts.dtype
    )

    labels = jax.tree.leaves(train_state.group_labels(mmdit.abstract_params(config.model)[1]))

    def run(params: Any, batch: Any) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, objective, np.int32(step), batch)
        labelled = list(zip(labels, jax.tree.leaves(grads), strict=True))
        of_groups = {group: optax.tree.norm([g for label, g in labelled if label == group]) for group in parts.groups}
        return loss, optax.tree.norm(grads), of_groups

    run = jax.jit(run, in_shardings=(parts.state_shardings.params, parts.batch_shardings))
    sequences = plan.batch(step).sequences
    records = [[_input(parts, placed) for placed in sequence] for sequence in sequences]

    def result(inputs: list[list[PackInput | None]], window: str, slot: int, active: str) -> Replayed:
        batch = pack_batch(inputs, parts.shape)
        finite = all(np.isfinite(value).all() for value in jax.tree.leaves(batch) if value.dtype.kind == "f")
        with jax.set_mesh(parts.mesh):
            placed = placement.place_batch(batch, parts.batch_shardings, range(parts.sequences), parts.sequences)
            loss, norm, of_groups = jax.device_get(run(params, placed))
        return Replayed(
            window=window,
            slot=slot,
            active=active,
            loss=float(loss),
            grad_norm=float(norm),
            group_norms={group: float(value) for group, value in of_groups.items()},
            inputs_finite=bool(finite),
        )

    yield result(records, "", -1, "")
    for row, sequence in enumerate(sequences):
        for group, placed in enumerate(sequence):
            # Alone in the batch: a value that is not finite gets at everything that is packed with it.
            alone: list[list[PackInput | None]] = [[] for _ in sequences]
            alone[row] = [*(None for _ in range(group)), records[row][group]]
            yield result(alone, str(plan.catalog.window_id[placed.row]), placed.slot, placed.active.label)


def _input(parts: Parts, placed: PlacedWindow) -> PackInput | None:
    record = parts.records[parts.plan.catalog.record_of(placed.row)]
    return None if record is None else window_input(record, placed, parts.records.spec)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(
        prog="omnihuman replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, type=location, metavar="DIR", help="run directory of `omnihuman train`")
    parser.add_argument(
        "step", type=int, metavar="STEP", help="the step, as metrics.jsonl and nonfinite.jsonl number it"
    )
    parser.add_argument("--dataset", default="", metavar="DIR", help="the dataset's folder, if it was moved")
    parser.add_argument(
        "--mesh", metavar="D,F,C,T", help="mesh to use instead of the run's: sizes of data, fsdp, context and tensor"
    )
    return parser.parse_args(list(argv))


def main(argv: Sequence[str]) -> int:
    """`omnihuman replay`; 0 whatever it finds."""
    from rich.console import Console
    from rich.table import Table

    options = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    folder = bucket_folder.copy_of(options.run)
    config = experiment.read_config(folder)
    stored = [row.path for row in config.data.rows]
    if options.dataset:
        if config.data.datasets:
            raise ValueError(
                f"--dataset is for a run of one data set, this one drew from {config.data.label}; put them back there"
            )
        config.data.dataset = options.dataset
    config = with_generations(config, stored)
    if options.mesh:
        try:
            config.mesh = sharding.MeshConfig(
                **dict(zip(sharding.MESH_AXES, map(int, options.mesh.split(",")), strict=True))
            )
        except ValueError as error:
            raise ValueError(f"--mesh {options.mesh}: four numbers like 1,4,1,1") from error
    checkpoint, results = replay(config, options.run, options.step)
    _, stage = config.stages.stage_at(options.step - 1)
    behind = steps_between(folder, checkpoint, options.step)
    where = "exactly those of the step" if not behind else f"{behind} steps older than the step's own"
    taken = f"parameters of checkpoint {checkpoint}"
    if checkpoint == (experiment.parse_fork(config.fork).step if config.fork else 0):
        source = config.fork or config.initial_weights or "random"
        taken = f"no checkpoint before it is left, the run's first parameters ({source})"
    print(f"step {options.step} (stage {stage.name}), {taken}: {where}", flush=True)
    console, table, wrong = Console(width=None if sys.stdout.isatty() else 120), Table(), []
    with progress_bar() as bar:
        for found in bar.track(results, description="windows"):
            if not table.columns:
                of_groups = (f"of {group}" for group in found.group_norms)
                for heading in ("window", "slot", "active", "loss", "gradient norm", *of_groups, "not finite"):
                    table.add_column(heading)
            name, slot = (found.window, str(found.slot)) if found.window else ("the whole batch", "")
            reasons = ", ".join(found.wrong)
            norms = (f"{norm:.6g}" for norm in (found.grad_norm, *found.group_norms.values()))
            table.add_row(name, slot, found.active, f"{found.loss:.6g}", *norms, reasons)
            if found.wrong and found.window:
                wrong.append(f"{name} ({reasons})")
    console.print(table)
    print(f"not finite alone: {', '.join(wrong)}" if wrong else "every window alone is finite")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
