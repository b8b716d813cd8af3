"""What other values of one threshold would give: clips and hours by condition, counted in the pass of a selection."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from rich.table import Table

from data_pipelines.curate.tagging import CHECKS, PASSED, Thresholds, asks_nothing, tag_all
from omnihuman_jax.conditions import Condition

_MAX_VALUES = 1000


@dataclasses.dataclass(slots=True)
class ThresholdSweep:
    """A threshold's name, its values, and what came of each: `clips` int64 and `seconds` float64, both [values, 4]."""

    name: str
    values: list[float]
    clips: np.ndarray
    seconds: np.ndarray

    @classmethod
    def parse(cls, text: str) -> "ThresholdSweep":
        """`min_lip_sync_confidence=0.2:0.6:0.05`: from, to (included) and step; ValueError for anything else."""
        name, _, span = text.partition("=")
        # Of those that a clip is checked by alone.
        known = [f.name for f in dataclasses.fields(Thresholds) if any(c.threshold == f.name for c in CHECKS)]
        if name not in known:
            raise ValueError(f"--sweep {text}: {name!r} is no threshold; there are {', '.join(known)}")
        try:
            begin, end, step = map(float, span.split(":"))
            count = round((end - begin) / step) + 1
        except (ValueError, ZeroDivisionError, OverflowError):
            raise ValueError(f"--sweep {text}: NAME=FROM:TO:STEP, such as {name}=0.2:0.6:0.05") from None
        if not 1 <= count <= _MAX_VALUES:
            raise ValueError(f"--sweep {text}: {count} values; from 1 to {_MAX_VALUES} are possible")
        values = [round(begin + i * step, 9) for i in range(count)]
        for value in values:
            dataclasses.replace(Thresholds(), **{name: value}).validate()
        size = (count, len(Condition))
        return cls(name, values, np.zeros(size, np.int64), np.zeros(size))

    def loosest(self, thresholds: Thresholds) -> Thresholds:
        """The thresholds with the value of the sweep that lets most through."""
        value = max(self.values) if self.name.startswith("max_") else min(self.values)
        return dataclasses.replace(thresholds, **{self.name: value})

    def add(self, scores: Mapping[str, np.ndarray], thresholds: Thresholds, counted: np.ndarray) -> None:
        """Counts the clips of a part: `scores` as `tag_all` takes them, `counted` bool [n]."""
        seconds = scores["seconds"]
        # All other checks once; those of this threshold, which are one or two, for each of its values.
        others = tag_all(scores, dataclasses.replace(thresholds, **{self.name: asks_nothing(self.name)}))
        rest = (others.failed == PASSED) & counted[:, None]
        own = [check for check in CHECKS if check.threshold == self.name]
        for index, value in enumerate(self.values):
            passed, at_value = rest.copy(), dataclasses.replace(thresholds, **{self.name: value})
            for check in own:
                failed = check.failed(scores[check.score], at_value)
                passed[failed, slice(None) if check.of is None else check.of] = False
            self.clips[index] += passed.sum(0)
            self.seconds[index] += seconds @ passed

    def table(self) -> Table:
        table = Table(title=f"{self.name}: clips (hours)")
        for column in (self.name, *(c.label for c in Condition)):
            table.add_column(column, justify="right")
        for value, clips, seconds in zip(self.values, self.clips, self.seconds, strict=True):
            cells = [f"{count} ({hours:.2f})" for count, hours in zip(clips, seconds / 3600, strict=True)]
            table.add_row(f"{value:g}", *cells)
        return table
