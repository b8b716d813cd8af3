"""Counts as shares with their uncertainty: what precision and recall of curate's tags are given in."""

import dataclasses
import math
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """`hits` of `total`, with Wilson's 95 % interval."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        return self.hits / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        if not self.total:
            return 0.0, 1.0
        z, n, p = 1.96, self.total, self.value
        centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.hits}/{self.total} = {self.value:.2f} [{low:.2f}, {high:.2f}]" if self.total else "-"


def precision_and_recall(given: Sequence[bool], due: Sequence[bool]) -> tuple[Share, Share]:
    """Of the items that have a tag, those that should; of those that should, those that have it."""
    both = sum(g and d for g, d in zip(given, due, strict=True))
    return Share(both, sum(given)), Share(both, sum(due))
