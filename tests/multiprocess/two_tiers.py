"""One of two hosts with a disk of its own each: saves in both tiers, loses and damages copies, restarts, and prints
what it got.

    python -m tests.multiprocess.two_tiers INDEX PORT FOLDER

A line of JSON a scenario: its name, the step that was restored (bit for bit, or this process fails) and what was noted.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omnihuman_jax import sharding
from omnihuman_jax.checkpoint.checkpoints import open_checkpoints
from omnihuman_jax.checkpoint.record import DamagedError, RunRecord
from omnihuman_jax.checkpoint.writer import CheckpointConfig
from omnihuman_jax.runtime import processes
from omnihuman_jax.training.train_state import Counters, TrainState

PERSISTENT, LOCAL = 4, 6


def make_state(mesh: Mesh, step: int) -> TrainState:
    rng = np.random.default_rng(step)
    params = {"a": rng.standard_normal((8, 3), np.float32), "b": rng.standard_normal(1 << 12, np.float32)}
    params["b"][:2] = -0.0, np.nan
    moments = optax.ScaleByAdamState(count=np.int32(step), mu=params, nu=jax.tree.map(np.square, params))
    counters = jax.tree.map(lambda leaf: np.asarray(leaf) + step, Counters.zeros())
    state = TrainState(params=params, opt_state=moments, ema=params, step=np.int32(step), counters=counters)

    def place(leaf: np.ndarray) -> jax.Array:
        leaf = np.asarray(leaf)
        split = NamedSharding(mesh, PartitionSpec("fsdp") if leaf.ndim and leaf.shape[0] % 4 == 0 else PartitionSpec())
        return jax.make_array_from_callback(leaf.shape, split, lambda index: leaf[index])

    return jax.tree.map(place, state)


def bits(leaf: jax.Array) -> list[bytes]:
    return [np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards]


def same_bits(ours: TrainState, theirs: TrainState) -> bool:
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(mine.sharding == other.sharding and bits(mine) == bits(other) for mine, other in pairs)


class Run:
    """A run on a mesh, and this host's disk."""

    def __init__(self, folder: Path, mesh: Mesh):
        self.folder, self.mesh = folder, mesh
        self.disk = folder / f"disk-{jax.process_index()}"
        self.config = CheckpointConfig(interval=4, local_directory=str(self.disk), local_interval=2, retries=0)

    def copy(self, step: int = LOCAL) -> Path:
        return next(path for path in self.disk.glob(f"*/{jax.process_index()}/{step}"))

    def save(self, step: int, why: str) -> None:
        with open_checkpoints(self.folder / "checkpoints", self.config, lambda kind, details: None) as checkpoints:
            checkpoints.save(make_state(self.mesh, step), RunRecord(config={}, fingerprint="0", step=step), why)

    def restart(self) -> tuple[int | None, list[str]]:
        noted: list[str] = []
        state = make_state(self.mesh, 0)
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
        )
        with open_checkpoints(
            self.folder / "checkpoints", self.config, lambda kind, details: noted.append(kind)
        ) as checkpoints:
            while (step := checkpoints.choose(abstract)) is not None:
                assert checkpoints.record(step).step == step
                try:
                    restored = checkpoints.restore(step, abstract)
                    break
                except DamagedError as error:
                    checkpoints.reject(step, str(error))
            else:
                return None, noted
        assert same_bits(restored, make_state(self.mesh, step)), f"step {step} is not what was saved"
        return step, noted


def scenarios(run: Run) -> Iterator[tuple[str, tuple[int | None, list[str]]]]:
    second = jax.process_index() == 1

    def damage(shorten: bool) -> None:
        if second:
            file = run.copy() / "shards.bin"
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 8
            file.write_bytes(data[: len(data) // 2] if shorten else data)

    run.save(PERSISTENT, "interval")
    run.save(LOCAL, "local")
    yield "both disks are there", run.restart()
    if second:
        shutil.rmtree(run.disk)
    processes.gather(None)
    yield "one disk is lost", run.restart()
    run.save(LOCAL, "local")
    damage(shorten=False)
    yield "a bit of one copy flipped", run.restart()
    if second and run.mesh.shape["data"] == 1:
        assert list(run.disk.glob(f"*/1/damaged/{LOCAL}-1/why.json")), "the evidence is gone"
    run.save(LOCAL, "local")
    damage(shorten=True)
    yield "one copy is cut short", run.restart()
    if second:
        shutil.rmtree(run.disk)
        run.disk.write_text("")
    processes.gather(None)
    run.save(LOCAL, "local")
    yield "one disk is broken", run.restart()
    if second:
        run.disk.unlink()
    processes.gather(None)
    run.save(LOCAL, "local")
    if not second:
        next((run.folder / "checkpoints" / str(PERSISTENT) / "params").rglob("d/*")).write_bytes(b"")
    processes.gather(None)
    yield "the checkpoint is damaged", run.restart()


def main(index: int, port: int, folder: Path) -> None:
    processes.join(f"127.0.0.1:{port}", 2, index, timeout_s=60, heartbeat_s=30, shutdown_s=10)
    # A host holds all of the state, or half of it.
    for name, ways in {"replicated": (2, 2), "split": (1, 4)}.items():
        mesh = sharding.create_mesh(sharding.MeshConfig(data=ways[0], fsdp=ways[1]))
        for scenario, (step, noted) in scenarios(Run(folder / name, mesh)):
            print(json.dumps([name, scenario, step, sorted(set(noted))]), flush=True)
    processes.leave(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
