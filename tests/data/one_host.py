"""One host of several, a process of its own: the sha256 of every array of its sequences, step by step, as JSON.

python -m tests.data.one_host DATASET[,DATASET] INDEX COUNT
"""

import dataclasses
import hashlib
import json
import sys

from omnihuman_jax.data.joined_records import open_datasets
from omnihuman_jax.data.pipeline import make_loader
from omnihuman_jax.data.plan import Plan
from omnihuman_jax.data.weighted_datasets import WeightedDataset
from omnihuman_jax.stages import Stage, StageSchedule
from tests.data import synthetic

STEPS = 200
SCHEDULE = StageSchedule(
    rows=(Stage(name="audio", steps=90, audio=0.5), Stage(name="pose", steps=STEPS - 90, audio=0.5, pose=0.25))
)


def main(dataset: str, index: int, count: int) -> None:
    """Prints {"sums": [a step: {array: [a sequence: sha256]}], "placeholders": {window id: times}}."""
    config = synthetic.plan_config(sequences_per_step=8, chunk_steps=16)
    rows = [WeightedDataset(path=path, weight=1.0 + n) for n, path in enumerate(dataset.split(","))]
    records, catalog = open_datasets(rows)
    plan = Plan(catalog, SCHEDULE, config, seed=11)
    loader = make_loader(plan, records, records.spec, synthetic.shape(config), index, count, read_threads=2)
    sums = [
        {
            field.name: [hashlib.sha256(sequence).hexdigest()[:20] for sequence in getattr(batch, field.name)]
            for field in dataclasses.fields(batch)
        }
        for batch in loader
    ]
    print(json.dumps({"sums": sums, "placeholders": loader.placeholders}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
