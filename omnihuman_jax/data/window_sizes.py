"""What the windows of a run's data sets are like: which size is usual, how many pixels, how long at most."""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from omnihuman_jax.data.catalog import Catalog, has_catalog
from omnihuman_jax.data.weighted_datasets import WeightedDataset


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WindowSizes:
    """usual: (height, width) in pixels that most windows have; of equals, the smaller. area: median of their pixels.
    frames: of the longest. Of several data sets each counts by its weight.
    """

    usual: tuple[int, int]
    area: int
    frames: int

    @classmethod
    def of(cls, rows: Sequence[WeightedDataset]) -> "WindowSizes | None":
        """Of those data sets that are where they were; None where none is."""
        there = [(row.weight, Catalog.load(row.path)) for row in rows if has_catalog(row.path)]
        there = [(weight, catalog) for weight, catalog in there if len(catalog)]
        if not there:
            return None
        shares: dict[tuple[int, int], float] = collections.defaultdict(float)
        total = sum(weight for weight, _ in there)
        for weight, catalog in there:
            pairs = np.stack([catalog.height, catalog.width], axis=1)
            sizes, counts = np.unique(pairs, axis=0, return_counts=True)
            for (height, width), count in zip(sizes.tolist(), counts.tolist(), strict=True):
                shares[height, width] += weight / total * count / len(catalog)
        return cls(
            usual=min(shares, key=lambda size: (-round(shares[size], 9), size)),
            area=_median_area(shares),
            frames=max(int(catalog.frames.max()) for _, catalog in there),
        )


def _median_area(shares: dict[tuple[int, int], float]) -> int:
    """Between the two in the middle, where half is on either side."""
    areas: dict[int, float] = collections.defaultdict(float)
    for (height, width), share in shares.items():
        areas[height * width] += share
    ordered = sorted(areas)
    below = np.cumsum([areas[area] for area in ordered])
    low, high = (int(np.searchsorted(below, 0.5 + slack)) for slack in (-1e-9, 1e-9))
    return int((ordered[low] + ordered[min(high, len(ordered) - 1)]) / 2)
