"""Several data sets for one run, each with its weight: the rows of the config, and their catalogs."""

import dataclasses
import math
import os
from collections.abc import Sequence

from omnihuman_jax.data.catalog import Catalog, has_catalog
from omnihuman_jax.data.generations import split_name
from omnihuman_jax.data.joined_catalog import JoinedCatalog
from omnihuman_jax.runtime.locations import check_scheme

MAX_DATASETS = 256


@dataclasses.dataclass(kw_only=True, slots=True)
class WeightedDataset:
    """A data set of a run of several.

    path: folder of `omnihuman encode`, or gs://, s3://; PATH@N for a generation that is not the newest
    weight: of all draws for an active set, this data set's share is its weight in the sum of the weights of those data
        sets that have a window for that active set
    name: what reports and errors call it; "" is the last part of its path
    """

    path: str = ""
    weight: float = 1.0
    name: str = ""

    @property
    def label(self) -> str:
        """The name, or the last part of the path."""
        return self.name or os.path.basename(split_name(self.path)[0].rstrip("/"))


def check_rows(rows: Sequence[WeightedDataset], where: str = "data.datasets") -> None:
    """ValueError, with the row, on a path that is missing, a weight that nothing can be drawn by, or a name used
    twice.
    """
    if len(rows) > MAX_DATASETS:
        raise ValueError(f"{where} has {len(rows)} rows; a run draws from at most {MAX_DATASETS} data sets")
    for number, row in enumerate(rows):
        if not row.path:
            raise ValueError(f"{where}[{number}].path is not set; name the folder that `omnihuman encode` wrote")
        check_scheme(row.path, f"{where}[{number}].path")
        if not (math.isfinite(row.weight) and row.weight > 0):
            raise ValueError(
                f"{where}[{number}].weight of {row.label!r} must be a finite number above 0, not {row.weight:g}; leave"
                " a data set out that is not to be drawn"
            )
    labels = [row.label for row in rows]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"{where}: two data sets are called {twice[0]!r}; give each a `name` of its own")


def load_catalog(rows: Sequence[WeightedDataset]) -> Catalog | JoinedCatalog:
    """The catalog of one data set as it is, or those of several as one; errors as `Catalog.load` has them."""
    if len(rows) == 1:
        return Catalog.load(rows[0].path)
    catalogs = [Catalog.load(row.path) for row in rows]
    return JoinedCatalog([row.label for row in rows], [row.weight for row in rows], catalogs)


def have_catalogs(rows: Sequence[WeightedDataset]) -> bool:
    """Whether there are data sets, each with a catalog."""
    return bool(rows) and all(has_catalog(row.path) for row in rows)
