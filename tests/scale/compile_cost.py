"""What depth costs to compile: `python -m tests.scale.compile_cost` (or `make compile-cost`) prints lowering,
compilation and size of the whole train step at several depths, as ratios to the first. Times are CPU seconds of the
process: what else runs on the machine does not show.

Blocks are stacked and scanned: the program holds one body a kind of block, whatever the depth.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence

# Nothing may be loaded that is to be timed.
if __name__ == "__main__":
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from omnihuman_jax import sharding
from omnihuman_jax.models.execution import ExecutionConfig
from omnihuman_jax.training import optimizer as optim
from omnihuman_jax.training import train_state
from omnihuman_jax.training.train_step import Controls, place_controls
from omnihuman_jax.typing import ArraySpec
from tests.training import tiny


def lower(depth: int, mesh: sharding.MeshConfig, devices: int | None = None) -> jax.stages.Lowered:
    """The tiny model's step with `depth` dual and as many single blocks, lowered."""
    trainer = tiny.Trainer(
        mesh,
        config=tiny.model_config(dual=depth, single=depth),
        execution=ExecutionConfig(remat="block"),
        devices=jax.devices()[:devices],
    )
    return lower_step(trainer)


def lower_step(trainer: tiny.Trainer) -> jax.stages.Lowered:
    """A trainer's step, lowered without an array, for the devices of its mesh."""
    traced = trace_step(trainer)
    with jax.set_mesh(trainer.mesh):
        return traced.lower()


def trace_step(trainer: tiny.Trainer) -> jax.stages.Traced:
    """A trainer's step, traced without an array."""
    state = train_state.abstract_train_state(trainer.config, trainer.optimizer, trainer.shardings)
    batch = jax.tree.map(ArraySpec.abstract, tiny.packed_shape().arrays(tiny.SEQUENCES), trainer.batch_shardings)
    groups = dict.fromkeys(optim.present_groups(trainer.labels), True)
    controls = place_controls(Controls(learning_rate=1e-3, trainable=groups, stage_start=False, interval_start=False))
    with jax.set_mesh(trainer.mesh):
        return trainer.step_fn.trace(state, batch, controls)


def instructions(text: str) -> int:
    """Lines of a program that compute something."""
    return sum(" = " in line for line in text.splitlines())


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 8, 32], metavar="N")
    options = parser.parse_args(argv)
    lower(1, sharding.MeshConfig(), 1)  # what is traced once a process
    first: tuple[float, float] | None = None
    print(f"{'layers':>8} {'lowering':>9} {'compile':>9} {'instructions':>13}   (CPU time relative to the first row)")
    for depth in options.depths:
        start = time.process_time()
        lowered = lower(depth, sharding.MeshConfig(), 1)
        middle = time.process_time()
        text = lowered.compile().as_text()
        times = middle - start, time.process_time() - middle
        first = first or times
        print(
            f"{depth:>4} + {depth:<3} {times[0] / first[0]:>8.2f} {times[1] / first[1]:>9.2f} {instructions(text):>13}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
