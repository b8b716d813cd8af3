"""What the catalog and the plan cost, and how even a step's work is: the tables of docs/dataset.md and docs/scale.md.

    python -m tests.benchmarks.data_plan catalog --rows 15000000 --out runs/catalog_15m     # once
    python -m tests.benchmarks.data_plan cost --catalog runs/catalog_15m --steps 0,1000000
    python -m tests.benchmarks.data_plan cost --catalog runs/catalog_a,runs/catalog_b    # two data sets, equal weights
    python -m tests.benchmarks.data_plan work --catalog runs/catalog_15m
    python -m tests.benchmarks.data_plan packing --catalog runs/catalog_15m

CPU seconds are of the process, all its threads; memory is the peak of its resident set.
"""

import argparse
import dataclasses
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np

from omnihuman_jax.conditions import ConditionSet
from omnihuman_jax.config import ExperimentConfig, load_config, planned_shape
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.equal_work import work_of
from omnihuman_jax.data.plan import Plan, PlanConfig, demands
from omnihuman_jax.data.weighted_datasets import WeightedDataset, load_catalog
from omnihuman_jax.models import flops
from omnihuman_jax.stages import paper_stages
from omnihuman_jax.typing import FPS, SPATIAL_STRIDE

# [D] As in `omnihuman packing`: frames -> share, (height, width) in pixels -> share; then eligible sets -> share.
FRAMES = {1: 0.15, 25: 0.30, 49: 0.30, 77: 0.25}
SIZES = {(480, 832): 0.35, (832, 480): 0.35, (624, 624): 0.15, (320, 576): 0.15}
EIGHT_WINDOWS = 188_416  # tokens of about eight mean windows
ELIGIBLE = {
    (): 0.02,
    ("text",): 0.08,
    ("text", "reference"): 0.50,
    ("text", "reference", "audio"): 0.18,
    ("text", "reference", "pose"): 0.10,
    ("text", "reference", "audio", "pose"): 0.12,
}


def make_catalog(rows: int, out: str) -> None:
    """Writes a catalog of the mix above."""
    import pyarrow
    import pyarrow.compute

    rng = np.random.default_rng(0)
    frames = rng.choice(list(FRAMES), rows, p=list(FRAMES.values()))
    height, width = np.asarray(list(SIZES))[rng.choice(len(SIZES), rows, p=list(SIZES.values()))].T
    bits = np.asarray([ConditionSet.from_labels(labels).bits for labels in ELIGIBLE])
    eligible = bits[rng.choice(len(bits), rows, p=list(ELIGIBLE.values()))]
    number = np.arange(rows)
    Catalog(
        window_id=pyarrow.compute.cast(pyarrow.array(number), pyarrow.large_string()),
        clip_id=pyarrow.compute.cast(pyarrow.array(number // 8), pyarrow.large_string()),
        split=pyarrow.DictionaryArray.from_arrays(np.zeros(rows, np.int8), ["train"]).cast(pyarrow.string()),
        record=number,
        start_frame=number % 8 * 77,
        latent_frames=1 + (frames - 1) // 4,
        latent_height=height // SPATIAL_STRIDE,
        latent_width=width // SPATIAL_STRIDE,
        height=height,
        width=width,
        text_tokens=rng.integers(24, 129, rows),
        num_references=np.ones(rows, np.int8),
        duration_s=frames / FPS,
        eligible=np.where(frames > 1, eligible, eligible & 3),
        empty_text_tokens=2,
    ).save(out)


def measure(catalog: str, step: int) -> None:
    """One line: what a process pays that starts at `step` of the pose stage."""
    imported = time.process_time()
    folders = catalog.split(",")
    table = load_catalog([WeightedDataset(path=path, name=f"{i}") for i, path in enumerate(folders)])
    loaded = time.process_time()
    plan = Plan(table, paper_stages(steps=(20_000, 20_000, 1_500_000)), large_plan(), seed=0)
    planned = time.process_time()
    plan.batch(40_000 + step)
    first = time.process_time()
    peak_first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    slowest, begin = 0.0, time.process_time()
    for k in range(1, 641):
        before = time.process_time()
        plan.batch(40_000 + step + k)
        slowest = max(slowest, time.process_time() - before)
    each = (time.process_time() - begin) / 640
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    windows = len(plan.batch(40_000 + step).windows)
    begin = time.process_time()
    plan.fingerprint()
    print(
        f"| {step:,} | {windows} | {imported:.1f} | {loaded - imported:.2f} | {planned - loaded:.2f} |"
        f" {first - planned:.2f} |"
        f" {first:.1f} | {peak_first:.0f} | {1000 * each:.1f} | {slowest:.2f} | {peak:.0f} |"
        f" {1000 * (time.process_time() - begin):.1f} |"
    )


def large_plan(latent_tokens: int = 73_728) -> PlanConfig:
    """256 sequences a step, which hold a little more than 3 windows of the mix each."""
    return PlanConfig(
        sequences_per_step=256,
        latent_tokens=latent_tokens,
        text_tokens=2048,
        windows=32,
        latent_frames=384,
        frames=2048,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """(largest - smallest) / mean of the data groups' predicted FLOPs in a step: mean, 99 % and worst over steps; and
    what waiting for the heaviest costs, largest / mean - 1, on average.
    """

    mean: float
    p99: float
    worst: float
    wait: float

    @classmethod
    def of(cls, flops_SD: np.ndarray) -> "Spread":
        mean = flops_SD.mean(axis=1)
        spread = (flops_SD.max(axis=1) - flops_SD.min(axis=1)) / mean
        wait = float((flops_SD.max(axis=1) / mean - 1).mean())
        return cls(mean=spread.mean(), p99=float(np.quantile(spread, 0.99)), worst=spread.max(), wait=wait)

    def __str__(self) -> str:
        return " | ".join(f"{value:.1%}" for value in (self.mean, self.p99, self.worst, self.wait))


def sequence_flops(config: ExperimentConfig, plan: Plan, steps: Sequence[int]) -> np.ndarray:
    """float64 [S, B]: predicted FLOPs of a forward pass over each sequence, attention within its windows only."""
    shape = planned_shape(config)
    joint = flops.joint_attention_flops(config.model, shape)
    rest = flops.forward_flops(config.model, shape) - joint
    length = shape.latent_tokens + shape.text_tokens
    work = np.zeros((len(steps), plan.config.sequences_per_step))
    for number, step in enumerate(steps):
        batch = plan.batch(step)
        row = np.asarray([window.row for window in batch.windows])
        active = np.asarray([window.active.bits for window in batch.windows])
        of_sequence = np.repeat(np.arange(len(batch.sequences)), [len(sequence) for sequence in batch.sequences])
        pairs = work_of(demands(plan.catalog, plan.config, row, active))
        work[number] = np.bincount(of_sequence, pairs, len(batch.sequences))
    return rest + joint * work / length**2


def work_table(
    config_file: str, catalog: Catalog, steps: int, groups: Sequence[int], latent_tokens: int | None = None
) -> None:
    """Rows of the table: each number of data groups, sequences in a random order and in the plan's; with
    `latent_tokens`, of sequences of that length instead of the config's.
    """
    config = load_config(config_file)
    if latent_tokens:
        config.data.plan = large_plan(latent_tokens)
    plan = Plan(catalog, config.stages, config.data.plan, config.seed)
    first, last = config.stages.starts[-1], config.stages.total_steps
    label = f"{config.name}, {config.data.plan.latent_tokens:,}"
    found = sequence_flops(config, plan, range(first, min(first + steps, last)))
    order = np.random.default_rng(0).permuted(np.tile(np.arange(found.shape[1]), (len(found), 1)), axis=1)
    for count in groups:
        for name, sequences in (("random", np.take_along_axis(found, order, axis=1)), ("the plan's", found)):
            spread = Spread.of(sequences.reshape(len(found), count, -1).sum(axis=2))
            print(f"| {label} | {count} | {found.shape[1] // count} | {name} | {spread} |", flush=True)


def packing_table(catalog: Catalog) -> None:
    """How full sequences of about 8 mean windows are, of small and of large steps."""
    print("| sequences a step | tokens | stage | windows a sequence | fill | skipped | largest error of a ratio |")
    print("|---|---|---|---|---|---|---|")
    for sequences in (8, 64, 256):
        config = dataclasses.replace(large_plan(EIGHT_WINDOWS), sequences_per_step=sequences)
        plan = Plan(catalog, paper_stages(steps=10_000), config, seed=0)
        for report in plan.report(max_chunks=4):
            windows = report.windows / report.steps / sequences
            error = 100 * np.abs(report.realised - report.target).max()
            print(
                f"| {sequences} | {config.latent_tokens:,} | {report.name} | {windows:.1f} |"
                f" {report.fill['latent_tokens']:.2%} | {report.skipped:.2%} | {error:.2f} points |",
                flush=True,
            )


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("catalog", "cost", "measure", "work", "packing"))
    parser.add_argument("--rows", type=int, default=15_000_000)
    parser.add_argument("--out", default="runs/catalog")
    parser.add_argument("--catalog", default="runs/catalog", help="folder; of `cost`, several with commas")
    parser.add_argument("--steps", default="0,1000000", help="of `cost`: where a process starts")
    parser.add_argument("--demo", default="", help="of `work`: the demo's dataset, to be measured beside it")
    options = parser.parse_args(argv)
    if options.what == "catalog":
        make_catalog(options.rows, options.out)
    elif options.what == "measure":
        measure(options.catalog, int(options.steps))
    elif options.what == "cost":
        print("| from step | windows a step | import | load | plan | batch | to the first batch CPU s | peak MiB |"
              " then ms a batch | slowest s | peak MiB | fingerprint ms |")  # fmt: skip
        print("|---|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
        for step in options.steps.split(","):
            again = [sys.executable, "-m", "tests.benchmarks.data_plan", "measure", "--catalog", options.catalog]
            subprocess.run([*again, "--steps", step], check=True)
    elif options.what == "packing":
        packing_table(Catalog.load(options.catalog))
    else:
        print("| plan, tokens a sequence | data groups | sequences each | order | spread, mean | 99 % | worst | wait |")
        print("|---|---|---|---|---|---|---|---|")
        catalog = Catalog.load(options.catalog)
        for config in ("configs/omnihuman_7b.py", "configs/omnihuman_13b.py"):
            work_table(config, catalog, 1000, (16, 32, 64, 128, 256))
        for tokens in (EIGHT_WINDOWS * 5 // 8, EIGHT_WINDOWS):
            work_table("configs/omnihuman_7b.py", catalog, 1000, (32, 64, 128, 256), tokens)
        if options.demo:
            work_table("configs/demo.py", Catalog.load(options.demo), 1000, (2, 4, 8))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
