"""What is measured of the two arms: ratios to the window, gradients by active set, and losses on held-out clips."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from omnihuman_jax.checkpoint.folder import checkpoint_directory
from omnihuman_jax.checkpoint.reader import CheckpointReader
from omnihuman_jax.commands.replay import Replayed, replay
from omnihuman_jax.conditions import Condition
from omnihuman_jax.config import read_config
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.plan import Plan
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.evaluation.bootstrap import estimate
from omnihuman_jax.evaluation.condition_gain import KINDS
from omnihuman_jax.evaluation.paired import paired_effect
from omnihuman_jax.runtime.incidents import read_lines
from omnihuman_jax.runtime.locations import location
from omnihuman_jax.sampling import trained_run
from omnihuman_jax.sampling.evaluators import ConditionGain, gain_subjects
from omnihuman_jax.telemetry.metrics import read_metrics
from omnihuman_jax.training.sample_budget import SamplesConfig
from tests.any_clip.damage import HELD_OUT

CONDITIONS = (Condition.AUDIO, Condition.POSE)
# name -> (condition whose windows it is of, what it is of the sums of its windows' losses by `KINDS` and their number)
MEASURES: dict[str, tuple[Condition, Callable[[np.ndarray], float]]] = {
    "loss, text and reference": (Condition.AUDIO, lambda sums: float(sums[0] / sums[3])),
    "loss, with their sound": (Condition.AUDIO, lambda sums: float(sums[1] / sums[3])),
    "loss, with their pose": (Condition.POSE, lambda sums: float(sums[1] / sums[3])),
    "gain of audio": (Condition.AUDIO, lambda sums: float(1 - sums[1] / sums[0])),
    "harm of another's audio": (Condition.AUDIO, lambda sums: float(sums[2] / sums[0] - 1)),
    "gain of pose": (Condition.POSE, lambda sums: float(1 - sums[1] / sums[0])),
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """Windows of a run's steps: all, and those of readable records. By condition: on how many of all the ratios ask for
    it, on how many the plan made it active, and how many of these could be read. by_set: readable ones by active set.
    """

    windows: int
    readable: int
    asked: Mapping[str, float]
    placed: Mapping[str, int]
    read: Mapping[str, int]
    by_set: Mapping[str, int]


def ratios(run: Path) -> Seen:
    """Of a finished run."""
    config = read_config(run)
    plan = Plan(Catalog.load(config.data.dataset), config.stages, config.data.plan, config.seed)
    return counted(plan, {str(line["window"]) for line in read_lines(run / "quarantine.jsonl")})


def counted(plan: Plan, lost: Set[str]) -> Seen:
    """Every step of a plan, window by window; `lost`: ids of windows that cannot be read."""
    placed: collections.Counter[Condition] = collections.Counter()
    read: collections.Counter[Condition] = collections.Counter()
    by_set: collections.Counter[str] = collections.Counter()
    asked: Any = collections.Counter()  # of floats
    windows = readable = 0
    for step in range(plan.schedule.total_steps):
        _, stage = plan.schedule.stage_at(step)
        for window in plan.batch(step).windows:
            asked.update({condition: stage.ratios[condition] for condition in Condition})
            is_read = str(plan.catalog.window_id[window.row]) not in lost
            windows, readable = windows + 1, readable + is_read
            placed.update(window.active)
            if is_read:
                read.update(window.active)
                by_set[window.active.label] += 1
    return Seen(
        windows=windows,
        readable=readable,
        asked={c.label: asked[c] for c in Condition},
        placed={c.label: placed[c] for c in Condition},
        read={c.label: read[c] for c in Condition},
        by_set=dict(by_set),
    )


def losses(run: Path) -> dict[str, Any]:
    """`step`, and the loss of all windows (`loss`) and of each active set's, line by line; None where it has none."""
    lines = read_metrics(run)
    names = sorted({name for line in lines for name in line if name.startswith("loss")})
    return {name: [line.get(name) for line in lines] for name in ("step", *names)}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Gradients:
    """Of the windows of one active set, each alone: how many, their mean loss, the median norm of their gradients, and
    the largest norm of each parameter group.
    """

    windows: int
    loss: float
    norm: float
    largest: Mapping[str, float]


def gradients(run: Path, steps: Iterable[int]) -> dict[str, Gradients]:
    """By active set, over the readable windows of these steps (from 1), each under the checkpoint before its step."""
    config, by_set = read_config(run), collections.defaultdict[str, list[Replayed]](list)
    for step in steps:
        _, found = replay(config, location(run), step)
        for one in list(found)[1:]:  # the first is the whole batch
            if one.loss:  # a placeholder has none
                by_set[one.active].append(one)
    return {
        active: Gradients(
            windows=len(found),
            loss=float(np.mean([one.loss for one in found])),
            norm=float(np.median([one.grad_norm for one in found])),
            largest={group: max(one.group_norms[group] for one in found) for group in found[0].group_norms},
        )
        for active, found in sorted(by_set.items())
    }


def checkpoints_of(run: Path) -> list[int]:
    """Steps of the run's checkpoints."""
    with CheckpointReader(checkpoint_directory(location(run))) as reader:
        return list(reader.steps)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Losses of held-out windows: rows_ASTNK by condition (arm, seed, step, window; `KINDS` and a 1), whose windows.

    The gain of a pose is measured at the last step alone.
    """

    steps: Sequence[int]
    people: Mapping[Condition, Sequence[str]]
    rows_ASTNK: Mapping[Condition, np.ndarray]


def held_out(runs: Sequence[Sequence[Path]], dataset: Path, windows: int) -> HeldOut:
    """Every checkpoint's averaged weights, of `runs` by arm and seed, on the same windows with the same noise."""
    steps = checkpoints_of(runs[0][0])
    catalog, source = Catalog.load(dataset), open_records(dataset)
    first = trained_run.open_run(runs[0][0], dataset=dataset)
    # Small batches of one window a sequence: on one core nothing is won by larger ones.
    config = SamplesConfig(split=HELD_OUT, gain_windows=windows, batch=8)
    people: dict[Condition, Sequence[str]] = {}
    rows: dict[Condition, np.ndarray] = {}
    for condition in CONDITIONS:
        subjects = gain_subjects(catalog, source, condition, HELD_OUT, windows)
        evaluator = ConditionGain(first, condition, subjects, config)
        people[condition] = evaluator.people
        # A curve of one condition is enough; the other costs as much again.
        looked_at = steps if condition is Condition.AUDIO else steps[-1:]
        rows[condition] = np.array(
            [[[_rows(evaluator, run, step, dataset) for step in looked_at] for run in arm] for arm in runs]
        )
        assert evaluator.compilations() == 1
    return HeldOut(steps=steps, people=people, rows_ASTNK=rows)


def _rows(evaluator: ConditionGain, run: Path, step: int, dataset: Path) -> np.ndarray:
    """[N, 4]: the losses of every window by `KINDS`, and 1."""
    losses = evaluator.losses(trained_run.open_run(run, step=step, dataset=dataset).params)
    columns: list[Any] = [losses[kind] for kind in KINDS]
    return np.stack([*columns, np.ones(len(columns[0]))], axis=1)


def compare(found: HeldOut) -> dict[str, Any]:
    """By measure: `arms`, the value and its interval for each arm at the last checkpoint (seeds together), `difference`
    of the first arm less the second, in each seed and with its interval, and `curves`, by arm and seed over `steps`.
    """
    measures = {}
    for name, (condition, of_sums) in MEASURES.items():
        rows, people = found.rows_ASTNK[condition], found.people[condition]
        last = rows[:, :, -1]
        of_arms = [estimate(arm.mean(axis=0), people, of_sums) for arm in last]
        effect = paired_effect(last[0], last[1], people, of_sums)
        measures[name] = {
            "arms": [[one.value, one.low, one.high] for one in of_arms],
            "difference": [effect.value, effect.low, effect.high],
            "by_seed": list(effect.by_seed),
            "windows": effect.windows,
            "people": effect.people,
            "curves": [[[of_sums(at.sum(axis=0)) for at in seed] for seed in arm] for arm in rows],
        }
    return {"steps": list(found.steps), "measures": measures}
