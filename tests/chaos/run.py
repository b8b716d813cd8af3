"""Chaos: real training jobs, struck at random moments, that have to end with the bits of a run that nobody touched.

    python -m tests.chaos.run --faults 30            # what `make chaos` runs
    python -m tests.chaos.run --faults 6 --bucket    # with the checkpoints in a GCS server

Each run is a job of real processes under the launcher's own restart rule (`launch/local.py`), on a dataset with a
corrupt record and one that is not finite; each of its attempts is struck by one fault. Its last checkpoint, every array
of it, is compared with that of an undisturbed run on the same number of processes. A restart on another number of
processes adds gradients in another
order: there the state must be restored as it was saved (the trainer checks its fingerprint) and the losses of the next
20 steps agree within 1e-5.
"""

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from omnihuman_jax.runtime.incidents import read_lines
from omnihuman_jax.runtime.progress import progress_bar
from omnihuman_jax.telemetry.goodput import read_goodput
from tests.chaos import faults, page
from tests.chaos.faults import Fault
from tests.chaos.trial import INTERVAL, STEPS, Trial, write_dataset
from tests.storage import servers

PER_RUN = 5
_NO_FULL_DISK = "that needs a file system of its own, and root to mount it"


def plan_faults(count: int, rng: random.Random) -> list[list[Fault]]:
    """`count` faults in runs of `PER_RUN`, every kind about equally often, at random steps and ranks."""
    kinds = [faults.KINDS[i % len(faults.KINDS)] for i in range(count)]
    rng.shuffle(kinds)
    runs = [kinds[i : i + PER_RUN] for i in range(0, count, PER_RUN)]
    planned = []
    for run in runs:
        # The first strikes after a checkpoint, so that there is something to go back to; each of the others a few steps
        # on.
        at, row = INTERVAL, []
        for kind in _in_order(run):
            at += rng.randint(2, (STEPS - 2 * INTERVAL) // len(run))
            row.append(Fault(kind=kind, step=at, rank=rng.randrange(4), delay_s=rng.uniform(0, 0.5)))
        planned.append(row)
    return planned


def _in_order(kinds: list[str]) -> list[str]:
    """Those that strike a resumed attempt before its first step come right after one that ends an attempt."""
    early = [kind for kind in kinds if kind in faults.EARLY]
    others = [kind for kind in kinds if kind not in faults.EARLY]
    first = next((index for index, kind in enumerate(others) if kind != faults.DISK_FULL), None)
    if first is None:
        return [*others, *[faults.TERMINATE for _ in early]]
    return [*others[: first + 1], *early, *others[first + 1 :]]


def check(trial: Trial, reference: Trial) -> list[str]:
    """What is wrong with a finished trial; nothing, one hopes."""
    wrong = []
    exact = not any(fault.kind == faults.PROCESSES for fault in trial.plan)
    if exact:
        different = [
            name for name, array in reference.arrays.items() if trial.arrays[name].tobytes() != array.tobytes()
        ]
        if trial.arrays.keys() != reference.arrays.keys() or different:
            wrong.append(f"{len(different)} arrays differ from the undisturbed run's, {different[:2]}")
    else:
        switch = next(fault for fault in trial.plan if fault.kind == faults.PROCESSES)
        ours, theirs = trial.losses(), reference.losses()
        begun = switch.resumed or 0
        pairs = [(ours[step], theirs[step]) for step in range(begun + 1, min(begun + 20, STEPS) + 1)]
        worst = max((abs(a - b) / max(abs(b), 1e-9) for a, b in pairs if a == a and b == b), default=float("inf"))
        if worst > 1e-5:
            wrong.append(f"losses of the 20 steps after the switch differ by {worst:.1e}")
    for fault in trial.plan:
        if not (fault.struck and fault.detected and fault.recovered):
            wrong.append(
                f"{fault.kind} at step {fault.step}: struck {fault.struck:.0f}, recovered {fault.recovered:.0f}"
            )
        elif fault.restarts and (fault.resumed is None or fault.resumed < fault.newest):
            wrong.append(
                f"{fault.kind}: went on from step {fault.resumed}, the newest whole checkpoint was {fault.newest}"
            )
    rejected = sum(line["incident"] == "checkpoint_rejected" for line in read_lines(trial.run / "incidents.jsonl"))
    if rejected < sum(fault.kind in (faults.TRUNCATE, faults.FLIP) for fault in trial.plan):
        wrong.append("a damaged checkpoint was not noticed")
    if not (trial.run / "quarantine.jsonl").exists() or not (trial.run / "nonfinite.jsonl").exists():
        wrong.append(
            "the corrupt record or the batch that is not finite left no trace: the data faults were not planted"
        )
    return wrong


def table(trials: list[Trial], seconds: float, no_full_disk: str = _NO_FULL_DISK) -> str:
    """The page's section: a row a kind; `no_full_disk` says why none of them was a full disk."""
    done = [fault for trial in trials for fault in trial.plan]
    counts = " and ".join(str(count) for count in sorted({trial.processes for trial in trials}))
    lines = [
        f"{len(done)} faults in {len(trials)} runs of {STEPS} steps with a checkpoint every {INTERVAL}, on "
        f"{counts} processes, in {seconds / 60:.0f} minutes;",
        "in every run a record is corrupt and one is not finite. Seconds: median (largest).",
        "",
        "| fault | times | exit codes seen | detected after s | trained on after s | steps repeated | recovered |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in (*faults.KINDS, faults.PROCESSES):
        rows = [fault for fault in done if fault.kind == kind]
        if not rows:
            continue
        detected = [fault.detected - fault.struck for fault in rows if fault.detected]
        recovered = [fault.recovered - fault.struck for fault in rows if fault.recovered]
        repeated = [max(0, fault.reached - (fault.resumed or 0)) for fault in rows if fault.restarts]
        codes = (
            ", ".join(str(code) for code in sorted({code for fault in rows for code in fault.codes}))
            or "none: it goes on"
        )
        lines.append(
            f"| {kind} | {len(rows)} | {codes} | {_both(detected)} | {_both(recovered)} | {_both(repeated, 0)} "
            f"| {len(recovered)} of {len(rows)} |"
        )
    if done and not any(fault.kind == faults.DISK_FULL for fault in done):
        lines += ["", f"No {faults.DISK_FULL}: {no_full_disk}."]
    goodput = [read_goodput(trial.run) for trial in trials]
    share = sum(g.seconds["productive"] for g in goodput) / max(sum(g.wall for g in goodput), 1e-9)
    lines += ["", f"Goodput over all of it (`omnihuman goodput`): {share:.0%}; restarts dominate runs of a minute."]
    return "\n".join(lines)


def _both(values: list[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f} ({max(values):.{digits}f})" if values else "-"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--faults", type=int, default=30, help="how many (%(default)s), and one restart on another process count"
    )
    parser.add_argument("--seed", type=int, default=0, help="of moments, ranks and order (%(default)s)")
    parser.add_argument("--processes", default="2,4", help="the runs take turns with these (%(default)s)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR",
        help="work there, go on there with the runs that are not finished, and leave everything; else in a temporary "
        "folder",
    )  # fmt: skip
    parser.add_argument(
        "--runs", type=int, default=999, metavar="N", help="run at most N of the runs now; with --keep the next start "
        "goes on, and the table is of those that are done",
    )  # fmt: skip
    parser.add_argument(
        "--bucket",
        action="store_true",
        help="checkpoints go to a GCS server that this starts (fake-gcs-server), not to a disk",
    )
    parser.add_argument("--write", action="store_true", help=f"put the table into docs/{page.PAGE.name}")
    options = parser.parse_args(argv)
    if not options.bucket:
        return _strike(options, "")
    with tempfile.TemporaryDirectory() as logs, servers.gcs(Path(logs)) as server:
        os.environ.update(server.environment)
        return _strike(options, f"{server.bucket}/chaos")


def _strike(options: argparse.Namespace, bucket: str) -> int:
    """All of it; the exit code."""
    rng = random.Random(options.seed)
    counts = [int(part) for part in options.processes.split(",")]
    work = options.keep or Path(tempfile.mkdtemp(prefix="chaos-"))
    work.mkdir(parents=True, exist_ok=True)
    dataset, cache = work / "dataset", work / "cache"
    if not dataset.exists():
        write_dataset(dataset)
    rows = [(counts[i % len(counts)], row) for i, row in enumerate(plan_faults(options.faults, rng))]
    if len(counts) > 1:
        rows.append((counts[0], [Fault(kind=faults.PROCESSES, step=2 * INTERVAL + rng.randint(1, 20), rank=0)]))
    references: dict[int, Trial] = {}
    trials, failed, left = [], [], options.runs
    with progress_bar(stays=True) as bar:
        task = bar.add_task("undisturbed runs", total=len(counts) + sum(len(row) for _, row in rows))
        for count in dict.fromkeys(count for count, _ in rows):
            reference = references[count] = Trial(work / f"reference-{count}", dataset, count, [], cache, 0, bucket)
            if reference.finished_before() is None:
                code = reference.execute().code
                if code:
                    print(f"the undisturbed run on {count} processes ended with code {code}", file=sys.stderr)
                    return 1
                reference.keep([])
            bar.advance(task)
        for index, (count, row) in enumerate(rows):
            bar.update(task, description=f"run {index + 1} of {len(rows)}, {count} processes")
            trial = Trial(work / f"run-{index}", dataset, count, row, cache, options.seed + index, bucket)
            wrong = trial.finished_before()
            if wrong is None:
                if left == 0:
                    break
                left -= 1
                code = trial.execute().code
                wrong = check(trial, references[count]) if code == 0 else [f"ended with code {code}"]
                if code == 0:
                    trial.keep(wrong)
            failed += [f"run {index}: {line}; see {trial.run}" for line in wrong]
            trials.append(trial)
            bar.advance(task, len(row))
    seconds = sum(trial.seconds for trial in (*references.values(), *trials))
    text = table(trials, seconds, "a bucket has no end" if bucket else _NO_FULL_DISK)
    print(text)
    if len(trials) < len(rows):
        print(f"these are {len(trials)} of {len(rows)} runs; the same command goes on in {work}")
    if options.write and not failed:
        page.write("chaos in a bucket" if bucket else "chaos", text)
    print("\n".join(failed) if failed else "every run ended with the bits of the undisturbed one")
    if failed:
        print(f"what they left: {work}", file=sys.stderr)
    elif options.keep is None:
        shutil.rmtree(work)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
