"""What an experiment is: arms that fork from a shared checkpoint, and what is asked of them. `paper.py` has values."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from omnihuman_jax.evaluation import mouth
from omnihuman_jax.stages import Stage, StageSchedule


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A number of an arm: what it says, which rows of `lip_sync.json` it is of, and how it comes out of their sums."""

    what: str
    rows: str
    of_sums: Callable[[np.ndarray], float]


def _late_over_early(sums_2: np.ndarray) -> float:
    return float(sums_2[0] / sums_2[1]) if sums_2[1] > 0 else float("nan")


METRICS: Mapping[str, Metric] = {
    "mouth_correlation": Metric(
        what="correlation of the mouth with the truth, own sound", rows="mouth", of_sums=mouth.correlation_of
    ),
    "mouth_range": Metric(
        what="how far the mouth moves, as a share of the truth", rows="mouth", of_sums=mouth.range_of
    ),
    "gesture_range": Metric(
        what="how far the wrists move, as a share of the truth, sound alone", rows="gestures", of_sums=mouth.range_of
    ),
    "drift": Metric(
        what="distance of the face's colours from the reference: end of a 30 s chain over its beginning",
        rows="drift",
        of_sums=_late_over_early,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One thing that is changed: the stage after the fork.

    strong_only: it trains on the clips alone that are eligible for all that the part trains.
    """

    name: str
    stage: Stage
    strong_only: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ArmGroup:
    """Arms of one data set and model, forked from one checkpoint a seed.

    shared: the stages before the fork. seconds_per_step: measured on two idle cores, for the estimate alone.
    """

    name: str
    what: str
    shared: tuple[Stage, ...]
    arms: tuple[Arm, ...]
    seconds_per_step: float

    @property
    def shared_steps(self) -> int:
        return sum(stage.steps for stage in self.shared)

    def arm(self, name: str) -> Arm:
        """ValueError for a name that it does not have."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise ValueError(f"{self.name} has no arm {name!r}; its arms are {', '.join(arm.name for arm in self.arms)}")

    def schedule(self, arm: Arm | None = None) -> StageSchedule:
        """Of an arm; of the shared run without one."""
        rows = (*self.shared, *([arm.stage] if arm else []))
        return StageSchedule(rows=tuple(dataclasses.replace(row) for row in rows))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A hypothesis: `metric` of the arm `more` is above that of the arm `less`, by `smallest` at least.

    doubtful: why it may not show at this size whatever is true; "" if nothing was known to speak against it.
    """

    name: str
    claim: str
    part: str
    metric: str
    more: str
    less: str
    smallest: float
    doubtful: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """An experiment.

    split, windows, sampling_steps, guidance_scale: of the evaluation. chains, chain_s: videos of the drift, and their
    length. evaluation_s: seconds of an evaluation, chain_cost_s: of a chain (a guess), for the estimate alone.
    """

    name: str
    parts: tuple[ArmGroup, ...]
    comparisons: tuple[Comparison, ...]
    seeds: tuple[int, ...]
    split: str
    windows: int
    sampling_steps: int
    guidance_scale: float
    chains: int
    chain_s: float
    evaluation_s: float
    chain_cost_s: float

    def part(self, name: str) -> ArmGroup:
        """ValueError for a name that it does not have."""
        for part in self.parts:
            if part.name == name:
                return part
        raise ValueError(f"there is no part {name!r}; the parts are {', '.join(part.name for part in self.parts)}")

    def validate(self) -> None:
        """ValueError where a comparison names what is not there, or an arm's name stands twice."""
        names = [arm.name for part in self.parts for arm in part.arms]
        if len(set(names)) != len(names):
            raise ValueError(f"suite {self.name}: names of arms must differ: {', '.join(names)}")
        for comparison in self.comparisons:
            part = self.part(comparison.part)
            part.arm(comparison.more), part.arm(comparison.less)
            if comparison.metric not in METRICS or not comparison.smallest > 0:
                raise ValueError(
                    f"suite {self.name}: {comparison.name}: unknown metric, or smallest effect not above 0"
                )

    def chosen(
        self,
        *,
        arms: Sequence[str] = (),
        seeds: Sequence[int] = (),
        steps: int | None = None,
        shared_steps: int | None = None,
        windows: int | None = None,
        chains: int | None = None,
    ) -> "Suite":
        """A smaller one: these arms and what can be asked of them, these seeds, so many steps after the fork and before
        it. ValueError for an arm that there is none of.
        """
        known = [arm.name for part in self.parts for arm in part.arms]
        if unknown := sorted(set(arms) - set(known)):
            raise ValueError(f"no arm {', '.join(unknown)}; the arms are {', '.join(known)}")
        parts = tuple(part for own in self.parts if (part := _smaller(own, arms, steps, shared_steps)).arms)
        kept = {arm.name for part in parts for arm in part.arms}
        return dataclasses.replace(
            self,
            parts=parts,
            comparisons=tuple(one for one in self.comparisons if {one.more, one.less} <= kept),
            seeds=tuple(seeds) or self.seeds,
            windows=self.windows if windows is None else windows,
            chains=self.chains if chains is None else chains,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values of all that was decided."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def fingerprint(self) -> str:
        """Changes with anything that was decided."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]


def _smaller(part: ArmGroup, arms: Sequence[str], steps: int | None, shared_steps: int | None) -> ArmGroup:
    shared = part.shared
    if steps is not None and steps < 1:
        raise ValueError(f"--steps {steps}: an arm trains 1 step at least")
    if shared_steps is not None:
        if shared_steps < len(shared):
            raise ValueError(f"{shared_steps} shared steps for the {len(shared)} shared stages of {part.name}")
        share, rest = divmod(shared_steps, len(shared))
        shared = tuple(dataclasses.replace(row, steps=share + (i < rest)) for i, row in enumerate(shared))
    kept = tuple(
        dataclasses.replace(arm, stage=dataclasses.replace(arm.stage, steps=steps or arm.stage.steps))
        for arm in part.arms
        if not arms or arm.name in arms
    )
    return dataclasses.replace(part, shared=shared, arms=kept)


def hours(suite: Suite) -> dict[str, float]:
    """Estimated hours of each part, on two idle cores: steps and evaluations of all seeds."""
    found = {}
    for part in suite.parts:
        steps = part.shared_steps + sum(arm.stage.steps for arm in part.arms)
        chained = {name for one in suite.comparisons if one.metric == "drift" for name in (one.more, one.less)}
        chains = sum(arm.name in chained for arm in part.arms) * suite.chain_cost_s * suite.chains
        seconds = steps * part.seconds_per_step + len(part.arms) * suite.evaluation_s + chains
        found[part.name] = len(suite.seeds) * seconds / 3600
    return found


def rows_of(result: Mapping[str, Any], metric: str) -> dict[tuple[str, str], list[float]]:
    """(window, person) -> what it contributes to the metric's sums, of a `lip_sync.json`; where it can be measured."""
    rows = METRICS[metric].rows
    return {(one["window"], one["person"]): one[rows] for one in result.get("windows", ()) if one.get(rows)}
