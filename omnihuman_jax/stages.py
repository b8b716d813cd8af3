"""Training stages as rows of data: ratios -> distribution over active sets, and whether a dataset can feed them.

The ratio of a condition is the share of the stage's windows on which it is active (contract, "Ratios"). A stage draws
the active set first and then a window that is eligible for it, so the ratios hold whatever the data is made of.
"""

import dataclasses
import math
import warnings

import numpy as np

from omnihuman_jax.conditions import NUM_CONDITIONS, Condition, ConditionSet

NUM_SETS = 1 << NUM_CONDITIONS
MODES = ("product", "nested", "keep")
SET_BITS = np.arange(NUM_SETS)
# CONTAINS[s, c]: set s holds condition c. SUBSET[a, e]: active set a is a subset of eligible set e.
CONTAINS = (SET_BITS[:, None] >> np.arange(NUM_CONDITIONS) & 1).astype(bool)
SUBSET = (SET_BITS[:, None] & ~SET_BITS[None, :]) == 0


@dataclasses.dataclass(kw_only=True, slots=True)
class Stage:
    """One row of the schedule.

    steps: optimizer steps. text, reference, audio, pose, in [0, 1]: ratios; the defaults are the paper's [S2, S].
    motion: share of the windows of more than 2 latent frames whose first 2 latents are given clean [D].
    mode: "product" (the joint is the product of the ratios), "nested" (a stronger condition only with all weaker ones),
        or "keep" (draw any window, keep each condition that it is eligible for with probability ratio: for comparison).
    min_frames, max_frames (pixel frames), max_tokens (patch tokens of the video): windows that the stage draws; 0 =
    any.
    frozen: condition groups of parameters ("base", "audio", "pose") that get no update.
    """

    name: str
    steps: int
    text: float = 0.9
    reference: float = 0.7
    audio: float = 0.0
    pose: float = 0.0
    motion: float = 0.5
    mode: str = "product"
    min_frames: int = 0
    max_frames: int = 0
    max_tokens: int = 0
    frozen: tuple[str, ...] = ()
    learning_rate_scale: float = 1.0

    @property
    def ratios(self) -> np.ndarray:
        """float64 [4], in the order of `Condition`."""
        return np.asarray([self.text, self.reference, self.audio, self.pose], np.float64)

    @property
    def conditions(self) -> ConditionSet:
        """The conditions that the stage uses at all."""
        return ConditionSet.of(*(c for c in Condition if self.ratios[c] > 0))

    def validate(self) -> None:
        """ValueError on what cannot be; a warning where ratios grow with strength (Principle 2) [S]."""
        if self.steps < 1:
            raise ValueError(f"stage {self.name!r}: steps = {self.steps}; a stage has at least one step")
        if self.mode not in MODES:
            raise ValueError(f"stage {self.name!r}: unknown mode {self.mode!r}; the modes are {', '.join(MODES)}")
        for label, value in [*((c.label, self.ratios[c]) for c in Condition), ("motion", self.motion)]:
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise ValueError(f"stage {self.name!r}: ratio {label} = {value:g} outside [0, 1]")
        if min(self.min_frames, self.max_frames, self.max_tokens) < 0 or 0 < self.max_frames < self.min_frames:
            raise ValueError(
                f"stage {self.name!r}: needs 0 <= min_frames <= max_frames (0 = any) and max_tokens >= 0, "
                f"not {self.min_frames}, {self.max_frames} and {self.max_tokens}"
            )
        if not (math.isfinite(self.learning_rate_scale) and self.learning_rate_scale >= 0):
            raise ValueError(
                f"stage {self.name!r}: learning_rate_scale = {self.learning_rate_scale:g}; it must be >= 0"
            )
        if unknown := sorted(set(self.frozen) - {"base", "audio", "pose"}):
            raise ValueError(
                f"stage {self.name!r}: unknown frozen group {', '.join(unknown)}; groups are base, audio, pose"
            )
        growing = [(a, b) for a, b in zip(list(Condition)[:-1], list(Condition)[1:]) if self.ratios[b] > self.ratios[a]]
        text = ", ".join(f"{b.label} {self.ratios[b]:g} > {a.label} {self.ratios[a]:g}" for a, b in growing)
        if growing and self.mode == "nested":
            raise ValueError(
                f"stage {self.name!r}: nested ratios cannot grow with strength: {text}; use mode 'product'"
            )
        if growing:
            warnings.warn(f"stage {self.name!r}: ratios grow with the strength of the condition: {text}", stacklevel=2)

    def distribution(self) -> np.ndarray:
        """Probability of each of the 16 active sets, by bitmask: float64 [16]. For "keep" it depends on the data:
        `expected`.
        """
        ratios = self.ratios
        if self.mode == "nested":
            levels = np.concatenate([[1.0], ratios, [0.0]])
            result = np.zeros(NUM_SETS)
            for level in range(NUM_CONDITIONS + 1):  # the `level` weakest conditions are active
                result[(1 << level) - 1] = levels[level] - levels[level + 1]
            return result
        if self.mode == "keep":
            raise ValueError(
                f"stage {self.name!r}: in mode 'keep' the data set decides on the active sets; use expected(hours)"
            )
        return np.where(CONTAINS, ratios, 1 - ratios).prod(axis=1)

    def expected(self, hours: np.ndarray) -> np.ndarray:
        """Probability of each active set when drawn from data with `hours` [16] by eligible set: float64 [16]."""
        if self.mode != "keep":
            return self.distribution()
        # kept[a, e]: a window eligible for e gets active set a.
        kept = np.where(CONTAINS[:, None, :], self.ratios, np.where(CONTAINS[None, :, :], 1 - self.ratios, 1.0)).prod(
            axis=2
        )
        return (np.where(SUBSET, kept, 0.0) * hours / hours.sum()).sum(axis=1)

    def target(self, hours: np.ndarray) -> np.ndarray:
        """Expected share of windows on which each condition is active: float64 [4]. But for "keep", the ratios."""
        return self.expected(hours) @ CONTAINS

    def check(
        self, counts: np.ndarray, hours: np.ndarray, windows: float = 0.0, among: str = ""
    ) -> "FeasibilityReport":
        """Can windows counted by eligible set (counts, hours: [16]) feed this stage, which draws `windows` of them?

        ValueError names the first active set that no window can serve, with the counts; `among` has the data sets that
        they are of.
        """
        counts, hours = np.asarray(counts), np.asarray(hours, np.float64)
        limits = [f"{n} {v}" for n in ("min_frames", "max_frames", "max_tokens") if (v := getattr(self, n))]
        if among:
            limits = [f"by data set: {among}", *limits]
        told = f"{counts.sum()} training windows" + (f" ({', '.join(limits)})" if limits else "")
        if not counts.sum():
            raise ValueError(f"stage {self.name!r}: 0 of the {told} remain; relax its limits or encode other windows")
        report = self.asks(counts, hours, windows)
        for bits in np.argsort(-report.expected):
            if report.expected[bits] > 0 and not report.candidates[bits]:
                have = ", ".join(f"{c.label} {counts[CONTAINS[:, c]].sum()}" for c in Condition)
                sets = ", ".join(f"{ConditionSet(int(e)).label} {counts[e]}" for e in SET_BITS if counts[e])
                raise ValueError(
                    f"stage {self.name!r}: the active set {ConditionSet(int(bits)).label} is wanted for "
                    f"{report.expected[bits]:.1%} of the windows, but 0 of {told} are eligible for it (eligible: "
                    f"{have}; by set: {sets}); lower the ratios, or curate windows that are eligible for all of it"
                )
        return report

    def asks(
        self,
        counts: np.ndarray,
        hours: np.ndarray,
        windows: float,
        share: np.ndarray | float = 1.0,
        dataset: str = "",
    ) -> "FeasibilityReport":
        """What the stage asks of the windows of a data set (counts, hours: [16]) that gets `share`, [16] by active set,
        of its draws.
        """
        share = np.broadcast_to(share, NUM_SETS)
        if self.mode == "keep":  # all sets are drawn as one
            total = max(float(hours.sum()), 1e-300)
            expected = share * self.expected(hours) if hours.sum() else np.zeros(NUM_SETS)
            candidates, draws = np.full(NUM_SETS, counts.sum()), windows * share.max() * hours / total
        else:
            expected, candidates = share * self.distribution(), SUBSET @ counts
            # Hours of set e that the draws of active set a fall on, as a share of a's draws.
            falls = np.where(SUBSET, hours, 0.0) / np.maximum(SUBSET @ hours, 1e-300)[:, None]
            draws = windows * (expected @ falls)
        return FeasibilityReport(
            stage=self.name,
            dataset=dataset,
            counts=counts,
            hours=hours,
            candidates=candidates,
            expected=expected,
            active_repeats=windows * expected / np.maximum(candidates, 1),
            eligible_repeats=draws / np.maximum(counts, 1),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class FeasibilityReport:
    """What a stage asks of a dataset; arrays [16] by bitmask.

    dataset: its name, "" of the only one. counts, hours: windows by eligible set. candidates: windows that can serve an
    active set. expected: share of the stage's draws. active_repeats, eligible_repeats: how often a window is drawn, on
    average, for an active set, and in all.
    """

    stage: str
    dataset: str = ""
    counts: np.ndarray
    hours: np.ndarray
    candidates: np.ndarray
    expected: np.ndarray
    active_repeats: np.ndarray
    eligible_repeats: np.ndarray

    def warnings(self, limit: float) -> list[str]:
        """One line for each eligible set whose windows are drawn more than `limit` times on average."""
        of = f" of data set {self.dataset!r}" if self.dataset else ""
        cure = "lower its weight, the ratios, the steps" if self.dataset else "lower the ratios, the steps"
        return [
            f"stage {self.stage!r}: the {self.counts[e]} windows{of} eligible for {ConditionSet(int(e)).label} are"
            f" drawn {self.eligible_repeats[e]:.0f} times each (limit {limit:g}{self._most(int(e))}); {cure}, or add"
            " data"
            for e in SET_BITS
            if self.counts[e] and self.eligible_repeats[e] > limit
        ]

    def _most(self, eligible: int) -> str:
        """Of several data sets: the active set that draws the windows of an eligible set most often."""
        if not self.dataset:
            return ""
        serves = SUBSET[:, eligible] & (self.expected > 0)
        most = int(np.where(serves, self.active_repeats, -1.0).argmax())
        return f"; {self.active_repeats[most]:.1f} of them for {ConditionSet(most).label}"


@dataclasses.dataclass(kw_only=True, slots=True)
class StageSchedule:
    """Stages one after another. Moments, EMA and step count carry over; nothing but the rows changes."""

    rows: tuple[Stage, ...] = ()

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.rows)

    @property
    def starts(self) -> tuple[int, ...]:
        """First step of each stage."""
        return tuple(sum(stage.steps for stage in self.rows[:i]) for i in range(len(self.rows)))

    def stage_at(self, step: int) -> tuple[int, Stage]:
        """(index, stage) of a step in [0, total_steps); IndexError outside."""
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} outside the schedule's [0, {self.total_steps})")
        index = max(i for i, start in enumerate(self.starts) if start <= step)
        return index, self.rows[index]

    def introduced(self, step: int) -> ConditionSet:
        """The conditions that any stage up to that of `step` uses: the parameters of the others are not trained yet."""
        index, _ = self.stage_at(min(step, self.total_steps - 1))
        result = ConditionSet()
        for stage in self.rows[: index + 1]:
            result |= stage.conditions
        return result

    def validate(self) -> None:
        """Checks every row; ValueError on an empty schedule or a name used twice."""
        if not self.rows:
            raise ValueError("the stage schedule is empty; give it at least one stage")
        names = [stage.name for stage in self.rows]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names must differ: {', '.join(names)}")
        for stage in self.rows:
            stage.validate()


def paper_stages(*, steps: int | tuple[int, int, int], pose: float = 0.25, base_steps: int = 0) -> StageSchedule:
    """The paper's three stages, weak to strong: text 0.9, reference 0.7, audio 0.5, pose 0.25 [S2, S].

    `pose = 0.5` is version 2's ratio (`v2_stages`). `base_steps` > 0 puts a text-only stage in front, on images and
    videos, for those who start without a pretrained base [D].
    """
    first, second, third = (steps,) * 3 if isinstance(steps, int) else steps
    base = (Stage(name="base", steps=base_steps, reference=0.0, motion=0.0),) if base_steps else ()
    return StageSchedule(
        rows=(
            *base,
            Stage(name="reference", steps=first),
            Stage(name="audio", steps=second, audio=0.5),
            Stage(name="pose", steps=third, audio=0.5, pose=pose),
        )
    )


def v2_stages(*, steps: int | tuple[int, int, int], base_steps: int = 0) -> StageSchedule:
    """`paper_stages` with the pose ratio that the paper's text states, 0.5 [S]."""
    return paper_stages(steps=steps, pose=0.5, base_steps=base_steps)
