"""What a stage may draw: the windows of one data set, or of several with the share that each has of the draws."""

import dataclasses

import numpy as np

from omnihuman_jax.data import window_index
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.joined_catalog import JoinedCatalog
from omnihuman_jax.data.window_index import WindowIndex
from omnihuman_jax.stages import NUM_SETS, SUBSET, FeasibilityReport, Stage


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class StageWindows:
    """The windows of D data sets: an index each, in rows of its own catalog.

    names: of the data sets, ("",) of the only one. catalogs, indices [D]. weights: float64 [D], sum 1. first_rows:
    int64 [D], what is added to a row of an index.
    """

    names: tuple[str, ...]
    catalogs: tuple[Catalog, ...]
    indices: tuple[WindowIndex, ...]
    weights: np.ndarray
    first_rows: np.ndarray

    @classmethod
    def of(cls, catalog: Catalog | JoinedCatalog, stage: Stage) -> "StageWindows":
        """Those that the stage's limits leave."""
        if isinstance(catalog, JoinedCatalog):
            names, parts, weights, firsts = catalog.names, catalog.parts, catalog.weights, catalog.first_rows
        else:
            names, parts, weights, firsts = ("",), (catalog,), np.ones(1), np.zeros(1, np.int64)
        indices = tuple(window_index.build(part, stage) for part in parts)
        return cls(names=names, catalogs=parts, indices=indices, weights=weights, first_rows=firsts)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def counts(self) -> np.ndarray:
        """int64 [D, 16]: windows by eligible set."""
        return np.stack([index.counts for index in self.indices])

    @property
    def hours(self) -> np.ndarray:
        """float64 [D, 16]: hours by eligible set."""
        return np.stack([index.hours for index in self.indices])

    def shares(self, stage: Stage) -> np.ndarray:
        """float64 [16, D]: of the draws of an active set, those that fall on each data set: its weight among the data
        sets that have a window for it; 0 where none has. In mode "keep" the same for all sets.
        """
        serves = (SUBSET[:, None, :] & (self.counts > 0)).any(axis=2)
        if stage.mode == "keep":
            serves = np.broadcast_to((self.counts > 0).any(axis=1), (NUM_SETS, len(self)))
        weights = np.where(serves, self.weights, 0.0)
        total = weights.sum(axis=1, keepdims=True)
        return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)

    def check(self, stage: Stage, windows: float = 0.0) -> tuple[FeasibilityReport, ...]:
        """Of each data set, what the stage asks of it when it draws `windows` in all.

        ValueError names the first active set that no window of any data set can serve, with the numbers.
        """
        together = stage.check(self.counts.sum(axis=0), self.hours.sum(axis=0), windows, among=self._sizes())
        if len(self) == 1:
            return (together,)
        shares = self.shares(stage)
        return tuple(
            stage.asks(counts, hours, windows, shares[:, number], name)
            for number, (name, counts, hours) in enumerate(zip(self.names, self.counts, self.hours))
        )

    def target(self, stage: Stage) -> np.ndarray:
        """float64 [D]: share of the stage's windows that come from each data set."""
        shares = self.shares(stage)
        if stage.mode == "keep":
            return shares[0]
        return stage.distribution() @ shares

    def ratios(self, stage: Stage) -> np.ndarray:
        """float64 [4]: share of the windows on which each condition will be active."""
        if stage.mode != "keep":
            return stage.target(self.hours.sum(axis=0))
        targets = [stage.target(hours) * share for hours, share in zip(self.hours, self.target(stage)) if share > 0]
        return np.sum(targets, axis=0)

    def _sizes(self) -> str:
        """ "" of one data set; otherwise how many windows each has."""
        if len(self) == 1:
            return ""
        return ", ".join(f"{name} {count}" for name, count in zip(self.names, self.counts.sum(axis=1)))
