"""The records of several data sets, asked for as those of one; and whether they can be trained on together."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.identity import changed_features, features_of
from omnihuman_jax.data.joined_catalog import RECORD_BITS, JoinedCatalog
from omnihuman_jax.data.record_source import RecordSource, open_records
from omnihuman_jax.data.records import DatasetSpec, WindowRecord
from omnihuman_jax.data.shard_cache import CacheUse
from omnihuman_jax.data.weighted_datasets import WeightedDataset, load_catalog


class JoinedRecords:
    """What the pipeline asks of a `RecordSource`; an index is `JoinedCatalog.record_of`. Thread-safe.

    spec: of all; its `records_sha256` is of theirs, in order.
    """

    def __init__(self, names: Sequence[str], sources: Sequence[RecordSource]):
        """ValueError, with the data sets and what differs, unless one model can be trained on all."""
        self.names, self.sources = tuple(names), tuple(sources)
        self.spec = joined_spec(names, [source.spec for source in sources])

    def __getitem__(self, index: int) -> WindowRecord | None:
        """As `RecordSource` has it."""
        source, own = self._place(index)
        return source[own]

    def locate(self, index: int) -> tuple[Path, int]:
        """The folder of the record's data set, and its index in it."""
        source, own = self._place(index)
        return source.locate(own)

    def covers(self, catalog: JoinedCatalog) -> None:
        """As `RecordSource.covers` has it, of each data set."""
        for source, part in zip(self.sources, catalog.parts, strict=True):
            source.covers(part)

    @property
    def unreadable(self) -> dict[int, str]:
        """Index -> why, of all."""
        return {
            number << RECORD_BITS | index: why
            for number, source in enumerate(self.sources)
            for index, why in dict(source.unreadable).items()
        }

    @property
    def cache_use(self) -> CacheUse | None:
        """Of all that lie in a bucket together; None where none does."""
        uses = [use for source in self.sources if (use := source.cache_use) is not None]
        if not uses:
            return None
        names = [field.name for field in dataclasses.fields(CacheUse)]
        return CacheUse(**{name: sum(getattr(use, name) for use in uses) for name in names})

    def _place(self, index: int) -> tuple[RecordSource, int]:
        return self.sources[index >> RECORD_BITS], index & (1 << RECORD_BITS) - 1


Records = RecordSource | JoinedRecords


def joined_spec(names: Sequence[str], specs: Sequence[DatasetSpec]) -> DatasetSpec:
    """The spec of data sets that are trained on together; ValueError where their features are not the same."""
    if len(specs) == 1:
        return specs[0]
    first = features_of(specs[0]) | {"records_sha256": ""}
    for name, spec in zip(names[1:], specs[1:]):
        if changed := changed_features(first, features_of(spec)):
            raise ValueError(
                f"data sets {names[0]!r} and {name!r} cannot be trained on together: {'; '.join(changed)}; encode both"
                " with the same codec, encoders and options"
            )
    sums = [spec.records_sha256 for spec in specs]
    together = hashlib.sha256("\n".join(sums).encode()).hexdigest() if all(sums) else ""
    return dataclasses.replace(specs[0], records_sha256=together)


def load_spec(rows: Sequence[WeightedDataset]) -> DatasetSpec:
    """The spec of the data sets of a run; errors as `DatasetSpec.load` and `joined_spec` have them."""
    return joined_spec([row.label for row in rows], [DatasetSpec.load(row.path) for row in rows])


def open_datasets(
    rows: Sequence[WeightedDataset], *, retries: int = 6, delay_s: float = 1.0
) -> tuple[Records, Catalog | JoinedCatalog]:
    """Records and catalog of the data sets of a run, one or several."""
    sources = [open_records(row.path, retries=retries, delay_s=delay_s) for row in rows]
    if len(rows) == 1:
        return sources[0], load_catalog(rows)
    return JoinedRecords([row.label for row in rows], sources), load_catalog(rows)
