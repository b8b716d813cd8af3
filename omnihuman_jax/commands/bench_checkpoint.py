"""What checkpoints cost here: how long a save keeps the training waiting, and how fast it writes beside the disk's own
speed.

    omnihuman --simulate-devices 4 bench-checkpoint --out runs/bench --gib 1

A state of random numbers of that size is saved through the trainer's own checkpoints while steps go on that keep the
host idle, as an accelerator's do. The disk's own speed is that of plain files, written by as many threads and synced,
before and after, in the same folder. Nothing is left behind.
"""

import argparse
import concurrent.futures
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from omnihuman_jax import sharding
from omnihuman_jax.checkpoint.checkpoints import open_checkpoints
from omnihuman_jax.checkpoint.parts import size_bytes
from omnihuman_jax.checkpoint.record import RunRecord
from omnihuman_jax.checkpoint.writer import CheckpointConfig
from omnihuman_jax.plain_values import check_finite
from omnihuman_jax.runtime.locations import local
from omnihuman_jax.training.train_state import Counters, TrainState

LEAVES = 8  # a part; stacked blocks make few and large ones
WRITERS = 4


def raw_speed(folder: Path, nbytes: int) -> float:
    """Bytes a second of plain files of `nbytes` in all, synced."""
    block = os.urandom(1 << 24)

    def write(index: int) -> None:
        with (folder / f"raw-{index}").open("wb", buffering=0) as file:
            for _ in range(max(1, nbytes // WRITERS // len(block))):
                file.write(block)
            os.fsync(file.fileno())

    folder.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, range(WRITERS)))
    seconds = time.monotonic() - begin
    written = sum(path.stat().st_size for path in folder.glob("raw-*"))
    for path in folder.glob("raw-*"):
        path.unlink()
    return written / seconds


def make_state(nbytes: int) -> TrainState:
    """Parameters, average and two moments of float32, a quarter of `nbytes` each, split over all devices."""
    mesh = sharding.create_mesh(sharding.MeshConfig(data=1, fsdp=jax.device_count()))
    rows = max(1, nbytes // 4 // 4 // LEAVES // 1024 // jax.device_count()) * jax.device_count()
    split, whole = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())

    def make(key: jax.Array) -> TrainState:
        def tree(part: int) -> dict[str, jax.Array]:
            keys = jax.random.split(jax.random.fold_in(key, part), LEAVES)
            return {f"w{i}": jax.random.normal(keys[i], (rows, 1024)) for i in range(LEAVES)}

        moments = optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=tree(2), nu=tree(3))
        return TrainState(params=tree(0), ema=tree(1), opt_state=moments, step=jnp.int32(0), counters=Counters.zeros())

    shapes = jax.eval_shape(make, jax.random.key(0))
    places = jax.tree.map(lambda leaf: split if leaf.ndim == 2 else whole, shapes)
    return jax.jit(make, out_shardings=places)(jax.random.key(0))


def measure(out: Path, *, gib: float, saves: int, step_s: float, interval: int) -> dict[str, Any]:
    """The figures; `out` gets a folder that is removed again."""
    state = make_state(int(gib * (1 << 30)))
    nbytes, folder = size_bytes(state), out / f"bench-checkpoint-{os.getpid()}"
    advance = jax.jit(lambda old: old._replace(step=old.step + 1), donate_argnums=0)
    stalls: list[float] = []
    rates: list[float] = []
    try:
        before = raw_speed(folder, nbytes)
        with open_checkpoints(folder / "checkpoints", CheckpointConfig(keep=1)) as checkpoints:
            for save in range(saves + 1):
                state = advance(state)
                jax.block_until_ready(state)
                checkpoints.save(state, RunRecord(config={}, fingerprint="", step=save + 1))
                stall = checkpoints.take_stall()
                while not checkpoints.writer.is_idle:
                    time.sleep(step_s)  # the host waits for the devices
                    state = advance(state)
                if not checkpoints.wait():
                    raise OSError(f"{folder} could not be written")
                if save:  # the first compiles the fingerprint
                    stalls.append(stall)
                    rates.append(checkpoints.writer.last_save["bytes"] / checkpoints.writer.last_save["seconds"])
        after = raw_speed(folder, nbytes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    raw, rate, stall = (before + after) / 2, statistics.median(rates), statistics.median(stalls)
    return {
        "state_bytes": nbytes,
        "devices": jax.device_count(),
        "saves": saves,
        "stall_s": stall,
        "stall_share": stall / (interval * step_s),
        "interval": interval,
        "step_s": step_s,
        "write_bytes_per_s": rate,
        "raw_bytes_per_s": [before, after],
        "write_share_of_raw": rate / raw,
    }


def main(argv: Sequence[str]) -> int:
    """`omnihuman bench-checkpoint`."""
    parser = argparse.ArgumentParser(
        prog="omnihuman bench-checkpoint", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, type=local, metavar="DIR", help="folder on the disk to measure")
    parser.add_argument("--gib", type=float, default=1.0, help="size of the state (default 1)")
    parser.add_argument(
        "--saves",
        type=int,
        default=3,
        metavar="N",
        help="number of measured saves, after one that compiles (default 3)",
    )
    parser.add_argument(
        "--step-s",
        type=float,
        default=1.0,
        metavar="S",
        help="seconds that a simulated training step takes (default 1)",
    )
    parser.add_argument(
        "--interval",
        type=int,
        default=100,
        metavar="N",
        help="steps between saves; sets the share of time lost (default 100)",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(list(argv))
    check_finite({"--gib": options.gib, "--step-s": options.step_s})
    if options.gib <= 0 or options.saves < 1 or options.step_s <= 0 or options.interval < 1:
        raise ValueError("bench-checkpoint: --gib and --step-s must be above 0, --saves and --interval at least 1")
    figures = measure(
        options.out, gib=options.gib, saves=options.saves, step_s=options.step_s, interval=options.interval
    )
    if options.json:
        print(json.dumps(figures))
        return 0
    print(
        f"state of {figures['state_bytes'] / 1e9:.2f} GB on {figures['devices']} devices, median of {figures['saves']}"
        f" saves\na save keeps the training waiting {figures['stall_s']:.3f} s: {100 * figures['stall_share']:.2f} % of"
        f" {options.interval} steps of {options.step_s:g} s\nit writes {figures['write_bytes_per_s'] / 1e6:.0f} MB/s,"
        f" from its start to its manifest; the disk's own speed is {figures['raw_bytes_per_s'][0] / 1e6:.0f} and"
        f" {figures['raw_bytes_per_s'][1] / 1e6:.0f} MB/s: {100 * figures['write_share_of_raw']:.0f} %"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
