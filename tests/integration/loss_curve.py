"""Twenty steps of the tiny model on one mesh: the losses, as a line of JSON.
`python -m tests.integration.loss_curve --help`.

Started as a process of its own where a curve takes several; `test_loss_curves.py` runs the others in its own process.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence

import jax

from omnihuman_jax import sharding
from omnihuman_jax.models.execution import ExecutionConfig
from omnihuman_jax.runtime import processes
from omnihuman_jax.training.train_step import StepConfig
from tests import quick_xla
from tests.scale.compile_cost import lower_step
from tests.training import tiny

STEPS = 20


def curve(
    devices: int,
    *,
    mesh: Mapping[str, int] | None = None,
    micro_batches: int = 1,
    offload: str = "none",
    remat: str = "block",
) -> list[float]:
    """Loss of each step. `mesh` are fields of `MeshConfig`; float32, two kinds of blocks."""
    config = tiny.model_config(dual=1, single=1)
    execution = ExecutionConfig(remat=remat)
    trainer = tiny.Trainer(
        sharding.MeshConfig(**(mesh or {})),
        config=config,
        execution=execution,
        step=StepConfig(micro_batches=micro_batches, offload=offload),
        devices=jax.devices()[:devices],
        learning_rate=2e-3,
        warmup_steps=5,
    )
    trainer.step_fn = lower_step(trainer).compile(compiler_options=quick_xla.OPTIONS)
    state, losses = trainer.initial(), []
    for k in range(STEPS):
        state, metrics = trainer.step(state, tiny.some_batch(16 * (k % 4)))
        losses.append(float(metrics["loss"]))
    return losses


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coordinator", required=True)
    parser.add_argument("--num-processes", type=int, required=True)
    parser.add_argument("--process-id", type=int, required=True)
    parser.add_argument("--mesh", type=json.loads, default={}, help='JSON, like {"data": 2, "fsdp": 4}')
    options = parser.parse_args(argv)
    processes.join(options.coordinator, options.num_processes, options.process_id, timeout_s=300)
    losses = curve(jax.device_count(), mesh=options.mesh)
    if options.process_id == 0:
        print(json.dumps(losses))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
