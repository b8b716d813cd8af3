"""What `omnihuman select` costs on a large table of made-up scores: the table of docs/data.md.

    python -m tests.benchmarks.select_cost table --out runs/table_15m       # once: 15 M clips in 1,875 parts
    python -m tests.benchmarks.select_cost select --table runs/table_15m
    python -m tests.benchmarks.select_cost select --table runs/table_15m --sweep min_lip_sync_confidence=0.2:0.58:0.02
    omnihuman select runs/table_15m --out runs/sets_15m
    python -m tests.benchmarks.select_cost plan --sets runs/sets_15m

`select` is the command in a process of its own: seconds by the clock, CPU seconds of all its threads, and the peak of
its resident set. Videos and clips of the table are all different, and so are their hashes; the scores of 25 parts serve
all in turn. `plan` is what `omnihuman encode` does with sets before it makes its first shard.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.curate.clip_sets import find_sets
from data_pipelines.encode.claim import SetParts
from data_pipelines.encode.clip_encoder import WindowConfig
from data_pipelines.encode.shard_plan import plan_shards
from tests.data_pipelines import made_table


def measure(table: Path, sweep: str) -> None:
    """One row."""
    with tempfile.TemporaryDirectory(dir=table.parent) as folder:
        command = [sys.executable, "-m", "omnihuman_jax.cli", "select", str(table), "--out", f"{folder}/sets"]
        began = time.perf_counter()
        with (Path(folder) / "log").open("w") as log:
            subprocess.run([*command, *(["--sweep", sweep] if sweep else [])], check=True, stdout=log)
        seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        size = sum(path.stat().st_size for path in (Path(folder) / "sets").iterdir())
    load = os.getloadavg()[0]
    print(
        f"| {sweep or '-'} | {seconds:.1f} | {used.ru_utime + used.ru_stime:.1f} | {used.ru_maxrss / 1024:.0f} |"
        f" {size / 2**20:.0f} | {load:.1f} |"
    )


def measure_plan(sets: Path) -> None:
    """One line, of this process."""
    began = time.process_time()
    parts = SetParts(find_sets(sets), None)
    tasks = plan_shards(parts.all(), WindowConfig(frames=(129,)), channels=16, shard_bytes=256 * 2**20)
    seconds, peak = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    windows = sum(task.windows for task in tasks)
    print(
        f"{len(tasks):,} shards, {windows:,} windows: {seconds:.1f} CPU s, {1e6 * seconds / windows:.0f} us a window,"
        f" {peak:.0f} MiB"
    )


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "select", "plan"))
    parser.add_argument("--out", type=Path, default=Path("runs/table"), help="of `table`")
    parser.add_argument("--parts", type=int, default=1875, help="of `table`; a thousand videos of eight clips each")
    parser.add_argument("--table", type=Path, default=Path("runs/table"), help="of `select`")
    parser.add_argument("--sweep", default="", help="of `select`")
    parser.add_argument("--sets", type=Path, default=Path("runs/sets"), help="of `plan`")
    options = parser.parse_args(argv)
    if options.what == "table":
        made_table.write(options.out, parts=options.parts, videos=1000, clips=8, scored=25, hashed=True)
        return 0
    if options.what == "plan":
        measure_plan(options.sets)
        return 0
    print("| sweep | s | CPU s | peak MiB | sets MiB | load |\n|---|---|---|---|---|---|", flush=True)
    measure(options.table, options.sweep)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
